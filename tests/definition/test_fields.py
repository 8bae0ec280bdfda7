"""Fields that no code follows: judged by the tables, refused with their line, ignored only when asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import HERE

import caffe_port
from caffe_port.cli import main
from caffe_port.definition import fields
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.errors import SpecError
from caffe_port.formats import prototxt, wire

CASES = HERE / "cases"
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 5 dim: 7 } } }\n'


def definition(text: str) -> Definition:
    return Definition.parse(prototxt.parse(INPUT + text, "NetParameter", "net.prototxt"), "net.prototxt")


def layer(type_: str, more: str) -> str:
    return f'layer {{ name: "l" type: "{type_}" bottom: "x" top: "y" {more} }}\n'


def run(line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["caffe-port", *line.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), *capfd.readouterr()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (layer("ReLU", "relu_param { upper_limit: 1 }"), "'upper_limit' of ReLUParameter is not followed: where"),
        (layer("ReLU", "relu_param { glow: 1 }"), "'glow' of ReLUParameter is unknown and may change what the layer"),
        (layer("ReLU", "relu_param { glow: 0 }"), "'glow' of ReLUParameter is unknown"),
        (layer("ELU", "elu_param { lambda: 2 }"), "'lambda' of ELUParameter is not followed: multiplies the top"),
        (layer("ReLU", "") + "glow: 1", "field 'glow' of NetParameter is unknown and may change what the net computes"),
    ],
)
def test_what_changes_numbers_refuses_the_net(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        phase_spec(definition(text), "TEST", 0, (), (), keep_loss=False)
    assert said in str(caught.value)
    assert "--ignore-field" in caught.value.hint
    assert caught.value.where == ("net.prototxt:1" if "NetParameter" in said else "net.prototxt:2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (layer("ReLU", "relu_param { engine: CUDNN }"), ""),  # of the schema, and harmless
        (layer("ReLU", "debug: true"), ""),
        (layer("Scale", "scale_param { filler { glow: 1 } }"), "a net with its weights computes the same"),
        (layer("Scale", "param { l1_mult: 1 }"), "a net with its weights computes the same"),
        (layer("ELU", "elu_param { lambda: 1 }"), ""),  # as without it
        (layer("ReLU", "quantization_param { bw_layer_in: 8 scale_in: 2 }"), "caffe-port computes in float32"),
        (layer("ReLU", "") + "eltwise_mem_sharing: false", "changes no number"),
        (layer("ReLU", "loss_weight: 1") + "global_grad_scale: 9", "a net with its weights computes the same"),
        (layer("ReLU", "") + "global_grad_scale_adaptive: true", ""),  # no loss has it
        (layer("Im2col", "convolution_param { kernel_size: 1 num_output: 3 }"), ""),
    ],
)
def test_what_does_not_is_told(text: str, said: str) -> None:
    notes = phase_spec(definition(text), "TEST", 0, (), (), keep_loss=False).notes
    assert [said in note for note in notes] == [True] * bool(said)


def test_equal_notes_are_told_once() -> None:
    text = "".join(layer("Scale", "scale_param { filler { glow: 1 } }").replace('"l"', f'"l{k}"') for k in range(3))
    net = definition(text.replace('top: "y"', 'top: "x"'))
    assert len([note for note in net.spec().notes if "in 2 more" in note]) == 1


def test_a_field_of_a_layer_that_is_left_out_refuses_nothing() -> None:
    loss = 'layer { name: "s" type: "SoftmaxWithLoss" bottom: "y" bottom: "t" softmax_param { glow: 1 } }'
    net = definition('layer { name: "t" type: "Data" top: "t" }' + layer("ReLU", "") + loss)
    assert phase_spec(net, "TEST", 0, (), (), keep_loss=False).layers[-1].name == "l"
    with pytest.raises(SpecError, match="'glow'"):
        phase_spec(net, "TEST", 0, (), (), keep_loss=True)


def test_a_field_of_a_plugin_is_its_own() -> None:
    net = definition(layer("SomeType", "relu_param { glow: 1 }"))
    assert not list(fields.unfollowed(net.net, net.path))


# -- ignored ----------------------------------------------------------------------------------------------------------


def test_ignored_fields_are_gone_recorded_and_named_by_the_verdict(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(INPUT + layer("ReLU", "relu_param { upper_limit: 1 negative_slop: 2 }"))
    for command in (f"verify {path}", f"convert {path} -o {tmp_path / 'out'}", f"inspect {path}"):
        assert run(command, capfd, monkeypatch)[0] == 2
    assert not (tmp_path / "out").exists()
    without = "--ignore-field upper_limit --ignore-field negative_slop"
    code, out, _ = run(f"verify {path} {without}", capfd, monkeypatch)
    assert code == 0
    assert "PASSED without 'upper_limit' and 'negative_slop': the only compared top agrees" in out
    assert "PASSED:" not in out
    code, out, _ = run(f"verify {path} {without} --json", capfd, monkeypatch)
    assert json.loads(out)["without"] == ["upper_limit", "negative_slop"]
    assert run(f"convert {path} -o {tmp_path / 'out'} {without}", capfd, monkeypatch)[0] == 0
    port = json.loads((tmp_path / "out" / "port.json").read_text())
    assert port["ignored_fields"] == ["upper_limit", "negative_slop"]
    assert run(f"inspect {path} {without}", capfd, monkeypatch)[0] == 0
    assert caffe_port.load(path, ignore_fields=["upper_limit", "negative_slop"]).inputs == ("x",)
    assert "without" in caffe_port.verify(path, ignore_fields=["upper_limit", "negative_slop"]).word


@pytest.mark.parametrize("name", ["negative_slope", "nonsense", "num_output"])
def test_what_is_followed_cannot_be_ignored(name: str) -> None:
    net = definition(layer("ReLU", "relu_param { negative_slope: 0.5 upper_limit: 1 }"))
    with pytest.raises(SpecError, match=rf"no field '{name}' that could be ignored.*those there are: upper_limit"):
        net.without([name])


def test_a_verdict_without_fields_of_the_data_names_them() -> None:
    report = caffe_port.verify(CASES / "unknown_fields" / "train_transform.prototxt")
    assert report.passed
    assert report.without == ("cvt_bgr2rgb",)


def test_a_verdict_without_intels_few_bits_names_them(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(INPUT + layer("ReLU", "quantization_param { bw_layer_in: 8 scale_in: 2 }"))
    report = caffe_port.verify(path)
    assert report.passed
    assert report.without == ("quantization_param",)


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        ("unknown_fields/additional_y_offset", ["additional_y_offset"]),
        ("unknown_field_hidden/bn", ["upper_limit", "swap_xy"]),
    ],
)
def test_the_error_names_the_unknown_field(case: str, fields: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        caffe_port.load(CASES / f"{case}.prototxt")
    assert f"field '{fields[0]}'" in caught.value.what
    assert all(f"--ignore-field {name}" in caught.value.hint for name in fields)


# -- numbers of binary files ------------------------------------------------------------------------------------------


def stored(tmp_path: Path, layer_: str, own: bytes = b"", stray: bytes = b"") -> Path:
    """A .caffemodel with a layer, bytes after the fields of its parameters, and bytes after its own fields."""
    message = prototxt.parse(INPUT + layer_, "NetParameter")
    first, second = (b"".join(wire.serialize(one)) for one in message.layer)
    if own:
        (name,) = (name for name, value in message.layer[1].items() if name.endswith("_param"))
        inner = b"".join(wire.serialize(getattr(message.layer[1], name)))
        assert second.endswith(inner)
        second = second[: -len(inner) - 1] + bytes([len(inner) + len(own)]) + inner + own
    second += stray
    path = tmp_path / "net.caffemodel"
    path.write_bytes(b"".join(b"\xa2\x06" + bytes([len(part)]) + part for part in (first, second)))
    return path


STRAY = b"\x82\x7d\x03abc"  # field 2000, three bytes


def test_a_stray_number_is_told(tmp_path: Path) -> None:
    path = stored(tmp_path, layer("ReLU", ""), stray=STRAY)
    ported = caffe_port.port(None, path)
    assert any("unknown field '2000' of LayerParameter changes no number" in note for note in ported.notes)
    assert caffe_port.verify(None, path).word == "PASSED"


def test_a_number_among_the_parameters_refuses_the_net(tmp_path: Path) -> None:
    path = stored(tmp_path, layer("ReLU", "relu_param { negative_slope: 0.5 }"), own=b"\x38\x01")
    with pytest.raises(SpecError, match="field '7' of ReLUParameter is unknown and may change"):
        caffe_port.load(None, path)
    assert caffe_port.verify(None, path, ignore_fields=["7"]).word == "PASSED without '7'"
    text = tmp_path / "net.prototxt"
    text.write_text(INPUT + layer("ReLU", "relu_param { negative_slope: 0.5 }"))
    assert caffe_port.verify(text, path).word == "PASSED", "the prototxt is the definition"


def test_the_parameters_of_a_fork_under_another_number_are_missed(tmp_path: Path) -> None:
    path = stored(tmp_path, layer("Interp", ""), stray=STRAY)
    with pytest.raises(SpecError, match="'2000' of LayerParameter is unknown and may hold the parameters of the layer"):
        caffe_port.load(None, path)


def test_a_message_that_does_not_parse_is_an_unknown_field(tmp_path: Path) -> None:
    """R-FCN's number with a string in it, in a layer that owns it and in one that does not."""
    stray = b"\x8a\xf1\x04\x04!!!!"  # field 10001
    assert caffe_port.port(None, stored(tmp_path, layer("ReLU", ""), stray=stray)).notes
    with pytest.raises(SpecError, match="'10001' of LayerParameter is unknown and may hold the parameters"):
        caffe_port.load(None, stored(tmp_path, layer("PSROIPooling", 'bottom: "x"'), stray=stray))


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ("relu_param { engine: CAFFE }", False),
        ("propagate_down: true", False),
        ("propagate_down: false", True),
        ("param { l1_mult: 1 }", True),
    ],
)
def test_training_refuses_what_only_training_looks_at(more: str, refused: bool) -> None:
    spec = definition(layer("ReLU", more)).spec("TRAIN")
    assert fields.refuse(spec) is spec
    if refused:
        with pytest.raises(SpecError, match=r"is not followed|is unknown"):
            fields.refuse(spec, training=True)
    else:
        assert fields.refuse(spec, training=True) is spec
