"""Small cases of every layer type, and what its record must say of them.

The checks are functions, so that benchmarks/plant_shapes.py can show that each fails where a record is wrong.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from caffe_port.errors import SpecError
from caffe_port.formats import dialects, prototxt, wire
from caffe_port.formats.message import Message
from caffe_port.layers import REGISTRY, Layer, class_of
from caffe_port.net.net import infer_by_running
from caffe_port.signatures import shapes
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import ANY, PYTHON, SIGNATURES, Holds, Signature, Trait
from caffe_port.spec import LayerSpec
from caffe_port.typing import Shape

N, C, H, W = 2, 6, 8, 12
X: Shape = (N, C, H, W)
SMALL: Shape = (3, 4, 5, 7)
VIDEO: Shape = (2, 3, 7, 9, 8)
ROIS: Shape = (5, 5)
PRIORS: Shape = (1, 2, 16)
_SSD: tuple[Shape, ...] = ((2, 16), (2, 12), PRIORS)
CONV = "convolution_param { num_output: 4 kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 }"
BITS = "quantization_param { bw_layer_in: 8 bw_layer_out: 8 bw_params: 8 fl_layer_in: 4 fl_layer_out: 4 fl_params: 6 }"
FLOATS = "quantization_param { precision: MINIFLOAT mant_bits: 3 exp_bits: 4 }"


@dataclass(frozen=True)
class Case:
    """A layer of a type: its parameters, the shapes of its bottoms, the number of its tops."""

    type: str
    param: str
    bottoms: tuple[Shape, ...]
    tops: int = 1

    def __str__(self) -> str:
        words = re.sub(r"[{}]|'.*'|(?:source|shift_file): \S+", "", self.param).split()
        return f"{self.type}-{len(self.bottoms)}-{self.tops}-{'_'.join(words)[:60]}"

    @property
    def message(self) -> Message:
        ends = " ".join(f'bottom: "b{k}"' for k in range(len(self.bottoms)))
        ends += " ".join(f' top: "t{k}"' for k in range(self.tops))
        return prototxt.parse(f'name: "l" type: "{self.type}" {ends} {self.param}', "LayerParameter")


def _same(type_: str, *params: str, shape: Shape = X) -> Iterator[Case]:
    for param in params or ("",):
        yield Case(type_, param, (shape,))
        yield Case(type_, param, (SMALL,))


_FOLDER = tempfile.TemporaryDirectory()
"""Goes when Python does."""


def _infogain_matrix(classes: int) -> Path:
    """A .binaryproto."""
    path = Path(_FOLDER.name) / "infogain.binaryproto"
    shape = Message("BlobShape", dim=[classes, classes])
    path.write_bytes(b"".join(wire.serialize(Message("BlobProto", shape=shape, data=[1.0] * classes**2))))
    return path


def _numbers(count: int) -> Path:
    """A text file of numbers."""
    path = Path(_FOLDER.name) / f"{count}.txt"
    path.write_text(" ".join(str(k / 4) for k in range(1, count + 1)))
    return path


ALIKE = """
AbsVal AddNoise Atan BN BNLL BatchNorm BatchNormKyle ChannelDropout Dropout ELU Exp GRL GRN GaussianNoise
GradientReversal GradientScaler HSigmoid HSwish HardSigmoid HardSwish Insanity L2Norm L2Normalization L2Normalize LRN
Log MVN Mish NegReLU NegSquare Noise Normalization Normalize NormalizeFeature Power RandomNoise ReLU ReLU6 Relu6 SELU
ExpMax SeLUDropout ScaleTanH SeLu SeLuDropout Selu Sigmoid SignedSqrt Sparsify Softmax Softplus SpatialDropout Swish
TanH Threshold Truncation
"""
"""Types that need no parameters, whose tops are like their bottoms."""

SINKS = "Silence BlackHole HDF5Output ImgWriter FLOWriter FloatWriter MatWrite PFMWriter"


def _all() -> Iterator[Case]:
    for type_ in ALIKE.split():
        yield from _same(type_)
    yield from _same("Dropout", "dropout_param { dropout_ratio: 0.25 scale_train: false }")
    yield from _same("Clip", "clip_param { min: -1 max: 2 }")
    yield from _same("PReLU", "", "prelu_param { channel_shared: true }")
    yield from _same("EltwiseAffine", "", "eltwise_affine_param { channel_shared: true }")
    yield from _same("LRNRistretto", FLOATS)
    yield from _same("PowerFile", "", f'power_file_param {{ shift_file: "{_numbers(20)}" }}')
    yield from _same("Flip", "", "flip_param { flip_height: true }", "flip_param { flip_width: false }", shape=X)
    for way in ("", "is_softmax: true normalization_factor: 0.5", "psa_type: DISTRIBUTE is_softmax: true"):
        own = f"pointwise_spatial_attention_param {{ {way} }}"
        yield Case("PointwiseSpatialAttention", own, ((2, 6, 4, 5), (2, 63, 4, 5)))
    own = "pointwise_spatial_attention_param { attention_mask_height: 3 attention_mask_width: 5 psa_type: DISTRIBUTE }"
    yield Case("PointwiseSpatialAttention", own, ((2, 3, 4, 6), (2, 15, 4, 6)))
    yield Case("VoxelSoftmax", "", ((2, 3, 4, 5, 6),))
    yield from _same("ShuffleChannel", "shuffle_channel_param { group: 2 }")
    yield Case("Pad", "pad_param { paddings: [0, 1, 2, 0, 0, 3, 1, 4] constant_values: 0.5 }", (X,))
    yield Case("Pad", "pad_param { paddings: [0, 0, 1, 2] }", ((3, 5),))
    # Synopsys
    yield Case("Squeeze", "", ((2, 1, 3, 1),))
    yield Case("Squeeze", "squeeze_param { axis: -1 }", ((2, 1, 3, 1),))
    yield Case("Squeeze", "squeeze_param { axis: 1 axis: 3 }", ((2, 1, 3, 1),))
    for type_ in ("Add", "Mul"):
        yield Case(type_, "", ((2, 4, 5, 7), (2, 4, 1, 1)))
        yield Case(type_, "", ((4, 1, 7), (2, 1, 5, 7)))
        yield Case(type_, "", ((2, 4, 5), ()))
    yield Case("Mul", "mul_param { mul_shape: [4, 1, 1] }", ((2, 4, 5, 7),))
    yield Case("MatMul", "", ((2, 4, 5, 7), (2, 4, 7, 3)))
    yield Case("MatMul", "", ((2, 4, 5, 7), (7, 3)))
    yield Case("MatMul", "matmul_param { transpose_a: true transpose_b: true }", ((2, 7, 5), (2, 3, 7)))
    yield Case("MatMul", "matmul_param { transpose_b: true blob_shape: [3, 7] }", ((5, 7),))
    for type_, ways in (
        ("ResizeBilinear", ("align_corners", "half_pixel_centers", "pytorch_half_pixel")),
        ("ResizeNearestNeighbor", ("align_corners", "half_pixel_centers", "half_pixel_onnx")),
    ):
        own = "resize_bilinear_param" if type_ == "ResizeBilinear" else "resize_nearest_neighbor_param"
        for way in ("", *(f"{name}: true" for name in ways)):
            for size in (
                "output_height: 11 output_width: 5",
                "scale_height: 1.5 scale_width: 0.75",
                "output_height: 1",
            ):
                yield Case(type_, f'{own} {{ data_format: "NCHW" {size} {way} }}', (X,))
        yield Case(type_, f"{own} {{ output_height: 11 output_width: 5 }}", (X,))
    yield Case("UpsampleDarknet", "upsample_darknet_param { stride: 3 }", (X,))
    for order in ("NCHW", "DCR", "CRD"):
        yield Case("DepthToSpace", f'depth_to_space_param {{ block_size: 2 data_format: "{order}" }}', ((2, 12, 3, 5),))
    yield Case("DepthToSpace", "depth_to_space_param { block_size: 2 }", ((2, 3, 5, 12),))
    own = "space_to_batch_nd_param { block_shape: [2, 3] paddings: [0, 1, 2, 0] }"
    yield Case("SpaceToBatchND", own, ((2, 5, 7, 4),))
    yield Case("SpaceToBatchND", "space_to_batch_nd_param { block_shape: 3 paddings: [1, 0] }", ((2, 5, 7),))
    own = "batch_to_space_nd_param { block_shape: [2, 3] crops: [0, 1, 2, 0] }"
    yield Case("BatchToSpaceND", own, ((12, 5, 7, 4),))
    yield Case("BatchToSpaceND", "batch_to_space_nd_param { block_shape: 3 crops: [1, 0] }", ((6, 5, 7),))
    yield Case("PixelShuffle", "pixelshuffle_param { upscale_factor: 2 }", ((2, 12, 3, 5),))
    yield Case("Unsqueeze", "unsqueeze_param { dim: 1 }", (X,))
    yield Case("Unsqueeze", "unsqueeze_param { dim: -1 }", ((3, 7),))
    yield Case("Pad", "pad_param { pad_u: 1 pad_d: 3 pad_l: 2 pad_r: 4 pad_value: 0.5 }", (X,))
    yield Case("Pad", "pad_param { pad_u: 1 pad_l: 2 pad_r: 3 pad_type: REFLECT }", (X,))
    yield Case("Pad", "pad_param { pad_u: 1 pad_d: 3 pad_l: 2 pad_type: REPLICATE }", (X,))
    yield Case("Pad", "pad_param { pad_u: -1 pad_d: -3 pad_l: -2 pad_r: -4 }", (X,))
    yield Case("BilinearInterpolate", "bilinear_interpolate_param { dst_h: 5 dst_w: 12 }", (X,))
    yield Case("BilinearInterpolate", "bilinear_interpolate_param { dst_w: 3 align_corners: false }", (X,))
    yield Case("BilinearInterpolate", "bilinear_interpolate_param { scale_factor: 1.7 }", (X,))
    yield Case("MaxUnPool", "max_unpool_param { dst_h: 13 dst_w: 21 }", (X, X))
    yield Case("Upsample", "upsample_param { dims_num: 3 scale: 3 }", ((2, 3, 7),))
    yield Case("Upsample", "upsample_param { dims_num: 4 }", (X,))
    yield from _same("ChannelShuffle", "shuffle_channel_param { group: 2 }")
    yield from _same("Reverse", "reverse_param { axis: 2 }")
    yield from _same("ReverseAxis", "reverse_axis_param { axis: -1 }")
    yield Case("BatchNorm", "", ((3, 7),))
    yield Case("BatchNormKyle", "batch_norm_param { use_alpha_beta: true }", (X,))
    yield Case("BatchNormKyle", "batch_norm_param { use_alpha_beta: true }", ((3, 7),))
    yield Case("BN", "bn_param { bn_mode: LEARN }", (X,))
    yield Case("BN", "bn_param { inverse_std: true }", (X,))
    yield Case("BN", "", (VIDEO,))
    yield Case("BN", "bn_param { var_eps: 1e-4 moving_average: true }", (X,))
    yield Case("Softmax", "softmax_param { axis: -1 }", ((3, 5, 7),))
    yield Case("Normalize", "norm_param { across_spatial: false channel_shared: false }", (X,))
    yield Case("Normalize", "norm_param { channel_shared: true }", (X,))
    yield Case("Normalize", "normalize_param { normalize_type: 'L1' }", (X,), 2)
    # products
    for type_, more in (("InnerProduct", ""), ("FcRistretto", FLOATS)):
        yield Case(type_, f"inner_product_param {{ num_output: 11 }} {more}", (X,))
        yield Case(type_, f"inner_product_param {{ num_output: 11 axis: 2 bias_term: false }} {more}", (SMALL,))
        yield Case(type_, f"inner_product_param {{ num_output: 11 axis: -1 transpose: true }} {more}", (SMALL,))
    yield Case("Embed", "embed_param { num_output: 5 input_dim: 9 }", ((3, 4),))
    yield Case("Embed", "embed_param { num_output: 5 input_dim: 9 bias_term: false }", ((7,),))
    yield Case("Embed", "embed_param { num_output: 5 input_dim: 9 last_axis: true }", ((3, 4, 1),))
    for type_ in ("Scale", "Bias", "Scalar"):
        own = f"{type_.lower()}_param"
        yield Case(type_, "", (X,))
        yield Case(type_, f"{own} {{ axis: 1 num_axes: 2 }}", (SMALL,))
        yield Case(type_, f"{own} {{ axis: 0 }}", (X, X[:2]))
    yield Case("Scale", "scale_param { bias_term: true }", (X,))
    yield Case("Scale", "scale_param { axis: 0 bias_term: true }", (X, X[:2]))
    # windows
    for type_ in ("Convolution", "NdConvolution", "ConvolutionRistretto", "Convolution3D"):
        own = BITS if type_.endswith("Ristretto") else ""
        bottom, more = (VIDEO, "kernel_depth: 3") if type_.endswith("3D") else (X, "")
        size = "kernel_size: 3" if more else "kernel_h: 3 kernel_w: 2"
        for kind in (type_, type_.replace("Conv", "Deconv").replace("NdDe", "NdDe")):
            window = f"convolution_param {{ num_output: 4 {size} {more} stride: 2 pad: 1 }} {own}"
            yield Case(kind, window, (bottom,))
            yield Case(kind, window, (bottom, bottom), 2)
            yield Case(kind, f"convolution_param {{ num_output: 3 {size} {more} bias_term: false }} {own}", (bottom,))
    yield Case("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 2 dilation: 2 }", (X,))
    yield Case("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 group: 2 dilation: 2 }", (X,))
    yield Case("Convolution", "convolution_param { num_output: 4 kernel_size: 3 axis: 2 }", ((2, 3, 4, 9, 8),))
    for sides in ("pad_l: 1 pad_r: 2 pad_t: 0 pad_b: 3", "pad_type: 1", "pad_type: 1 pad_h: 1 pad_w: 2"):
        yield Case("Convolution", f"convolution_param {{ num_output: 4 kernel_size: 4 stride: 3 {sides} }}", (X,))
        for pool in ("MAX", "AVE", "AVE_EXC_PAD"):
            yield Case("Pooling", f"pooling_param {{ pool: {pool} kernel_size: 4 stride: 3 {sides} }}", (X,))
        yield Case("Pooling", f"pooling_param {{ kernel_size: 4 stride: 3 {sides} }}", (X,), 2)
    yield Case("Convolution3D", "convolution3d_param { num_output: 4 kernel_size: 3 kernel_depth: 2 }", (VIDEO,))
    for type_ in ("ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution"):
        yield Case(type_, "convolution_param { kernel_h: 3 kernel_w: 2 stride: 2 }", (X,))
        yield Case(type_, "convolution_param { kernel_h: 3 kernel_w: 2 stride: 2 }", (X, X), 2)
        yield Case(type_, "convolution_param { num_output: 12 group: 3 kernel_size: 3 bias_term: false }", (X,))
    yield Case("Im2col", "convolution_param { kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 }", (X,))
    yield Case("Local", "local_param { num_output: 5 kernel_size: 3 stride: 2 pad: 1 }", (X,))
    yield Case("Local", "local_param { num_output: 5 kernel_size: 3 bias_term: false }", (SMALL,))
    yield Case(
        "DeformableConvolution",
        "deformable_convolution_param { num_output: 4 kernel_h: 3 kernel_w: 2 pad: 1 stride: 2 group: 2 }",
        (X, (2, 12, 4, 7)),
    )
    yield Case(
        "DeformableConvolution",
        "deformable_convolution_param { num_output: 4 kernel_size: 3 deformable_group: 2 bias_term: false }",
        (X, (2, 36, 6, 10)),
    )
    for type_ in ("Pooling", "NdPooling"):
        for own in (
            "kernel_size: 3 stride: 2",
            "kernel_h: 2 kernel_w: 3 stride: 2 pad: 1 pool: AVE",
            "global_pooling: true",
            "kernel_h: 2 kernel_w: 3 stride: 2 pad: 1 pool: AVE_EXC_PAD",
            "kernel_h: 2 kernel_w: 3 stride: 4 pad_h: 1 pad_w: 2 pool: AVE_EXC_PAD round_mode: FLOOR",
        ):
            yield from _same(type_, f"pooling_param {{ {own} }}")
        yield Case(type_, "pooling_param { kernel_size: 3 stride: 2 }", (X,), 2)
        yield Case(type_, "pooling_param { kernel_size: 3 stride: 2 pool: STOCHASTIC round_mode: FLOOR }", (X,))
        yield Case(type_, "pooling_param { kernel_size: 2 stride: 2 }", (VIDEO,))
    yield Case("Pooling3D", "pooling_param { kernel_size: 2 kernel_depth: 3 stride: 2 }", (VIDEO,))
    yield Case("Pooling3D", "pooling3d_param { kernel_size: 3 kernel_depth: 1 }", (VIDEO,))
    yield Case("Pooling3D", "pooling_param { global_pooling: true pool: AVE }", (VIDEO,))
    for height in (1, 2, 3):
        yield Case("SPP", f"spp_param {{ pyramid_height: {height} }}", (X,))
    # places
    yield Case("ArgMax", "", (X,))
    yield Case("ArgMax", "argmax_param { top_k: 3 out_max_val: true }", ((3, 7),))
    yield Case("ArgMax", "argmax_param { top_k: 3 axis: 2 }", (X,))
    yield Case("BatchReindex", "", (X, (5,)))
    for count in (1, 3):
        shapes_ = tuple((2, k + 8, 5, 7) for k in range(count))
        yield Case("Concat", "", shapes_)
        yield Case("Concat", "concat_param { axis: -1 }", ((2, 3, 5, 7), (2, 3, 5, 4))[:count])
    for type_ in ("Eltwise", "ShortCut", "Shortcut"):
        for count in (1, 2, 3):
            yield Case(type_, "", (X,) * count)
    yield Case("Eltwise", "eltwise_param { operation: SUM coeff: 1 coeff: -2 }", (X, X))
    yield Case("Filter", "", (X, (2,)))
    yield Case("Filter", "", (X, (2, 3), (2, 1, 1)), 2)
    yield Case("Flatten", "", (X,))
    yield Case("Flatten", "flatten_param { axis: 1 end_axis: 2 }", (X,))
    yield Case("Flatten", "flatten_param { axis: 2 end_axis: 1 }", (X,))
    yield Case("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", (X,))
    yield Case("Permute", "permute_param { order: 3 }", (X,))
    yield Case("Transpose", "transpose_param { dim: 3 dim: 0 dim: 2 dim: 1 }", (X,))
    yield Case("Reduction", "", (X,))
    yield Case("Reduction", "reduction_param { axis: 2 operation: MEAN }", (X,))
    yield Case("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 4 } }", (X,))
    yield Case("Reshape", "reshape_param { shape { dim: 3 dim: 2 } axis: 1 num_axes: 1 }", (X,))
    yield Case("Slice", "", (X,), 2)
    yield Case("Slice", "", (X,), 1)
    yield Case("Slice", "slice_param { slice_point: 1 slice_point: 3 axis: 2 }", (X,), 3)
    for tops in (1, 3):
        yield Case("Split", "", (X,), tops)
    yield Case("Tile", "tile_param { tiles: 3 axis: 2 }", (X,))
    yield Case("Crop", "crop_param { axis: 2 offset: 1 offset: 2 }", (X, (3, 4, 5, 7)))
    yield Case("AutoCrop", "", (X, (2, 6, 5, 7)))
    yield Case("CropCenter", "crop_center_param { crop_size: 0 crop_size: 1 crop_size: 2 crop_size: 3 }", (X,))
    for type_, own in (("Reorg", "reorg_param"), ("ReorgYolo", "reorg_yolo_param"), ("PassThrough", "")):
        yield Case(type_, f"{own} {{ stride: 2 }}" if own else "", ((2, 8, 6, 10),))
    yield Case("Reorg", "reorg_param { stride: 2 reverse: true }", ((2, 12, 5, 7),))
    yield Case("Reorg", "reorg_param { stride: 3 }", ((2, 18, 6, 9),))
    for type_ in (
        "Silence",
        "BlackHole",
        "HDF5Output",
        "ImgWriter",
        "FLOWriter",
        "FloatWriter",
        "MatWrite",
        "PFMWriter",
    ):
        for count in (0, 1, 3) if type_ == "HDF5Output" or type_.endswith(("Writer", "Write")) else (1, 3):
            yield Case(type_, "", (X, SMALL, (2,))[:count], 0)
    # constants
    yield Case("DummyData", "dummy_data_param { shape { dim: 2 dim: 5 } }", (), 2)
    yield Case("DummyData", "dummy_data_param { num: 2 channels: 3 channels: 4 height: 5 width: 7 }", (), 2)
    yield Case("Parameter", "parameter_param { shape { dim: 2 dim: 5 } }", ())
    yield Case("Parameter", "parameter_param { shape { dim: 2 dim: 5 } blob_filler { type: 'xavier' } }", ())
    yield Case("ContinuationIndicator", "continuation_indicator_param { time_step: 4 batch_size: 3 }", ())
    yield Case("ContinuationIndicator", "continuation_indicator_param { time_step: 4 }", ((3, 2, 5),))
    yield Case("ContinuationIndicator", "continuation_indicator_param { time_step: 4 batch_size: 3 }", ((3, 1),))
    yield Case("CTCGreedyDecoder", "", ((5, 2, 3),))
    yield Case("CTCGreedyDecoder", "ctc_decoder_param { blank_index: -1 ctc_merge_repeated: false }", ((5, 2, 3),))
    yield Case("GRIDPooling", "grid_pooling_param { pooled_h: 3 pooled_w: 5 }", (X,))
    # sequences
    for type_, states in (("LSTM", 2), ("RNN", 1)):
        own, state = "recurrent_param {{ num_output: 6 expose_hidden: {} }}", (1, 3, 6)
        yield Case(type_, own.format("false"), ((5, 3, 4), (5, 3)))
        yield Case(type_, own.format("false"), ((5, 3, 4, 2), (5, 3), (3, 7)))
        yield Case(type_, own.format("true"), ((5, 3, 4), (5, 3), *[state] * states), 1 + states)
        yield Case(type_, own.format("true"), ((5, 3, 4), (5, 3), (3, 7), *[state] * states), 1 + states)
    yield Case("Lstm", "lstm_param { num_output: 6 }", ((5, 3, 4),))
    yield Case("Lstm", "lstm_param { num_output: 6 batch_size: 3 }", ((15, 4), (15,)))
    yield Case("Lstm", "lstm_param { num_output: 6 }", ((5, 3, 4), (5, 3)))
    own, more = (
        "lstm_conv_param {{ num_output: 6 kernel_size: 3 pad: 1 {} }} lstm_debug_param {{ {} }}",
        "type: 'input'",
    )
    hidden = "lstm_conv_param { num_output: 6 kernel_size: [1, 5] pad: [0, 4] dilation: 2 group: 2 type: 'hidden' } "
    video, state = ((4, 3, 2, 5, 7), (4, 3)), (1, 3, 6, 5, 7)
    yield Case("ConvLSTM", own.format("", ""), video)
    yield Case("ConvLSTM", own.format("", "axis_hadamard: 2 num_axes_hadamard: 3"), video)
    yield Case("ConvLSTM", own.format("", "disable_hadamard: true"), video)
    yield Case("ConvLSTM", hidden + own.format(more, "axis_hadamard: 1 num_axes_hadamard: 2"), video)
    exposed = "recurrent_param { expose_hidden: true } "
    yield Case("ConvLSTM", exposed + own.format("", "ignore_x: true"), (*video, state, state), 3)
    one, own = ((4, 1, 2, 5, 7), (4, 1), (1, 1, 3, 5, 7)), own.format("", "num_axes_hadamard: 0")
    yield Case("ConvLSTM", own, one)
    yield Case("ConvLSTM", exposed + own, (*one, (1, 1, 6, 5, 7), (1, 1, 6, 5, 7)), 3)
    yield Case("LSTMUnit", "", ((1, 3, 5), (1, 3, 20), (1, 3)), 2)
    yield Case("CTCGreedyDecoder", "", ((5, 2, 7), (5, 2)))
    yield Case("CTCGreedyDecoder", "", ((5, 2, 7), (5, 2)), 2)
    yield Case("ReverseTime", "", ((5, 2, 3), (2,)))
    # sums
    yield Case("Sum", "", (X,))
    yield Case("MIL", "mil_param { type: NOR }", (X,))
    yield Case("BatchReduction", "batch_reduction_param { reduction_param { axis: 2 } }", (X,))
    yield Case("BatchReduction", "batch_reduction_param { level: 1 level: 2 reduction_param { axis: 2 } }", (SMALL,))
    for own in ("", "sum_pool: false"):
        yield Case("CompactBilinear", f"compact_bilinear_param {{ num_output: 9 {own} }}", ((2, 3, 5, 7), (2, 4, 5, 7)))
    yield Case("Axpy", "", ((2, 6, 1, 1), X, X))
    yield Case("ChannelScale", "", (X, (2, 1, 8, 12)))
    yield Case("MaskPooling", "", (X, (2, 1, 8, 12)))
    # sizes
    yield Case("Interp", "interp_param { height: 9 width: 11 }", (X,))
    yield Case("Interp", "interp_param { zoom_factor: 3 shrink_factor: 2 pad_beg: -1 pad_end: -2 }", (X,))
    yield Case("Interp", "", (X, (2, 3, 5, 7)))
    yield Case("Upsample", "upsample_param { scale: 2 }", (X,))
    yield Case("Upsample", "upsample_param { stride: 3 }", (X,))
    yield Case("Upsample", "", (X,))
    yield Case("Upsample", "upsample_param { scale: 2 pad_out_h: true }", (X, X))
    yield Case("Upsample", "upsample_param { upsample_h: 15 upsample_w: 23 }", (X, X))
    for own in ("kernel_size: 2 stride: 2", "kernel_h: 3 kernel_w: 2 unpool: TILE", "kernel_size: 2 unpool_size: 20"):
        yield Case("Unpooling", f"unpooling_param {{ {own} }}", (X,))
    yield Case("Unpooling", "unpooling_param { kernel_size: 2 stride: 2 }", (X, X))
    own = "kernel_size: 2 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 0 unpool_h: 20 unpool_w: 15"
    yield Case("Unpooling", f"unpooling_param {{ {own} }}", (X,))
    yield Case("Resample", "resample_param { height: 9 width: 11 type: CUBIC }", (X,))
    yield Case("Resample", "resample_param { type: LINEAR }", (X, SMALL))
    yield Case("Resize", "resize_param { height: 9 width: 11 }", (X,))
    yield Case("Resize", "resize_param { zoom_h: 1.5 zoom_w: 0.5 inter: INTER_CUBIC }", (X,))
    yield Case("Resize", "resize_param { is_pyramid_test: true out_height_scale: 2 out_width_scale: 0.5 }", (X,))
    yield Case("ImResize", "imresize_param { factor: 1.5 }", (X,))
    yield Case("ImResize", "imresize_param { target_spatial_height: 5 target_spatial_width: 7 }", (X,))
    yield Case("Upsampling", "upsampling_param { kernel_h: 2 kernel_w: 3 }", (X,))
    yield Case("MaskResize", "mask_resize_param { output_height: 4 output_width: 13 }", (X,))
    yield Case("Downsample", "downsample_param { top_height: 3 top_width: 4 }", (X,))
    yield Case("Downsample", "", (X, (2, 3, 5, 7)))
    yield Case("Accum", "", ((2, 3, 5, 7),))
    yield Case("Accum", "accum_param { size_divisible_by: 4 }", ((2, 3, 5, 7), (2, 4, 6, 3)))
    yield Case("Accum", "accum_param { have_reference: true }", ((2, 3, 5, 7), (2, 4, 6, 3), (2, 5, 9, 11)))
    yield Case("SpatialTransformer", "", (X, (2, 6)))
    yield Case("SpatialTransformer", "st_param { output_H: 4 output_W: 7 theta_1_2: 0.1 }", (X, (2, 5)))
    # flow
    own = "correlation_param { kernel_size: 3 max_displacement: 2 pad: 3 stride_1: 2 }"
    yield Case("Correlation", own, (X, X))
    yield Case("Correlation", "correlation_param { kernel_size: 1 max_displacement: 3 pad: 3 stride_2: 2 }", (X, X))
    for direction in (-1, 0, 1):
        own = f"kernel_size: 3 max_displacement: 2 pad: 3 stride_1: 2 single_direction: {direction}"
        yield Case("Correlation1D", f"correlation_param {{ {own} }}", (X, X))
    yield Case("FlowWarp", "", (X, (2, 2, 8, 12)))
    yield Case("ChannelNorm", "", (X,))
    yield Case("DataAugmentation", "", (X,))
    yield Case("DataAugmentation", "augmentation_param { recompute_mean: 9 crop_height: 3 crop_width: 5 }", (X,))
    cut, moved = "crop_height: 3 crop_width: 5", "translate { spread: 0.1 } zoom { exp: true mean: 0.2 spread: 0.1 }"
    colors = "chromatic_eigvec: [0.51, 0.56, 0.65, 0.79, 0.01, -0.62, 0.35, -0.83, 0.44]"
    images, coefficients = (3, 3, 8, 9), (3, 42, 1, 1)
    yield Case("DataAugmentation", f"augmentation_param {{ {cut} {moved} {colors} }}", (images,), 2)
    yield Case(
        "DataAugmentation", f"augmentation_param {{ {cut} {colors} max_multiplier: 1 }}", (images, (3, 42, 1, 1)), 2
    )
    yield Case("DataAugmentation", "augmentation_param { mean: [1, 2, 3] mean_per_pixel: false }", (images,))
    yield Case("GenerateAugmentationParameters", f"augmentation_param {{ {cut} {moved} }}", (images,))
    sized = f"{cut} {moved} bottomheight: 8 bottomwidth: 9"
    for mode in ("add", "replace", "regenerate"):
        own = f"augmentation_param {{ {sized} mode: '{mode}' noise {{ mean: 0.1 }} gamma {{ spread: 0.2 exp: true }} }}"
        yield Case("GenerateAugmentationParameters", own, (coefficients,))
    own = f"augmentation_param {{ {moved} }} coeff_schedule_param {{ half_life: 9 initial_coeff: 0.5 }}"
    yield Case("GenerateAugmentationParameters", own, (coefficients, images, (3, 3, 5, 7)))
    yield Case("FlowAugmentation", f"augmentation_param {{ {cut} }}", ((3, 2, 8, 9), coefficients, coefficients))
    for count in (1, 2):
        yield Case("Mean", "mean_param { value: 9 value: 8 }", (X, X)[:count], count)
    # boxes
    for type_ in ("ROIPooling", "RoiPooling"):
        for own in ("pooled_h: 2 pooled_w: 3", "pooled_size: 3", "pooled_size: 2 pooled_size: 3"):
            yield Case(type_, f"roi_pooling_param {{ {own} spatial_scale: 0.1 }}", (X, ROIS))
    yield Case("ROIAlign", "roi_align_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 }", (X, ROIS))
    yield Case("ROIAlign", "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 }", (X, (4, 5, 1, 1)))
    yield Case("ROIWarping", "roi_warping_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 }", (X, ROIS))
    own = "psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 0.1 }"
    yield Case("PSROIPooling", own, ((2, 8, 6, 10), ROIS))
    boxes = "prior_box_param { min_size: 5 max_size: 9 aspect_ratio: 2 aspect_ratio: 3 "
    for own in ("", "flip: false", "denser_prior_boxes: true", "aspect_ratio: 1 min_size: 7 max_size: 8"):
        yield Case("PriorBox", f"{boxes} {own} }}", (X, (2, 3, 50, 60)))
    boxes = "prior_box_param { min_size: [20, 60] max_size: [30, 90] aspect_ratio: [2, 3] clip: true"
    for own in ("tf: true", "keras: true", "tf: true yx_order: true", "yx_order: true denser_prior_boxes: true"):
        yield Case("PriorBox", f"{boxes} {own} }}", (X, (2, 3, 50, 60)))
    for sizes in ("32, 64, 128", "256"):
        yield Case("PriorBox", f"prior_box_param {{ min_size: [{sizes}] faceboxes: true }}", (X, (2, 3, 50, 60)))
    yield Case("Warp", "", (X, (X[0], 2, *X[2:])))
    yield Case("Warp", "warp_param { places: true }", (X, (X[0], 2, *X[2:])))
    yield Case("Grid", "", (X,))
    yield Case("ExpMax", "expmax_param { base: 2 scale: 3 shift: -1 }", (X,))
    yield Case("ScaleTanH", "scale_tanh_param { init_scale: 2 gamma: 0.5 power: 2 step_size: 3 }", (X,))
    yield Case("Sparsify", "sparsify_param { thre: 0.5 }", (X,))
    yield Case("Norm", "", (X,))
    for own in ("type: 'deterministic' guidance_threshold: 0.25", "type: 'stochastic' sigmoid_scaler: 2"):
        yield Case("GuidedDropout", f"guided_dropout_param {{ {own} }}", (X, (*X[:2], 1, 1)))
        yield Case("GuidedDropout", f"guided_dropout_param {{ {own} }}", ((4, 3), (4, 3)))
    yield Case("Norm", "", ((3, 5),))
    larger = (X[0], X[1], X[2] + 3, X[3] + 4)
    for own in ("", "operation: ADD", "forward: true forward: false", "operation: ADD backward: [false, true]"):
        yield Case("MergeCrop", f"mergecrop_param {{ {own} }}", (X, larger))
    yield Case("MergeCrop", "", (VIDEO, (*VIDEO[:2], 9, 9, 12)))
    regions = "region_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.25"
    yield Case("RegionPooling", f"{regions} }}", (X, (5, 9)))
    yield Case("RegionPooling", f"{regions} offset: 0 }}", (X, (5, 9, 1, 1)))
    for size in ("target_height: 5 target_width: 4", "target_height: 11 target_width: 4", ""):
        yield Case("RandomCrop", f"random_crop_param {{ {size} }}", ((2, 7, 8, 9),))
    for own in ("stride: 2 dilation: 2", "stride: 2 pad: 1 dilation: 3", "stride: 3 pad: 2 dilation: [2, 3]"):
        yield Case("Pooling", f"pooling_param {{ kernel_size: 2 {own} }}", (X,))
        yield Case("Pooling", f"pooling_param {{ kernel_size: 2 {own} }}", (X,), 2)
    yield Case("Pooling", "pooling_param { kernel_size: 2 stride: 2 dilation: [3, 1, 2] }", (VIDEO,))
    scores = ((2, 5, 4, 6), (2, 5, 4, 6), (2, 3, 4, 6))
    own = "max_iter: 2 pos_w: [3, 1] pos_xy_std: [3, 1.5] bi_w: 4 bi_xy_std: 5 bi_rgb_std: 0.5"
    yield Case("DenseCRF", f"dense_crf_param {{ {own} output_probability: false }}", ((2, 5, 4, 6), (2, 2)))
    yield Case("DenseCRF", f"dense_crf_param {{ {own} }}", ((2, 5, 4, 6), (2, 1, 1, 2), (2, 3, 4, 6)))
    own = "theta_alpha: 5 theta_beta: 0.25 theta_gamma: 1.5 num_iterations: 3"
    yield Case("MultiStageMeanfield", f"multi_stage_meanfield_param {{ {own} }}", scores)
    yield Case("Warping", "", (X, (X[0], 1, *X[2:]), (X[0], 1, *X[2:])))
    yield Case("Interp", "interp_param { use_blob_size: true height: 3 width: 9 }", (X, SMALL))
    yield Case("BatchNorm", "batch_norm_param { add_eps_before_sqrt: false eps: 0.01 }", (X,))
    yield Case("BatchNormKyle", "batch_norm_param { add_eps_before_sqrt: false use_alpha_beta: true }", (X,))
    yield Case("Concat", "concat_param { per_fla_fuse: true }", (SMALL, (3, 2, 9, 4)))
    for type_ in ("PriorBox", "PriorBoxClustered"):
        own = "prior_box_param { box_width: [9, 4] box_height: [7, 2] min_size: 5 yx_order: true }"
        yield Case(type_, own, (X, (2, 3, 50, 60)))
    for type_ in ("PriorBox", "PriorBoxClustered"):
        yield Case(type_, "prior_box_param { width: [9, 4, 1] height: [7, 2, 3] }", (X, (2, 3, 50, 60)))
    own = "prior_box_clustered_param { width: [9, 4] height: [7, 2] }"
    yield Case("PriorBoxClustered", own, (X, (2, 3, 50, 60)))
    own = "detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.45 } }"
    yield Case("DetectionOutput", own, ((2, 16), (2, 12), PRIORS))
    yield Case("DetectionOutput", own, ((2, 16), (2, 12), PRIORS, (2, 8), (2, 16)))
    yield Case("DetectionOutput", own, ((2, 16), (2, 12), PRIORS, (2, 3, 5, 7)))  # an image to show
    own = "detection_output_param { num_classes: 3 use_polygon: true code_type: CENTER_SIZE nms_param {} }"
    yield Case("DetectionOutput", own, ((2, 48), (2, 12), PRIORS))
    maps = ((3, 4, 2, 30), (3, 4, 1, 8), (3, 8, 5, 6), (3, 4, 1, 8), (1, 2, 272))
    many = "num_classes: 4 nbottom: 2 nms_param { nms_threshold: 0.45 } code_type: CENTER_SIZE"
    yield Case("DetectionOutput", f"detection_output_param {{ {many} no_permute: true }}", maps)
    flat = ((3, 16), (3, 8), (3, 64), (3, 32), (1, 2, 16), (1, 2, 8))
    yield Case("DetectionOutput", f"detection_output_param {{ {many} share_location: false }}", flat)
    one = "num_classes: 3 nbottom: 1 nms_param {}"
    yield Case("DetectionOutput", f"detection_output_param {{ {one} }}", ((2, 12), (2, 16), PRIORS))
    own = "num_classes: 3 keep_top_k: 20 code_type: CENTER_SIZE nms_param { nms_threshold: 0.45 top_k: 10 }"
    yield Case("DetectionOutput", f"detection_output_param {{ {own} confidence_threshold: 0.3 }}", _SSD)
    own = "proposal_param { ratio: [0.5, 2] scale: [8, 16] post_nms_topn: 30 }"
    yield Case("Proposal", own, ((2, 8, 5, 7), (2, 16, 5, 7), (2, 3)))
    yield Case("Proposal", own, ((2, 8, 5, 7), (2, 16, 5, 7), (2, 3)), 2)
    own = 'python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" }'
    yield Case("Python", own, ((2, 18, 5, 7), (2, 36, 5, 7), (2, 3)))
    own = """python_param { module: "rpn.roi_select_layer" layer: "RoISelectLayer" param_str: "'num_class': 4" }"""
    yield Case("Python", own, ((9, 5), (9, 4)))
    yield Case("RoISelectLayer", own, ((9, 5), (9, 4)))
    own = "yolo_detection_output_param { num_classes: 3 num_box: 2 biases: [1, 2, 3, 4] }"
    yield Case("YoloDetectionOutput", own, ((2, 16, 5, 7),))
    yield Case("YoloDetectionOutput", own, ((2, 16, 5, 7), (2, 16, 10, 14)))
    own = "num_box: 1 num_classes: 3 biases: [9, 8]"
    one = f"yolov3_detection_output_param {{ {own} mask: 0 anchors_scale: 9 mask_group_num: 1 }}"
    yield Case("Yolov3DetectionOutput", one, ((2, 8, 5, 7),))
    two = f"yolov3_detection_output_param {{ {own} mask: [0, 0] anchors_scale: [9, 4] mask_group_num: 2 }}"
    yield Case("Yolov3DetectionOutput", two, ((2, 8, 5, 7), (2, 8, 10, 14)))
    yield Case("RegionYolo", "region_yolo_param { classes: 3 num: 1 coords: 4 }", ((2, 8, 5, 7),))
    yield Case("RegionYolo", "region_yolo_param { classes: 3 mask: 1 do_softmax: false }", ((2, 8, 5, 7),))
    for count in (1, 2):
        own = " ".join(f"field_h: {k + 3} field_w: {k + 4} downsample_rate: {k + 2}" for k in range(count))
        grids = ((2, 8, 5, 7), (2, 8, 3, 4))[:count]
        for tops in (1, 2):
            yield Case("BoxOutput", f"box_output_param {{ {own} }}", grids, tops)
    more = "roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.25 pad_ratio: 0.2 %s }"
    yield Case("ROIPooling", more % "", ((2, 3, 5, 7), (4, 5)))
    yield Case("ROIAlign", more % "corners: true", ((2, 3, 5, 7), (4, 5, 1, 1)))
    norm = "bbox_reg_param { " + " ".join(f"bbox_mean: 0.{k} bbox_std: 0.{k + 1}" for k in range(4)) + " %s }"
    group = "box_group_param { field_h: 9 field_h: 20 field_w: 12 field_w: 7 stride: 4 }"
    other = "box_group_param { field_h: 15 field_w: 16 stride: 8 }"
    grids = ((6, 3, 5, 7), (6, 4, 5, 7), (3, 3, 8, 9), (3, 4, 8, 9))
    for tops in (1, 2):
        own = f"iou_thr: 0.4 fg_thr: 0.3 max_nms_num: 40 min_size: 5 {group}"
        yield Case("BoxGroupOutput", f"box_group_output_param {{ {own} }}", grids[:2], tops)
        own = f"iou_thr: 0.6 nms_type: 'IOMU' max_post_nms_num: 6 min_size: 7 field_whr: 3 {group} {other}"
        yield Case("BoxGroupOutput", f"box_group_output_param {{ {own} field_xyr: 4 }} {norm % ''}", grids, tops)
    yield Case("DecodeBBox", norm % "", ((6, 8), (6, 5)))
    yield Case("DecodeBBox", "decode_bbox_param { gt_iou_thr: 0.8 }", ((6, 8, 1, 1), (6, 5, 1, 1), (6, 5, 1, 1)))
    yield Case("BoxOutput", f"box_output_param {{ field_h: 9 field_w: 7 downsample_rate: 4 }} {norm % ''}", (X,))
    own = "frcnn_output_param { conf_thr: 0.2 iou_thr: 0.3 max_det_num: 7 }"
    yield Case("FrcnnOutput", f"{own} {norm % ''}", ((6, 4), (6, 16), (6, 5), (1, 2)))
    own = f"frcnn_output_param {{ nms_type: 'IOFU' }} {norm % 'cls_aware: false'}"
    yield Case("FrcnnOutput", own, ((6, 4, 1, 1), (6, 8, 1, 1), (6, 6, 1, 1), (1, 2, 1, 1)))
    for sizes in ("high_scale: 9", "low_scale: 9 high_scale: 14", "low_scale: 90", ""):
        yield Case("ScaleRoute", f"scale_route_param {{ {sizes} }}", ((6, 5),))
        yield Case("ScaleRoute", f"scale_route_param {{ {sizes} }}", ((6, 5, 1, 1), (6, 3, 2, 4)), 2)
    yield Case("Nms", "nms_param { num_parts: 2 max_peaks: 4 threshold: 0.2 }", (X,))
    # faces
    for type_, own in (("MarginInnerProduct", "margin"), ("LargeMarginInnerProduct", "largemargin")):
        for tops in (1, 2):
            margin = f"{own}_inner_product_param {{ num_output: 4 type: TRIPLE base: 5 }}"
            yield Case(type_, margin, (X, (2,)), tops)
    yield Case("LabelSpecificAdd", "label_specific_add_param { bias: -0.35 }", ((2, 5), (2,)))
    for tops in (1, 2):
        own = "label_specific_margin_param { margin_base: 30 margin_on_test: true }"
        yield Case("LabelSpecificMargin", own, ((2, 5), (2,)), tops)
    yield Case("InnerDistance", "inner_distance_param { num_output: 4 }", (X,))
    yield Case("InnerDistance", "inner_distance_param { num_output: 4 axis: 2 bias_term: false }", (X,))
    # losses
    yield Case("Accuracy", "", ((3, 5), (3,)))
    yield Case("Accuracy", "accuracy_param { axis: 2 top_k: 2 }", (X, (2, 6, 12)), 2)
    yield Case("ContrastiveLoss", "", ((3, 5), (3, 5), (3,)))
    yield Case("EuclideanLoss", "", (X, X))
    yield Case("HingeLoss", "", ((3, 5), (3,)))
    for tops in (1, 2):
        yield Case("InfogainLoss", "", ((3, 5), (3,), (5, 5)), tops)
        yield Case("SoftmaxWithLoss", "softmax_param { axis: 1 }", (X, (2, 8, 12)), tops)
    yield Case("InfogainLoss", f'infogain_loss_param {{ source: "{_infogain_matrix(5)}" }}', ((3, 5), (3,)))
    yield Case("MultinomialLogisticLoss", "", ((3, 5), (3,)))
    yield Case("SigmoidCrossEntropyLoss", "", (X, X))
    for count in (2, 3, 4):
        yield Case("SmoothL1Loss", "", (X,) * count)
    yield Case("MultiBoxLoss", "multibox_loss_param { num_classes: 3 }", ((2, 16), (2, 12), PRIORS, (1, 1, 3, 8)))
    own = "multibox_loss_param { num_classes: 3 share_location: false mining_type: NONE }"
    yield Case("MultiBoxLoss", own, ((2, 48), (2, 12), PRIORS, (1, 1, 3, 8)))
    own = "detection_evaluate_param { num_classes: 3 background_label_id: 2 }"
    yield Case("DetectionEvaluate", own, ((1, 1, 4, 7), (1, 1, 3, 8)))


CASES = tuple(_all())

UNBUILT = {"ForkLoss": "is refused, unless the deploy view drops it"}
"""Types that are never run, with the reason; their records are held to that."""


def records() -> dict[str, Signature]:
    """The records of the types whose layers are built, by type; Python's are those of what stands for it."""
    own = {id(s): s for s in SIGNATURES.values() if s.tops is not None and s.type not in (*UNBUILT, "Python")}
    return {signature.type: signature for signature in own.values()}


