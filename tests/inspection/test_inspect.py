"""What `inspect` says of files, and of a definition beside weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import registries
from conftest import GOLDEN, HERE
from inspect_nets import CHAIN, NET, store, write, zeros

from caffe_port import api, layers
from caffe_port.errors import CaffePortError, ParseError, SpecError
from caffe_port.formats import caffemodel, prototxt, wire
from caffe_port.formats.message import Message
from caffe_port.inspection.inspect import (
    Inspection,
    Options,
    diff,
    inspect_file,
    inspect_files,
    kind_of,
    numbers_of,
    render,
)

SOLVER = 'net: "train.prototxt"\nbase_lr: 0.1\nlr_policy: "multistep"\nstepvalue: 10\nstepvalue: 20\nsolver_mode: GPU\n'


def row(found: Inspection, name: str) -> object:
    return next(row for row in found.rows if row.name == name)


# -- nets ---------------------------------------------------------------------------------------------------------


def test_net(tmp_path: Path) -> None:
    found = inspect_file(write(tmp_path / "net.prototxt", NET))
    assert found.kind == "net"
    assert dict(found.facts) == {
        "format": "prototxt, V2",
        "net": "tiny",
        "phase": "TEST, 6 layers",
        "inputs": "data 2x3x9x7",
        "outputs": "scores 2x5",
    }
    assert [(r.name, r.shapes, r.blobs) for r in found.rows] == [
        ("input", ((2, 3, 9, 7),), ()),
        ("conv", ((2, 4, 7, 5),), ((4, 3, 3, 3), (4,))),
        ("bn", ((2, 4, 7, 5),), ((4,), (4,), (1,))),
        ("scale", ((2, 4, 7, 5),), ((4,), (4,))),
        ("flat", ((2, 140),), ()),
        ("ip", ((2, 5),), ((5, 140), (5,))),
    ]
    assert [r.parameters for r in found.rows] == [0, 112, 0, 8, 0, 705]
    assert [r.statistics for r in found.rows] == [0, 0, 9, 0, 0, 0]
    assert [r.macs for r in found.rows] == [0, 2 * 35 * 4 * 27, 0, 0, 0, 2 * 140 * 5]
    assert [r.activation_bytes for r in found.rows] == [4 * 378, 4 * 280, 0, 0, 0, 4 * 10], "in place costs nothing"
    assert [r.line for r in found.rows][1:] == [4, 5, 6, 7, 8]
    assert found.totals == {
        "layers": 6,
        "parameters": 825,
        "statistics": 9,
        "macs": 7560 + 1400,
        "activation_bytes": 2672,
    }
    assert not any(found.unknown.values())
    assert not found.notes
    assert not found.errors


def test_net_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "net.prototxt", NET)
    lines = render(inspect_file(path), 100).splitlines()
    assert lines[0] == f"{path} ({path.stat().st_size} B)"
    start = next(k for k, line in enumerate(lines) if line.startswith("layer"))
    assert lines[start + 2 :] == [
        "input  Input         -> data         2x3x9x7                                 1.5 KiB",
        "conv   Convolution                   2x4x7x5  4x3x3x3, 4         112  7,560  1.1 KiB",
        "bn     BatchNorm                     2x4x7x5  4, 4, 1",
        "scale  Scale                         2x4x7x5  4, 4                 8",
        "flat   Flatten                       2x140",
        "ip     InnerProduct  flat -> scores  2x5      5x140, 5           705  1,400     40 B",
        "",
        "parameters   825 + 9 statistics (3.3 KiB as float32)",
        "MACs         8,960",
        "activations  2.6 KiB for all tops, as float32",
    ]


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("name", ["simplenet_cifar10", "simplenet_slim_310k_mnist"])
def test_text_fits_the_terminal(name: str, width: int) -> None:
    text = render(inspect_file(HERE.parent / "model_defs" / f"{name}.prototxt"), width)
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("layer "))
    assert max(map(len, lines[start:])) <= width
    assert "conv1" in text


def test_parameters_as_the_net_counts_them() -> None:
    path = HERE.parent / "model_defs" / "simplenet_cifar10.prototxt"
    found = inspect_file(path, options=Options(input_shapes={"data": (1, 3, 32, 32)}))
    net = api.load(path, input_shapes={"data": (1, 3, 32, 32)})
    assert found.totals["parameters"] == sum(p.numel() for p in net.parameters())
    assert found.totals["statistics"] == sum(b.numel() for b in net.buffers())
    assert found.totals["parameters"] == pytest.approx(5.48e6, rel=0.005)


def test_shared_blobs_count_once() -> None:
    found = inspect_file(GOLDEN / "layers" / "convolution_shared_weights.prototxt")
    counts = [r.parameters for r in found.rows if r.blobs]
    blobs = {sum(int(np.prod(shape)) for shape in r.blobs or () if shape) for r in found.rows if r.blobs}
    assert len(counts) == 2
    assert blobs == {counts[0]}, "both layers have the same blobs"
    assert counts[1] == 0


def test_both_phases() -> None:
    path = GOLDEN / "layers" / "net_phase_rules.prototxt"
    names = {r.name for r in inspect_file(path).rows}
    assert "more in other phases or stages" in dict(inspect_file(path).facts)["phase"]
    assert names < {layer.name for layer in prototxt.read(path, "NetParameter").layer}


@pytest.mark.parametrize("path", sorted((GOLDEN / "layers").glob("*.prototxt")), ids=lambda p: p.stem)
def test_every_golden_net_is_shown(path: Path) -> None:
    weights = path.with_suffix(".caffemodel")
    for found in inspect_files([path, weights] if weights.exists() else [path]):
        text = render(found)
        assert all(r.name[:4] in text for r in found.rows)
        assert not found.errors
        json.dumps(found.to_json(), allow_nan=False)


# -- what is not known ---------------------------------------------------------------------------------------------


def test_unknown_input_shape(tmp_path: Path) -> None:
    path = write(tmp_path / "train.prototxt", CHAIN.format(n=6))
    found = inspect_file(path)
    shapes = {r.name: (r.shapes, r.blobs, r.parameters, r.macs) for r in found.rows}
    assert shapes["data"] == ((None, (1,)), (), 0, 0)
    assert shapes["c1"] == (((1, 8, None, None),), ((8, None, 3, 3), (8,)), None, None)
    assert shapes["c2"] == (((1, 6, None, None),), ((6, 8, 3, 3), (6,)), 438, None)
    assert shapes["ip"] == (((1, 5),), ((5, None), (5,)), None, None)
    assert any("--input-shape data=1,C,H,W" in note for note in found.notes)
    assert not found.errors
    text = render(found)
    assert "1x8x?x?" in text
    assert "parameters   at least 438" in text
    assert "MACs         ?" in text
    assert found.unknown["parameters"] == 2
    json.dumps(found.to_json(), allow_nan=False)

    given = inspect_file(path, options=Options(input_shapes={"data": (2, 3, 12, 10)}))
    assert not any(given.unknown.values())
    assert dict(given.facts)["inputs"] == "data 2x3x12x10, label 2"
    with pytest.raises(SpecError, match=r"has no input 'dat'.*Did you mean 'data'"):
        inspect_file(path, options=Options(input_shapes={"dat": (2, 3, 12, 10)}))


def test_no_input_layer(tmp_path: Path) -> None:
    text = "\n".join(CHAIN.format(n=6).splitlines()[2:])
    path = write(tmp_path / "architecture.prototxt", text)
    found = inspect_file(path)
    assert "the net has no input layer; treated as inputs: data, label" in found.notes
    assert row(found, "c2").parameters == 438  # type: ignore[attr-defined]
    given = inspect_file(path, options=Options(input_shapes={"data": (2, 3, 12, 10), "label": (2,)}))
    assert not any(given.unknown.values())


def test_a_net_that_does_not_fit_is_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "net.prototxt", NET.replace("dim: 9 dim: 7", "dim: 2 dim: 7"))
    found = inspect_file(path)
    assert row(found, "conv").shapes == (None,)  # type: ignore[attr-defined]
    (error,) = found.errors
    assert error.startswith(
        f"{path}:4: layer 'conv' (Convolution): a bottom (2, 3, 2, 7) gives an empty output (0, 5) with "
    )
    assert error.endswith("kernel_size 3x3, stride 1x1, pad 0x0, dilation 1x1")
    assert "error:" in render(found)


def test_unsupported_types_are_named(tmp_path: Path) -> None:
    text = NET + 'layer { name: "odd" type: "SomeFork" bottom: "scores" top: "odd" }'
    found = inspect_file(write(tmp_path / "net.prototxt", text))
    assert row(found, "odd").shapes == (None,)  # type: ignore[attr-defined]
    assert len(found.errors) == 1
    assert "layer 'odd' (SomeFork): this type is not supported" in found.errors[0]
    assert row(found, "ip").parameters == 705  # type: ignore[attr-defined]


def test_a_registered_type_without_a_rule_is_built(tmp_path: Path) -> None:
    """A plugin's layer: its shapes come from running it on the meta device."""
    import torch

    with registries.forgotten():

        class HalveForTest(layers.Layer):
            blobs = ("gain",)

            def __init__(self) -> None:
                super().__init__()
                self.gain = torch.nn.Parameter(torch.ones(3))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x[:, ::2]

        text = NET + 'layer { name: "half" type: "HalveForTest" bottom: "scores" top: "half" }'
        found = inspect_file(write(tmp_path / "net.prototxt", text))
    half = row(found, "half")
    assert (half.shapes, half.blobs, half.parameters) == (((2, 3),), ((3,),), 3)  # type: ignore[attr-defined]
    assert not found.errors


