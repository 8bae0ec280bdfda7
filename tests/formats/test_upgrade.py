"""Definitions of 2013 and 2014 as today's. The pairs are those of Caffe's test_upgrade_proto.cpp, made shorter."""

from __future__ import annotations

import oracle
import pytest

from caffe_port.errors import ParseError, SpecError
from caffe_port.formats import prototxt
from caffe_port.formats.message import Message, schema
from caffe_port.formats.upgrade_v0 import V0_TYPES
from caffe_port.formats.upgrade_v1 import V1_TYPES, upgrade


def upgraded(text: str) -> Message:
    return upgrade(prototxt.parse(text, "NetParameter"), "net.prototxt")


def same(old: str, new: str) -> None:
    """Equal as text, so that lines do not count, and readable by protobuf."""
    got = prototxt.dump(upgraded(old))
    assert got == prototxt.dump(prototxt.parse(new, "NetParameter"))
    oracle.parse_text(got, "NetParameter")


def refused(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        upgraded(text)
    return str(caught.value)


# -- V1 -------------------------------------------------------------------------------------------------------------


def test_v1() -> None:
    same(
        """
        name: "n"
        layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 1 blobs_lr: 2 weight_decay: 1
                 weight_decay: 0 convolution_param { num_output: 7 kernel_size: 3 } include { phase: TRAIN } }
        layers { name: "loss" type: SOFTMAX_LOSS bottom: "c" bottom: "label" top: "loss" loss_weight: 0.5
                 exclude { stage: "deploy" } loss_param { ignore_label: 9 } }
        """,
        """
        name: "n"
        layer { name: "c" type: "Convolution" bottom: "data" top: "c" param { lr_mult: 1 decay_mult: 1 }
                param { lr_mult: 2 decay_mult: 0 } convolution_param { num_output: 7 kernel_size: 3 }
                include { phase: TRAIN } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "c" bottom: "label" top: "loss" loss_weight: 0.5
                exclude { stage: "deploy" } loss_param { ignore_label: 9 } }
        """,
    )


def test_v1_param_names_and_share_modes() -> None:
    same(
        'layers { name: "a" type: INNER_PRODUCT param: "w" param: "" blob_share_mode: PERMISSIVE blobs_lr: 3 }',
        'layer { name: "a" type: "InnerProduct" param { name: "w" share_mode: PERMISSIVE lr_mult: 3 } '
        'param { name: "" } }',
    )


@pytest.mark.parametrize("value", list(schema("V1LayerParameter").fields["type"].values or {}))
def test_every_v1_type_has_its_string(value: str) -> None:
    assert upgraded(f'layers {{ name: "a" type: {value} }}').layer[0].type == V1_TYPES[value]


def test_v1_types_are_caffes_and_forks() -> None:
    assert set(V1_TYPES) - {"SPP", "DENSE_CRF"} == set(schema("V1LayerParameter").fields["type"].values or {})
    renamed = ("none", "softmaxloss", "holeconvolution")
    assert all(value.replace("_", "").lower() in (t.lower(), *renamed) for value, t in V1_TYPES.items())


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("LSTM lstm_param { num_output: 2 }", "Lstm"),
        ("LSTM recurrent_param { num_output: 2 }", "LSTM"),
        ("SPP", "SPP"),
        ("MVN2", "Mvn2"),
    ],
)
def test_v1_types_of_forks(text: str, type_: str) -> None:
    assert upgraded(f'layers {{ name: "a" type: {text} }}').layer[0].type == type_


def test_v1_types_that_nobody_numbered() -> None:
    """A fork's own, read in text: its name says what it is called today."""
    text = "layers { type: DENSE_IMAGE_DATA } layers { type: UNPOOLING unpooling_param { kernel_size: 2 } }"
    data, unpooling = upgraded(text).layer
    assert (data.type, unpooling.type) == ("DenseImageData", "Unpooling")
    assert unpooling.unpooling_param.kernel_size == 2
    with pytest.raises(ParseError, match=r"got 'CONVOLUTON'\. Did you mean 'CONVOLUTION'"):
        upgraded("layers { type: CONVOLUTON }")