def cases_of(type_: str) -> list[Case]:
    """The cases of a record, its aliases included."""
    signature = SIGNATURES[type_]
    return [case for case in CASES if find(case.message) is signature]


# -- running ------------------------------------------------------------------------------------------------------


def run(case: Case) -> tuple[Layer, list[Shape], list[Shape]]:
    """The module, and the shapes of its tops: of real numbers, and what Caffe allocates (which differs where the number
    of rows depends on them).
    """
    cls = class_of(case.message)
    assert cls is not None
    with torch.device("meta"):
        module = cls.build(case.message, case.bottoms).eval()
    layer = spec_of(case)
    allocated = infer_by_running(layer, copy.deepcopy(module), case.bottoms)
    module = module.to_empty(device="cpu")
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.uniform_(0.1, 1)
    bottoms = [_filled(case, index) for index in range(len(case.bottoms))]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one_by_one = module.per_bottom and len(bottoms) > 1
        made = tuple(module(x) for x in bottoms) if one_by_one else module(*bottoms)
    tops = made if isinstance(made, tuple) else (made,)
    return module, [tuple(top.shape) for top in tops], allocated


def spec_of(case: Case) -> LayerSpec:
    message = case.message
    sources = tuple((blob, 0) for blob in message.bottom)
    return LayerSpec("l", case.type, tuple(message.bottom), tuple(message.top), sources, message, "net.prototxt:7")


