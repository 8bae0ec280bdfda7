"""Layers in Python: found by their module, run in forward and backward, learned by solvers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import caffe_port.pycaffe as caffe
from caffe_port.errors import CaffePortError

LAYERS = """
import numpy as np
import caffe_port.pycaffe as caffe


class Times(caffe.Layer):
    def setup(self, bottom, top):
        self.factor = float(self.param_str)
        self.calls = []

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        self.calls.append(list(propagate_down))
        if propagate_down[0]:
            bottom[0].diff[...] = self.factor * top[0].diff


class Euclidean(caffe.Layer):
    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("Need two inputs to compute distance.")

    def reshape(self, bottom, top):
        self.diff = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.diff[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.diff**2) / bottom[0].num / 2.

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate((1, -1)):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * self.diff / bottom[i].num * top[0].diff[0]


class Proposals(caffe.Layer):
    '''Two tops; the first has another length at every forward.'''

    def setup(self, bottom, top):
        self.n = 0
        top[0].reshape(1, 5)
        top[1].reshape(1)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        self.n += 1
        boxes = np.array([[0, 0, 0, k + 1, k + 2] for k in range(self.n)], dtype=np.float32)
        top[0].reshape(*boxes.shape)
        top[0].data[...] = boxes
        top[1].reshape(self.n)
        top[1].data[...] = np.arange(self.n)


class Feed(caffe.Layer):
    def setup(self, bottom, top):
        self.number = 0

    def reshape(self, bottom, top):
        top[0].reshape(2, 3, 4 + self.number, 5)

    def forward(self, bottom, top):
        top[0].data[...] = self.number
        self.number += 1

    def backward(self, top, propagate_down, bottom):
        pass


class Bias(caffe.Layer):
    def setup(self, bottom, top):
        self.blobs.add_blob(3)
        self.blobs[0].data[...] = 1

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += top[0].diff.sum(0)
        bottom[0].diff[...] = top[0].diff


class Phase(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape()

    def forward(self, bottom, top):
        top[0].data[()] = self.phase


class Nothing(caffe.Layer):
    pass


class Other:
    pass
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_layers.py").write_text(LAYERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GLOG_minloglevel", "2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_layers", raising=False)


def python(layer: str, bottoms: str, tops: str, more: str = "", param: str = "") -> str:
    blobs = " ".join(f'bottom: "{b}"' for b in bottoms.split()) + " ".join(f' top: "{t}"' for t in tops.split())
    said = f'python_param {{ module: "my_layers" layer: "{layer}" param_str: "{param}" }}'
    return f'layer {{ name: "{layer.lower()}" type: "Python" {blobs} {said} {more} }}\n'


INPUT = 'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 } } }\n'


def net(text: str, phase: int = caffe.TEST, weights: str | None = None) -> caffe.Net:
    Path("net.prototxt").write_text(text)
    return caffe.Net("net.prototxt", phase, weights=weights)


def test_forward_and_backward() -> None:
    made = net("force_backward: true\n" + INPUT + python("Times", "data", "y", param="10"))
    made.blobs["data"].data[...] = 2
    assert (made.forward()["y"] == 20).all()
    made.blobs["y"].diff[...] = 3
    assert (made.backward()["data"] == 30).all()
    layer = made.layers[1]
    assert layer.type == "Python"
    assert type(layer).__name__ == "Times"
    assert made.layer_dict["times"] is layer
    made.blobs["data"].reshape(2, 5)
    made.blobs["data"].data[...] = 1
    assert made.forward()["y"].shape == (2, 5)


LEARNED = (
    INPUT
    + 'layer { name: "t" type: "Input" top: "target" input_param { shape { dim: 4 dim: 2 } } }\n'
    + 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 '
    'weight_filler { type: "xavier" } } }\n'
)


def test_a_loss_in_python_is_the_loss_in_cpp() -> None:
    weights, found = None, []
    loss = 'layer { name: "l" type: "EuclideanLoss" bottom: "ip" bottom: "target" top: "loss" loss_weight: 0.25 }'
    for last in (loss, python("Euclidean", "ip target", "loss", "loss_weight: 0.25")):
        made = net(LEARNED + last, caffe.TRAIN, weights)
        draw = np.random.default_rng(1)
        for name in ("data", "target"):
            made.blobs[name].data[...] = draw.standard_normal(made.blobs[name].data.shape)
        if weights is None:
            weights = "w.caffemodel"
            made.save(weights)
        total = made._forward(0, len(made.layers) - 1)
        made.backward()
        found.append([np.array(total), made.params["ip"][0].diff.copy(), made.params["ip"][1].diff.copy()])
        assert not made.blobs["data"].diff.any()  # as in Caffe, an input without force_backward has no gradient
    for one, other in zip(*found, strict=True):
        assert np.allclose(one, other, rtol=1e-5)
        assert np.abs(one).max() > 0


def test_propagate_down_is_told() -> None:
    text = INPUT + python("Times", "data", "a", param="2") + python("Bias", "a", "b")
    text += 'layer { name: "l" type: "Reduction" bottom: "b" top: "l" loss_weight: 1 }'
    made = net(text, caffe.TRAIN)
    made.forward()
    made.backward()
    assert made.layer_dict["times"].calls == []  # type: ignore[attr-defined]  # nothing before it needs a gradient
    made = net(text.replace('name: "times"', 'name: "times" propagate_down: true'), caffe.TRAIN)
    made.forward()
    made.backward()
    assert made.params["bias"][0].diff.tolist() == [4, 4, 4]


