"""The table of dialects: what it holds, and that it is up to date."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import HERE, SHARED, needs_shared

from caffe_port.errors import CaffePortError
from caffe_port.formats import dialects, recognition, wire
from caffe_port.formats.message import Message, schema

sys.path.insert(0, str(HERE.parent / "docs"))
sys.path.insert(0, str(HERE.parent / "benchmarks"))
import make_dialects
from dialect_nets import delimited, varint

NUMBERS = """
BN bn_param 137 139 152 160 201 222 1111
Scale scale_param 160
Bias bias_param 161
Upsample upsample_param 137 147 149 150 160 211 500
Resize resize_param 251
BilinearInterpolate bilinear_interpolate_param 505
MaxUnPool max_unpool_param 506
Unsqueeze unsqueeze_param 502
Pad pad_param 504
Interp interp_param 143 150 153 166
CropCenter crop_center_param 149
Accum accum_param 160
DenseImageData dense_image_data_param 138
SegAccuracy seg_accuracy_param 154 164
DenseCRF dense_crf_param 152
DomainTransform domain_transform_param 147
AdaptiveBiasChannel adaptive_bias_channel_param 148
BiasChannel bias_channel_param 149
MatRead mat_read_param 151
MatWrite mat_write_param 155
SpatialDropout spatial_dropout_param 155
ROIPooling roi_pooling_param 143 147 150 154 161
ROIAlign roi_align_param 154
PSROIPooling psroi_pooling_param 149 153 207
SmoothL1Loss smooth_l1_loss_param 148
SmoothL1LossOHEM smooth_l1_loss_param 148
BoxAnnotatorOHEM box_annotator_ohem_param 150 152
PriorBoxClustered prior_box_clustered_param 203
Proposal proposal_param 201 202
BoxOutput box_output_param 151
NormalizeBBox normalize_bbox_param 149
RegionLoss region_loss_param 209
Reorg reorg_param 149 155 159
YoloV3Loss yolo_v3_loss_param 199
Mish mish_param 150
ShuffleChannel shuffle_channel_param 159 213
PixelShuffle pixelshuffle_param 507
ReLU6 relu6_param 211 216 2060 503
HardSigmoid hardsigmoid_param 501
HardSigmoid hard_sigmoid_param 258
Axpy axpy_param 151 210
Reverse reverse_param 147 157
SpatialTransformer st_param 150
STLoss st_loss_param 151
PowerFile power_file_param 152
LocLoss loc_loss_param 153
DataAugmentation coeff_schedule_param 148
DataAugmentation augmentation_param 149
GenerateAugmentationParameters coeff_schedule_param 148
GenerateAugmentationParameters augmentation_param 149
BlackAugmentation black_augmentation_param 161
CenterLoss center_loss_param 147 149
MarginInnerProduct margin_inner_product_param 147 151
LargeMarginInnerProduct largemargin_inner_product_param 147
TripletLoss triplet_loss_param 136 137 142 147
FocalLoss focal_loss_param 145 151
Local local_param 140
Insanity insanity_param 141
EltwiseAffine eltwise_affine_param 145
SubRegion sub_region_param 146
Noise noise_param 147
CTCLoss ctc_loss_param 148
CTCDecoder ctc_decoder_param 149
CTCGreedyDecoder ctc_decoder_param 149
ImResize imresize_param 147
Nms nms_param 148
MnActivation mn_activation_param 151
ContinuationIndicator continuation_indicator_param 200
ConvolutionRistretto quantization_param 148
DeconvolutionRistretto quantization_param 148
FcRistretto quantization_param 148
LRNRistretto quantization_param 148
DataRistretto quantization_param 148
Convolution quantization_param 158
InnerProduct quantization_param 158
Pooling quantization_param 158
ReLU quantization_param 158
Eltwise quantization_param 158
Concat quantization_param 158
DenseBlock denseblock_param 147
UpsampleDarknet upsample_darknet_param 209
DepthToSpace depth_to_space_param 208
ResizeNearestNeighbor resize_nearest_neighbor_param 210
ResizeBilinear resize_bilinear_param 226
SpaceToBatchND space_to_batch_nd_param 236
BatchToSpaceND batch_to_space_nd_param 235
Squeeze squeeze_param 241
MatMul matmul_param 263
Mul mul_param 278
Pad pad_param 224
HardSigmoid hard_sigmoid_param 258
CTCGreedyDecoder ctc_decoder_param 158
ContinuationIndicator continuation_indicator_param 153
"""
"""Layer type, field of LayerParameter, its numbers in forks: what could be read before there was a table."""


def layer_bytes(type_: str, number: int, payload: bytes) -> bytes:
    return delimited(100, delimited(1, b"one") + delimited(2, type_.encode()) + delimited(number, payload))


CASES = [
    (type_, int(number), field)
    for type_, field, *numbers in map(str.split, NUMBERS.split("\n")[1:-1])
    for number in numbers
]


@pytest.mark.parametrize(("type_", "number", "field"), CASES)
def test_a_number_is_read_by_the_type_that_owns_the_field(type_: str, number: int, field: str) -> None:
    """With a value that every dialect with that number has at one place."""
    own = schema("LayerParameter").fields[field]
    readers = [
        dialects.view(d, fact.message, str(own.message_name)).by_number
        for d in dialects.dialects()
        if (fact := d.layout("LayerParameter").get(number)) is not None and fact.name == field and fact.message
    ] or [own.message.by_number]
    alike = [
        (n, f)
        for n, f in readers[0].items()
        if f.kind in ("uint32", "int32", "bool") and all(n in r and r[n].name == f.name for r in readers)
    ]
    payload = b"".join(varint(n << 3) + b"\x01" for n, _ in alike[:1])
    net, found = recognition.read(layer_bytes(type_, number, payload), "NetParameter", "net")
    (layer,) = net.layer
    assert layer.has(field), found
    for _, one in alike[:1]:
        assert getattr(getattr(layer, field), one.name) in (True, 1, [1])
    assert not layer.unknown


@pytest.mark.parametrize(
    ("type_", "number"),
    [("ConvLSTM", 150), ("MarginInnerProduct", 151), ("TripletLoss", 136), ("FocalLoss", 151), ("Mish", 150)],
)
def test_a_number_of_no_schema_leaves_nothing_open(type_: str, number: int) -> None:
    """The type alone says what it is: what some schema has at that number is no other reading of it."""
    _, found = recognition.read(layer_bytes(type_, number, b"\x08\x01"), "NetParameter", "net")
    assert not found.open
    assert not found.unlikely


@pytest.mark.parametrize(("type_", "field"), sorted({(type_, field) for type_, _, field in CASES}))
def test_a_parameter_survives_writing(type_: str, field: str) -> None:
    """A placeholder number never stands in a file: it is written under a number that its type is read by."""
    name = schema("LayerParameter").fields[field].message_name
    assert name is not None
    layer = Message("LayerParameter", name="one", type=type_, **{field: Message(name)})
    number, _ = dialects.written(type_, field, getattr(layer, field))
    assert number not in dialects.PLACEHOLDERS
    net, _ = recognition.read(b"".join(wire.serialize(Message("NetParameter", layer=[layer]))), "NetParameter", "net")
    assert net.layer[0].has(field)
    assert not net.layer[0].unknown


def test_names() -> None:
    assert dialects.find("SSD").name == "weiliu89/caffe@ssd"
    assert dialects.find("PyPI caffe_ssd 0.1") is dialects.find("ssd"), "the same schema at another place"
    with pytest.raises(CaffePortError, match="no dialect 'sssd'") as caught:
        dialects.find("sssd")
    assert "ssd" in str(caught.value)
    shorts = [d.short for d in dialects.dialects() if d.short]
    assert len(shorts) == len(set(shorts)) == len(make_dialects.NAMED)


def test_assuming_ends_with_the_block() -> None:
    with dialects.assuming("ssd"):
        assert dialects.assumed() == "ssd"
        with dialects.assuming(None):
            assert dialects.assumed() == "ssd"
    assert dialects.assumed() is None


def test_the_table_is_small() -> None:
    assert make_dialects.TABLE.stat().st_size < 120_000


def test_the_table_knows_the_types_of_this_package() -> None:
    """After a change of a record: python docs/make_dialects.py --refresh"""
    assert dialects.plain()["owners"] == make_dialects.owners()


def test_the_page_is_up_to_date() -> None:
    """After a change of the table: python docs/make_dialects.py --refresh"""
    assert make_dialects.PAGE.read_text("utf-8") == make_dialects.page()


@needs_shared
def test_the_table_is_that_of_its_source() -> None:
    """python docs/make_dialects.py makes it."""
    source = json.loads((SHARED / "dialects/dialects.json").read_text("utf-8"))
    made = make_dialects.make(source)
    first, second = dialects._line(0), dialects._line(1)
    assert json.loads(json.dumps(made)) == {**first, **second}
