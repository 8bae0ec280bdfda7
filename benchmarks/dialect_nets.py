"""Small nets of known forks, and how to write a net under the numbers of a dialect. For dialect_layers.py and tests.

The nets are in the schema's words; :func:`written` gives them the numbers, defaults apart, that a dialect has.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from caffe_port.formats import prototxt
from caffe_port.formats.dialects import Dialect, Fact, dialects, place, plain, stated
from caffe_port.formats.message import Message, schema

_HEAD = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 33 dim: 41 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 5 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 7 kernel_size: 1 } }
"""
#: Head of the nets of forks without an Input layer.
_OLD = 'input: "data" input_dim: 2 input_dim: 3 input_dim: 33 input_dim: 41' + _HEAD[_HEAD.index("\n", 1) :]

NETS = {
    "ssd": _OLD
    + """
layer { name: "norm" type: "Normalize" bottom: "conv2" top: "norm"
        norm_param { across_spatial: false channel_shared: false } }
layer { name: "loc" type: "Permute" bottom: "norm" top: "loc" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "box" type: "PriorBox" bottom: "norm" bottom: "data" top: "box"
        prior_box_param { min_size: 9 aspect_ratio: 2 clip: false variance: 0.1 step: 8 offset: 0.5 } }
layer { name: "out" type: "DetectionOutput" bottom: "loc" bottom: "loc" bottom: "box" top: "out"
        detection_output_param { num_classes: 3 share_location: true nms_param { nms_threshold: 0.45 } } }
""",
    "pspnet": _OLD
    + """
layer { name: "bn" type: "BN" bottom: "conv2" top: "bn"
        bn_param { slope_filler { value: 1 } bias_filler { value: 0 } frozen: true momentum: 0.95 } }
layer { name: "up" type: "Interp" bottom: "bn" top: "up" interp_param { height: 33 width: 41 pad_beg: 0 } }
layer { name: "conv3" type: "Convolution" bottom: "up" top: "conv3"
        convolution_param { num_output: 4 kernel_size: 3 pad: 2 dilation: 2 } }
""",
    "pspnet-2016-12-04": _OLD
    + """
layer { name: "bn" type: "BN" bottom: "conv2" top: "bn" bn_param { momentum: 0.95 eps: 0.001 frozen: true } }
layer { name: "up" type: "Interp" bottom: "bn" top: "up" interp_param { height: 33 width: 41 } }
layer { name: "conv3" type: "Convolution" bottom: "up" top: "conv3"
        convolution_param { num_output: 4 kernel_size: 3 pad: 2 hole: 2 } }
""",
    "deeplab-v2": _OLD
    + """
layer { name: "conv3" type: "Convolution" bottom: "conv2" top: "conv3"
        convolution_param { num_output: 4 kernel_size: 3 pad: 2 dilation: 2 } }
layer { name: "up" type: "Interp" bottom: "conv3" top: "up" interp_param { zoom_factor: 8 } }
layer { name: "accuracy" type: "SegAccuracy" bottom: "up" bottom: "up" top: "acc"
        seg_accuracy_param { ignore_label: 255 } }
""",
    "segnet": _OLD.replace('top: "pool1" pooling', 'top: "pool1" top: "mask" pooling').replace(
        "kernel_size: 3 stride", "kernel_size: 2 stride"
    )
    + """
layer { name: "bn" type: "BN" bottom: "conv2" top: "bn"
        bn_param { scale_filler { value: 1 } shift_filler { value: 0 } bn_mode: INFERENCE } }
layer { name: "up" type: "Upsample" bottom: "bn" bottom: "mask" top: "up" upsample_param { scale: 2 upsample_w: 41 } }
""",
    "flownet2": _HEAD
    + """
layer { name: "corr" type: "Correlation" bottom: "conv2" bottom: "conv2" top: "corr"
        correlation_param { pad: 20 kernel_size: 1 max_displacement: 20 stride_1: 1 stride_2: 2 } }
layer { name: "down" type: "Downsample" bottom: "corr" top: "down" downsample_param { top_height: 9 top_width: 11 } }
layer { name: "flow" type: "Resample" bottom: "down" top: "flow" resample_param { type: LINEAR antialias: true } }
layer { name: "warp" type: "FlowWarp" bottom: "data" bottom: "flow" top: "warp" flow_warp_param { fill_value: ZERO } }
layer { name: "acc" type: "Accum" bottom: "warp" top: "acc" accum_param { top_height: 3 top_width: 4 } }
layer { name: "loss" type: "L1Loss" bottom: "acc" top: "loss" l1_loss_param { l2_per_location: true } }
""",
    "r-fcn": _OLD
    + """
layer { name: "rois" type: "Input" top: "rois" }
layer { name: "ps" type: "PSROIPooling" bottom: "conv2" bottom: "rois" top: "ps"
        psroi_pooling_param { spatial_scale: 0.0625 output_dim: 3 group_size: 7 } }
layer { name: "roi" type: "ROIPooling" bottom: "conv2" bottom: "rois" top: "roi"
        roi_pooling_param { pooled_w: 7 pooled_h: 7 spatial_scale: 0.0625 } }
layer { name: "ohem" type: "BoxAnnotatorOHEM" bottom: "ps" top: "ohem" box_annotator_ohem_param { roi_per_img: 128 } }
layer { name: "loss" type: "SmoothL1LossOHEM" bottom: "ps" top: "loss"
        loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 128 } }
""".replace(
        'layer { name: "rois" type: "Input" top: "rois" }\n',
        'input: "rois" input_dim: 4 input_dim: 5 input_dim: 1 input_dim: 1\n',
    ),
    "nvidia-0.17": _HEAD
    + """
layer { name: "bn" type: "BatchNorm" bottom: "conv2" top: "bn" forward_type: FLOAT16 forward_math: FLOAT
        batch_norm_param { moving_average_fraction: 0.9 eps: 0.0001 scale_bias: true } }
layer { name: "sum" type: "Eltwise" bottom: "bn" bottom: "bn" top: "sum" forward_type: FLOAT16 }
layer { name: "rnn" type: "LSTM" bottom: "sum" bottom: "sum" top: "rnn" recurrent_param { num_output: 3 } }
""",
    "nvidia-0.16": _HEAD
    + """
layer { name: "bn" type: "BatchNorm" bottom: "conv2" top: "bn" forward_type: FLOAT16 backward_type: FLOAT16
        batch_norm_param { moving_average_fraction: 0.9 scale_bias: true } }
layer { name: "sum" type: "Eltwise" bottom: "bn" bottom: "bn" top: "sum" forward_type: FLOAT16 }
""",
    "intel-1.0.5": _OLD
    + """
layer { name: "bn" type: "BatchNorm" bottom: "conv2" top: "bn"
        batch_norm_param { use_weight_bias: true bias_term: true } }
layer { name: "pool2" type: "Pooling" bottom: "bn" top: "pool2"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "pool3" type: "Pooling" bottom: "pool2" top: "pool3"
        pooling_param { pool: AVE kernel_size: 7 stride: 1 } }
""",
    "mobilenet-yolo": _HEAD
    + """
layer { name: "dw" type: "DepthwiseConvolution" bottom: "conv2" top: "dw"
        convolution_param { num_output: 7 kernel_size: 3 pad: 1 group: 7 } }
layer { name: "up" type: "Upsample" bottom: "dw" top: "up" upsample_param { scale: 2 } }
layer { name: "yolo" type: "Yolov3DetectionOutput" bottom: "up" top: "yolo"
        yolov3_detection_output_param { num_classes: 3 confidence_threshold: 0.3 biases: 10 biases: 14 mask: 0 } }
layer { name: "relu6" type: "ReLU6" bottom: "up" top: "up" }
""",
    "happynear": _HEAD
    + """
layer { name: "n" type: "Normalize" bottom: "conv2" top: "n" }
layer { name: "local" type: "Local" bottom: "n" top: "local" local_param { num_output: 4 kernel_size: 3 } }
layer { name: "affine" type: "EltwiseAffine" bottom: "local" top: "affine"
        eltwise_affine_param { channel_shared: true } }
layer { name: "insane" type: "Insanity" bottom: "affine" top: "affine" insanity_param { lb: 3 ub: 8 } }
layer { name: "center" type: "CenterLoss" bottom: "affine" bottom: "n" top: "center"
        center_loss_param { num_output: 9 } }
""",
    "happynear-2016": _OLD
    + """
layer { name: "bn" type: "BN" bottom: "conv2" top: "bn" bn_param { var_eps: 1e-9 moving_average: true decay: 0.95 } }
layer { name: "local" type: "Local" bottom: "bn" top: "local" local_param { num_output: 4 kernel_size: 3 } }
layer { name: "affine" type: "EltwiseAffine" bottom: "local" top: "affine"
        eltwise_affine_param { channel_shared: true } }
""",
    "waifu2x": _HEAD
    + """
layer { name: "up" type: "Deconvolution" bottom: "conv2" top: "up"
        convolution_param { num_output: 3 kernel_size: 4 stride: 2 pad: 1 } }
layer { name: "crop" type: "CropCenter" bottom: "up" top: "crop" crop_center_param { crop_size: [0, 0, 4, 4] } }
""",
    "c3d-1.1": _OLD
    + """
layer { name: "c3" type: "Convolution3D" bottom: "data" top: "c3"
        convolution3d_param { num_output: 4 kernel_size: 3 kernel_depth: 3 pad: 1 temporal_pad: 1 } }
layer { name: "p3" type: "Pooling3D" bottom: "c3" top: "p3"
        pooling3d_param { kernel_size: 2 kernel_depth: 1 stride: 2 temporal_stride: 1 } }
""",
    "c3d-1.0": """
layers { name: "clips" type: VIDEO_DATA top: "data" image_data_param { source: "list" batch_size: 2 new_length: 16 } }
layers { name: "conv1" type: CONVOLUTION3D bottom: "data" top: "conv1"
        convolution_param { num_output: 4 kernel_size: 3 kernel_depth: 3 pad: 1 temporal_pad: 1 stride: 2
                            bias_term: false } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "pool1" type: POOLING3D bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 2 kernel_depth: 1 stride: 2 temporal_stride: 1 } }
layers { name: "fc" type: INNER_PRODUCT bottom: "pool1" top: "fc" inner_product_param { num_output: 7 } }
""",
    "yjxiong": _OLD
    + """
layer { name: "bn" type: "BN" bottom: "conv2" top: "bn"
        bn_param { slope_filler { value: 1 } momentum: 0.9 eps: 0.001 frozen: true } }
layer { name: "conv3" type: "Convolution" bottom: "bn" top: "conv3"
        convolution_param { num_output: 4 kernel_size: 3 pad: 2 dilation: 2 } }
layer { name: "pool3" type: "ROIPooling" bottom: "conv3" bottom: "data" top: "pool3"
        roi_pooling_param { pooled_w: 7 pooled_h: 7 } }
""",
    "textboxes++": _OLD
    + """
layer { name: "box" type: "PriorBox" bottom: "conv2" bottom: "data" top: "box"
        prior_box_param { min_size: 9 clip: false } }
layer { name: "loc" type: "Permute" bottom: "conv2" top: "loc" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "rev" type: "Reverse" bottom: "conv2" top: "rev" reverse_param { axis: 1 } }
""",
    "caffe": _HEAD
    + """
layer { name: "conv3" type: "Convolution" bottom: "conv2" top: "conv3"
        convolution_param { num_output: 4 kernel_size: 3 pad: 2 dilation: 2 } }
layer { name: "bn" type: "BatchNorm" bottom: "conv3" top: "bn" batch_norm_param { use_global_stats: true } }
layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true } }
layer { name: "fc" type: "InnerProduct" bottom: "bn" top: "fc" inner_product_param { num_output: 9 } }
""",
}
"""Dialect -> a net that it would write."""


