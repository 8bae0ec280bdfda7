"""Layers and files of brocolli-caffe 9.0.2: its figures, from text and from a binary alone, and whose meaning holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE
from fork_layers import build, random
from torch import Tensor

from caffe_port.api import Ported, port
from caffe_port.emit.caffe_files import write_caffe
from caffe_port.errors import CaffePortError, SpecError
from caffe_port.formats import caffemodel, dialects, prototxt, recognition, wire
from caffe_port.formats.message import Message
from caffe_port.inspection.inspect import inspect_file
from caffe_port.verification.references.numpy_formulas import compute
from caffe_port.verification.verify import verify

CASES = HERE / "cases"


@pytest.fixture(autouse=True)
def _no_dialect() -> Iterator[None]:
    yield
    dialects.assume(None)


def run(ported: Ported, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Every top by its blob's name; inputs without figures are zeros. Each top is that of the formula, too."""
    net = ported.net
    inputs = {
        blob: torch.from_numpy(arrays[f"in:{blob}"]) if f"in:{blob}" in arrays else torch.zeros(net.plan.shapes[made])
        for blob, made in net.plan.spec.inputs
    }
    tops, blobs = {}, net.blobs()
    for turn in net.steps(**inputs):
        formula, note = compute(
            turn.layer, [x.detach().numpy() for x in turn.bottoms], blobs.get(turn.layer.name, ()), net.training
        )
        assert formula is not None, note
        for name, top, expected in zip(turn.layer.tops, turn.tops, formula, strict=True):
            np.testing.assert_allclose(top.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
            tops[name] = top.detach()
    return tops


def figures(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs, and tops by the blob's name."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    named = {line.name: line for line in prototxt.read(path.with_suffix(".prototxt"), "NetParameter").layer}
    made = {}
    for key, value in arrays.items():
        kind, *rest = key.split(":")
        if kind == "out":
            made[named[rest[1]].top[int(rest[2])] if len(rest) == 3 else rest[0]] = value
    return arrays, {blob: value for blob, value in made.items() if f"in:{blob}" not in arrays}


ALONE = {
    "hardsigmoid": "hardsigmoid_steep",
    "pad": "pad_reflect",
    "unsqueeze": "unsqueeze_conv",
    "bilinearinterpolate": "bilinearinterpolate_half",
    "maxunpool": "maxunpool_overlap",
    "batchnormkyle": "batchnormkyle_train_eps",
    "upsample_3d": "upsample_3d",
    "upsample_binary": "upsample_scale2",
    "relu6_threshold": "relu6_threshold",
    "normalize_default": "normalize_default",
    "normalize_gradient": "normalize_channels",
}
BROCOLLI = {"C1": (4, 4), "C1ceil": (5, 5), "C4": (16, 16)}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("case", ALONE)
def test_as_the_fork_from_text_and_from_its_binary(case: str, alone: bool) -> None:
    path = CASES / case / f"{ALONE[case]}.npz"
    arrays, expected = figures(path)
    weights = path.with_suffix(".caffemodel")
    files = (None, path.with_name("alone.caffemodel")) if alone else (path.with_suffix(".prototxt"), weights)
    ported = port(files[0], files[1] if files[1].exists() else None)
    ported.net.train(str(arrays["phase"]) == "TRAIN")
    tops = run(ported, arrays)
    for blob, value in expected.items():
        np.testing.assert_allclose(tops[blob].numpy(), value, rtol=1e-4, atol=1e-5, err_msg=blob)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", BROCOLLI)
def test_what_brocolli_writes(name: str, alone: bool) -> None:
    """Field 13 of PoolingParameter is its ceil_mode, 500 of LayerParameter its upsample_param."""
    path = CASES / "brocolli" / f"{name}.npz"
    arrays, expected = figures(path)
    ported = port(None if alone else path.with_suffix(".prototxt"), path.with_suffix(".caffemodel"))
    (blob,) = expected
    top = run(ported, arrays)[blob]
    assert top.shape[2:] == BROCOLLI[name]
    np.testing.assert_allclose(top.numpy(), expected[blob], rtol=1e-4, atol=1e-5)
    notes = [note for note in ported.notes if "pooling_param.ceil_mode" in note]
    assert len(notes) == (alone and name != "C4")


def test_ceil_mode_read_alone() -> None:
    folder = CASES / "pooling_ceil_mode"
    alone, beside = port(None, folder / "net.caffemodel"), port(folder / "net.prototxt", folder / "net.caffemodel")
    x = {"in:x": random(1, 3, 8, 8).numpy()}
    a, b = run(alone, x), run(beside, x)
    assert {blob: tuple(a[blob].shape[2:]) for blob in ("floor", "ceil", "default", "r6")} == {
        "floor": (3, 3),
        "ceil": (4, 4),
        "default": (4, 4),
        "r6": (6, 6),
    }
    for blob in ("floor", "ceil", "default", "r6"):
        assert torch.equal(a[blob], b[blob])
    assert not [*alone.notes, *beside.notes], "only brocolli-caffe has these numbers"


def test_upsample_has_the_shape_that_inspect_says() -> None:
    path = CASES / "inspect_upsample" / "upsample_default.prototxt"
    (row,) = [row for row in inspect_file(path).rows if row.name == "upsample"]
    assert row.shapes == ((2, 6, 7, 5),)
    assert port(path).net(random(2, 6, 7, 5)).shape == (2, 6, 7, 5)


# -- whose meaning ------------------------------------------------------------------------------------------------


POOLING = """
name: "net"
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 dim: 6 dim: 8 }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param {{ num_output: 1 }} }}
layer {{ name: "y" type: "Pooling" bottom: "x" top: "y"
        pooling_param {{ kernel_size: 3 stride: 2 round_mode: {} }} }}
layer {{ name: "z" type: "Pooling" bottom: "x" top: "z"
        pooling_param {{ kernel_size: 3 stride: 2 round_mode: FLOOR }} }}
"""


@pytest.mark.parametrize(
    ("other", "dialect", "sizes", "says"),
    [
        ("FLOOR", None, [(2, 3), (2, 3)], "round_mode FLOOR; in "),
        ("FLOOR", "brocolli", [(3, 4), (3, 4)], ""),
        ("FLOOR", "caffe", [(2, 3), (2, 3)], ""),
        ("CEIL", None, [(2, 3), (3, 4)], "ceil_mode false; in "),
        ("CEIL", "caffe", [(3, 4), (2, 3)], ""),
    ],
)
def test_field_13_of_a_binary(
    other: str, dialect: str | None, sizes: list[tuple[int, int]], says: str, tmp_path: Path
) -> None:
    net = prototxt.parse(POOLING.format(other), "NetParameter")
    path = tmp_path / "net.caffemodel"
    caffemodel.write(path, net, {"ip": [np.ones((1, 144), np.float32), np.ones(1, np.float32)]})
    dialects.assume(dialect)
    ported = port(None, path)
    tops = run(ported, {"in:x": random(2, 3, 6, 8).numpy()})
    assert [tuple(tops[blob].shape[2:]) for blob in "yz"] == sizes
    notes = [note for note in ported.notes if "pooling_param" in note]
    assert len(notes) == bool(says)
    assert says in "".join(notes)
    (tmp_path / "net.prototxt").write_text(POOLING.format(other))  # the text names its fields
    if dialect == "brocolli":
        with pytest.raises(CaffePortError, match=r"the prototxt says .*round_mode"):
            port(tmp_path / "net.prototxt", path)
        dialects.assume(None)
    beside = run(port(tmp_path / "net.prototxt", path), {"in:x": random(2, 3, 6, 8).numpy()})
    assert beside["z"].shape[2:] == (2, 3)


@pytest.mark.parametrize("alone", [False, True])
def test_the_fourth_blob_of_a_bn(alone: bool) -> None:
    """The variance, and a note; where the user says so, the inverse standard deviation."""
    folder = CASES / "bn_inverse_std"
    files = (
        (None, folder / "alone.caffemodel") if alone else (folder / "bn_test.prototxt", folder / "bn_test.caffemodel")
    )
    arrays, expected = figures(folder / "bn_test.npz")
    ported = port(*files)
    assert "blob 3 is read as the variance, as most forks have it" in "".join(ported.notes)
    assert not np.allclose(run(ported, arrays)["y"].numpy(), expected["y"], atol=1e-2)
    dialects.assume("brocolli")
    ported = port(*files)
    assert "blob 3 is read as the inverse standard deviation: --dialect brocolli" in "".join(ported.notes)
    np.testing.assert_allclose(run(ported, arrays)["y"].numpy(), expected["y"], rtol=1e-4, atol=1e-5)


def test_the_net_tells_the_fourth_blob(tmp_path: Path) -> None:
    """A layer that only this fork has, in the text or in the weights; the number of its bn_param."""
    folder = CASES / "bn_inverse_std"
    arrays, expected = figures(folder / "bn_test.npz")
    text = (folder / "bn_test.prototxt").read_text()
    (tmp_path / "u.prototxt").write_text(
        text + 'layer { type: "Unsqueeze" bottom: "y" top: "u" unsqueeze_param { dim: 0 } }'
    )
    by_text = port(tmp_path / "u.prototxt", folder / "bn_test.caffemodel")
    assert "is one of brocolli-caffe's" in "".join(by_text.notes)
    stored = caffemodel.read(folder / "bn_test.caffemodel")
    net = prototxt.parse(text, "NetParameter")
    net.layer[1].set("bn_param", Message("BNParameter", eps=0.5, inverse_std=True))
    caffemodel.write(tmp_path / "w.caffemodel", net, {"bn": list(stored.by_name()["bn"].blobs)})
    data = (tmp_path / "w.caffemodel").read_bytes()
    key = (1111 << 3) | 2
    assert bytes([key & 0x7F | 0x80, key >> 7]) in data
    by_number = port(None, tmp_path / "w.caffemodel")
    by_weights = port(folder / "bn_test.prototxt", tmp_path / "w.caffemodel")
    for ported in (by_text, by_number, by_weights):
        np.testing.assert_allclose(run(ported, arrays)["y"].numpy(), expected["y"], rtol=1e-4, atol=1e-5)
    dialects.assume("caffe")
    assert not np.allclose(run(port(None, tmp_path / "w.caffemodel"), arrays)["y"].numpy(), expected["y"], atol=1e-2)


def test_a_bn_is_written_as_its_fork_asks(tmp_path: Path) -> None:
    folder = CASES / "bn_written_back"
    write_caffe(port(folder / "bn_test.prototxt", folder / "bn_test.caffemodel"), tmp_path)
    assert [b.shape for b in caffemodel.read(tmp_path / "net.caffemodel").layers[0].blobs] == [(1, 6)] * 4
    dialects.assume("brocolli")
    ported = port(folder / "bn_test.prototxt", folder / "bn_test.caffemodel")
    write_caffe(ported, tmp_path)
    dialects.assume(None)
    assert "inverse_std" not in (tmp_path / "net.prototxt").read_text()  # which no Caffe knows
    x = random(2, 6, 7, 5)
    again = port(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    assert torch.equal(again.net(x), ported.net(x))
    text = (folder / "bn_test.prototxt").read_text()
    (tmp_path / "other.prototxt").write_text(
        text.replace('top: "y"', 'top: "y" bn_param { var_eps: 0.1 moving_average: true }')
    )
    write_caffe(port(tmp_path / "other.prototxt"), tmp_path)
    assert caffemodel.read(tmp_path / "net.caffemodel").layers[0].blobs[0].shape == (1, 6, 1, 1)


def test_bn_trains_on_the_inverse_standard_deviation() -> None:
    layer = build("BN", "bn_param { inverse_std: true momentum: 0.75 eps: 0.5 }", (4, 3, 5, 2)).train()
    layer.load_blobs([np.full(3, value, np.float32) for value in (2, 1, 3, 4)])
    x = random(4, 3, 5, 2, scale=3)
    y = layer(x)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    inverse = (variance + 0.5).rsqrt()
    torch.testing.assert_close(layer.mean, 0.75 * 3 + 0.25 * mean)
    torch.testing.assert_close(layer.variance, 0.75 * 4 + 0.25 * inverse)
    shape = (3, 1, 1)
    torch.testing.assert_close(y, 2 * (x - mean.reshape(shape)) * inverse.reshape(shape) + 1)


def test_bn_of_volumes() -> None:
    """P3D's: (N, C, D, H, W)."""
    folder = CASES / "bn_volume"
    with np.load(folder / "bn5d.npz") as file:
        x, y = file["data"], file["y"]
    tops = run(port(folder / "bn5d.prototxt", folder / "bn5d.caffemodel"), {"in:data": x})
    np.testing.assert_allclose(tops["y"].numpy(), y, rtol=1e-4, atol=1e-5)


# -- other forks --------------------------------------------------------------------------------------------------


def test_embed_replaces_the_last_axis_where_the_net_fits_only_so() -> None:
    """bottom-up-attention's: rows of (3, 1) become (3, 3), which Concat asks for."""
    folder = CASES / "embed_last_axis"
    ported = port(folder / "emb.prototxt", folder / "emb.caffemodel")
    with np.load(folder / "emb.npz") as file:
        arrays = {key: file[key] for key in file.files}
    tops = run(ported, {"in:data": arrays.get("data", arrays.get("in:data"))})
    (top,) = [value for key, value in arrays.items() if key.rpartition(":")[2] == "att" or key.endswith(":att:0")]
    np.testing.assert_allclose(tops["att"].numpy(), top, rtol=1e-4, atol=1e-5)
    assert "emb (Embed): num_output replaces the last axis of the bottom" in "".join(ported.notes)
    (row,) = [row for row in inspect_file(folder / "emb.prototxt").rows if row.name == "emb"]
    assert row.shapes == ((3, 3),)


def test_embed_adds_an_axis_where_the_net_fits_so(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'input: "x" input_shape { dim: 3 dim: 1 }'
        'layer { name: "e" type: "Embed" bottom: "x" top: "e" embed_param { num_output: 4 input_dim: 5 } }'
    )
    ported = port(tmp_path / "net.prototxt")
    assert ported.net(torch.ones(3, 1)).shape == (3, 1, 4)
    assert not any("last axis" in note for note in ported.notes)


def test_a_depthwise_convolution_has_the_channels_of_its_bottom() -> None:
    """ShuffleNet's fork reads neither num_output nor group."""
    path = CASES / "convolution_depthwise_num_output" / "net.prototxt"
    tops = run(port(path), {"in:x": random(1, 4, 6, 6).numpy()})
    assert [tuple(tops[blob].shape) for blob in "yz"] == [(1, 4, 3, 3), (1, 7, 3, 3)]
    assert (
        build("DepthwiseConvolution", "convolution_param { num_output: 8 kernel_size: 3 }", (1, 4, 6, 6)).out_channels
        == 8
    )


# -- what they refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "says"),
    [
        ("Pad", "pad_param { pad_u: 1 pad_l: -1 }", [(2, 3, 5, 6)], "all be negative, or none"),
        ("Pad", "pad_param { pad_u: -1 }", [(2, 3, 5, 6)], "all be negative, or none"),
        ("Pad", "pad_param { pad_u: -2 pad_d: -3 pad_l: -1 pad_r: -1 }", [(2, 3, 5, 6)], "leave nothing of 5"),
        ("Pad", "pad_param { pad_l: 6 pad_type: REFLECT }", [(2, 3, 5, 6)], "less than the 6"),
        ("Pad", "pad_param { pad_l: 1 }", [(2, 3, 5)], r"\(N, C, H, W\)"),
        ("Unsqueeze", "", [(2, 3)], "dim is missing"),
        ("Unsqueeze", "unsqueeze_param { dim: 3 }", [(2, 3)], "axis 3"),
        ("BilinearInterpolate", "", [(2, 3, 5, 6)], "by dst_h and dst_w, or by scale_factor"),
        (
            "BilinearInterpolate",
            "bilinear_interpolate_param { dst_h: 3 scale_factor: 2 }",
            [(2, 3, 5, 6)],
            "by dst_h and dst_w, or by scale_factor",
        ),
        ("BilinearInterpolate", "bilinear_interpolate_param { dst_h: 1 }", [(2, 3, 5, 6)], "divides by 0"),
        (
            "BilinearInterpolate",
            "bilinear_interpolate_param { scale_factor: 0.1 }",
            [(2, 3, 5, 6)],
            "would become 0 x 0",
        ),
        ("MaxUnPool", "max_unpool_param { dst_h: 9 }", [(2, 3, 5, 6)] * 2, "dst_h and dst_w are required"),
        ("MaxUnPool", "max_unpool_param { dst_h: 9 dst_w: 9 }", [(2, 3, 5, 6), (2, 3, 5, 5)], "must be equal"),
        ("Upsample", "upsample_param { dims_num: 3 }", [(2, 3, 5, 6)], "3 axes"),
        ("Upsample", "upsample_param { dims_num: 5 }", [(2, 3, 5, 6)], "must be 3 or 4"),
        ("BatchNormKyle", "", [(7,)], "at least 2 axes"),
        ("Embed", "embed_param { num_output: 2 input_dim: 3 last_axis: true }", [(2, 3)], "must be 1"),
    ],
)
def test_bad_definitions_are_refused(kind: str, text: str, shapes: list[tuple[int, ...]], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        build(kind, text, *shapes)


def test_scale_factor_is_a_float32() -> None:
    """100 * 0.29 is 29 in Caffe, and 28.999999999999996 in doubles."""
    layer = build("BilinearInterpolate", "bilinear_interpolate_param { scale_factor: 0.29 }", (2, 3, 100, 10))
    assert layer.size == (29, 2)


# -- against the fork ---------------------------------------------------------------------------------------------

RESIDUAL = """
name: "net"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 6 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c"
        convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "p" type: "Pad" bottom: "c" top: "p" pad_param { pad_u: 1 pad_d: 1 pad_l: 1 pad_r: 1 } }
layer { name: "q" type: "Convolution" bottom: "p" top: "q"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "s" type: "Eltwise" bottom: "c" bottom: "q" top: "s" }
"""


def test_gradients_stop_where_the_fork_has_no_backward_pass(caffe: Path, tmp_path: Path) -> None:
    """In that fork a Pad passes none back; the other way around it does. The rows say so."""
    (tmp_path / "net.prototxt").write_text(RESIDUAL)
    report = verify(tmp_path / "net.prototxt", against="caffe", backward=True)
    assert report.passed
    notes = {f"{row.layer}:{row.top}": row.note for row in report.rows if row.type == "gradient"}
    stops = "the gradient stops at p, whose backward pass does nothing in their fork"
    assert notes["x:0"] == notes["c:0"] == notes["c:1"] == stops
    assert notes["q:0"] == ""


def test_its_numbers_are_those_that_we_write() -> None:
    text = """
    layer { type: "Upsample" upsample_param { dims_num: 3 scale: 2 } }
    layer { type: "ReLU6" relu6_param { threshold: 3 } }
    layer { type: "BatchNormKyle" batch_norm_param { use_alpha_beta: true } }
    layer { type: "Resize" resize_param { height: 3 width: 4 } }
    layer { type: "Upsample" upsample_param { scale: 2 } }
    """
    net = prototxt.parse(text, "NetParameter")
    data = b"".join(wire.serialize(net))
    again, _ = recognition.read(data, "NetParameter", "net")
    assert again == net
    assert b"\xda\x08\x02\x48\x01" in data  # 139 { 9: 1 }
    assert b"\xa2\x1f\x04\x08\x02\x10\x03" in data  # 500 { 1: 2  2: 3 }
