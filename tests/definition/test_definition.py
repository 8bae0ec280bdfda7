"""NetSpec: rules, producers, splits, names, outputs, and the deploy view."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_port.definition import deploy_view, fields
from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError
from caffe_port.formats import caffemodel, prototxt, wire
from caffe_port.signatures.signature import PYTHON, Signature
from caffe_port.spec import LayerSpec, NetSpec


def define(text: str) -> Definition:
    return Definition.parse(prototxt.parse(text, "NetParameter"), "net.prototxt")


def spec(text: str, phase: str = "TEST", **options: object) -> NetSpec:
    return define(text).spec(phase, **options)  # type: ignore[arg-type]


def refused(text: str, **options: object) -> str:
    with pytest.raises(SpecError) as caught:
        spec(text, **options)  # type: ignore[arg-type]
    return str(caught.value)


def names(net: NetSpec) -> list[str]:
    return [layer.name for layer in net.layers]


def layer(name: str, type_: str, bottoms: str = "", tops: str = "", more: str = "") -> str:
    blobs = "".join(f' bottom: "{b}"' for b in bottoms.split()) + "".join(f' top: "{t}"' for t in tops.split())
    return f'layer {{ name: "{name}" type: "{type_}"{blobs} {more} }}\n'


DATA = layer("data", "Input", "", "data", "input_param { shape { dim: [2, 3, 5, 7] } }")
BATCH = layer("batch", "Data", "", "data label", "data_param { batch_size: 8 }")
CONV = layer("conv", "Convolution", "data", "conv", "convolution_param { num_output: 4 kernel_size: 3 }")
FC = layer("fc", "InnerProduct", "conv", "fc", "inner_product_param { num_output: 6 }")
LOSS = layer("loss", "SoftmaxWithLoss", "fc label", "loss")
ACCURACY = layer("accuracy", "Accuracy", "fc label", "accuracy", "include { phase: TEST }")


# -- include and exclude --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "level", "stages", "phases"),
    [
        ("", 0, (), "TRAIN TEST"),
        ("include { phase: TRAIN }", 0, (), "TRAIN"),
        ("exclude { phase: TRAIN }", 0, (), "TEST"),
        ("include { phase: TRAIN } include { phase: TEST }", 0, (), "TRAIN TEST"),
        ("exclude { phase: TRAIN } exclude { phase: TEST }", 0, (), ""),
        ("include { }", 0, (), "TRAIN TEST"),
        ("exclude { }", 0, (), ""),
        ("include { min_level: 2 }", 1, (), ""),
        ("include { min_level: 2 }", 2, (), "TRAIN TEST"),
        ("include { max_level: 2 }", 2, (), "TRAIN TEST"),
        ("include { max_level: 2 }", 3, (), ""),
        ("include { min_level: -1 max_level: 1 }", 0, (), "TRAIN TEST"),
        ("exclude { min_level: 2 }", 3, (), ""),
        ('include { stage: "deploy" }', 0, (), ""),
        ('include { stage: "deploy" }', 0, ("deploy", "x"), "TRAIN TEST"),
        ('include { stage: "a" stage: "b" }', 0, ("a",), ""),
        ('include { stage: "a" stage: "b" }', 0, ("b", "a"), "TRAIN TEST"),
        ('include { stage: "a" } include { stage: "b" }', 0, ("b",), "TRAIN TEST"),
        ('include { not_stage: "a" }', 0, (), "TRAIN TEST"),
        ('include { not_stage: "a" }', 0, ("a",), ""),
        ('include { stage: "a" not_stage: "b" phase: TEST }', 0, ("a",), "TEST"),
        ('include { stage: "a" not_stage: "b" phase: TEST }', 0, ("a", "b"), ""),
        ('exclude { stage: "a" phase: TEST }', 0, ("a",), "TRAIN"),
    ],
)
def test_rules(rules: str, level: int, stages: tuple[str, ...], phases: str) -> None:
    definition = define(DATA + layer("r", "ReLU", "data", "r", rules))
    present = [p for p in ("TRAIN", "TEST") if "r" in definition.spec(p, level, stages).by_name]
    assert present == phases.split()


def test_include_and_exclude_together() -> None:
    said = refused(DATA + layer("r", "ReLU", "data", "r", "include { } exclude { }"))
    assert said == (
        "net.prototxt:2: layer 'r': has both include and exclude rules\n  Caffe allows only one of the two per layer."
    )


def test_the_nets_own_state() -> None:
    text = 'state { level: 3 stage: "s" } ' + DATA
    text += layer("a", "ReLU", "data", "a", "include { min_level: 3 }")
    text += layer("b", "ReLU", "data", "b", 'include { stage: "s" stage: "t" }')
    assert names(spec(text)) == ["data", "a"]
    assert names(spec(text, stages=["t"])) == ["data", "a", "b"]
    assert names(spec(text, level=2)) == ["data"]


def test_no_layers() -> None:
    assert (
        refused(layer("a", "ReLU", "x", "y", "include { phase: TRAIN }"))
        == "net.prototxt: contains no layers in phase TEST"
    )
    with pytest.raises(SpecError, match=r"net\.prototxt: contains no layers"):
        define('name: "n"')


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text('name: "n"\n' + DATA + CONV)
    net = Definition.read(path).spec()
    assert (net.name, net.phase, net.path, net.notes) == ("n", "TEST", str(path), ())
    assert net.by_name["conv"].where == f"{path}:3"
    assert (
        str(net.by_name["conv"].error("is odd", "do that"))
        == f"{path}:3: layer 'conv' (Convolution): is odd\n  do that"
    )


# -- sources --------------------------------------------------------------------------------------------------------


def test_in_place_layers_name_their_producer() -> None:
    net = spec(
        DATA
        + CONV
        + layer("relu", "ReLU", "conv", "conv")
        + layer("drop", "Dropout", "conv", "conv")
        + layer("a", "ReLU", "conv", "a")
        + layer("sum", "Eltwise", "conv a", "sum")
    )
    sources = {one.name: one.producers for one in net.layers}
    assert sources == {
        "data": (),
        "conv": (("data", 0),),
        "relu": (("conv", 0),),
        "drop": (("relu", 0),),
        "a": (("drop", 0),),
        "sum": (("drop", 0), ("a", 0)),
    }
    assert net.by_name["relu"].bottoms == net.by_name["relu"].tops == ("conv",)
    assert net.inputs == (("data", ("data", 0)),)
    assert net.outputs == (("sum", ("sum", 0)),)


def test_an_in_place_layer_at_the_end_is_the_output() -> None:
    net = spec(DATA + CONV + layer("relu", "ReLU", "conv", "conv"))
    assert net.outputs == (("conv", ("relu", 0)),)


def test_several_tops() -> None:
    net = spec(DATA + layer("cut", "Slice", "data", "a b c") + layer("sum", "Eltwise", "c a", "sum"))
    assert net.by_name["sum"].producers == (("cut", 2), ("cut", 0))
    assert net.outputs == (("b", ("cut", 1)), ("sum", ("sum", 0)))


def test_outputs_come_in_the_order_of_their_names() -> None:
    """Caffe keeps the unread blobs in a std::set."""
    net = spec(
        DATA + layer("1", "ReLU", "data", "z") + layer("2", "ReLU", "data", "B") + layer("3", "ReLU", "data", "a")
    )
    assert [blob for blob, _ in net.outputs] == ["B", "a", "z"]


def test_inputs_that_nobody_reads_are_no_outputs() -> None:
    net = spec(BATCH + CONV)
    assert [blob for blob, _ in net.inputs] == ["data", "label"]
    assert [blob for blob, _ in net.outputs] == ["conv"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            BATCH + layer("conv1", "Convolution", "dta", "conv1"),
            (
                "net.prototxt:2: layer 'conv1' (Convolution): bottom 'dta' does not exist; blobs so far: data, label. "
                "Did you mean 'data'?"
            ),
        ),
        (
            DATA + "".join(layer(f"r{k}", "ReLU", "data", f"r{k}") for k in range(9)) + layer("x", "ReLU", "zzz", "x"),
            (
                "net.prototxt:11: layer 'x' (ReLU): bottom 'zzz' does not exist; blobs so far: ..., "
                "r1, r2, r3, r4, r5, r6, r7, r8."
            ),
        ),
        (
            layer("conv", "Convolution", "data", "conv"),
            (
                "net.prototxt:1: layer 'conv' (Convolution): bottom 'data' does not exist: the net has no input layer\n"
                "  Set its shape to make it an input: --input-shape data=1,3,H,W"
            ),
        ),
        (
            DATA + layer("b", "ReLU", "a", "b") + layer("a", "ReLU", "data", "a"),
            (
                "net.prototxt:2: layer 'b' (ReLU): bottom 'a' does not exist yet: layer 'a' (line 3) produces it\n"
                "  Layers run in file order: move the layer after those whose tops it reads."
            ),
        ),
        (
            DATA + layer("a", "Eltwise", "data b", "a") + layer("b", "ReLU", "a", "b"),
            "net.prototxt:2: layer 'a' (Eltwise): bottom 'b' does not exist yet: layer 'b' (line 3) produces it",
        ),
        (
            DATA + layer("a", "Eltwise", "data a", "a"),
            "net.prototxt:2: layer 'a' (Eltwise): bottom 'a' does not exist yet: layer 'a' (line 2) produces it",
        ),
        (
            DATA + CONV + layer("other", "ReLU", "data", "conv"),
            (
                "net.prototxt:3: layer 'other' (ReLU): top 'conv' is already produced by layer 'conv'; "
                "a blob has only one source"
            ),
        ),
        (
            DATA + layer("cut", "Slice", "data", "a a"),
            (
                "net.prototxt:2: layer 'cut' (Slice): top 'a' is already produced by this layer; "
                "a blob has only one source"
            ),
        ),
        (
            DATA + layer("swap", "Eltwise", "data", "x data"),
            (
                "net.prototxt:2: layer 'swap' (Eltwise): top 'data' is already produced by layer 'data'; "
                "a blob has only one source"
            ),
        ),
    ],
)
def test_what_cannot_be_wired(text: str, what: str) -> None:
    said = refused(text)
    assert said == what or said.split("\n")[0] == what


def test_a_layer_without_a_type() -> None:
    assert "net.prototxt:2: layer 'x'" in refused(DATA + 'layer { name: "x" bottom: "data" top: "x" }')


@pytest.mark.parametrize("type_", ["Local", "EltwiseAffine", "DeformableConvolution", "Lstm", "ConvolutionRistretto"])
def test_a_second_name_of_any_type_with_weights_is_told(type_: str) -> None:
    net = spec(DATA + "".join(layer("twin", type_, "data", f"r{k}") for k in range(2)))
    assert net.notes[-1].endswith("'twin#2'; weights are loaded only into the first one, as in Caffe")


def test_a_second_name_without_weights_is_renamed_and_told() -> None:
    net = spec(DATA + "".join(layer("relu", "ReLU", "data", f"r{k}") for k in range(3)))
    assert names(net) == ["data", "relu", "relu#2", "relu#3"]
    assert net.notes == (
        "net.prototxt:3: layer name 'relu' is used twice; this one is renamed 'relu#2'",
        "net.prototxt:4: layer name 'relu' is used twice; this one is renamed 'relu#3'",
    )


def test_a_second_name_with_weights_is_renamed_and_told() -> None:
    net = spec(DATA + CONV + layer("conv", "Convolution", "conv", "c2"))
    assert names(net) == ["data", "conv", "conv#2"]
    (told,) = net.notes
    assert told.endswith("this one is renamed 'conv#2'; weights are loaded only into the first one, as in Caffe")


def test_layers_without_names() -> None:
    net = spec(DATA + layer("", "ReLU", "data", "a") + 'layer { type: "TanH" bottom: "a" top: "b" }')
    assert names(net) == ["data", "", "#2"]
    assert net.by_name["#2"].producers == (("", 0),)
    assert net.notes == ("net.prototxt:3: a second layer has no name; this one is renamed '#2'",)


def test_automatic_splits_are_undone() -> None:
    """insert_splits.cpp writes <blob>_<layer>_<index>_split into a snapshot; a Split that a person wrote stays."""
    net = spec(
        DATA
        + CONV
        + layer("conv_conv_0_split", "Split", "conv", "conv_conv_0_split_0 conv_conv_0_split_1")
        + layer("a", "ReLU", "conv_conv_0_split_0", "a")
        + layer("b", "TanH", "conv_conv_0_split_1", "b")
        + layer("mine", "Split", "a", "m n")
    )
    assert names(net) == ["data", "conv", "a", "b", "mine"]
    assert net.by_name["a"].producers == net.by_name["b"].producers == (("conv", 0),)
    assert net.by_name["a"].bottoms == ("conv",)
    assert [blob for blob, _ in net.outputs] == ["b", "m", "n"]


def test_automatic_splits_after_an_in_place_layer() -> None:
    split = "conv_relu_0_split"
    net = spec(
        DATA
        + CONV
        + layer("relu", "ReLU", "conv", "conv")
        + layer(split, "Split", "conv", f"{split}_0 {split}_1")
        + layer("a", "ReLU", f"{split}_0", "a")
        + layer("sum", "Eltwise", f"{split}_1 a", "sum")
    )
    assert net.by_name["a"].producers == (("relu", 0),)
    assert net.by_name["sum"].producers == (("relu", 0), ("a", 0))


# -- notes ----------------------------------------------------------------------------------------------------------


def test_unknown_fields_of_data_layers_are_told_with_their_line() -> None:
    text = 'name: "n"\nlayer {\n  name: "r" type: "Input" top: "x" shiny_new_thing: 3\n  input_param { glow: true }\n'
    text += '}\nlayer { name: "c" type: "Custom" bottom: "x" top: "y" custom_thing_param { a: 1 } }'
    end = "is not followed: may change the data; the input must be prepared accordingly"
    assert spec(text).notes == (
        f"net.prototxt:2: layer 'r': unknown field 'shiny_new_thing' of LayerParameter {end}",
        f"net.prototxt:4: layer 'r': unknown field 'glow' of InputParameter {end}",
    )


@pytest.mark.parametrize(
    ("type_", "field", "refused"),
    [
        ("Convolution", "convolution_param { num_output: 2 kernel_size: 1 shine: 1 }", True),
        ("Convolution", "warp_param { a: 1 }", True),
        ("Convolution", "shine: 1", True),
        ("Local", "local_param { num_output: 2 kernel_size: 3 kernel_grid: 3 }", True),
        ("OwnConvolution", "convolution_param { num_output: 2 kernel_size: 1 kernel_grid: 3 }", False),
        ("OwnConvolution", "warp_param { a: 1 }", False),
    ],
)
def test_the_layers_type_decides_on_unknown_fields(type_: str, field: str, refused: bool) -> None:
    found = spec(DATA + layer("c", type_, "data", "c", field))
    if not refused:
        assert fields.refuse(found) is found
        return
    with pytest.raises(SpecError, match="unknown and may change what the layer computes"):
        fields.refuse(found)


# -- inputs that no layer makes -------------------------------------------------------------------------------------


def test_inputs_given_by_the_user() -> None:
    """A published architecture may begin with its first convolution."""
    net = spec(CONV + FC + LOSS, inputs=["data", "label", "unused"])
    assert [blob for blob, _ in net.inputs] == ["data", "label"]
    assert net.by_name["conv"].producers == (("data", 0),)
    assert [blob for blob, _ in spec(CONV + FC + LOSS, inputs=["data"]).inputs] == ["data", "label"]
    assert "'data' does not exist" in refused(CONV + FC + LOSS, inputs=["dat"])


def test_inputs_come_from_the_data_layer_of_the_other_phase() -> None:
    net = layer("batch", "Data", "", "data label", "include { phase: TRAIN } transform_param { crop_size: 28 }")
    test = spec(net + CONV + FC + LOSS)
    assert names(test) == ["batch", "conv", "fc", "loss"]
    assert test.by_name["batch"].param.transform_param.crop_size == 28


def test_what_only_train_does_to_the_data_is_taken_from_there() -> None:
    """DIGITS' nets: Slice and Power between data and net, in TRAIN only."""
    only = "include { phase: TRAIN }"
    text = (
        layer("batch", "Data", "", "both", only)
        + layer("cut", "Slice", "both", "raw other", f"slice_param {{ slice_point: 3 }} {only}")
        + layer("own", "Data", "", "unused", only)
        + layer("scale", "Power", "raw", "data", only)
        + CONV
    )
    test = spec(text)
    assert names(test) == ["batch", "cut", "scale", "conv"]
    assert test.by_name["conv"].producers == (("scale", 0),)
    assert [note.split(":")[1] for note in test.notes] == ["4", "2"]
    told = "layer 'cut' (Slice) is taken from another phase or stage, because no layer in this one produces 'raw'"
    assert test.notes[1] == f"net.prototxt:2: {told}"