def _filled(case: Case, index: int) -> Tensor:
    shape, signature = case.bottoms[index], find(case.message)
    held = signature.holds if signature is not None else ()
    what = held[index] if index < len(held) else Holds.NUMBERS
    if what in (Holds.LABELS, Holds.INDICES, Holds.FLAGS, Holds.CONTINUES):
        return torch.ones(shape)
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(index))
    if what is Holds.BOXES:
        numbers = numbers.reshape(shape[0], -1) * torch.tensor([0.0, 20, 20, 20, 20, 1])[: math.prod(shape[1:])]
        numbers[:, 3:5] += numbers[:, 1:3]
        return numbers.reshape(shape)
    return numbers


# -- the checks ---------------------------------------------------------------------------------------------------


def check_tops(case: Case) -> None:
    """The rule gives what forward makes, and what Caffe allocates."""
    _, made, allocated = run(case)
    planned = shapes.top_shapes(spec_of(case), case.bottoms)
    assert planned == allocated, f"planned {planned}, the layer allocates {allocated}"
    for ours, real in zip(planned, made, strict=True):
        by_numbers = allocated != made  # only how many rows there are may depend on the numbers
        alike = len(ours) == len(real) and ours[1:][-1:] == real[1:][-1:]
        assert ours == real or (by_numbers and alike), f"{ours} for {real}"


