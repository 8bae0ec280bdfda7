"""OpenCV as the reference: its own Caffe importer and its own layers (cv2.dnn of version 4; 5 has no importer).

OpenCV gets the net as text and bytes, as :class:`~caffe_port.spec.NetSpec` resolved it: TEST phase, in-place tops
renamed so that none is hidden, automatic Splits removed. Fusion and Winograd are off, so that every layer's own top is
available. The net is cut where OpenCV refuses a layer or is known to deviate from Caffe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.formats import prototxt, wire
from caffe_port.formats.caffemodel import blob_message
from caffe_port.formats.message import Message
from caffe_port.formats.unfollowed import is_neutral, rule_of
from caffe_port.signatures.signature import signature_of
from caffe_port.spec import LayerSpec, Producer
from caffe_port.storage.images import quiet
from caffe_port.typing import Array
from caffe_port.verification.references.opencv_schema import KNOWN
from caffe_port.verification.references.reference import Case, Made, Run, Tops, computing

_SEGMENT_BYTES = 64 << 20
"""The maximum size of the tops that one OpenCV net holds at a time: limits the memory for deep nets."""

Check = Callable[[Message, int], str]
"""(LayerParameter, number of bottoms) -> how OpenCV deviates from Caffe; empty if it does not."""


def _when(wrong: Callable[[Message, int], bool], why: str) -> Check:
    return lambda layer, bottoms: why if wrong(layer, bottoms) else ""


def _one_side(layer: Message, _bottoms: int) -> bool:
    """Whether only one of pad_h and pad_w is given."""
    param = layer.pooling_param if layer.has("pooling_param") else layer.convolution_param
    return bool(param.has("pad_h") != param.has("pad_w") and (param.pad_h or param.pad_w))


_ONE_SIDE = _when(_one_side, "OpenCV ignores pad_h without pad_w, and pad_w without pad_h")


def _window_padding(layer: Message, bottoms: int) -> str:
    """How OpenCV deviates in the padding of a Convolution or Pooling."""
    param = layer.pooling_param if layer.has("pooling_param") else layer.convolution_param
    four = any(param.has(name) for name in ("pad_l", "pad_r", "pad_t", "pad_b", "pad_type"))
    return "OpenCV's schema has no padding of four sides" if four else _ONE_SIDE(layer, bottoms)


def _batch_norm(layer: Message, _bottoms: int) -> str:
    p = layer.batch_norm_param
    if p.has("use_global_stats") and not p.use_global_stats:
        return "OpenCV does not compute the statistics of the batch"
    return "OpenCV ignores scale_bias" if p.scale_bias else ""


def _deconvolution(layer: Message, bottoms: int) -> str:
    dilated = any(d != 1 for d in layer.convolution_param.dilation)
    return "OpenCV ignores the dilation of Deconvolution" if dilated else _ONE_SIDE(layer, bottoms)


def _detections_beyond(layer: Message, _bottoms: int) -> str:
    p = layer.detection_output_param
    if p.keep_top_k <= 0:
        return "OpenCV writes beyond its array where keep_top_k does not bound the rows"
    if p.has("nms_param") and (p.has("top_k") or p.has("nms_threshold")):
        return "OpenCV prefers top_k and nms_threshold of the layer to those of its nms_param"
    return ""


def _inner_product(layer: Message, _bottoms: int) -> str:
    p = layer.inner_product_param
    given = [name for name in ("transpose", "normalize") if getattr(p, name)]
    return f"OpenCV ignores {' and '.join(given)} of InnerProduct" if given else ""


def _pooling_window(layer: Message, bottoms: int) -> str:
    p = layer.pooling_param
    kernels = [side for name in ("kernel_size", "kernel_h", "kernel_w") for side in np.ravel(getattr(p, name)) if side]
    strides = [side for name in ("stride", "stride_h", "stride_w") for side in np.ravel(getattr(p, name))]
    if len(layer.top) > 1 and kernels and max(strides) > min(kernels):
        return "OpenCV gives windows beyond the bottom another mask"
    if p.pool == "AVE_EXC_PAD":
        return "OpenCV's schema has no AVE_EXC_PAD"
    return _window_padding(layer, bottoms)


def _prior_box(layer: Message, _bottoms: int) -> str:
    p = layer.prior_box_param
    if not p.has("clip"):
        return "OpenCV clips the boxes of a PriorBox that does not set clip"
    if any(p.has(name) for name in ("img_size", "img_h", "img_w")):
        return "OpenCV ignores img_size, img_h and img_w"
    if any(size != int(size) for size in (*p.min_size, *p.max_size)):
        return "OpenCV keeps the fractions of min_size and max_size, SSD drops them"
    return ""


def _scale(layer: Message, bottoms: int) -> str:
    p = layer.scale_param
    if bottoms > 1 and p.bias_term:
        return "OpenCV ignores the bias of a Scale with two bottoms"
    return "OpenCV reads beyond the blobs of a Scale whose axis is negative" if p.axis < 0 else ""


DEVIATIONS: dict[str, Check] = {
    "Accum": _when(
        lambda p, n: n > 1 or p.accum_param.size_divisible_by > 1,
        "OpenCV neither resizes several bottoms to one size nor rounds the size up to size_divisible_by",
    ),
    "Axpy": _when(lambda *_: True, "OpenCV computes a * y + x, SENet a * x + y"),
    "BatchNorm": _batch_norm,
    "Convolution": _window_padding,
    "ConvolutionDepthwise": _window_padding,
    "Correlation": _when(
        lambda p, _: p.correlation_param.correlation_type != "MULTIPLY",
        "OpenCV ignores correlation_type and multiplies",
    ),
    "DataAugmentation": _when(lambda *_: True, "OpenCV copies what FlowNet's DataAugmentation crops and centers"),
    "Deconvolution": _deconvolution,
    "DetectionOutput": _detections_beyond,
    "HardSigmoid": _when(
        lambda p, _: any(min(own.alpha, own.beta) < 0 for own in (p.hard_sigmoid_param, p.hardsigmoid_param)),
        "OpenCV drops the sign of alpha and beta",
    ),
    "InnerProduct": _inner_product,
    "Interp": _when(
        lambda p, _: bool(p.interp_param.pad_beg or p.interp_param.pad_end or p.interp_param.has("shrink_factor")),
        "OpenCV ignores pad_beg, pad_end and shrink_factor",
    ),
    "LRN": _when(
        lambda p, _: p.lrn_param.k != 1 and p.lrn_param.norm_region == "ACROSS_CHANNELS", "OpenCV ignores k and uses 1"
    ),
    "Log": _when(
        lambda p, _: p.log_param.base != -1 or p.log_param.scale != 1 or p.log_param.shift != 0,
        "OpenCV ignores base, scale and shift of Log",
    ),
    "MVN": _when(
        lambda p, _: abs(p.mvn_param.eps) > 1e-6, "OpenCV adds eps to the variance, Caffe to the standard deviation"
    ),
    "MatMul": _when(
        lambda p, _: p.matmul_param.transpose_a or p.matmul_param.transpose_b, "OpenCV does not transpose for MatMul"
    ),
    "Normalize": _when(lambda p, _: not p.has("norm_param"), "OpenCV has other defaults without norm_param"),
    "Pooling": _pooling_window,
    "PriorBox": _prior_box,
    "PriorBoxClustered": _prior_box,
    "ReLU6": _when(
        lambda p, _: bool(p.relu6_param.items()), "OpenCV clips to 0 and 6, whatever the parameters of ReLU6 are"
    ),
    "Reorg": _when(
        lambda p, _: p.reorg_param.reverse or p.reorg_param.stride != 2, "OpenCV ignores stride and reverse of Reorg"
    ),
    "Proposal": _when(lambda *_: True, "OpenCV ignores min_size of Proposal, and fills up with zeros"),
    "Resample": _when(lambda *_: True, "OpenCV aligns the corners of pixels, FlowNet their centers"),
    "Scale": _scale,
    "Selu": _when(lambda p, _: bool(p.selu_param.items()), "OpenCV ignores the parameters of Selu"),
    "Slice": _when(
        lambda p, _: p.slice_param.slice_dim != 1 and bool(p.slice_param.slice_point),
        "OpenCV ignores slice_dim where there are slice points",
    ),
    "Split": _when(lambda p, _: len(p.top) > 1, "OpenCV computes only the first top of a Split"),
    "Swish": _when(lambda p, _: p.swish_param.beta != 1, "OpenCV ignores beta and uses 1"),
}
"""Known deviations of OpenCV 4 by layer type. benchmarks/opencv_deviations.py measures that these are all."""


@dataclass(frozen=True)
class OpenCVReference:
    """cv2.dnn, layer by layer."""

    @property
    def name(self) -> str:
        return f"OpenCV {_cv2().__version__}"

    def run(self, case: Case) -> Run:
        """Runs the net.

        Raises:
            DependencyError: OpenCV, or its Caffe importer, is not installed.
            CaffePortError: the net is in phase TRAIN, which OpenCV does not support.
        """
        if case.spec.phase != "TEST":
            raise CaffePortError("OpenCV computes the TEST phase only", case.spec.path)
        cv2, name = _cv2(), self.name
        values = case.inputs_by_producer()
        last_read = {s: layer.name for layer in case.spec.layers for s in layer.producers}
        layers = list(computing(case.spec))
        absent: dict[str, str] = {}
        while layers:
            segment, note = _segment(layers, case, absent)
            made: dict[str, Tops] = {}
            while segment and not made:
                try:
                    made = _forward(cv2, case, segment, values)
                except cv2.error as error:
                    note = _refusal(error, segment[0])
                    if len(segment) == 1 and note.startswith("OpenCV has no layer"):
                        absent[segment[0].type] = note
                    segment = segment[: len(segment) // 2]
            done = 0
            for layer in segment or layers[:1]:
                done += 1
                tops: Tops | None = made.get(layer.name)
                if tops is not None and len(tops) < len(layer.tops):
                    note = f"OpenCV computes {len(tops)} of its {len(layer.tops)} tops"
                    tops = None
                instead = yield Made(layer, tops, name, note if tops is None else "")
                for k, top in enumerate(instead or tops or ()):
                    values[layer.name, k] = np.asarray(top)
                for producer in layer.producers:
                    if last_read[producer] == layer.name:
                        values.pop(producer, None)
                if instead is not None:  # those after it have read something else
                    break
            del layers[:done]


def _segment(layers: Sequence[LayerSpec], case: Case, absent: Mapping[str, str]) -> tuple[list[LayerSpec], str]:
    """The layers to run in one OpenCV net; none, with the reason, if OpenCV cannot run the first."""
    segment: list[LayerSpec] = []
    size = 0
    for layer in layers:
        note = deviation(layer) or outside_its_arrays(layer, case) or absent.get(layer.type, "")
        size += 4 * sum(int(np.prod(case.shapes[layer.name, k])) for k in range(len(layer.tops)))
        if note or (segment and size > _SEGMENT_BYTES):
            return segment, note
        segment.append(layer)
        if len(layer.tops) > 1:  # OpenCV reuses the memory of all but a layer's first top for later layers
            return segment, ""
    return segment, ""


def deviation(layer: LayerSpec) -> str:
    """How OpenCV deviates from Caffe in this layer; empty if it does not."""
    check = DEVIATIONS.get(layer.type)
    return (check(layer.param, len(layer.producers)) if check else "") or beyond_its_schema(layer)


_TAKEN = ("ceil_mode", "round_mode", "round_below", "top_k", "nms_threshold")
"""Fields outside its schema that it follows: handed on by name, or translated by :func:`_pooling`."""


def beyond_its_schema(layer: LayerSpec) -> str:
    """A field of a fork that changes the layer, and that OpenCV skips without a word."""
    signature = signature_of(layer.type)
    for message in signature.messages if signature else ():
        own = getattr(layer.param, message) if layer.param.has(message) else None
        if own is None or own.schema is None:  # nothing is set; or a message outside the schema, of a type of its own
            continue
        known = KNOWN.get(own.schema.name, frozenset(own.schema.fields))
        for name, value in own.items():
            if name in known or name in (*_TAKEN, *_WITHOUT_EFFECT) or is_neutral(own.schema.fields[name], value):
                continue
            if rule_of(layer.type, own.schema.name, name) is None:
                return f"OpenCV ignores {name} of {layer.type}"
    return ""


_WINDOWED = ("Convolution", "ConvolutionDepthwise", "Deconvolution", "DepthwiseConvolution", "LRN", "Pooling")


def outside_its_arrays(layer: LayerSpec, case: Case) -> str:
    """Shapes for which OpenCV 4's Caffe importer reads beyond its arrays, and may end the process; empty for others."""
    if layer.type not in _WINDOWED:
        return ""
    shapes, param = [case.shapes[producer] for producer in layer.producers], layer.param.convolution_param
    if any(len(shape) != 4 for shape in shapes) or param.axis != 1:
        return "OpenCV supports windows over (N, C, H, W) only"
    if layer.type == "ConvolutionDepthwise" and any(param.num_output != shape[1] for shape in shapes):
        return "OpenCV reads as many kernels as num_output says, not one for each channel"
    return ""


