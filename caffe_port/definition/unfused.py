"""Layers in the words of forks, put into Caffe's own.

Some do two things at once, and are taken apart: BatchNorm and Scale, Convolution and ReLU. Forks fuse them, in the
definition (``relu: true``, ``scale_bias: true``) or in the file alone: five blobs, or four, of NVIDIA's BatchNorm. The
second layer works in place and is named after the first one: ``bn/scale``, ``conv1/relu``.

DenseNet's DenseBlock is a chain of layers in one: ``block/0/bn``, ``block/0/relu``, ``block/0/conv``,
``block/0/concat``, ``block/1/bn`` and so on.

yjxiong's Gather and Scatter, of programs on several machines, hand on each bottom.

Sources: batch_norm_layer.cpp of NVIDIA/caffe; base_conv_layer.cpp, inner_product_layer.cpp and batch_norm_layer.cpp of
intel/caffe; DenseBlock_layer.cpp and DenseBlock_layer.cu of senlinuc/caffe_ocr; gather_layer.cpp and
scatter_layer.cpp of yjxiong/caffe.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from caffe_port.formats.message import Message
from caffe_port.signatures.signature import signature_of

_STATISTICS = 3
"""Blobs of Caffe's BatchNorm: sum of means, sum of variances, scale factor."""


def unfused(layers: Sequence[Message], held: Collection[str] = ()) -> list[Message]:
    """The layers, with one of its own for each fused Scale and ReLU.

    Args:
        layers: LayerParameters.
        held: names of BatchNorm layers that have a scale and a shift in the weights file.
    """
    result: list[Message] = []
    for layer in layers:
        if layer.type == "DenseBlock" and len(layer.bottom) == len(layer.top) == 1:
            result += _dense_block(layer)
            continue
        if layer.type in ("Gather", "Scatter") and not layer.unknown and len(layer.bottom) == len(layer.top):
            result += _alone(layer)
            continue
        alone, relus = _without_relu(_in_caffes_words(layer))
        result += _split(alone) if _has_scale(alone) or (alone.type == "BatchNorm" and alone.name in held) else [alone]
        result += relus
    return result


def _alone(layer: Message) -> Iterator[Message]:
    """What yjxiong's Caffe collects from several machines, and shares out to them, is what this one has."""
    for k, (bottom, top) in enumerate(zip(layer.bottom, layer.top, strict=True)):
        yield layer.copy(
            type="Split", name=f"{layer.name}/{k}" if k else layer.name, bottom=[bottom], top=[top], propagate_down=None
        )


def _in_caffes_words(layer: Message) -> Message:
    """A layer whose fields make it one of another type, or say what others of Caffe's say."""
    if layer.has("pooling_param"):
        return _rounded(layer)
    if layer.type == "ReLU":
        return _stopped(layer)
    return _shuffled(layer) if layer.type == "Reshape" else layer


def _stopped(layer: Message) -> Message:
    """A ReLU with ``relu6: true`` or a ``maximum`` above 0 is a ReLU6. Source: relu_layer.cpp of synopsys-caffe."""
    p = layer.relu_param
    limits = [6.0] * p.relu6 + [p.maximum] * (p.maximum > 0)
    if not limits:
        return layer.copy(relu_param=_cleared(p, "relu6", "maximum")) if layer.has("relu_param") else layer
    stops = Message("ReLU6Parameter", layer.line)
    if p.negative_slope:
        stops.set("negative_slope", p.negative_slope)
    if min(limits) != 6:
        stops.set("threshold", min(limits))
    stops.unknown = dict(p.unknown)
    own = {"relu6_param": stops} if stops.items() or stops.unknown else {}
    return layer.copy(type="ReLU6", relu_param=None, **own)


def _shuffled(layer: Message) -> Message:
    """A Reshape with ``pixelshuffler`` above 1 is a PixelShuffle. Source: reshape_layer.cpp of synopsys-caffe."""
    p = layer.reshape_param
    if not p.has("pixelshuffler"):
        return layer
    if p.pixelshuffler == 1:
        return layer.copy(reshape_param=_cleared(p, "pixelshuffler"))
    factor = Message("PixelShuffleParameter", layer.line, upscale_factor=p.pixelshuffler)
    factor.unknown = dict(p.unknown)
    return layer.copy(type="PixelShuffle", reshape_param=None, pixelshuffle_param=factor)


def _rounded(layer: Message) -> Message:
    """``torch_pooling: true`` is ``round_mode: FLOOR``, and AVE_TF another name of AVE_EXC_PAD.

    Sources: legacy_pad in Caffe2's caffe_translator.py; caffe.proto of synopsys-caffe.
    """
    p = layer.pooling_param
    if p.pool == "AVE_TF":
        p = p.copy(pool="AVE_EXC_PAD")
        layer = layer.copy(pooling_param=p)
    if not p.has("torch_pooling"):
        return layer
    return layer.copy(pooling_param=p.copy(torch_pooling=None, **({"round_mode": "FLOOR"} if p.torch_pooling else {})))