def test_data_that_a_layer_of_training_fills_are_taken_from_there() -> None:
    """Intel's nets for measuring: DummyData in TRAIN only."""
    own = "dummy_data_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } include { phase: TRAIN }"
    test = spec(layer("fill", "DummyData", "", "data", own) + CONV)
    assert names(test) == ["fill", "conv"]
    assert test.by_name["conv"].producers == (("fill", 0),)


def test_a_net_of_stages_names_them() -> None:
    text = layer("conv", "Convolution", "data", "c", 'include { stage: "coarse" }') + layer(
        "fine", "ReLU", "c", "d", 'include { stage: "fine" }'
    )
    assert refused(text).endswith(
        "contains no layers in phase TEST\n  Its layers belong to stages; choose one: --stage coarse | fine"
    )


# -- the deploy view ------------------------------------------------------------------------------------------------


def deployed(text: str) -> NetSpec:
    return deploy_view.view(spec(text))


def view(net: NetSpec) -> tuple[list[str], list[str], list[str]]:
    """Inputs, layers, outputs."""
    made = [one.name for one in net.layers if one.type not in ("Data", "Input", "HDF5Data", "MemoryData", "ImageData")]
    return [b for b, _ in net.inputs], made, [b for b, _ in net.outputs]


def test_deploy_of_a_classifier() -> None:
    assert view(deployed(BATCH + CONV + FC + ACCURACY + LOSS)) == (["data"], ["conv", "fc"], ["fc"])