def _forward(cv2: Any, case: Case, segment: Sequence[LayerSpec], values: Mapping[Producer, Array]) -> dict[str, Tops]:
    """Every layer's tops by layer name. Raises cv2.error."""
    names = [f"layer{i}" for i in range(len(segment))]  # also of the top: OpenCV finds some layers by that
    blob: dict[Producer, str] = {
        (layer.name, k): f"{name}_{k}" if k else name
        for name, layer in zip(names, segment, strict=True)
        for k in range(len(layer.tops))
    }
    fed = list(dict.fromkeys(s for layer in segment for s in layer.producers if s not in blob))
    blob |= {producer: f"in_{i}" for i, producer in enumerate(fed)}
    entries = [_input(blob[producer], values[producer].shape) for producer in fed]
    entries += [_layer(name, layer, blob, case) for name, layer in zip(names, segment, strict=True)]
    stored = [
        Message(
            "LayerParameter",
            name=name,
            type=layer.type,
            blobs=[
                blob_message(np.atleast_1d(b)) for b in case.blobs[layer.name]
            ],  # OpenCV refuses blobs without axes,
        )
        for name, layer in zip(names, segment, strict=True)
        if case.blobs.get(layer.name)
    ]
    buffers = [prototxt.dump(Message("NetParameter", name="net", layer=entries)).encode()]
    if stored:
        buffers.append(b"".join(wire.serialize(Message("NetParameter", name="net", layer=stored))))
    with quiet(cv2):
        net = cv2.dnn.readNetFromCaffe(*(np.frombuffer(buffer, np.uint8) for buffer in buffers))
        net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        net.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
        net.enableFusion(False)
        net.enableWinograd(False)
        for producer in fed:
            net.setInput(np.ascontiguousarray(values[producer], np.float32), blob[producer])
        outputs = net.forwardAndRetrieve(names)
    return {
        layer.name: tuple(
            _detections(top, case.shapes[layer.producers[0]][0])
            if layer.type == "DetectionOutput"
            else _as_caffe(top, case.shapes[layer.name, k])
            for k, top in enumerate(tops[: len(layer.tops)])
        )
        for layer, tops in zip(segment, outputs, strict=True)
    }


