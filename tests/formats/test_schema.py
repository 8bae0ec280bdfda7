"""proto/caffe.proto: the compiled copy is fresh, the numbers are Caffe's, and text in the wild has no unknown field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SHARED, needs_shared, real_files
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from caffe_port.formats.dialects import PLACEHOLDERS

COMPILED = ROOT / "caffe_port" / "formats" / "caffe.binpb"

# Message.field: number, default ("" where there is none, or the field is repeated). Source: BVLC caffe.proto.
BASE = """
BlobShape.dim 1 | BlobProto.shape 7 | BlobProto.data 5 | BlobProto.diff 6 | BlobProto.double_data 8
BlobProto.double_diff 9 | BlobProto.num 1 0 | BlobProto.channels 2 0 | BlobProto.height 3 0 | BlobProto.width 4 0
BlobProtoVector.blobs 1 | Datum.channels 1 | Datum.height 2 | Datum.width 3 | Datum.data 4 | Datum.label 5
Datum.float_data 6 | Datum.encoded 7 False
FillerParameter.type 1 constant | FillerParameter.max 4 1.0 | FillerParameter.sparse 7 -1
FillerParameter.variance_norm 8 FAN_IN
NetParameter.name 1 | NetParameter.layers 2 | NetParameter.input 3 | NetParameter.input_dim 4 | NetParameter.state 6
NetParameter.force_backward 5 False | NetParameter.debug_info 7 False | NetParameter.input_shape 8
NetParameter.layer 100
SolverParameter.train_net 1 | SolverParameter.test_net 2 | SolverParameter.base_lr 5 | SolverParameter.lr_policy 8
SolverParameter.gamma 9 | SolverParameter.power 10 | SolverParameter.momentum 11 | SolverParameter.weight_decay 12
SolverParameter.stepsize 13 | SolverParameter.solver_mode 17 GPU | SolverParameter.random_seed 20 -1
SolverParameter.net 24 | SolverParameter.regularization_type 29 L2 | SolverParameter.solver_type 30 SGD
SolverParameter.delta 31 1e-08 | SolverParameter.test_initialization 32 True | SolverParameter.average_loss 33 1
SolverParameter.stepvalue 34 | SolverParameter.clip_gradients 35 -1.0 | SolverParameter.iter_size 36 1
SolverParameter.snapshot_format 37 BINARYPROTO | SolverParameter.rms_decay 38 0.99
SolverParameter.momentum2 39 0.999 | SolverParameter.type 40 SGD | SolverParameter.layer_wise_reduce 41 True
SolverParameter.weights 42 | SolverState.iter 1 | SolverState.learned_net 2 | SolverState.history 3
SolverState.current_step 4 0 | NetState.phase 1 TEST | NetState.level 2 0 | NetStateRule.not_stage 5
ParamSpec.lr_mult 3 1.0 | ParamSpec.decay_mult 4 1.0
LayerParameter.name 1 | LayerParameter.type 2 | LayerParameter.bottom 3 | LayerParameter.top 4
LayerParameter.loss_weight 5 | LayerParameter.param 6 | LayerParameter.blobs 7 | LayerParameter.include 8
LayerParameter.exclude 9 | LayerParameter.phase 10 | LayerParameter.propagate_down 11
LayerParameter.transform_param 100 | LayerParameter.loss_param 101 | LayerParameter.accuracy_param 102
LayerParameter.convolution_param 106 | LayerParameter.data_param 107 | LayerParameter.inner_product_param 117
LayerParameter.lrn_param 118 | LayerParameter.pooling_param 121 | LayerParameter.python_param 130
LayerParameter.prelu_param 131 | LayerParameter.embed_param 137 | LayerParameter.tile_param 138
LayerParameter.batch_norm_param 139 | LayerParameter.elu_param 140 | LayerParameter.bias_param 141
LayerParameter.scale_param 142 | LayerParameter.input_param 143 | LayerParameter.crop_param 144
LayerParameter.parameter_param 145 | LayerParameter.recurrent_param 146 | LayerParameter.swish_param 147
LayerParameter.clip_param 148
TransformationParameter.scale 1 1.0 | TransformationParameter.mean_value 5 | LossParameter.normalization 3 VALID
AccuracyParameter.top_k 1 1 | AccuracyParameter.axis 2 1 | BatchNormParameter.use_global_stats 1
BatchNormParameter.moving_average_fraction 2 0.999 | BatchNormParameter.eps 3 1e-05
ConcatParameter.concat_dim 1 1 | ConcatParameter.axis 2 1 | ConvolutionParameter.num_output 1
ConvolutionParameter.bias_term 2 True | ConvolutionParameter.pad 3 | ConvolutionParameter.kernel_size 4
ConvolutionParameter.group 5 1 | ConvolutionParameter.stride 6 | ConvolutionParameter.axis 16 1
ConvolutionParameter.force_nd_im2col 17 False | ConvolutionParameter.dilation 18
DropoutParameter.dropout_ratio 1 0.5 | EltwiseParameter.operation 1 SUM | EltwiseParameter.coeff 2
ExpParameter.base 1 -1.0 | FlattenParameter.end_axis 2 -1 | InnerProductParameter.transpose 6 False
LRNParameter.local_size 1 5 | LRNParameter.alpha 2 1.0 | LRNParameter.beta 3 0.75 | LRNParameter.k 5 1.0
MVNParameter.eps 3 1e-09 | PoolingParameter.pool 1 MAX | PoolingParameter.stride 3
PoolingParameter.global_pooling 12 False | PoolingParameter.round_mode 13 CEIL | PReLUParameter.channel_shared 2 False
ReductionParameter.operation 1 SUM | ReductionParameter.axis 2 0 | ReshapeParameter.num_axes 3 -1
ScaleParameter.axis 1 1 | ScaleParameter.num_axes 2 1 | ScaleParameter.bias_term 4 False
SliceParameter.slice_dim 1 1 | SliceParameter.axis 3 1 | ThresholdParameter.threshold 1 0.0
V1LayerParameter.layer 1 | V1LayerParameter.name 4 | V1LayerParameter.type 5 NONE | V1LayerParameter.blobs 6
V1LayerParameter.convolution_param 10 | V1LayerParameter.loss_param 42 | V1LayerParameter.param 1001
V1LayerParameter.blob_share_mode 1002 | V0LayerParameter.kernelsize 8 | V0LayerParameter.k 22 1.0
V0LayerParameter.blobs 50 | V0LayerParameter.det_crop_mode 59 warp | V0LayerParameter.hdf5_output_param 1001
"""

# The same for forks. Source: caffe.proto of each.
FORKS = """
BlobProto.raw_data_type 10 DOUBLE | BlobProto.raw_data 12 | BatchNormParameter.scale_bias 7 False
LayerParameter.annotated_data_param 200 | LayerParameter.multibox_loss_param 201 | LayerParameter.permute_param 202
LayerParameter.prior_box_param 203 | LayerParameter.detection_output_param 204 | LayerParameter.norm_param 206
LayerParameter.roi_pooling_param 8266711 | LayerParameter.smooth_l1_loss_param 8266712
LayerParameter.psroi_pooling_param 10001 | LayerParameter.box_annotator_ohem_param 10000
LayerParameter.bn_param 45 | LayerParameter.interp_param 163 | LayerParameter.shuffle_channel_param 164
LayerParameter.correlation_param 150 | LayerParameter.flow_warp_param 159 | LayerParameter.relu6_param 100000
LayerParameter.yolov3_detection_output_param 602 | LayerParameter.detectnet_groundtruth_param 6801
PriorBoxParameter.clip 5 False | PriorBoxParameter.offset 13 0.5 | NormalizeParameter.eps 4 1e-10
DetectionOutputParameter.code_type 6 CORNER | NonMaximumSuppressionParameter.nms_threshold 1 0.3
BNParameter.eps 8 1e-05 | InterpParameter.zoom_factor 3 1 | ShuffleChannelParameter.group 1 1
"""

ENUMS = {
    "V1LayerParameter.LayerType": "NONE ACCURACY BNLL CONCAT CONVOLUTION DATA DROPOUT EUCLIDEAN_LOSS FLATTEN HDF5_DATA "
    "HDF5_OUTPUT IM2COL IMAGE_DATA INFOGAIN_LOSS INNER_PRODUCT LRN MULTINOMIAL_LOGISTIC_LOSS POOLING RELU SIGMOID "
    "SOFTMAX SOFTMAX_LOSS SPLIT TANH WINDOW_DATA ELTWISE POWER SIGMOID_CROSS_ENTROPY_LOSS HINGE_LOSS MEMORY_DATA "
    "ARGMAX THRESHOLD DUMMY_DATA SLICE MVN ABSVAL SILENCE CONTRASTIVE_LOSS EXP DECONVOLUTION",
    "PoolingParameter.PoolMethod": "MAX AVE STOCHASTIC",
    "EltwiseParameter.EltwiseOp": "PROD SUM MAX",
    "LossParameter.NormalizationMode": "FULL VALID BATCH_SIZE NONE",
    "FillerParameter.VarianceNorm": "FAN_IN FAN_OUT AVERAGE",
    "LRNParameter.NormRegion": "ACROSS_CHANNELS WITHIN_CHANNEL",
    "DataParameter.DB": "LEVELDB LMDB",
    "SolverParameter.SolverType": "SGD NESTEROV ADAGRAD RMSPROP ADADELTA ADAM",
    "Phase": "TRAIN TEST",
    "Type": "DOUBLE FLOAT FLOAT16 INT UINT",
}


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _pool()


def _messages() -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
    """Every message type of the compiled schema, nested ones too, under its name without the package."""
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes()).file
    todo = [(m.name, m) for m in file.message_type]
    while todo:
        name, message = todo.pop()
        yield name, message
        todo += [(f"{name}.{m.name}", m) for m in message.nested_type]


MESSAGES = dict(_messages())


def _rows(table: str) -> list[list[str]]:
    return [row.split() for line in table.strip().splitlines() for row in line.split("|")]


def test_the_compiled_schema_is_fresh(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    out = tmp_path / "caffe.binpb"
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--descriptor_set_out={out}", "caffe.proto"]) == 0
    compiled, fresh = (descriptor_pb2.FileDescriptorSet.FromString(p.read_bytes()) for p in (COMPILED, out))
    assert compiled == fresh, (
        "run: python -m grpc_tools.protoc -Iproto --descriptor_set_out=caffe_port/formats/caffe.binpb caffe.proto"
    )
    assert not any(file.HasField("source_code_info") for file in compiled.file)


@pytest.mark.parametrize("row", _rows(BASE) + _rows(FORKS), ids=lambda row: row[0])
def test_numbers_and_defaults(row: list[str]) -> None:
    message, name = row[0].split(".")
    field = POOL.FindMessageTypeByName(f"caffe.{message}").fields_by_name[name]
    assert field.number == int(row[1])
    default = field.default_value
    if field.enum_type is not None and not isinstance(default, list):
        default = field.enum_type.values_by_number[default].name
    if len(row) > 2:
        assert (isinstance(default, float) and default == pytest.approx(float(row[2]))) or str(default) == row[2]
    else:
        assert not field.has_default_value


@pytest.mark.parametrize("name", ENUMS)
def test_enum_values(name: str) -> None:
    """The names stand in the order of their numbers, from 0."""
    enum = POOL.FindEnumTypeByName(f"caffe.{name}")
    names = {v.number: v.name for v in enum.values}
    assert [names[number] for number in range(len(ENUMS[name].split()))] == ENUMS[name].split()


def test_arrays_are_packed() -> None:
    packed = {f.name for f in MESSAGES["BlobProto"].field if f.options.packed}
    assert packed == {"data", "diff", "double_data", "double_diff", "half_data", "half_diff"}
    assert MESSAGES["BlobShape"].field[0].options.packed


def test_no_field_has_the_name_of_a_method() -> None:
    """caffe_port.formats.message.Message gives fields as attributes."""
    taken = {"line", "unknown", "schema", "has", "set", "items", "copy"}
    assert not [(m, f.name) for m, message in MESSAGES.items() for f in message.field if f.name in taken]


def test_placeholders_are_used_once() -> None:
    numbers = [f.number for m in MESSAGES.values() for f in m.field if f.number in PLACEHOLDERS]
    assert len(numbers) == len(set(numbers))


def _parse(text: str, message: str) -> Any:
    cls = message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"caffe.{message}"))
    return text_format.Parse(text, cls(), descriptor_pool=POOL)


@pytest.mark.parametrize(
    "text",
    [
        'layers { name: "c" type: CONVOLUTION blobs_lr: 1 weight_decay: 0 convolution_param { num_output: 3 } }',
        'layers { layer { name: "c" type: "conv" kernelsize: 3 biasterm: false } }',
        'layer { type: "BN" bn_param { bn_mode: INFERENCE scale_filler { type: "constant" } } }',
        'layer { type: "BN" bn_param { slope_filler {} bias_filler {} frozen: true momentum: 0.95 eps: 1e-5 } }',
        'layer { type: "Upsample" upsample_param { scale: 2 pad_out_h: true upsample_w: 60 } }',
        'layer { type: "Interp" interp_param { height: 65 width: 129 pad_beg: 0 } }',
        'layer { type: "Convolution" convolution_param { hole: 2 engine: MKLDNN } engine: "MKLDNN" }',
        'layer { type: "BatchNorm" batch_norm_param { scale_bias: true engine: CUDNN } forward_type: FLOAT16 }',
        'layer { type: "Pooling" pooling_param { pool: MAX kernel_size: 3 ceil_mode: false } }',
        'layer { type: "SoftmaxWithLoss" loss_param { normalization: PRE_FIXED weight_by_label_freqs: true } }',
        'layer { type: "Data" transform_param { resize_param { prob: 1 interp_mode: LINEAR } rand_rotate: 5 } }',
        'layer { type: "MarginInnerProduct" margin_inner_product_param { type: QUADRUPLE lambda_min: 5 } }',
        'layer { type: "ROIPooling" roi_pooling_param { pooled_w: 7 pooled_h: 7 spatial_scale: 0.0625 } }',
        'default_forward_type: FLOAT16 engine: "MKLDNN" layer { type: "Correlation" correlation_param { pad: 20 } }',
    ],
)
def test_forks_are_readable_by_name(text: str) -> None:
    _parse(text, "NetParameter")


@needs_shared
def test_prototxts_have_no_unknown_field() -> None:
    paths = real_files(".prototxt")
    assert len(paths) > 200
    failed = {}
    for path in paths:
        text, errors = path.read_text(encoding="utf-8", errors="replace"), []
        for message in ("NetParameter", "SolverParameter"):
            try:
                _parse(text, message)
            except text_format.ParseError as error:
                errors.append(f"{message}: {error}")
        if len(errors) == 2:
            failed[str(path.relative_to(SHARED))] = errors
    assert not failed
