"""Layers in place: what Caffe refuses is refused. Source: insert_splits.cpp, net.cpp (AppendTop)."""

from __future__ import annotations

import pytest

from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError
from caffe_port.formats import prototxt

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'


def definition(*layers: str) -> Definition:
    return Definition.parse(prototxt.parse("\n".join((INPUT, *layers)), "NetParameter"))


def layer(name: str, type_: str, bottom: str, top: str, more: str = "") -> str:
    tops = " ".join(f'top: "{one}"' for one in top.split())
    return f'layer {{ name: "{name}" type: "{type_}" bottom: "{bottom}" {tops} {more} }}'


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([layer("a", "TanH", "x", "a"), layer("b", "ReLU", "x", "x")], "'b' .*overwrites 'x', which other layers read"),
        ([layer("a", "TanH", "x", "a", "loss_weight: 2"), layer("b", "ReLU", "a", "a")], "loss_weight counts"),
        ([layer("a", "AbsVal", "x", "x")], "cannot overwrite its bottom 'x'"),
        ([layer("a", "Split", "x", "x y")], "cannot overwrite its bottom 'x'"),
        (
            [layer("a", "Split", "x", "y z"), layer("b", "ReLU", "y", "y"), layer("c", "TanH", "z", "c")],
            "reads 'z', whose memory layer 'b' has overwritten",
        ),
        (
            [layer("a", "Flatten", "x", "y"), layer("b", "ReLU", "y", "y"), layer("c", "TanH", "x", "c")],
            "reads 'x', whose memory layer 'b' has overwritten",
        ),
        (
            [layer("a", "Slice", "x", "y"), layer("b", "ReLU", "y", "y"), layer("c", "TanH", "x", "c")],
            "reads 'x', whose memory layer 'b' has overwritten",
        ),
    ],
)
def test_refused(layers: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        definition(*layers).spec()


@pytest.mark.parametrize(
    "layers",
    [
        [layer("a", "ReLU", "x", "x"), layer("b", "TanH", "x", "b"), layer("c", "TanH", "x", "c")],
        [layer("a", "TanH", "x", "a", "loss_weight: 0"), layer("b", "ReLU", "a", "a")],
        [layer("a", "Flatten", "x", "y"), layer("b", "ReLU", "y", "y"), layer("c", "TanH", "y", "c")],
        [layer("a", "Slice", "x", "y z"), layer("b", "ReLU", "y", "y"), layer("c", "TanH", "x", "c")],
        [layer("a", "Split", "x", "y z"), layer("c", "TanH", "z", "c"), layer("b", "ReLU", "y", "y")],
    ],
)
def test_accepted(layers: list[str]) -> None:
    assert definition(*layers).spec().layers