def test_deploy_leaves_a_deploy_net_alone() -> None:
    net = spec(DATA + CONV + FC + layer("prob", "Softmax", "fc", "prob"))
    assert deploy_view.view(net) is net


@pytest.mark.parametrize("tops", ["label data", "data label", "label data weight"])
def test_deploy_with_the_label_in_any_top(tops: str) -> None:
    net = deployed(layer("batch", "HDF5Data", "", tops) + CONV + FC + LOSS)
    inputs, made, outputs = view(net)
    assert made == ["conv", "fc"]
    assert outputs == ["fc"]
    assert inputs == ["data"]
    data = net.layers[0]
    assert data.tops == ("data",)
    assert net.by_name["conv"].producers == (("batch", 0),), "the top has moved to the front"


def test_deploy_drops_label_chains() -> None:
    """MTCNN: one label blob is cut in two, one part goes through a Reshape."""
    text = (
        BATCH
        + CONV
        + FC
        + layer("box", "InnerProduct", "conv", "box")
        + layer("cut", "Slice", "label", "class roi")
        + layer("shape", "Reshape", "roi", "roi2")
        + layer("loss1", "SoftmaxWithLoss", "fc class", "loss1")
        + layer("loss2", "EuclideanLoss", "box roi2", "loss2")
    )
    assert view(deployed(text)) == (["data"], ["conv", "fc", "box"], ["box", "fc"])