def _as_caffe(top: Array, shape: tuple[int, ...]) -> Array:
    """OpenCV's matrices have at least two dimensions; blobs with fewer come back as a column."""
    return top.reshape(shape) if len(shape) < 2 and top.size == int(np.prod(shape)) else top


def _detections(found: Array, images: int) -> Array:
    """The rows in Caffe's order, without the zeros with which OpenCV fills them up to keep_top_k.

    Where nothing was found, Caffe writes a row for each image: its number, and -1 elsewhere.
    """
    rows = found.reshape(-1, 7)
    rows = rows[rows.any(1)]
    if not len(rows):
        rows = np.full((images, 7), -1, np.float32)
        rows[:, 0] = range(images)
    return rows[np.lexsort((-rows[:, 2], rows[:, 1], rows[:, 0]))].reshape(1, 1, -1, 7)


def _input(name: str, shape: tuple[int, ...]) -> Message:
    parameter = Message("InputParameter", shape=[Message("BlobShape", dim=list(shape))])
    return Message("LayerParameter", name=name, type="Input", top=[name], input_param=parameter)


_NOT_ITS_OWN = frozenset(("transform_param", "loss_param"))
_WITHOUT_EFFECT = ("engine", "weight_filler", "bias_filler", "filler", "slope_filler", "scale_filler", "shift_filler")