def test_v1_keeps_the_parameters_of_a_fork() -> None:
    """CRF-RNN's own V1LayerParameter has them; ours is that of Caffe."""
    text = "multi_stage_meanfield_param { num_iterations: 10 compatibility_mode: POTTS theta_alpha: 160 }"
    net = prototxt.parse(f'layers {{ name: "crf" type: MULTI_STAGE_MEANFIELD {text} }}', "NetParameter")
    (layer,) = upgrade(net, "net").layer
    assert layer.type == "MultiStageMeanfield"
    own = layer.multi_stage_meanfield_param
    assert (own.num_iterations, own.compatibility_mode, own.theta_alpha) == (10, "POTTS", 160)
    assert not layer.unknown


def test_v1_by_number() -> None:
    assert [layer.type for layer in upgraded("layers { type: 4 } layers { type: 14 }").layer] == [
        "Convolution",
        "InnerProduct",
    ]
    assert "type 77 is not a V1 type" in refused_message(Message("V1LayerParameter", name="a", type=77))


def refused_message(layer: Message) -> str:
    with pytest.raises(SpecError) as caught:
        upgrade(Message("NetParameter", layers=[layer]), "w.caffemodel")
    return str(caught.value)


def test_v1_keeps_lines_unknown_fields_and_blobs() -> None:
    net = upgraded('name: "n"\n\nlayers { name: "a" type: RELU fork_setting_x: 7 blobs { data: [1, 2] } }')
    (layer,) = net.layer
    assert layer.line == 3
    assert layer.fork_setting_x == 7
    assert layer.blobs[0].data == [1, 2]
    assert not net.has("layers")


def test_the_original_is_left_alone() -> None:
    net = prototxt.parse('layers { name: "a" type: RELU blobs_lr: 1 }', "NetParameter")
    before = prototxt.dump(net)
    upgrade(net, "x")
    assert prototxt.dump(net) == before


def test_a_mixture_is_refused() -> None:
    said = refused('layer { name: "a" type: "ReLU" }\nlayers { name: "b" type: RELU }')
    assert said.startswith("net.prototxt:2: 'layers' (the old format) and 'layer' are mixed in one net")
    assert said.endswith("\n  Write all layers in the same format.")


# -- V0 -------------------------------------------------------------------------------------------------------------


def test_v0_of_2013() -> None:
    same(
        """
        name: "CaffeNet"
        layers { layer { name: "data" type: "data" source: "/train" meanfile: "/mean" batchsize: 256 cropsize: 227
                 mirror: true scale: 0.5 } top: "data" top: "label" }
        layers { layer { name: "conv1" type: "conv" num_output: 96 kernelsize: 11 stride: 4 weight_filler {
                 type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 1 } blobs_lr: 1. blobs_lr: 2.
                 weight_decay: 1. weight_decay: 0. } bottom: "data" top: "conv1" }
        layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
        layers { layer { name: "pool1" type: "pool" pool: MAX kernelsize: 3 stride: 2 } bottom: "conv1" top: "pool1" }
        layers { layer { name: "norm1" type: "lrn" local_size: 5 alpha: 0.0001 } bottom: "pool1" top: "norm1" }
        layers { layer { name: "pad2" type: "padding" pad: 2 } bottom: "norm1" top: "pad2" }
        layers { layer { name: "conv2" type: "conv" num_output: 256 group: 2 kernelsize: 5 biasterm: false }
                 bottom: "pad2" top: "conv2" }
        layers { layer { name: "fc" type: "innerproduct" num_output: 10 } bottom: "conv2" top: "fc" }
        layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.25 } bottom: "fc" top: "fc" }
        layers { layer { name: "join" type: "concat" concat_dim: 0 } bottom: "fc" bottom: "fc" top: "join" }
        layers { layer { name: "loss" type: "softmax_loss" } bottom: "join" bottom: "label" }
        """,
        """
        name: "CaffeNet"
        layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "/train" batch_size: 256 }
                transform_param { mean_file: "/mean" crop_size: 227 mirror: true scale: 0.5 } }
        layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 decay_mult: 1 }
                param { lr_mult: 2 decay_mult: 0 } convolution_param { num_output: 96 kernel_size: 11 stride: 4
                weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 1 } } }
        layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
        layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
                pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
        layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" lrn_param { local_size: 5 alpha: 0.0001 } }
        layer { name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2"
                convolution_param { num_output: 256 group: 2 kernel_size: 5 bias_term: false pad: 2 } }
        layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc" inner_product_param { num_output: 10 } }
        layer { name: "drop" type: "Dropout" bottom: "fc" top: "fc" dropout_param { dropout_ratio: 0.25 } }
        layer { name: "join" type: "Concat" bottom: "fc" bottom: "fc" top: "join" concat_param { concat_dim: 0 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "join" bottom: "label" }
        """,
    )