# -- weights ------------------------------------------------------------------------------------------------------


def test_weights_with_their_definition(shared: Path) -> None:
    found = inspect_file(shared / "models/simplenet/mnist_9972/weights.caffemodel")
    facts = dict(found.facts)
    assert found.kind == "weights"
    assert facts["format"] == "weights, V2"
    assert facts["weights"] == "302,458 values (float32), 78 blobs in 34 layers"
    assert facts["definition"] == "inside the file, saved in phase TRAIN"
    assert facts["inputs"] == "data 1x1x28x28, label 1"
    assert found.bytes == 1_214_196
    assert found.totals["parameters"] + found.totals["statistics"] == 302_458
    assert not any(found.unknown.values())
    assert not found.errors


def test_old_formats(shared: Path) -> None:
    zoo = shared / "models/zoo"
    found = inspect_file(zoo / "caffe2014_lenet_v1/lenet_iter_10000.caffemodel")
    assert dict(found.facts)["format"] == "weights, V1"
    assert row(found, "ip1").blobs == ((500, 800), (500,))  # type: ignore[attr-defined]  # stored (1, 1, 500, 800)
    assert found.totals["parameters"] == 431_080

    pytest.importorskip("h5py")
    found = inspect_file(zoo / "arm_cmsisnn_cifar10/cifar10_m4_iter_70000.caffemodel.h5")
    assert dict(found.facts)["format"] == "weights, HDF5"
    assert [(r.name, r.parameters, r.macs) for r in found.rows] == [
        ("conv1", 2432, None),
        ("conv2", 12816, None),
        ("conv3", 12832, None),
        ("ip1", 5130, None),
    ]
    assert "MACs         " not in render(found)


