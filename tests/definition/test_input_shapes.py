"""Shapes of inputs: declared, from transform_param, from the weights, from the user."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from caffe_port.api import port
from caffe_port.definition import input_shapes
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import view
from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.formats.caffemodel import LayerBlobs, Weights
from caffe_port.spec import NetSpec


def spec(text: str) -> NetSpec:
    return Definition.parse(prototxt.parse(text, "NetParameter"), "net.prototxt").spec()


def weights(**shapes: tuple[int, ...]) -> Weights:
    layers = tuple(LayerBlobs(name, "", (np.zeros(shape, np.float32),)) for name, shape in shapes.items())
    return Weights("w.caffemodel", "V2", layers, None)


def refused(text: str, *args: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        input_shapes.resolve(spec(text), *args)  # type: ignore[arg-type]
    return caught.value


CONV = (
    'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" '
    "convolution_param { num_output: 4 kernel_size: 5 } }"
)
FC = 'layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 6 } }'
POOL = 'layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }'
FC_POOL = FC.replace('bottom: "conv"', 'bottom: "pool"')


def data(more: str = "", tops: str = "data", type_: str = "Data") -> str:
    return f'layer {{ name: "batch" type: "{type_}" ' + "".join(f'top: "{t}" ' for t in tops.split()) + more + "}\n"


# -- guessed ------------------------------------------------------------------------------------------------------


def guessed(text: str, *args: object) -> dict[str, tuple[int, ...]]:
    with pytest.raises(SpecError, match="is unknown"):
        input_shapes.resolve(spec(text), *args)  # type: ignore[arg-type]
    found = input_shapes.resolve(spec(text), *args, guess=True)  # type: ignore[arg-type]
    assert "does not define the input shapes" in found.notes[-1]
    return found.shapes


def test_a_guess_takes_what_people_use() -> None:
    assert guessed(data() + CONV) == {"data": (1, 3, 224, 224)}
    assert guessed(data('data_param { source: "mnist_train_lmdb" }') + CONV) == {"data": (1, 1, 28, 28)}
    assert guessed(data('transform_param { mean_file: "cifar10/mean.binaryproto" }') + CONV) == {"data": (1, 3, 32, 32)}
    assert guessed(data("transform_param { mean_value: [1, 2, 3, 4] }") + CONV) == {"data": (1, 4, 224, 224)}
    assert guessed(data() + CONV, weights(conv=(4, 5, 5, 5))) == {"data": (1, 5, 224, 224)}


def test_a_guess_fits_the_weights_or_is_none() -> None:
    """7 x 9 behind the convolution is no square; 30 x 30 behind a stride of three is that of 96."""
    with pytest.raises(SpecError, match="none of the common sizes fits") as caught:
        input_shapes.resolve(spec(data() + CONV + FC), weights(conv=(4, 3, 5, 5), fc=(6, 4 * 7 * 9)), None, True)
    assert caught.value.hint == "Set it with --input-shape data=1,3,H,W"


def test_a_pair_in_one_blob_has_twice_the_channels() -> None:
    """Siamese nets share their parameters by name: one and two channels would not."""
    text = data('data_param { source: "mnist_pairs" }') + (
        'layer { name: "cut" type: "Slice" bottom: "data" top: "a" top: "b" slice_param { slice_point: 1 } }'
    )
    for side in "ab":
        text += CONV.replace('"conv"', f'"conv_{side}"').replace('"data"', f'"{side}" param {{ name: "w" }}')
    assert guessed(text) == {"data": (1, 2, 28, 28)}


def test_inputs_of_detectors_and_sequences() -> None:
    text = data("", "data cont im_info", "HDF5Data") + (
        'layer { name: "lstm" type: "LSTM" bottom: "data" bottom: "cont" top: "h" recurrent_param { num_output: 4 } }'
        'layer { name: "double" type: "Power" bottom: "im_info" top: "double" }'
    )
    assert guessed(text) == {"data": (20, 1, 64), "cont": (20, 1), "im_info": (1, 3)}


def test_frames_that_a_reshape_counts() -> None:
    text = data("", "data clip", "HDF5Data") + CONV
    text += 'layer { name: "r" type: "Reshape" bottom: "clip" top: "r" reshape_param { shape { dim: 4 dim: 6 } } }'
    fold = "reshape_param { shape { dim: 4 dim: 6 dim: -1 } }"
    text += f'layer {{ name: "s" type: "Reshape" bottom: "conv" top: "s" {fold} }}'
    assert guessed(text)["clip"] == (24,)


# -- declared -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('layer { name: "i" type: "Input" top: "data" input_param { shape { dim: [2, 3, 5] } } }', {"data": (2, 3, 5)}),
        (
            'layer { name: "i" type: "Input" top: "a" top: "b" input_param { shape { dim: [2, 3] } } }',
            {"a": (2, 3), "b": (2, 3)},
        ),
        (
            'layer { name: "i" type: "Input" top: "a" top: "b" input_param { shape { dim: [2, 3] } shape { dim: 4 } }}',
            {"a": (2, 3), "b": (4,)},
        ),
        (
            'input: "data" input_dim: [2, 3, 5, 7] layer { name: "r" type: "ReLU" bottom: "data" top: "r" }',
            {"data": (2, 3, 5, 7)},
        ),
        (
            data("memory_data_param { batch_size: 2 channels: 3 height: 5 width: 7 }", "data label", "MemoryData"),
            {"data": (2, 3, 5, 7), "label": (2,)},
        ),
        (
            data("memory_data_param { dim: 2 dim: 3 dim: 5 dim: 7 dim: 9 }", "data label", "MemoryData"),
            {"data": (2, 3, 5, 7, 9), "label": (2, 1, 1, 1, 1)},
        ),
    ],
)
def test_declared_shapes(text: str, want: dict[str, tuple[int, ...]]) -> None:
    found = input_shapes.resolve(spec(text))
    assert found.shapes == want
    assert found.notes == ()


def test_as_many_shapes_as_tops() -> None:
    text = (
        'layer { name: "i" type: "Input" top: "a" top: "b" top: "c" input_param { shape { dim: 2 } shape { dim: 3 } } }'
    )
    assert str(refused(text)) == "net.prototxt:1: layer 'i' (Input): gives 2 shapes for 3 tops"


@pytest.mark.parametrize("dim", [0, -1, -(2**62)])
def test_every_axis_is_at_least_one(dim: int) -> None:
    text = f'layer {{ name: "i" type: "Input" top: "data" input_param {{ shape {{ dim: [3, {dim}] }} }} }}'
    assert f"input 'data' of shape (3, {dim}): every axis must be at least 1" in str(refused(text))


@pytest.mark.parametrize("dims", [(1 << 31, 1), (10**6, 10**6), (10**6,) * 4, (1 << 62, 1 << 62)])
def test_an_input_that_no_memory_holds(dims: tuple[int, ...]) -> None:
    text = f'layer {{ name: "i" type: "Input" top: "data" input_param {{ shape {{ dim: {list(dims)} }} }} }}'
    want = f"net.prototxt:1: input 'data' would contain {math.prod(dims)} values; Caffe's limit is 2^31 - 1"
    assert str(refused(text)) == want


# -- from the user --------------------------------------------------------------------------------------------------


def test_what_the_user_says_comes_first() -> None:
    text = 'layer { name: "i" type: "Input" top: "data" input_param { shape { dim: [2, 3, 5, 7] } } }' + CONV
    assert input_shapes.resolve(spec(text), None, {"data": [4, 1, 9, 8]}).shapes == {"data": (4, 1, 9, 8)}
    crop = data("transform_param { crop_size: 28 }") + CONV
    found = input_shapes.resolve(spec(crop), weights(conv=(4, 3, 5, 5)), {"data": (2, 3, 11, 13)})
    assert found == input_shapes.InputShapes({"data": (2, 3, 11, 13)})


def test_an_input_that_does_not_exist() -> None:
    said = str(refused(data() + CONV, None, {"dat": (1, 2)}))
    assert said == "net.prototxt: has no input 'dat'; its inputs are data. Did you mean 'data'?"
    no_input = 'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 2 } } }'
    assert str(refused(no_input, None, {"x": (1,)})) == "net.prototxt: has no input 'x'; its inputs are none."


# -- from transform_param and the weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "type_", "stored", "want"),
    [
        ("transform_param { crop_size: 28 }", "Data", {"conv": (4, 1, 5, 5)}, (1, 1, 28, 28)),
        ("transform_param { crop_size: 28 }", "Data", {}, (1, 3, 28, 28)),
        ("transform_param { crop_size: 28 mean_value: [1, 2] }", "Data", {}, (1, 2, 28, 28)),
        ("transform_param { crop_size: 28 mean_value: 1 }", "Data", {}, (1, 3, 28, 28)),
        ("image_data_param { new_height: 11 new_width: 13 }", "ImageData", {"conv": (4, 7, 5, 5)}, (1, 7, 11, 13)),
        (
            "image_data_param { new_height: 11 new_width: 13 } transform_param { crop_size: 9 }",
            "ImageData",
            {"conv": (4, 7, 5, 5)},
            (1, 7, 9, 9),
        ),
    ],
)
def test_crops(more: str, type_: str, stored: dict[str, tuple[int, ...]], want: tuple[int, ...]) -> None:
    found = input_shapes.resolve(spec(data(more, type_=type_) + CONV), weights(**stored) if stored else None)
    assert found.shapes == {"data": want}
    assert bool(found.notes) == (not stored), "what is assumed is told"


def test_channels_of_a_grouped_convolution() -> None:
    grouped = CONV.replace("kernel_size", "group: 2 kernel_size")
    text = data("transform_param { crop_size: 28 }") + grouped
    assert input_shapes.resolve(spec(text), weights(conv=(4, 3, 5, 5))).shapes == {"data": (1, 6, 28, 28)}


def test_channels_behind_layers_without_weights() -> None:
    text = (
        data("transform_param { crop_size: 28 }")
        + 'layer { name: "s" type: "Power" bottom: "data" top: "data" }'
        + 'layer { name: "bn" type: "BatchNorm" bottom: "data" top: "x" }'
        + CONV.replace('bottom: "data"', 'bottom: "x"')
    )
    assert input_shapes.resolve(spec(text), weights(bn=(5,), conv=(4, 5, 3, 3))).shapes == {"data": (1, 5, 28, 28)}


def test_the_size_that_fits_the_inner_product() -> None:
    """28 - 5 + 1 = 24 and 24 x 24 x 4 = 2304: nothing else fits, so nothing needs to be told."""
    found = input_shapes.resolve(spec(data() + CONV + FC), weights(conv=(4, 1, 5, 5), fc=(6, 2304)))
    assert found == input_shapes.InputShapes({"data": (1, 1, 28, 28)})


def test_a_size_among_several_is_told() -> None:
    """Pooling rounds up: (28 - 4) / 2 = 12 and (27 - 4 + 1) / 2 = 12; the size that people use is taken."""
    found = input_shapes.resolve(spec(data() + CONV + POOL + FC_POOL), weights(conv=(4, 1, 5, 5), fc=(6, 4 * 12 * 12)))
    assert found.shapes == {"data": (1, 1, 28, 28)}
    (note,) = found.notes
    assert note.startswith(
        "input 'data': the file does not define height and width; 27 to 28 fit the weights, 28 is used"
    )
    assert "--input-shape data=1,1,H,W" in note


def test_inner_products_of_the_4d_era() -> None:
    found = input_shapes.resolve(spec(data() + CONV + FC), weights(conv=(4, 1, 5, 5), fc=(1, 1, 6, 2304)))
    assert found.shapes == {"data": (1, 1, 28, 28)}


def test_a_fully_convolutional_net_must_be_asked() -> None:
    error = refused(data() + CONV, weights(conv=(4, 3, 5, 5)))
    assert str(error) == (
        "net.prototxt:1: the shape of input 'data' is unknown: layer 'batch' (Data) reads it from the data\n"
        "  Set it with --input-shape data=1,3,H,W"
    )
    assert refused(data() + CONV).hint == "Set it with --input-shape data=1,C,H,W"
    declared = 'layer { name: "i" type: "Input" top: "data" }' + CONV
    assert "the shape of input 'data' is unknown" in str(refused(declared))


def test_a_net_that_is_not_square_must_be_asked() -> None:
    """The widths fit, but no square does: 7 x 9 behind the convolution."""
    error = refused(data() + CONV + FC, weights(conv=(4, 3, 5, 5), fc=(6, 4 * 7 * 9)))
    assert error.hint == "Set it with --input-shape data=1,3,H,W"


def test_weights_of_another_net_are_left_to_loading() -> None:
    """Whatever the size, 5 is not 4 channels: the shape is no matter, load_weights names the layers."""
    found = input_shapes.resolve(spec(data() + CONV + FC), weights(conv=(5, 3, 5, 5), fc=(6, 99)))
    assert found.shapes["data"][:2] == (1, 3)
    assert "no height and width fit the weights" in found.notes[0]


def test_labels_are_batches_of_one_number() -> None:
    text = data("transform_param { crop_size: 28 }", "data label") + CONV + FC
    text += 'layer { name: "acc" type: "Accuracy" bottom: "fc" bottom: "label" top: "acc" }'
    assert input_shapes.resolve(spec(text), weights(conv=(4, 1, 5, 5))).shapes == {
        "data": (1, 1, 28, 28),
        "label": (1,),
    }


def test_labels_come_in_the_batch_of_their_pictures() -> None:
    loss = 'layer { type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'
    text = data("", "data label") + CONV + FC + loss
    found = input_shapes.resolve(spec(text), None, {"data": (3, 1, 7, 9)})
    assert found.shapes == {"data": (3, 1, 7, 9), "label": (3,)}


@pytest.mark.parametrize(
    ("loss", "bottom", "label"),
    [
        ("SoftmaxWithLoss", "conv", (3, 1, 3, 5)),
        ("SoftmaxWithLoss", "fc", (3,)),
        ("Accuracy", "conv", (3, 1, 3, 5)),
        ("EuclideanLoss", "fc", (3, 6)),
        ("SigmoidCrossEntropyLoss", "conv", (3, 4, 3, 5)),
    ],
)
def test_a_label_is_as_large_as_its_loss_asks(loss: str, bottom: str, label: tuple[int, ...]) -> None:
    """A class for each pixel, or a number for each number; labels of a database of their own, too."""
    text = CONV + FC + f'layer {{ name: "l" type: "{loss}" bottom: "{bottom}" bottom: "label" top: "l" }}'
    given = {"data": (3, 1, 7, 9)}
    own = data() + data(tops="label").replace("batch", "labels")
    for start in (data("", "data label"), own):
        assert input_shapes.resolve(spec(start + text), None, given).shapes == {**given, "label": label}


def test_a_vector_for_an_inner_product() -> None:
    """As many values as its weights take: an image of a common size, else a vector."""
    fc = FC.replace('"conv"', '"data"')
    for values, shape in ((13, (1, 13)), (784, (1, 1, 28, 28)), (3072, (1, 3, 32, 32))):
        assert guessed(data(type_="HDF5Data") + fc, weights(fc=(6, values))) == {"data": shape}
        norm = 'layer { name: "bn" type: "BatchNorm" bottom: "data" top: "data" }'
        assert guessed(data() + norm + fc, weights(fc=(6, values))) == {"data": shape}


def test_inputs_of_different_shapes() -> None:
    """An image and a vector that are joined later; two images of other channels and sizes."""
    text = data("", "data pose", "HDF5Data") + CONV + FC + FC.replace('"conv"', '"pose"').replace('"fc"', '"more"')
    text += 'layer { name: "all" type: "Concat" bottom: "fc" bottom: "more" top: "all" }'
    stored = {"conv": (4, 3, 5, 5), "fc": (6, 4 * 16 * 16)}
    assert guessed(text, weights(**stored, more=(6, 7))) == {"data": (1, 3, 20, 20), "pose": (1, 7)}
    second = CONV.replace("conv", "other").replace('"data"', '"pose"').replace("otherolution", "convolution")
    second = second.replace('"Otherolution"', '"Convolution"')
    text = text.replace('bottom: "pose"', 'bottom: "other"').replace(FC, FC + second)
    found = input_shapes.resolve(spec(text), weights(**stored, other=(4, 1, 5, 5), more=(6, 4 * 24 * 24)))
    assert found.shapes == {"data": (1, 3, 20, 20), "pose": (1, 1, 28, 28)}


@pytest.mark.parametrize(
    ("axes", "fc", "want"), [(1, 28, (1, 2, 32)), (2, 28**2, (1, 2, 32, 32)), (3, 28**3, (1, 2, 32, 32, 32))]
)
def test_as_many_axes_as_the_weights_slide_along(axes: int, fc: int, want: tuple[int, ...]) -> None:
    stored = weights(conv=(4, 2, *(5,) * axes), fc=(6, 4 * fc))
    assert input_shapes.resolve(spec(data() + CONV + FC), stored).shapes == {"data": want}


def test_as_many_axes_as_the_kernel_has_lengths() -> None:
    conv = CONV.replace("kernel_size: 5", "kernel_size: 3 kernel_size: 5 kernel_size: 5")
    assert guessed(data() + conv + FC) == {"data": (1, 3, 16, 224, 224)}


def test_a_second_top_that_the_net_learns_from_is_no_label() -> None:
    text = data("", "data speed") + CONV + FC.replace('"conv"', '"speed"')
    said = str(refused(text, None, {"data": (2, 1, 7, 9)}))
    assert "the shape of input 'speed' is unknown: layer 'batch' (Data) reads it from the data" in said


@pytest.mark.parametrize(
    ("type_", "more", "want"),
    [
        ("DenseImageData", "dense_image_data_param { new_height: 36 new_width: 48 }", (1, 3, 36, 48)),
        ("ImageSegData", "transform_param { crop_width: 33 crop_height: 22 }", (1, 3, 22, 33)),
        ("CPMData", "transform_param { crop_size_x: 36 crop_size_y: 38 }", (1, 3, 38, 36)),
        ("CPMData", "cpm_transform_param { crop_size_x: 36 crop_size_y: 38 }", (1, 3, 38, 36)),
        ("BoxData", "box_data_param { resize_width: 44 resize_height: 40 }", (1, 3, 40, 44)),
        ("ImageData", "image_data_param { new_height: 36 new_width: 48 is_color: false }", (1, 1, 36, 48)),
    ],
)
def test_sizes_in_forks_words(type_: str, more: str, want: tuple[int, ...]) -> None:
    assert input_shapes.resolve(spec(data(more, type_=type_) + CONV)).shapes == {"data": want}


def test_resize_of_ssd() -> None:
    transform = "transform_param { resize_param { height: 11 width: 13 } mean_value: [1, 2, 3] }"
    found = input_shapes.resolve(spec(data(transform, type_="AnnotatedData") + CONV))
    assert found.shapes == {"data": (1, 3, 11, 13)}


def test_shapes_are_those_of_the_tops_that_are_left() -> None:
    """The deploy view drops an input that losses alone read; the others keep the shapes that the file gives them."""
    text = 'input: "gt" input_dim: [2, 1, 9, 8] input: "data" input_dim: [2, 3, 7, 5]' + CONV
    text += 'layer { name: "loss" type: "EuclideanLoss" bottom: "conv" bottom: "gt" top: "loss" }'
    deployed = view(spec(text))
    assert input_shapes.resolve(deployed).shapes == {"data": (2, 3, 7, 5)}


@pytest.mark.parametrize(("more", "weight", "channels"), [("", (5, 1, 3, 3), 5), ("group: 3", (6, 2, 3, 3), 6)])
def test_channels_of_a_depthwise_convolution(more: str, weight: tuple[int, ...], channels: int) -> None:
    """Without group there are as many groups as channels, and the weight has a row for each."""
    conv = 'layer { name: "conv" type: "DepthwiseConv" bottom: "data" top: "conv" '
    conv += f"convolution_param {{ kernel_size: 3 {more} }} }}"
    crop = data("transform_param { crop_size: 9 }")
    assert input_shapes.resolve(spec(crop + conv), weights(conv=weight)).shapes == {"data": (1, channels, 9, 9)}


@pytest.mark.parametrize("type_", ["TanH", "ELU", "Interp", "SpatialDropout"])
def test_channels_reach_through_what_keeps_them(type_: str) -> None:
    own = "interp_param { zoom_factor: 2 }" if type_ == "Interp" else ""
    first = f'layer {{ name: "first" type: "{type_}" bottom: "data" top: "first" {own} }}'
    text = data("transform_param { crop_size: 9 }") + first + CONV.replace('bottom: "data"', 'bottom: "first"')
    assert input_shapes.resolve(spec(text), weights(conv=(4, 7, 5, 5))).shapes == {"data": (1, 7, 9, 9)}


def test_labels_of_every_margin() -> None:
    """Types beside losses that take labels say so in their records."""
    for type_, own in (
        ("LabelSpecificMargin", ""),
        ("MarginInnerProduct", "margin_inner_product_param { num_output: 4 }"),
    ):
        text = data("transform_param { crop_size: 9 }", "data label")
        text += f'layer {{ name: "m" type: "{type_}" bottom: "data" bottom: "label" top: "m" {own} }}'
        assert input_shapes.resolve(spec(text)).shapes["label"] == (1,)


def test_a_net_that_fits_no_square() -> None:
    """SegNet-Basic pads the height alone on its way up: an eighth of it is odd, and an eighth of the width is not."""
    text, bottom = data("", type_="DenseImageData"), "data"
    for k in (1, 2, 3, 4):
        text += f'layer {{ name: "p{k}" type: "Pooling" bottom: "{bottom}" top: "p{k}" top: "m{k}" '
        text += "pooling_param { kernel_size: 2 stride: 2 } }"
        bottom = f"p{k}"
    text += 'layer { name: "u4" type: "Upsample" bottom: "p4" bottom: "m4" top: "u4" '
    text += "upsample_param { scale: 2 pad_out_h: true } }"
    text += 'layer { name: "u3" type: "Upsample" bottom: "u4" bottom: "m3" top: "u3" upsample_param { scale: 2 } }'
    found = input_shapes.resolve(spec(text), guess=True)
    assert found.shapes == {"data": (1, 3, 360, 480)}
    assert "--input-shape data=1,3,360,480" in found.notes[0]


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ("new_length: 5 num_segments: 3 modality: FLOW", (1, 30, 12, 12)),
        ("num_segments: 3", (1, 6, 12, 12)),
        ("new_length: 4 num_segments: 3 modality: RGB", (1, 36, 12, 12)),
        ("new_length: 4 modality: RGB grayscale: true", (1, 4, 12, 12)),
        ("new_length: 8", (1, 3, 8, 12, 12)),
    ],
)
def test_frames_follow_each_other_as_channels_in_temporal_segment_networks(fields: str, shape: tuple[int, ...]) -> None:
    text = 'layer { name: "d" type: "VideoData" top: "data" transform_param { crop_size: 12 } '
    text += f'video_data_param {{ {fields} }} }} layer {{ name: "a" type: "AbsVal" bottom: "data" top: "a" }}'
    assert input_shapes.resolve(spec(text), guess=True).shapes == {"data": shape}


def test_parts_that_come_twice() -> None:
    """OpenPose's net for training: weights of limbs and of joints, then the truth of both."""
    text = 'layer { name: "d" type: "CPMData" top: "data" top: "label" '
    text += "cpm_transform_param { stride: 8 crop_size_x: 32 crop_size_y: 16 } }"
    text += 'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" '
    text += "convolution_param { num_output: 1 kernel_size: 1 } }"
    text += 'layer { name: "s" type: "Slice" bottom: "label" top: "a" top: "b" top: "c" top: "e" '
    text += "slice_param { slice_point: [4, 7, 11] } }"
    found = input_shapes.resolve(spec(text), guess=True)
    assert found.shapes == {"data": (1, 3, 16, 32), "label": (1, 14, 2, 4)}


def test_a_reshape_says_how_many_items_a_batch_has() -> None:
    text = 'layer { name: "d" type: "VideoData" top: "data" transform_param { crop_size: 12 } video_data_param { '
    text += 'new_length: 4 modality: RGB } } layer { name: "r" type: "Reshape" bottom: "data" top: "r" reshape_param { '
    text += "shape { dim: [7, 3, 4, 12, 12] } } }"
    assert input_shapes.resolve(spec(text), guess=True).shapes == {"data": (7, 12, 12, 12)}


def test_frames_that_nobody_counts_are_assumed(tmp_path: Path) -> None:
    """C3D's nets from voxel to voxel: crop_size, but no new_length."""
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "data" type: "VideoWithVoxelTruthData" top: "data" top: "truth" '
        "image_data_param { crop_size: 32 } }\n"
        'layer { name: "conv" type: "Convolution3D" bottom: "data" top: "conv" '
        "convolution_param { num_output: 2 kernel_size: 3 kernel_depth: 3 } }\n"
    )
    ported = port(path)
    assert ported.net.conv.weight.shape == (2, 3, 3, 3, 3)
    assert any("how many frames it has; 16 assumed" in note for note in ported.notes)