def test_v0_data_layers() -> None:
    same(
        """
        layers { layer { name: "i" type: "images" source: "/l" batchsize: 3 new_height: 5 new_width: 7 rand_skip: 2
                 shuffle_images: true cropsize: 4 } top: "i" }
        layers { layer { name: "w" type: "window_data" source: "/w" batchsize: 2 det_fg_threshold: 0.25
                 det_bg_threshold: 0.75 det_fg_fraction: 0.5 det_context_pad: 6 det_crop_mode: "square" } top: "w" }
        layers { layer { name: "h" type: "hdf5_data" source: "/h" batchsize: 9 } top: "h" }
        layers { layer { name: "o" type: "hdf5_output" hdf5_output_param { file_name: "/o" } } bottom: "h" }
        """,
        """
        layer { name: "i" type: "ImageData" top: "i" image_data_param { source: "/l" batch_size: 3 new_height: 5
                new_width: 7 rand_skip: 2 shuffle: true } transform_param { crop_size: 4 } }
        layer { name: "w" type: "WindowData" top: "w" window_data_param { source: "/w" batch_size: 2 fg_threshold: 0.25
                bg_threshold: 0.75 fg_fraction: 0.5 context_pad: 6 crop_mode: "square" } }
        layer { name: "h" type: "HDF5Data" top: "h" hdf5_data_param { source: "/h" batch_size: 9 } }
        layer { name: "o" type: "HDF5Output" bottom: "h" hdf5_output_param { file_name: "/o" } }
        """,
    )


@pytest.mark.parametrize("type_", V0_TYPES)
def test_every_v0_type(type_: str) -> None:
    layer = upgraded(f'layers {{ layer {{ name: "a" type: "{type_}" }} }}').layer[0]
    assert layer.type == V1_TYPES[V0_TYPES[type_]]


def test_v0_pooling_takes_the_padding_too() -> None:
    net = upgraded(
        'layers { layer { name: "p" type: "padding" pad: 3 } bottom: "data" top: "x" }'
        'layers { layer { name: "pool" type: "pool" kernelsize: 5 } bottom: "x" top: "y" }'
    )
    assert [layer.name for layer in net.layer] == ["pool"]
    assert net.layer[0].bottom == ["data"]
    assert net.layer[0].pooling_param.pad == [3]


def test_v0_parameters_of_no_use_are_kept_aside() -> None:
    layer = upgraded('layers { layer { name: "r" type: "relu" pad: 2 num_output: 3 } }').layer[0]
    assert layer.unknown == {"pad": [2], "num_output": [3]}
    assert not layer.has("convolution_param")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            (
                'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "a" top: "b" }\n'
                'layers { layer { name: "r" type: "relu" } bottom: "b" top: "c" }'
            ),
            "net.prototxt:2: layer 'r' (relu): reads padding layer 'p'; only conv and pool may",
        ),
        (
            'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "a" bottom: "b" top: "c" }',
            "net.prototxt:1: layer 'p' (padding): must have one bottom and one top",
        ),
        (
            'layers { layer { name: "c" type: "convo" } }',
            "net.prototxt:1: layer 'c' (convo): is not a layer type of V0. Did you mean 'conv'?",
        ),
    ],
)
def test_v0_errors(text: str, what: str) -> None:
    assert refused(text) == what