def test_net_and_weights_together(shared: Path) -> None:
    zoo = shared / "models/zoo/mtcnn_v2"
    files = [p for k in (1, 2) for p in (zoo / f"det{k}.prototxt", zoo / f"det{k}.caffemodel")]
    found = inspect_files([*files, zoo / "det3.caffemodel"])
    assert [one.kind for one in found] == ["net", "net", "weights"]
    assert all(not one.errors for one in found)
    assert "det1.caffemodel" in dict(found[0].facts)["weights"]
    held = [caffemodel.read(zoo / f"det{k}.caffemodel").parameters for k in (1, 2, 3)]
    landmarks = 10 * 128 + 10  # conv5-3 of det2.caffemodel is not in det2.prototxt
    assert [one.totals["parameters"] for one in found] == [held[0], held[1] - landmarks, held[2]]
    assert not found[0].notes
    assert any("1 is only in the weights" in note for note in found[1].notes)


def test_weights_that_do_not_fit_are_an_error(shared: Path) -> None:
    folder = shared / "models/simplenet/mnist_9972"
    found = inspect_file(folder / "train_test.prototxt", folder / "weights.caffemodel")
    assert found.errors == ("the weights do not fit: 18 of 34 layers differ. See `caffe-port inspect --diff`.",)


def test_numbers(tmp_path: Path) -> None:
    weight = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3)
    bias = np.array([np.nan, np.inf, -2, 4], np.float32)
    path = store(tmp_path / "w.caffemodel", NET, conv=[weight, bias])
    assert inspect_file(path).numbers == ()
    found = inspect_file(path, options=Options(numbers=True))
    first, second = found.numbers
    assert (first.layer, first.index, first.shape) == ("conv", 0, (4, 3, 3, 3))
    assert (first.minimum, first.maximum, first.mean, first.nans, first.infinities) == (0, 107, 53.5, 0, 0)
    assert (second.minimum, second.maximum, second.mean, second.nans, second.infinities) == (-2, 4, 1, 1, 1)
    text = render(found)
    assert "1 blob contains NaN or infinity" in text
    json.dumps(found.to_json(), allow_nan=False)