def test_deploy_with_a_silenced_label() -> None:
    text = BATCH + CONV + FC + layer("quiet", "Silence", "label", "") + LOSS.replace('"label"', '"fc"')
    inputs, made, outputs = view(deployed(text))
    assert inputs == ["data"]
    assert "quiet" not in made
    assert outputs == ["fc"]


def test_deploy_of_a_siamese_net() -> None:
    """data is cut into a pair: two towers, one ContrastiveLoss; the pairs' label goes."""
    text = BATCH + layer("cut", "Slice", "data", "a b")
    for side in "ab":
        text += layer(f"fc_{side}", "InnerProduct", side, f"fc_{side}", 'param { name: "w" }')
    text += layer("loss", "ContrastiveLoss", "fc_a fc_b label", "loss")
    assert view(deployed(text)) == (["data"], ["cut", "fc_a", "fc_b"], ["fc_a", "fc_b"])


def test_deploy_of_an_autoencoder() -> None:
    """The losses compare with data itself: nothing but they goes."""
    text = (
        layer("data", "Data", "", "data")
        + layer("flat", "Flatten", "data", "flat")
        + layer("encode", "InnerProduct", "data", "code")
        + layer("decode", "InnerProduct", "code", "out")
        + layer("cross", "SigmoidCrossEntropyLoss", "out flat", "cross")
        + layer("sig", "Sigmoid", "out", "sig")
        + layer("euclid", "EuclideanLoss", "sig flat", "euclid")
    )
    inputs, made, outputs = view(deployed(text))
    assert inputs == ["data"]
    assert {"encode", "decode", "sig"} <= set(made)
    assert "sig" in outputs
    assert not set(made) & {"cross", "euclid"}


