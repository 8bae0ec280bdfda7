"""A definition beside weights: what differs, what is missing, what must change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inspect_nets import CHAIN, NET, store, write, zeros

from caffe_port import api
from caffe_port.errors import CaffePortError
from caffe_port.inspection.compare_blobs import Diff, merged_order
from caffe_port.inspection.inspect import Options, diff, render
from caffe_port.inspection.net_table import agree


def test_diff_of_a_prototxt_that_does_not_fit(shared: Path) -> None:
    """The authors published a prototxt of other widths than those of their weights."""
    folder = shared / "models/simplenet/mnist_9972"
    found = diff(folder / "train_test.prototxt", folder / "weights.caffemodel")
    assert found.counts == {"equal": 16, "differs": 18, "missing": 0, "extra": 0, "unknown": 0}
    assert found.summary == "18 of 34 layers differ."
    assert not found.fits
    assert found.own_fits is True
    rows = {r.name: r for r in found.rows}
    assert rows["conv1"].definition == ((64, 1, 3, 3), (64,))
    assert rows["conv1"].weights == ((32, 1, 3, 3), (32,))
    assert rows["conv1"].reason == "num_output 64 / 32"
    assert rows["conv1_0"].reason == "inputs 64 / 32"
    assert rows["cccp5"].reason == "kernel 1x1 / 3x3"
    assert rows["cccp6"].reason == "num_output 64 / 100, kernel 3x3 / 1x1"
    assert [r.name for r in found.rows if r.is_cause] == [
        "conv1",
        "conv2_2",
        "conv3",
        "conv4_0",
        "cccp4",
        "cccp5",
        "cccp6",
    ]
    assert diff(folder / "weights.caffemodel", folder / "train_test.prototxt") == found, "in either order"
    text = render(found, 110)
    assert "!  conv1     Convolution   64x1x3x3, 64      32x1x3x3, 32     num_output 64 / 32" in text
    assert "   conv2     Convolution   32x32x3x3, 32     32x32x3x3, 32\n" in text
    assert "Change in the prototxt: conv1, conv2_2, conv3, conv4_0, cccp4, cccp5, cccp6; other" in text
    assert "carries its own definition, which matches" in text
    assert max(map(len, text.splitlines()[3:])) <= 110
    assert json.loads(json.dumps(found.to_json()))["layers"][0]["verdict"] == "differs"


def test_diff_of_what_fits(shared: Path) -> None:
    zoo = shared / "models/zoo"
    for folder, net, weights in (("mtcnn_v2", "det1", "det1"), ("caffe2014_lenet_v1", "lenet", "lenet_iter_10000")):
        found = diff(zoo / folder / f"{net}.prototxt", zoo / folder / f"{weights}.caffemodel")
        assert found.fits
        assert {r.verdict for r in found.rows} == {"equal"}
        assert "Change in the prototxt" not in render(found)


def test_diff_agrees_with_loading(shared: Path) -> None:
    """Diff says `fits` where the Net takes the weights, and not where it refuses them."""
    folder = shared / "models/simplenet"
    for name in ("mnist_9972", "svhn_9757"):
        net, weights = folder / name / "train_test.prototxt", folder / name / "weights.caffemodel"
        try:
            api.port(net, weights)
            loads = True
        except CaffePortError:
            loads = False
        assert diff(net, weights).fits == loads, name


def test_missing_and_extra_layers(tmp_path: Path) -> None:
    stored = CHAIN.format(n=6).replace('"c2"', '"other"')
    weights = store(
        tmp_path / "w.caffemodel",
        stored,
        c1=zeros((8, 3, 3, 3), (8,)),
        other=zeros((6, 8, 3, 3), (6,)),
        ip=zeros((5, 6 * 12 * 8), (5,)),
    )
    net = write(tmp_path / "net.prototxt", CHAIN.format(n=6))
    found = diff(net, weights, Options(input_shapes={"data": (1, 3, 16, 12)}))
    assert [(r.name, r.verdict) for r in found.rows] == [
        ("c1", "equal"),
        ("other", "extra"),
        ("c2", "missing"),
        ("ip", "equal"),
    ]
    assert found.fits, "Caffe draws what is missing by its filler, and ignores what it does not know"
    assert found.summary == "0 of 2 layers differ; 1 is not in the weights; 1 is only in the weights."
    text = render(found)
    assert "-  c2" in text
    assert "+  other" in text


def test_unknown_lengths_are_not_called_equal(tmp_path: Path) -> None:
    bare = 'layer { name: "c1" type: "Python" } layer { name: "ip" type: "Python" }'
    weights = store(tmp_path / "w.caffemodel", bare, c1=zeros((8, 3, 3, 3), (8,)), ip=zeros((7, 10), (7,)))
    found = diff(write(tmp_path / "net.prototxt", CHAIN.format(n=6)), weights)
    assert {r.name: r.verdict for r in found.rows} == {"c1": "unknown", "c2": "missing", "ip": "differs"}
    assert {r.name: r.reason for r in found.rows}["ip"] == "num_output 5 / 7"


def test_another_number_of_blobs(tmp_path: Path) -> None:
    weights = store(tmp_path / "w.caffemodel", NET, conv=zeros((4, 3, 3, 3)), ip=zeros((5, 140), (5,)))
    found = diff(write(tmp_path / "net.prototxt", NET), weights)
    assert {r.name: r.reason for r in found.rows if r.verdict == "differs"} == {"conv": "blobs 2 / 1 (bias_term)"}
    assert found.own_fits is False


def test_layers_of_the_other_phase_are_compared(tmp_path: Path) -> None:
    text = NET + (
        'layer { name: "aux" type: "InnerProduct" bottom: "conv" top: "aux" include { phase: TRAIN } '
        "inner_product_param { num_output: 7 } }"
    )
    net = write(tmp_path / "net.prototxt", text)
    found = diff(net, store(tmp_path / "w.caffemodel", text, aux=zeros((7, 140), (7,)), conv=zeros((4, 3, 3, 3), (4,))))
    assert {r.name: r.verdict for r in found.rows}["aux"] == "equal"


def test_nothing_in_common() -> None:
    found = Diff("a", "b", (), None)
    assert not found.fits
    assert found.summary == "no layer is in both."


def test_merged_order() -> None:
    assert merged_order(["a", "b", "d"], ["a", "c", "d", "e"]) == ["a", "c", "b", "d", "e"]
    assert merged_order([], ["x", "y"]) == ["x", "y"]
    assert merged_order(["a"], ["x", "a"]) == ["x", "a"]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ((10,), (1, 1, 1, 10), True),
        ((), (1,), True),
        ((4, 4, 3, 1), (4, 4, 1, 3), False),
        ((2, 3), (3, 2), False),
        ((None, 3), (2, 3), None),
        ((None, 3), (2, 4), False),
        (None, (2, 3), None),
        ((None, 3), (3,), None),
    ],
)
def test_agree(a: tuple[int | None, ...] | None, b: tuple[int, ...], same: bool | None) -> None:
    assert agree(a, b) is same