def test_numbers_of_nothing_finite() -> None:
    found = numbers_of(np.full((2, 3), np.nan, np.float32))
    assert (found.minimum, found.maximum, found.mean, found.nans) == (None, None, None, 6)
    assert numbers_of(np.ones((1 << 20) + 3, np.float16)).mean == 1, "in pieces"


# -- other files --------------------------------------------------------------------------------------------------


def test_solver(tmp_path: Path) -> None:
    found = inspect_file(write(tmp_path / "solver.prototxt", SOLVER + "own_field_of_a_fork: 3\n"))
    assert found.kind == "solver"
    assert dict(found.facts) == {
        "format": "solver",
        "net": "train.prototxt",
        "base_lr": "0.1",
        "lr_policy": "multistep",
        "stepvalue": "10, 20",
        "solver_mode": "GPU",
    }
    assert any("'own_field_of_a_fork' is unknown" in note for note in found.notes)
    assert any("'train.prototxt'" in note for note in found.notes)
    assert "stepvalue    10, 20" in render(found)


def test_solver_with_a_net_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "solver.prototxt", f"base_lr: 0.1 # {{ layer\nnet_param {{ {NET} }}\n")
    found = inspect_file(path)
    assert found.kind == "solver"
    assert dict(found.facts)["net_param"] == "{ ... }"


def test_mean(tmp_path: Path) -> None:
    values = np.stack([np.full((4, 5), 10.0), np.full((4, 5), 20.5), np.full((4, 5), 30.0)]).astype(np.float32)
    blob = Message("BlobProto", num=1, channels=3, height=4, width=5, data=values.reshape(-1))
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(b"".join(wire.serialize(blob)))
    found = inspect_file(path)
    facts = dict(found.facts)
    assert found.kind == "mean"
    assert facts["shape"].startswith("3x4x5 ")
    assert facts["channel means"].startswith("10.0000, 20.5000, 30.0000")
    assert facts["range"] == "10 to 30"


def test_solver_state() -> None:
    path = next(iter(sorted((GOLDEN / "solvers").glob("adadelta_iter_*.solverstate"))))
    found = inspect_file(path)
    assert found.kind == "solverstate"
    assert dict(found.facts)["history"] == "16 blobs, 740 values"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.prototxt", NET.encode(), "net"),
        ("a.txt", SOLVER.encode(), "solver"),
        ("no_suffix", SOLVER.encode(), "solver"),
        ("a.prototxt", ("\ufeff" + NET).encode("utf-16"), "net"),
        ("a.prototxt", b'# base_lr: 1\nlayers { name: "base_lr: 2" type: RELU }', "net"),
        ("a.caffemodel", b"\x0a\x00", "weights"),
        ("a.caffemodel", b"layer {}", "weights"),
        ("a.binaryproto", b"\x08\x01\x00", "mean"),
        ("a.solverstate", b"\x08\x01\x00", "solverstate"),
        ("a.solverstate.h5", b"\x89HDF\r\n\x1a\n", "solverstate"),
        ("a.caffemodel.h5", b"\x89HDF\r\n\x1a\n", "weights"),
    ],
)
def test_kinds(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert kind_of(path) == kind


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("empty.prototxt", b"", "is empty"),
        ("picture.caffemodel", b"\x89PNG\r\n\x1a\n\x00\x00", "is a PNG image"),
        ("text.caffemodel", NET.encode(), "is text, not a .caffemodel"),
        ("broken.prototxt", b"layer {", "the file ends inside the block"),
        ("nothing.prototxt", b'name: "x"', "contains no layers"),
        ("picture.prototxt", b"\x89PNG\r\n\x1a\n\x00\x00", "is a PNG image, not a prototxt"),
        ("deep.prototxt", b"layer {" * 10_000, "nested"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CaffePortError, match=what) as error:
        inspect_file(path)
    assert str(path) in str(error.value)


def test_folders_and_pairs(tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="is a folder"):
        inspect_file(tmp_path)
    with pytest.raises(CaffePortError, match="cannot be read"):
        inspect_file(tmp_path / "absent.prototxt")
    solver = write(tmp_path / "solver.prototxt", SOLVER)
    with pytest.raises(CaffePortError, match="is a solver file; expected a net's prototxt before the weights"):
        inspect_file(solver, solver)
    with pytest.raises(CaffePortError, match="got a solver and a solver file"):
        diff(solver, solver)


def test_damaged_weights(tmp_path: Path) -> None:
    whole = store(tmp_path / "w.caffemodel", NET, conv=zeros((4, 3, 3, 3), (4,))).read_bytes()
    path = tmp_path / "cut.caffemodel"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ParseError):
        inspect_file(path)