def check_binary(case: Case) -> None:
    """The rule gives the same for a message that was read from a binary file, whose lists of floats are arrays."""
    if any(dialects.written(case.message.type, name, value)[1] for name, value in case.message.items()):
        return  # under the numbers of a fork, which one layer alone does not tell
    data = b"".join(wire.serialize(Message("NetParameter", layer=[case.message])))
    (read,) = wire.parse(memoryview(data), "NetParameter", "x").layer
    signature = find(case.message)
    assert signature is not None
    names = [[name for name, _ in message.items()] for message in (case.message, read)]
    if _has_unknown(case.message) or names[0] != names[1]:  # outside the schema, or another fork's field of that number
        return
    assert signature.top_shapes(read, case.bottoms) == signature.top_shapes(case.message, case.bottoms)


def _has_unknown(message: Message) -> bool:
    values = [value for _, field in message.items() for value in (field if isinstance(field, list) else [field])]
    return bool(message.unknown) or any(_has_unknown(value) for value in values if isinstance(value, Message))


def check_blobs(case: Case) -> None:
    """The rule gives the names and shapes of what the module holds, and which of it no solver learns."""
    module, _, _ = run(case)
    signature = find(case.message)
    assert signature is not None
    ours = dict(signature.blob_shapes(case.message, case.bottoms)) if signature.blob_shapes is not None else {}
    held = {name: tuple(module.get_blob(name).shape) for name in module.blob_names()}
    assert list(ours.items()) == list(held.items())
    fixed = {name for name in held if not getattr(module, name).requires_grad}
    assert fixed == signature.statistics & set(held)