def _layer(name: str, layer: LayerSpec, blob: Mapping[Producer, str], case: Case) -> Message:
    """The LayerParameter for OpenCV's parser."""
    tops = [blob[layer.name, k] for k in range(len(layer.tops))]
    entry = Message("LayerParameter", name=name, type=layer.type, bottom=[blob[s] for s in layer.producers], top=tops)
    for field, value in layer.param.items():
        if field.endswith("_param") and field not in _NOT_ITS_OWN and isinstance(value, Message):
            own = value.copy(**{f: None for f in _WITHOUT_EFFECT if value.schema and f in value.schema.fields})
            own.unknown = {}
            entry.set(field, own)
    explicit = _EXPLICIT.get(layer.type)
    if explicit:
        explicit(entry, layer, case)
    return entry


def _pooling(entry: Message, _layer: LayerSpec, _case: Case) -> None:
    """OpenCV supports ceil_mode, not round_mode."""
    p = entry.pooling_param
    floor = p.round_mode == "FLOOR" or not p.ceil_mode or p.round_below
    entry.set("pooling_param", p.copy(round_mode=None, round_below=None, ceil_mode=False if floor else None))


def _lrn(entry: Message, _layer: LayerSpec, _case: Case) -> None:
    """OpenCV's defaults differ from Caffe's."""
    p = entry.lrn_param
    explicit = {name: getattr(p, name) for name in ("local_size", "alpha", "beta", "norm_region")}
    entry.set("lrn_param", p.copy(**explicit, k=None))