def test_deploy_of_two_losses_at_two_depths() -> None:
    """GoogLeNet's auxiliary classifiers: their layers stay, as in Caffe, and are outputs."""
    text = (
        BATCH
        + CONV
        + layer("aux", "InnerProduct", "conv", "aux")
        + layer("l1", "SoftmaxWithLoss", "aux label", "l1")
        + FC
        + LOSS
    )
    assert view(deployed(text)) == (["data"], ["conv", "aux", "fc"], ["aux", "fc"])


def test_deploy_keeps_an_input_layer_that_computes() -> None:
    """A second input of an Input layer is no label, whoever reads it."""
    text = DATA + layer("im_info", "Input", "", "im_info", "input_param { shape { dim: [1, 4] } }") + CONV
    text += (
        layer("join", "Concat", "conv im_info", "out")
        + layer("l", "Input", "", "label")
        + layer("acc", "Accuracy", "out label", "acc")
    )
    inputs, made, outputs = view(deployed(text))
    assert inputs[:2] == ["data", "im_info"]
    assert (made, outputs) == (["conv", "join"], ["out"])


def test_deploy_of_nothing_but_losses() -> None:
    text = layer("batch", "Data", "", "data label") + layer("loss", "EuclideanLoss", "data label", "loss")
    with pytest.raises(SpecError, match=r"net\.prototxt: the net has no layers without the losses; use --keep-loss"):
        deployed(text)


