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
from caffe_port.spec import LayerSpec, Producer
from caffe_port.storage.images import quiet
from caffe_port.typing import Array
from caffe_port.verification.references.reference import Case, Made, Run, Tops, computing

_SEGMENT_BYTES = 64 << 20
"""The maximum size of the tops that one OpenCV net holds at a time: limits the memory for deep nets."""

Check = Callable[[Message, int], str]
"""(LayerParameter, number of bottoms) -> how OpenCV deviates from Caffe; empty if it does not."""


def _when(wrong: Callable[[Message, int], bool], why: str) -> Check:
    return lambda layer, bottoms: why if wrong(layer, bottoms) else ""


DEVIATIONS: dict[str, Check] = {
    "BatchNorm": _when(
        lambda p, _: p.batch_norm_param.has("use_global_stats") and not p.batch_norm_param.use_global_stats,
        "OpenCV does not compute the statistics of the batch",
    ),
    "Deconvolution": _when(
        lambda p, _: any(d != 1 for d in p.convolution_param.dilation), "OpenCV ignores the dilation of Deconvolution"
    ),
    "InnerProduct": _when(lambda p, _: p.inner_product_param.transpose, "OpenCV ignores transpose of InnerProduct"),
    "LRN": _when(
        lambda p, _: p.lrn_param.k != 1 and p.lrn_param.norm_region == "ACROSS_CHANNELS", "OpenCV ignores k and uses 1"
    ),
    "Log": _when(
        lambda p, _: p.log_param.base != -1 or p.log_param.scale != 1 or p.log_param.shift != 0,
        "OpenCV ignores base, scale and shift of Log",
    ),
    "MVN": _when(
        lambda p, _: p.mvn_param.eps > 1e-6, "OpenCV adds eps to the variance, Caffe to the standard deviation"
    ),
    "Proposal": _when(lambda *_: True, "OpenCV ignores min_size of Proposal, and fills up with zeros"),
    "Resample": _when(lambda *_: True, "OpenCV aligns the corners of pixels, FlowNet their centers"),
    "Scale": _when(
        lambda p, n: n > 1 and p.scale_param.bias_term, "OpenCV ignores the bias of a Scale with two bottoms"
    ),
    "Split": _when(lambda p, _: len(p.top) > 1, "OpenCV computes only the first top of a Split"),
    "Swish": _when(lambda p, _: p.swish_param.beta != 1, "OpenCV ignores beta and uses 1"),
}
"""Known deviations of OpenCV 4 by layer type, measured against Caffe 1.0 on tests/golden/layers."""


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
            for layer in segment or layers[:1]:
                tops: Tops | None = made.get(layer.name)
                if tops is not None and len(tops) < len(layer.tops):
                    note = f"OpenCV computes {len(tops)} of its {len(layer.tops)} tops"
                    tops = None
                instead = yield Made(layer, tops, name, note if tops is None else "")
                for k, top in enumerate(tops if instead is None and tops is not None else instead or ()):
                    values[layer.name, k] = np.asarray(top)
                for producer in layer.producers:
                    if last_read[producer] == layer.name:
                        values.pop(producer, None)
            del layers[: max(1, len(segment))]


def _segment(layers: Sequence[LayerSpec], case: Case, absent: Mapping[str, str]) -> tuple[list[LayerSpec], str]:
    """The layers to run in one OpenCV net; none, with the reason, if OpenCV cannot run the first."""
    segment: list[LayerSpec] = []
    size = 0
    for layer in layers:
        note = deviation(layer) or _no_images(layer, case) or absent.get(layer.type, "")
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
    return check(layer.param, len(layer.producers)) if check else ""


_WINDOWED = ("Convolution", "ConvolutionDepthwise", "Deconvolution", "DepthwiseConvolution", "LRN", "Pooling")


def _no_images(layer: LayerSpec, case: Case) -> str:
    """Windows over anything but (N, C, H, W): OpenCV 4's Caffe importer reads beyond its arrays and may crash."""
    if layer.type not in _WINDOWED:
        return ""
    odd = any(len(case.shapes[producer]) != 4 for producer in layer.producers)
    return "OpenCV supports windows over (N, C, H, W) only" if odd or layer.param.convolution_param.axis != 1 else ""


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
            blobs=[blob_message(np.asarray(b)) for b in case.blobs[layer.name]],
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
            _by_label(top) if layer.type == "DetectionOutput" else _as_caffe(top, case.shapes[layer.name, k])
            for k, top in enumerate(tops[: len(layer.tops)])
        )
        for layer, tops in zip(segment, outputs, strict=True)
    }


def _as_caffe(top: Array, shape: tuple[int, ...]) -> Array:
    """OpenCV's matrices have at least two dimensions; blobs with fewer come back as a column."""
    return top.reshape(shape) if len(shape) < 2 and top.size == int(np.prod(shape)) else top


def _by_label(found: Array) -> Array:
    """Rows sorted by image, label and score. OpenCV omits the label if it found more than keep_top_k."""
    rows = found.reshape(-1, 7)
    return rows[np.lexsort((-rows[:, 2], rows[:, 1], rows[:, 0]))].reshape(found.shape)


def _input(name: str, shape: tuple[int, ...]) -> Message:
    parameter = Message("InputParameter", shape=[Message("BlobShape", dim=list(shape))])
    return Message("LayerParameter", name=name, type="Input", top=[name], input_param=parameter)


_NOT_ITS_OWN = frozenset(("transform_param", "loss_param"))
_WITHOUT_EFFECT = ("engine", "weight_filler", "bias_filler", "filler", "slope_filler", "scale_filler", "shift_filler")


def _layer(name: str, layer: LayerSpec, blob: Mapping[Producer, str], case: Case) -> Message:
    """The LayerParameter for OpenCV's parser, which refuses unknown fields."""
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


_EXPLICIT: dict[str, Callable[[Message, LayerSpec, Case], None]] = {"LRN": _lrn, "Pooling": _pooling, "Slice": _slice}


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