def test_several_tops_of_changing_shape() -> None:
    text = (
        INPUT
        + python("Proposals", "data", "rois scores")
        + 'layer { name: "im" type: "Input" top: "map" input_param { shape { dim: 1 dim: 2 dim: 6 dim: 6 } } }\n'
        + 'layer { name: "roi" type: "ROIPooling" bottom: "map" bottom: "rois" top: "pooled" '
        "roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 1 } }\n"
        + 'layer { name: "ip" type: "InnerProduct" bottom: "pooled" top: "ip" inner_product_param { num_output: 2 } }\n'
    )
    made = net(text)
    for n in (1, 2, 3):
        out = made.forward(data=np.zeros((4, 3)), map=np.ones((1, 2, 6, 6)))
        assert out["ip"].shape == (n, 2)
        assert out["scores"].tolist() == list(range(n))
        assert made.blobs["rois"].shape == [n, 5]


def test_a_data_layer_in_python() -> None:
    made = net(python("Feed", "", "data") + 'layer { name: "p" type: "Power" bottom: "data" top: "p" }')
    assert made._layer_names == ["feed", "p"]
    assert made.inputs == []
    for n in range(3):
        out = made.forward()["p"]
        assert out.shape == (2, 3, 4 + n, 5)
        assert (out == n).all()


def test_parameters_are_saved_loaded_shared_and_learned() -> None:
    text = LEARNED + python("Bias", "three", "b") + python("Euclidean", "b data", "loss", "loss_weight: 1")
    text = text.replace("num_output: 2", "num_output: 3").replace('top: "ip"', 'top: "three"')
    made = net(text, caffe.TRAIN)
    made.params["bias"][0].data[...] = [1, 2, 3]
    made.save("w.caffemodel")
    made.params["bias"][0].data[...] = -1
    made.copy_from("w.caffemodel")
    assert made.params["bias"][0].data.tolist() == [1, 2, 3]
    other = net(text, caffe.TRAIN)
    other.share_with(made)
    assert other.layers[list(other._layer_names).index("bias")].blobs[0].data.tolist() == [1, 2, 3]
    Path("s.prototxt").write_text('net: "net.prototxt" base_lr: 0.5 lr_policy: "fixed" max_iter: 9 type: "SGD"')
    solver = caffe.SGDSolver("s.prototxt")
    solver.net.blobs["data"].data[...] = 0
    solver.step(3)
    # with all-zero data, bias + b is learned towards 0, by both in turn: each step takes lr = 0.5 of the rest, twice
    assert np.allclose(solver.net.params["bias"][0].data + solver.net.params["ip"][1].data, 0, atol=1e-6)


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_the_phase_is_a_number_with_a_name(phase: int) -> None:
    made = net(python("Phase", "", "y"), phase)
    assert made.forward()["y"] == phase
    layer = made.layers[0]
    assert isinstance(layer, caffe.Layer)
    assert str(layer.phase) == ("TEST" if phase else "TRAIN")


def test_what_python_raises_comes_through() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        net(INPUT + python("Times", "data", "y", param="no number"))
    with pytest.raises(Exception, match="Need two inputs"):
        net(INPUT + python("Euclidean", "data", "y"))
    with pytest.raises(NotImplementedError, match="Nothing has no forward"):
        net(INPUT + python("Nothing", "data", "y")).forward()


def test_wrong_modules_are_named() -> None:
    with pytest.raises(CaffePortError, match="has no class 'Missing'"):
        net(python("Missing", "", "y"))
    with pytest.raises(CaffePortError, match="not a subclass"):
        net(python("Other", "", "y"))
    with pytest.raises(CaffePortError, match=r"net.prototxt:2: layer 'times' \(.*the module nowhere cannot be"):
        net(INPUT + python("Times", "data", "y").replace("my_layers", "nowhere"))
    Path("uses_caffe.py").write_text("import caffe\n")
    with pytest.raises(CaffePortError, match="caffe-port run"):
        net(INPUT + python("Times", "data", "y").replace("my_layers", "uses_caffe"))


def test_our_own_layer_stands_for_a_module_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    text = (
        'layer { name: "in" type: "Input" top: "s" top: "b" top: "i" input_param { '
        "shape { dim: 1 dim: 18 dim: 4 dim: 5 } shape { dim: 1 dim: 36 dim: 4 dim: 5 } shape { dim: 1 dim: 3 } } }\n"
        'layer { name: "p" type: "Python" bottom: "s" bottom: "b" bottom: "i" top: "rois" '
        'python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "\'feat_stride\': 16" } }'
    )
    made = net(text)
    out = made.forward(s=np.ones((1, 18, 4, 5)), b=np.zeros((1, 36, 4, 5)), i=np.array([[64, 80, 1.0]]))
    assert out["rois"].shape[1] == 5
    assert "caffe-port's own layer stands for rpn.proposal_layer.ProposalLayer" in capfd.readouterr().err