def check_macs(case: Case) -> None:
    """Two operations of torch's own counter are one multiply-accumulate."""
    module, made, _ = run(case)
    bottoms = [_filled(case, index) for index in range(len(case.bottoms))]
    with torch.no_grad(), FlopCounterMode(display=False) as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x in [[x] for x in bottoms] if module.per_bottom else [bottoms]:
            module(*x)
    counted = counter.get_total_flops()
    if case.type == "DeformableConvolution":  # torchvision's own operator is not counted: as a convolution is
        counted = 2 * made[0][0] * made[0][2] * made[0][3] * module.get_blob("weight").numel()
    ours = shapes.macs(spec_of(case), case.bottoms, made)
    assert 2 * ours == (counted if find(case.message).macs is not None else 0)  # type: ignore[union-attr]


def check_bottoms(type_: str) -> None:
    """There are cases with the least and the greatest number of bottoms, and forward takes as many."""
    signature, cls = SIGNATURES[type_], REGISTRY[type_]
    counts = {len(case.bottoms) for case in cases_of(type_)}
    least, most = signature.bottoms
    assert counts <= set(range(least, min(most, 99) + 1))
    assert least in counts, f"no case with {least} bottoms"
    assert most in counts if most < ANY else max(counts) > least, f"no case with {most} bottoms"
    taken = [p for name, p in inspect.signature(cls.forward).parameters.items() if name != "self"]
    if not signature.has(Trait.PER_BOTTOM) and all(p.kind is not p.VAR_POSITIONAL for p in taken):
        assert most <= len(taken)