# -- the terminal -------------------------------------------------------------------------------------------------


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\\033]0;owned\\007\\033[2J"
    text = NET.replace('"conv"', f'"{evil}"').replace('"tiny"', '"\u202etxt.exe\u2066"')
    weights = store(
        tmp_path / "w.caffemodel",
        text.replace("num_output: 4", "num_output: 8"),
        **{"\033]0;owned\007\033[2J": zeros((8, 3, 3, 3), (8,))},
    )
    net = write(tmp_path / "net.prototxt", text)
    for shown in (render(inspect_file(net)), render(inspect_file(weights)), render(diff(net, weights))):
        assert all(c.isprintable() or c == "\n" for c in shown)
    assert "\\x1b]0;" in render(inspect_file(net), 120)


# -- speed --------------------------------------------------------------------------------------------------------


def test_a_quick_look() -> None:
    """No torch, no HDF5, no tables of another library; within half a second of processor time."""
    net = HERE.parent / "model_defs" / "simplenet_cifar10.prototxt"
    script = (
        "import sys, time\n"
        "from caffe_port.inspection.inspect import inspect_file, render\n"
        "render(inspect_file(sys.argv[1]))\n"
        "heavy = {'torch', 'h5py', 'rich', 'matplotlib', 'torchvision', 'cv2'} & set(sys.modules)\n"
        "print(*sorted(heavy))\n"
        "print(time.process_time())\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script, str(net)], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert {run.splitlines()[0] for run in runs} == {""}
    assert min(float(run.splitlines()[1]) for run in runs) < 0.5


# -- windows, and how images become the input -------------------------------------------------------------------------


def test_windows_are_shown(tmp_path: Path) -> None:
    path = write(
        tmp_path / "net.prototxt",
        """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 21 dim: 19 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c"
                convolution_param { num_output: 8 kernel_h: 3 kernel_w: 5 stride: 2 pad: 1 dilation: 2 group: 4 } }
        layer { name: "d" type: "Deconvolution" bottom: "c" top: "d"
                convolution_param { num_output: 8 kernel_size: 4 stride: 2 } }
        layer { name: "p" type: "Pooling" bottom: "d" top: "p" pooling_param { kernel_size: 2 pool: AVE } }
        layer { name: "g" type: "Pooling" bottom: "p" top: "g" pooling_param { global_pooling: true pool: AVE } }
        layer { name: "r" type: "ReLU" bottom: "g" top: "r" }
        """,
    )
    found = inspect_file(path)
    assert {row.name: row.window for row in found.rows if row.window} == {
        "c": "3x5, stride 2, pad 1, dilation 2, group 4",
        "d": "4x4, stride 2",
        "p": "2x2, AVE",
        "g": "global, AVE",
    }
    assert "3x5, stride 2, pad 1, dilation 2, group 4" in render(found, 140)
    assert not found.errors


def test_how_images_become_the_input_is_shown(tmp_path: Path) -> None:
    path = write(
        tmp_path / "net.prototxt",
        """
        layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
                transform_param { crop_size: 24 mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.5 } }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
        """,
    )
    shown = dict(inspect_file(path).facts)["images"]
    assert shown == "channels as stored, (x - [104, 117, 123]) * 0.5, crop 24 (transform_param of layer 'data')"
    other = tmp_path / "other.prototxt"
    other.write_text(path.read_text().replace("scale: 0.5", "mean_file: 'none'"))
    assert "sets both mean_file and mean_value" in dict(inspect_file(other).facts)["images"]