def _slice(entry: Message, layer: LayerSpec, case: Case) -> None:
    """OpenCV needs explicit slice points."""
    p = entry.slice_param
    if not p.slice_point:
        axis = p.axis if p.has("axis") or not p.has("slice_dim") else p.slice_dim
        side = case.shapes[layer.producers[0]][axis] // len(layer.tops)
        points = [side * k for k in range(1, len(layer.tops))]
        entry.set("slice_param", p.copy(axis=axis, slice_dim=None, slice_point=points))


def _detection_output(entry: Message, _layer: LayerSpec, _case: Case) -> None:
    """OpenCV refuses a layer that leaves one of these open."""
    p = entry.detection_output_param
    explicit = {name: getattr(p, name) for name in ("share_location", "background_label_id", "code_type")}
    entry.set("detection_output_param", p.copy(**explicit))


_EXPLICIT: dict[str, Callable[[Message, LayerSpec, Case], None]] = {
    "DetectionOutput": _detection_output,
    "LRN": _lrn,
    "Pooling": _pooling,
    "Slice": _slice,
}


def _cv2() -> Any:
    try:
        import cv2
    except ImportError:
        raise DependencyError(
            "OpenCV is not installed", hint="pip install 'opencv-python-headless<5', or compare with: --against numpy"
        ) from None
    if not hasattr(getattr(cv2, "dnn", None), "readNetFromCaffe"):
        raise DependencyError(
            f"OpenCV {cv2.__version__} has no Caffe importer",
            hint="pip install 'opencv-python-headless<5', or compare with: --against numpy",
        )
    return cv2


def _refusal(error: Exception, layer: LayerSpec) -> str:
    text = " ".join(str(getattr(error, "err", "") or error).split()).strip("> ")[:160]
    if "Can't create layer" in text:
        return f"OpenCV has no layer {layer.type}"
    return f"OpenCV refuses it: {text or 'no reason given'}"