def check_refusals(case: Case) -> Iterator[str]:
    """What the rule takes, runs: bottoms that were changed a little are refused by the rule, or the layer makes of them
    what the rule says.

    Yields:
        Every choice of bottoms that the rule takes and the layer does not.
    """
    for bottoms in _changed(case.bottoms):
        changed = Case(case.type, case.param, bottoms, case.tops)
        layer = spec_of(changed)
        try:
            planned = shapes.top_shapes(layer, bottoms)
        except SpecError:
            continue
        try:
            cls = class_of(layer.param)
            assert cls is not None
            with torch.device("meta"):
                module = cls.build(layer.param, bottoms)
            made = infer_by_running(layer, module, bottoms)
        except SpecError as error:
            if not _labels_changed(case, bottoms):
                yield f"{bottoms}: the rule says {planned}, the layer refuses: {error.what}"
            continue
        if made != planned:
            yield f"{bottoms}: the rule says {planned}, the layer makes {made}"


def _changed(bottoms: tuple[Shape, ...]) -> Iterator[tuple[Shape, ...]]:
    """Bottoms with one length, one axis or one of them more or less; all of them together, too."""
    ways: list[tuple[Shape, ...]] = []
    for k, shape in enumerate(bottoms):
        for other in _other(shape):
            ways.append((*bottoms[:k], other, *bottoms[k + 1 :]))
    if len(bottoms) > 1 and len(set(bottoms)) == 1:
        ways += [(other,) * len(bottoms) for other in _other(bottoms[0])]
    ways += [bottoms[:-1], (*bottoms, *bottoms[-1:])] if bottoms else [(X,)]
    yield from dict.fromkeys(ways)


def _other(shape: Shape) -> Iterator[Shape]:
    for axis, length in enumerate(shape):
        for new in {length + 1, length - 1, 1} - {length, 0}:
            yield (*shape[:axis], new, *shape[axis + 1 :])
    yield shape[1:]
    yield (*shape, 2)
    yield (*shape, 1)


def _labels_changed(case: Case, bottoms: tuple[Shape, ...]) -> bool:
    """Whether it is about labels, which the rules do not look at."""
    signature = find(case.message)
    return signature is not None and (signature.has(Trait.LABELS) or Holds.LABELS in signature.holds)


@contextlib.contextmanager
def planted(type_: str, signature: Signature) -> Iterator[None]:
    """Another record in the place of a type's, within the block."""
    cls, before = REGISTRY[type_], SIGNATURES[type_]
    names = [name for name, kept in SIGNATURES.items() if kept is before]
    python = [name for name, kept in PYTHON.items() if kept is before]
    try:
        SIGNATURES.update(dict.fromkeys(names, signature))
        PYTHON.update(dict.fromkeys(python, signature))
        cls.signature = signature
        yield
    finally:
        SIGNATURES.update(dict.fromkeys(names, before))
        PYTHON.update(dict.fromkeys(python, before))
        cls.signature = before