def _without_relu(layer: Message) -> tuple[Message, list[Message]]:
    """The layer without its fused ReLU, and that ReLU for each of its tops."""
    signature = signature_of(layer.type)
    for name in signature.messages if signature is not None else ():
        p = getattr(layer, name) if layer.has(name) else None
        if p is None or p.schema is None or "relu" not in p.schema.fields or not p.has("relu"):
            continue
        alone = layer.copy(**{name: _cleared(p, "relu", "negative_slope")})
        if not p.relu:
            return alone, []
        slope = Message("ReLUParameter", layer.line)
        if "negative_slope" in p.schema.fields and p.negative_slope:
            slope.set("negative_slope", p.negative_slope)
        names = ["relu"] if len(layer.top) == 1 else [f"relu{k}" for k in range(len(layer.top))]
        return alone, [
            _after(layer, name, top, "ReLU", relu_param=slope) for name, top in zip(names, layer.top, strict=True)
        ]
    return layer, []


def _has_scale(layer: Message) -> bool:
    """Whether a BatchNorm is NVIDIA's, with a scale and a shift: a filler of either says so, too."""
    p = layer.batch_norm_param
    return layer.type == "BatchNorm" and bool(p.scale_bias or p.has("scale_filler") or p.has("bias_filler"))


def _split(layer: Message) -> Iterator[Message]:
    """A BatchNorm, and a Scale for the scale and the shift in it."""
    p = layer.batch_norm_param
    alone = layer.copy(param=list(layer.param[:_STATISTICS]) or None)
    if layer.has("batch_norm_param"):
        alone.set("batch_norm_param", _cleared(p, "scale_bias", "scale_filler", "bias_filler"))
    yield alone
    scale = Message("ScaleParameter", layer.line, bias_term=True)
    for name, own in (("filler", "scale_filler"), ("bias_filler", "bias_filler")):
        if p.has(own):
            scale.set(name, getattr(p, own))
    rest = list(layer.param[_STATISTICS:]) or None
    yield from (_after(layer, "scale", top, "Scale", scale_param=scale, param=rest) for top in layer.top)


def _dense_block(layer: Message) -> Iterator[Message]:
    """Normalization, ReLU and a convolution, whose top is joined to what came before; with ``use_BC`` a narrow
    convolution and another normalization in between. Size, stride and padding are fixed in the fork.
    """
    p, before = layer.denseblock_param, layer.bottom[0]
    for k in range(p.numTransition):
        last = k == p.numTransition - 1
        names = [f"{layer.name}/{k}/{what}" for what in ("bn", "relu", "conv", "dropout", "concat")]
        bn, relu, conv, dropout, concat = names
        yield _inside(layer, bn, "BN", [before], bn, bn_param=_statistics_of(p, layer.line, p if k == 0 else None))
        yield _inside(layer, relu, "ReLU", [bn], bn)
        if p.use_BC:
            narrow, second, again = (f"{layer.name}/{k}/{what}" for what in ("conv1", "bn1", "relu1"))
            yield _inside(layer, narrow, "Convolution", [bn], narrow, convolution_param=_convolution(p, layer.line, 1))
            yield _inside(layer, second, "BN", [narrow], second, bn_param=_statistics_of(p, layer.line))
            yield _inside(layer, again, "ReLU", [second], second)
            bn = second
        yield _inside(layer, conv, "Convolution", [bn], conv, convolution_param=_convolution(p, layer.line, 3))
        if p.use_dropout:
            ratio = Message("DropoutParameter", layer.line, dropout_ratio=p.dropout_amount)
            yield _inside(layer, dropout, "Dropout", [conv], conv, dropout_param=ratio)
        top = layer.top[0] if last else concat
        yield _inside(layer, concat, "Concat", [before, conv], top)
        before = top


def _inside(layer: Message, name: str, type_: str, bottoms: list[str], top: str, **own: Message) -> Message:
    """A layer of a DenseBlock, where that one is included."""
    made = _after(layer, "", top, type_, **own)
    made.set("name", name)
    made.set("bottom", bottoms)
    return made


def _statistics_of(p: Message, line: int, unknown: Message | None = None) -> Message:
    made = Message("BNParameter", line, eps=1e-5, momentum=1 - p.moving_average_fraction)
    for name, own in (("slope_filler", "BN_Scaler_Filler"), ("bias_filler", "BN_Bias_Filler")):
        if p.has(own):
            made.set(name, getattr(p, own))
    if unknown is not None:
        made.unknown = dict(unknown.unknown)
    return made


def _convolution(p: Message, line: int, kernel: int) -> Message:
    outputs = p.growthRate if kernel == 3 else 4 * p.growthRate
    made = Message("ConvolutionParameter", line, num_output=outputs, bias_term=False, kernel_size=[kernel])
    if kernel == 3:
        made.set("pad", [1])
    if p.has("Filter_Filler"):
        made.set("weight_filler", p.Filter_Filler)
    return made


def _cleared(p: Message, *names: str) -> Message:
    assert p.schema is not None
    return p.copy(**{name: None for name in names if name in p.schema.fields})


def _after(layer: Message, name: str, blob: str, type_: str, **more: object) -> Message:
    """A layer that works in place on a top of another, where that one is included."""
    made = Message("LayerParameter", layer.line, name=f"{layer.name}/{name}", type=type_, bottom=[blob], top=[blob])
    for field in ("include", "exclude", "phase"):
        if layer.has(field):
            made.set(field, getattr(layer, field))
    for field, value in more.items():
        made.set(field, value)
    return made