# -- transform_param ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "owner"), [("Data", "data_param"), ("ImageData", "image_data_param"), ("WindowData", "window_data_param")]
)
def test_data_transformation_moves(type_: str, owner: str) -> None:
    same(
        f'layer {{ name: "d" type: "{type_}" {owner} {{ source: "/s" scale: 0.5 mean_file: "/m" crop_size: 28 }} }}',
        f'layer {{ name: "d" type: "{type_}" {owner} {{ source: "/s" }} '
        'transform_param { scale: 0.5 mean_file: "/m" crop_size: 28 } }',
    )


def test_data_transformation_joins_what_is_there() -> None:
    same(
        'layer { name: "d" type: "Data" data_param { scale: 0.5 } transform_param { mirror: true } }',
        'layer { name: "d" type: "Data" data_param { } transform_param { scale: 0.5 mirror: true } }',
    )


def test_data_transformation_of_v1() -> None:
    same(
        'layers { name: "d" type: DATA data_param { source: "/s" crop_size: 227 } }',
        'layer { name: "d" type: "Data" data_param { source: "/s" } transform_param { crop_size: 227 } }',
    )


# -- BatchNorm ------------------------------------------------------------------------------------------------------


def test_batch_norms_statistics_are_no_parameters() -> None:
    same(
        'layer { type: "BatchNorm" param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 1 } param { name: "s" } }',
        'layer { type: "BatchNorm" param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 } '
        'param { name: "s" lr_mult: 0 decay_mult: 0 } }',
    )
    same('layer { type: "Scale" param { lr_mult: 1 } }', 'layer { type: "Scale" param { lr_mult: 1 } }')


# -- legacy inputs --------------------------------------------------------------------------------------------------

RELU = 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }'


@pytest.mark.parametrize(
    ("head", "input_layer"),
    [
        (
            'input: "data" input_dim: 2 input_dim: 3 input_dim: 5 input_dim: 7',
            'layer { name: "input" type: "Input" top: "data" input_param { shape { dim: [2, 3, 5, 7] } } }',
        ),
        (
            'input: "data" input_dim: [2, 3, 5, 7] input: "x" input_dim: [1, 4, 6, 8]',
            (
                'layer { name: "input" type: "Input" top: "data" top: "x" '
                "input_param { shape { dim: [2, 3, 5, 7] } shape { dim: [1, 4, 6, 8] } } }"
            ),
        ),
        (
            'input: "data" input_shape { dim: [2, 3] }',
            'layer { name: "input" type: "Input" top: "data" input_param { shape { dim: [2, 3] } } }',
        ),
        ('input: "data"', 'layer { name: "input" type: "Input" top: "data" }'),
        (
            'input: "data" input_dim: [2, 3, 5, 7, 11]',
            'layer { name: "input" type: "Input" top: "data" input_param { shape { dim: [2, 3, 5, 7] } } }',
        ),
        (
            'input: "data" input_dim: [1, 2, 3, 4] input_shape { dim: [2, 3] } input_shape { dim: 5 }',
            'layer { name: "input" type: "Input" top: "data" input_param { shape { dim: [2, 3] } } }',
        ),
    ],
    ids=["input_dim", "two", "input_shape", "no shape", "a dim more", "both"],
)
def test_legacy_inputs(head: str, input_layer: str) -> None:
    same(f"{head} {RELU}", f"{input_layer} {RELU}")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        ('input: "data" input_dim: [2, 3, 5]', "expected 4 input_dim values for 1 input, got 3"),
        ('input: "a" input: "b" input_shape { dim: 2 }', "expected 2 input_shape for 2 inputs, got 1"),
    ],
)
def test_legacy_inputs_that_are_incomplete(head: str, what: str) -> None:
    assert refused(f"{head} {RELU}").startswith(f"net.prototxt: {what}")


def test_legacy_inputs_of_v1() -> None:
    net = upgraded('input: "data" input_dim: [2, 3, 5, 7] layers { name: "r" type: RELU bottom: "data" top: "r" }')
    assert [layer.type for layer in net.layer] == ["Input", "ReLU"]


def test_a_net_of_today_stays() -> None:
    text = 'name: "n" layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 2 } } } ' + RELU
    same(text, text)