def net(name: str) -> Message:
    """A net of :data:`NETS`, with a weight in its first convolution."""
    message = prototxt.parse(f'name: "{name}" {NETS[name]}', "NetParameter")
    for layer in message.layer or message.layers:
        if layer.name == "conv1":
            data = np.arange(135, dtype=np.float32)
            if message.has("layer"):
                blob = Message("BlobProto", shape=Message("BlobShape", dim=[5, 3, 3, 3]), data=data)
            else:
                blob = Message("BlobProto", num=5, channels=3, length=1, height=3, width=3, data=data)
            layer.set("blobs", [blob])
    return message


def made_of(dialect: Dialect, most: int = 6) -> Message | None:
    """A net with what a dialect has and Caffe has not; None where there is nothing of its own."""
    own = dialect.layout("LayerParameter")
    message = prototxt.parse(
        f'name: "own" {NETS["ssd"][: NETS["ssd"].index("layer { name: " + chr(34) + "norm")]}', "NetParameter"
    )
    base = {f.name: f.number for f in dialects()[0].layout("LayerParameter").values()}
    layers, used = list(message.layer), set[str]()
    for type_, fields in sorted(plain()["owners"].items()):
        for name in fields:
            fact = next((f for f in own.values() if f.name == name), None)
            field = schema("LayerParameter").fields.get(name)
            if (
                fact is None
                or field is None
                or fact.message is None
                or field.message_name is None
                or base.get(name) == fact.number
            ):
                continue
            if name in used or name in ("transform_param", "loss_param") or len(used) == most:
                continue
            inner = [
                (f, one)
                for f in dialect.layout(fact.message).values()
                if (one := place(f, field.message)) is not None and f.kind in ("uint32", "int32", "float", "bool")
            ]
            parameters = Message(field.message_name)
            for _, one in inner[:3]:
                value: Any = {"float": 0.5, "bool": True}.get(one.kind, 3)
                parameters.set(one.name, [value] if one.repeated else value)
            used.add(name)
            layers.append(Message("LayerParameter", name=name, type=type_, top=[name], **{name: parameters}))
    return message.copy(layer=layers) if used else None