# -- definitions inside weights -------------------------------------------------------------------------------------


def embedded(text: str) -> Definition:
    binary = b"".join(wire.serialize(prototxt.parse(text, "NetParameter")))
    weights = caffemodel.from_message(wire.parse(binary, "NetParameter"), "w.caffemodel")
    return Definition.embedded(weights)


BLOB = "blobs { data: 1 }"


@pytest.mark.parametrize(
    ("rule", "phase"), [("include { phase: TEST }", "TEST"), ("include { phase: TRAIN }", "TRAIN"), ("", "TRAIN")]
)
def test_saved_in(rule: str, phase: str) -> None:
    """Caffe writes the net it filtered: the rules that are left tell the phase."""
    definition = embedded(BATCH + layer("conv", "Convolution", "data", "conv", f"{BLOB} {rule}"))
    assert definition.saved_in == phase
    assert names(definition.spec("TEST")) == names(definition.spec("TRAIN")) == ["batch", "conv"]


def test_saved_with_explicit_phases() -> None:
    definition = embedded(BATCH + layer("conv", "Convolution", "data", "conv", f"{BLOB} phase: TEST"))
    assert definition.saved_in == "TEST"


def test_a_file_that_holds_both_phases_is_filtered() -> None:
    """Written by something else than Caffe."""
    definition = embedded(
        DATA
        + layer("a", "Convolution", "data", "x", f"{BLOB} include {{ phase: TRAIN }}")
        + layer("b", "Convolution", "data", "x", f"{BLOB} include {{ phase: TEST }}")
    )
    assert definition.saved_in is None
    assert names(definition.spec("TEST")) == ["data", "b"]
    assert names(definition.spec("TRAIN")) == ["data", "a"]


@pytest.mark.parametrize("saved_in", ["TRAIN", "TEST"])
def test_batch_norm_saved_in_train(saved_in: str) -> None:
    norm = "batch_norm_param { use_global_stats: false eps: 0.5 }"
    rule = f"include {{ phase: {saved_in} }}"
    definition = embedded(BATCH + layer("bn", "BatchNorm", "data", "bn", f"{BLOB} {norm} {rule}"))
    net = definition.spec("TEST")
    p = net.by_name["bn"].param.batch_norm_param
    assert p.eps == 0.5
    if saved_in == "TRAIN":
        assert not p.has("use_global_stats")
        assert net.notes == (
            (
                "1 BatchNorm layer saved in TRAIN with use_global_stats: false; eval() uses the stored "
                "statistics, as Caffe's TEST phase does"
            ),
        )
    else:
        assert p.has("use_global_stats")
        assert net.notes == ()


