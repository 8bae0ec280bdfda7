"""What is said of ports of detectors, flow nets, generators and captions with one slip; what a port may leave out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from caffe_port.verification.comparison import Report, Tolerance
from caffe_port.verification.user_module.examination.relations import relation
from caffe_port.verification.user_module.verify_module import verify_port


class As(nn.Module):
    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def _in(name: str, *sizes: int) -> str:
    dims = " ".join(f"dim: {n}" for n in sizes)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def _layer(name: str, type_: str, bottoms: str, rest: str = "", tops: str = "") -> str:
    ends = "".join(f' bottom: "{b}"' for b in bottoms.split())
    ends += "".join(f' top: "{t}"' for t in (tops or name).split())
    return f'layer {{ name: "{name}" type: "{type_}"{ends} {rest} }}\n'


def _conv(name: str, bottom: str, rest: str = "kernel_size: 3", out: int = 4) -> str:
    return _layer(
        name,
        "Convolution",
        bottom,
        f'convolution_param {{ num_output: {out} {rest} weight_filler {{ type: "xavier" }} }}',
    )


def verify(tmp_path: Path, text: str, function: Callable[..., Any], given: Any = None, **modules: nn.Module) -> Report:
    (tmp_path / "net.prototxt").write_text(text)
    return verify_port(As(function, **modules), tmp_path / "net.prototxt", input=given)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    h, w = a.shape[2:]
    wide = F.pad(b, (1, 1, 1, 1))
    parts = [a * wide[:, :, y : y + h, x : x + w] for y in range(3) for x in range(3)]
    return torch.stack([part.mean(1) for part in parts], 1)


PAIR = _in("a", 2, 5, 7, 6) + _in("b", 2, 5, 7, 6)
CORRELATION = PAIR + _layer(
    "l", "Correlation", "a b", "correlation_param { pad: 1 kernel_size: 1 max_displacement: 1 }"
)
AXPY = _in("s", 2, 5, 1, 1) + PAIR + _layer("l", "Axpy", "s a b")
ROIS = np.array([[0, 2, 3, 21, 24], [1, 0, 8, 26, 30], [1, 6, 5, 18, 30]], np.float32)
REGIONS = _in("x", 2, 5, 17, 15) + _in("rois", 3, 5)
REGIONS += _layer("l", "ROIPooling", "x rois", "roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.5 }")
SHUFFLE = _in("x", 2, 8, 5, 3) + _layer("l", "PixelShuffle", "x", "pixelshuffle_param { upscale_factor: 2 }")
SLICE = _in("x", 2, 8, 5, 3) + _layer("l", "Slice", "x", "slice_param { axis: 1 }", "p q")
SLICE += _layer("m", "Eltwise", "p q", "eltwise_param { operation: MAX }")
FRAMES = _in("x", 2, 3, 6, 8, 10)
FRAMES += _layer("l", "Pooling3D", "x", "pooling3d_param { pool: MAX kernel_size: 3 kernel_depth: 1 stride: 2 }")


SLIPS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "correlation, sum": (CORRELATION, lambda _, a, b: 5 * _correlation(a, b), "is 5 times Caffe's"),
    "correlation, exchanged": (
        CORRELATION,
        lambda _, a, b: _correlation(b, a),
        "first and second bottom are exchanged",
    ),
    "axpy, exchanged": (AXPY, lambda _, s, a, b: s * b + a, "a * y + x, Caffe a * x + y"),
    "axpy, no summand": (AXPY, lambda _, s, a, b: s * a, "does not add its third bottom"),
    "regions, scale": (REGIONS, lambda _, x, r: ops.roi_pool(x, r, (3, 2), 1.0), "spatial_scale is 1, Caffe's is 0.5"),
    "regions, corners": (
        REGIONS,
        lambda _, x, r: ops.roi_pool(x, r[:, [0, 2, 1, 4, 3]], (3, 2), 0.5),
        "corners of the regions as (y, x)",
    ),
    "regions, size": (
        REGIONS,
        lambda _, x, r: ops.roi_pool(x, r, (2, 3), 0.5).flatten(1),
        "pooled height and width are exchanged",
    ),
    "regions, aligned": (
        REGIONS,
        lambda _, x, r: ops.roi_align(x, r, (3, 2), 0.5, 2, True),
        "is a ROIAlign (aligned=True)",
    ),
    "shuffle, turned": (
        SHUFFLE,
        lambda _, x: x.view(2, 2, 2, 2, 5, 3).permute(0, 1, 4, 3, 5, 2).reshape(2, 2, 10, 6),
        "rows and columns of its blocks are exchanged",
    ),
    "shuffle, depth to space": (
        SHUFFLE,
        lambda _, x: x.view(2, 2, 2, 2, 5, 3).permute(0, 3, 4, 1, 5, 2).reshape(2, 2, 10, 6),
        "depth_to_space",
    ),
    "halves": (SLICE, lambda _, x: torch.max(x[:, ::2], x[:, 1::2]), "takes one of every 2 along axis 1, from 0 on"),
    "frames": (
        FRAMES,
        lambda _, x: F.max_pool3d(x, (2, 3, 3), 2, ceil_mode=True),
        "it takes 2 frames with a stride of 2, Caffe 1 with a stride of 1",
    ),
    "frames, size": (FRAMES, lambda _, x: F.max_pool3d(x, (1, 3, 3), (1, 2, 2)), "rounds the size down"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_named(tmp_path: Path, name: str) -> None:
    text, function, words = SLIPS[name]
    given = {"rois": ROIS} if "rois" in text else None
    report = verify(tmp_path, text, function, given)
    assert {row.layer for row in report.broken} == {"l"}, [(row.layer, row.cause) for row in report.broken]
    assert words in report.broken[0].cause, report.broken[0].cause


LSTM = _in("x", 5, 3, 4) + _in("cont", 5, 3) + _in("still", 3, 6)
LSTM += _layer(
    "l",
    "LSTM",
    "x cont still",
    'recurrent_param { num_output: 2 weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 } }',
)


@pytest.mark.parametrize(
    ("bias", "still", "words"),
    [(0, True, ""), (1, True, "adds 1 to the bias of the forget gate"), (0, False, "ignores the static input")],
)
def test_captions(tmp_path: Path, bias: int, still: bool, words: str) -> None:
    def run(port: Any, x: Tensor, cont: Tensor, fixed: Tensor) -> Tensor:
        h = c = x.new_zeros(3, 2)
        made = []
        for step, keep in zip(x, cont, strict=True):
            gates = port.x(step) + port.h(h * keep[:, None]) + (port.s(fixed) if still else 0)
            i, f, o, g = gates.chunk(4, 1)
            c = torch.sigmoid(f + bias) * c * keep[:, None] + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            made.append(h)
        return torch.stack(made)

    parts = {"x": nn.Linear(4, 8), "s": nn.Linear(6, 8, False), "h": nn.Linear(2, 8, False)}
    report = verify(tmp_path, LSTM, run, **parts)
    assert report.passed == (not words)
    assert not words or words in report.broken[0].cause


IMAGE = _in("x", 2, 3, 9, 8)


def test_preprocessing_inside_the_port_is_named(tmp_path: Path) -> None:
    def run(port: Any, x: Tensor) -> Tensor:
        mean = torch.tensor([104.0, 117, 123]).view(3, 1, 1)
        return port.c((255 * x - mean).flip(1))  # type: ignore[no-any-return]

    report = verify(tmp_path, IMAGE + _conv("c", "x"), run, c=nn.Conv2d(3, 4, 3))
    assert [row.layer for row in report.broken] == ["c"]
    for words in ("RGB and BGR are swapped", "a mean subtracted (0.48", "scale applied (255, 255, 255)"):
        assert words in report.broken[0].cause


def test_what_comes_between_is_named(tmp_path: Path) -> None:
    text = IMAGE + _layer("p", "Softmax", "x") + _conv("c", "p")

    def run(port: Any, x: Tensor) -> Tensor:
        return port.c(F.one_hot(x.softmax(1).argmax(1), 3).permute(0, 3, 1, 2).float())  # type: ignore[no-any-return]

    report = verify(tmp_path, text, run, c=nn.Conv2d(3, 4, 3))
    assert [row.layer for row in report.broken] == ["c"]
    assert "it reads what argmax, one_hot, permute, float makes of its bottom 'p'" in report.broken[0].cause


def test_numbers_that_are_read_in_another_order(tmp_path: Path) -> None:
    filled = 'inner_product_param { num_output: 24 weight_filler { type: "xavier" } }'
    text = _in("z", 3, 10) + _layer("f", "InnerProduct", "z", filled)
    text += _layer("s", "Reshape", "f", "reshape_param { shape { dim: 0 dim: 2 dim: 3 dim: 4 } }")
    text += _conv("c", "s", "kernel_size: 2")

    def run(port: Any, z: Tensor) -> Tensor:
        return port.c(port.f(z).view(3, 3, 4, 2).permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    report = verify(tmp_path, text, run, f=nn.Linear(10, 24), c=nn.Conv2d(2, 4, 2))
    assert [row.layer for row in report.broken] == ["c"]
    assert "read as if it were in the order (N, H, W, C)" in report.broken[0].cause


def test_a_forgotten_group_is_named(tmp_path: Path) -> None:
    text = _in("x", 2, 4, 9, 8) + _conv("c", "x", "kernel_size: 3 group: 2")
    report = verify(tmp_path, text, lambda port, x: port.c(x), c=nn.Conv2d(4, 4, 3))
    assert report.broken[0].cause == (
        "its weight has the shape (4, 4, 3, 3), Caffe's (4, 2, 3, 3); its groups is 1, Caffe's group is 2"
    )


def test_a_random_port_is_told(tmp_path: Path) -> None:
    text = IMAGE + _conv("c", "x")
    words = "two runs of the port on one input differ: it draws random numbers, or keeps a state between runs"
    for noise in (0.0, 0.1):
        report = verify(
            tmp_path, text, lambda port, x, n=noise: 2 * port.c(x + n * torch.randn_like(x)), c=nn.Conv2d(3, 4, 3)
        )
        assert not report.passed
        assert (words in report.notes) == bool(noise)


def test_padding_before_a_call_is_not_taken_for_a_missing_pad(tmp_path: Path) -> None:
    text = IMAGE + _conv("c", "x", "kernel_size: 3 pad: 1")

    def run(port: Any, x: Tensor) -> Tensor:
        return port.c(F.pad(x, (1, 1, 1, 1), value=0.5))  # type: ignore[no-any-return]

    report = verify(tmp_path, text, run, c=nn.Conv2d(3, 4, 3))
    assert [row.layer for row in report.broken] == ["c"]
    assert "its pad is 0" not in report.broken[0].cause


HEADS = IMAGE + _conv("c", "x") + _conv("d", "x", out=5)
PARTS = {"c": nn.Conv2d(3, 4, 3), "d": nn.Conv2d(3, 5, 3)}


def test_the_parts_of_a_last_concat_may_be_returned(tmp_path: Path) -> None:
    text = HEADS + _layer("both", "Concat", "c d")
    report = verify(tmp_path, text, lambda port, x: (port.c(x), port.d(x)), **PARTS)
    assert report.passed
    assert "the port returns 'c', 'd'; 'both', which joins or divides them, is left to the caller" in report.notes
    assert [(row.layer, row.note) for row in report.rows if row.status == "not compared"] == [
        ("both", "joins or divides what the port returns")
    ]
    report = verify(tmp_path, text, lambda port, x: (port.c(x), 2 * port.d(x)), **PARTS)
    assert not report.passed
    report = verify(tmp_path, text, lambda port, x: port.c(x), **PARTS)
    assert not report.passed


def test_a_side_output_may_be_left_out(tmp_path: Path) -> None:
    text = HEADS + _layer("s", "Sigmoid", "c") + _layer("t", "Sigmoid", "d")
    report = verify(tmp_path, text, lambda port, x: port.d(x).sigmoid(), **PARTS)
    assert report.passed
    assert "the port does not return 's', an output of the net" in report.notes
    assert [row.layer for row in report.rows if row.status == "not compared"] == ["c", "s"]
    report = verify(tmp_path, text, lambda port, x: (port.c(x), port.d(x).sigmoid()), **PARTS)
    assert [(row.layer, row.cause) for row in report.broken] == [("s", "the port has no Sigmoid here")]


def test_a_part_of_a_part_is_not_looked_for() -> None:
    """Channels that differ, of which again only some differ, and so on."""
    rng = np.random.default_rng(0)
    right = rng.normal(size=(2, 1, 9, 9))
    made = right.copy()
    made[..., ::2, 1::2] = rng.normal(size=made[..., ::2, 1::2].shape)
    assert relation(made, right, Tolerance()) == ""


def test_outputs_under_each_others_names(tmp_path: Path) -> None:
    report = verify(tmp_path, HEADS, lambda port, x: {"c": port.c(x), "d": port.d(x)}, **PARTS)
    assert report.passed
    report = verify(tmp_path, HEADS, lambda port, x: {"d": port.c(x), "c": port.d(x)}, **PARTS)
    assert [row.layer for row in report.broken] == ["c", "d"]
    assert report.broken[0].cause.startswith("what the port returns as 'c' is Caffe's 'd'")
    report = verify(tmp_path, HEADS, lambda port, x: (port.d(x), port.c(x)), **PARTS)
    assert report.passed  # a tuple has no names


def test_a_curve_that_is_another_only_far_from_zero(tmp_path: Path) -> None:
    text = IMAGE + _conv("c", "x") + _layer("r", "ReLU", "c")
    report = verify(tmp_path, text, lambda port, x: F.relu6(port.c(x)), c=nn.Conv2d(3, 4, 3))
    assert [row.layer for row in report.broken] == ["r"]
    assert "6" in report.broken[0].cause
    report = verify(tmp_path, text, lambda port, x: F.leaky_relu(port.c(x), 0.0), c=nn.Conv2d(3, 4, 3))
    assert report.passed