def written(message: Message, dialect: Dialect, theirs: str) -> bytes:
    """A message under the numbers of a dialect.

    Raises:
        KeyError: the dialect has no such field.
    """
    assert message.schema is not None
    facts = {}
    for fact in dialect.layout(theirs).values():
        field = place(fact, message.schema)
        if field is not None:
            facts[field.name] = fact
    out = b""
    parts: list[tuple[int, bytes]] = []
    for name, value in message.items():
        if theirs == "BlobProto" and name == "shape" and "shape" not in facts:
            continue
        fact = facts[name]
        for one in value if isinstance(value, list) else [value]:
            parts.append((fact.number, _field(fact, one, dialect)))
    for _, part in sorted(parts, key=lambda item: item[0]):
        out += part
    return out


def _field(fact: Fact, value: Any, dialect: Dialect) -> bytes:
    if isinstance(value, Message):
        return delimited(fact.number, written(value, dialect, str(fact.message)))
    if isinstance(value, np.ndarray):
        return delimited(fact.number, np.asarray(value, "<f4").tobytes())
    if fact.kind == "string":
        return delimited(fact.number, str(value).encode())
    if fact.wire_type == 5:
        return varint(fact.number << 3 | 5) + struct.pack("<f", float(value))
    if fact.kind == "enum" and isinstance(value, str):
        value = (fact.values or {})[value]
    return varint(fact.number << 3) + varint(int(value) & 0xFFFFFFFFFFFFFFFF)


def varint(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def delimited(number: int, payload: bytes) -> bytes:
    """A field of a length: string, bytes, message or packed values."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def comparable(layer: Message) -> dict[str, Any]:
    """What a layer states, for comparison with the layer that was written."""
    return {path: value for path, value in stated(layer).items() if not path.startswith("blobs")}