def test_infogain_loss_of_probabilities() -> None:
    """Until Caffe 1.0, InfogainLoss took them; now it computes Softmax itself (infogain_loss_layer.cpp)."""
    scores = layer("data", "Input", "", "data label", "input_param { shape { dim: [2, 3] } shape { dim: 2 } }")
    for bottom, said in (("data", 0), ("soft", 1)):
        net = spec(
            scores + layer("soft", "Softmax", "data", "soft") + layer("loss", "InfogainLoss", f"{bottom} label", "loss")
        )
        assert len([note for note in net.notes if "'loss' computes Softmax itself" in note]) == said


def test_weights_without_a_definition() -> None:
    weights = caffemodel.Weights("w.h5", "HDF5", (), None)
    with pytest.raises(
        SpecError, match=r"w\.h5: contains no definition \(HDF5 stores only weights\)\n  Add the prototxt"
    ):
        Definition.embedded(weights)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (layer("conv", "Convolution", "dta", "conv", BLOB) + DATA, "layer 'conv' (Convolution): bottom 'dta'"),
        (
            layer("conv", "Convolution", "data", "c", f"{BLOB} include {{ }} exclude {{ }}"),
            "layer 'conv': has both include and",
        ),
        (f'layers {{ type: 5 }} layer {{ name: "d" {BLOB} }}', "'layers' (the old format) and 'layer' are mixed"),
        (f'layers {{ layer {{ name: "c" type: "cv" {BLOB} }} }}', "layer 'c' (cv): is not a layer type of V0"),
    ],
)
def test_errors_of_an_embedded_definition_have_no_line(text: str, what: str) -> None:
    with pytest.raises(SpecError) as caught:
        embedded(text).spec()
    assert str(caught.value).startswith(f"w.caffemodel: {what}")


def test_specs_are_frozen() -> None:
    net = spec(DATA + CONV)
    assert isinstance(net.layers, tuple)
    with pytest.raises(AttributeError):
        net.layers[0].name = "x"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        net.name = "x"  # type: ignore[misc]
    assert isinstance(net.by_name["conv"], LayerSpec)


# -- data layers of forks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "more"),
    [
        ("ImageSegData", ""),
        ("TripletSampling", ""),
        ("Python", 'python_param { module: "voc_layers" layer: "VOCSegDataLayer" }'),
    ],
)
def test_data_layers_that_are_not_known_by_name(type_: str, more: str) -> None:
    text = layer("data", type_, "", "data label", more) + CONV + layer("loss", "OddLoss", "conv label", "loss")
    definition = Definition.parse(prototxt.parse(text, "NetParameter"), "net.prototxt")
    net = definition.spec()
    assert [blob for blob, _ in net.inputs] == ["data", "label"]
    assert net.by_name["data"].type == "OtherData"
    told = f"net.prototxt:1: layer 'data' ({type_}) is treated as a data layer: its 2 tops are inputs"
    assert net.notes == (told,)
    assert definition.net.layer[0].type == type_, "what is written back stays as it was"
    assert [blob for blob, _ in deploy_view.view(net).inputs] == ["data"]


def test_python_code_that_a_plugin_stands_for_is_no_data_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PYTHON, "my.Noise", Signature("Noise", None))
    text = layer("noise", "Python", "", "noise", 'python_param { module: "my" layer: "Noise" }')
    assert spec(text).by_name["noise"].type == "Python"


def test_a_data_layer_of_another_phase() -> None:
    text = layer("data", "DenseImageData", "", "data", "include { phase: TRAIN }") + CONV
    net = Definition.parse(prototxt.parse(text, "NetParameter"), "net.prototxt").spec("TEST")
    assert [blob for blob, _ in net.inputs] == ["data"]


@pytest.mark.parametrize("type_", ["LabelSpecificMarginLoss", "SequenceAccuracy", "SoftmaxWithLossOHEM"])
def test_losses_of_forks_are_left_out_of_the_deploy_view(type_: str) -> None:
    text = layer("data", "Data", "", "data label") + CONV + layer("end", type_, "conv label", "end")
    deployed = deploy_view.view(spec(text))
    assert names(deployed) == ["data", "conv"]
    assert [blob for blob, _ in deployed.inputs] == ["data"]


def test_parameters_outside_the_schema_are_read_by_some_types() -> None:
    text = DATA + layer("u", "Unpooling", "data", "u", "unpooling_param { kernel_size: 2 }")
    assert spec(text).unfollowed == ()
    text = DATA + layer("u", "AbsVal", "data", "u", "unpooling_param { kernel_size: 2 }")
    assert [one.field for one in spec(text).unfollowed] == ["unpooling_param"]
