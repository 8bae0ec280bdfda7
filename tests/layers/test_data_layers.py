from collections.abc import Iterator

import numpy as np
import pytest
import registries
import torch

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.formats.message import Message
from caffe_port.layers import Layer, class_of, lookup
from caffe_port.layers.data import python_layer
from caffe_port.layers.fillers import fill
from caffe_port.typing import Shape


def message(type_: str, param: str, tops: int = 1) -> Message:
    lines = " ".join(f'top: "t{i}"' for i in range(tops))
    return prototxt.parse(f'name: "l" type: "{type_}" {lines} {param}', "LayerParameter")


def layer(type_: str, param: str, *shapes: Shape, tops: int = 1) -> Layer:
    found = class_of(message(type_, param, tops))
    assert found is not None
    return found.build(message(type_, param, tops), shapes)


@pytest.mark.parametrize(
    "type_",
    ["Input", "Data", "ImageData", "WindowData", "MemoryData", "HDF5Data", "AnnotatedData", "VideoData", "OtherData"],
)
def test_sources(type_: str) -> None:
    found = lookup(type_)
    assert found is not None
    assert found.source
    assert not found.labels


def test_dummy_data_constants() -> None:
    param = """dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 4 }
        data_filler { value: 1.5 } data_filler { value: -2 } }"""
    module = layer("DummyData", param, tops=2)
    a, b = module()
    assert torch.equal(a, torch.full((2, 3), 1.5))
    assert torch.equal(b, torch.full((4,), -2.0))
    assert module.double()()[0].dtype == torch.float64
    assert module.to("meta").infer()[1].device.type == "meta"
    assert not module.state_dict()


def test_dummy_data_defaults_and_old_shape() -> None:
    module = layer("DummyData", "dummy_data_param { num: 2 num: 4 channels: 3 height: 5 width: 7 }", tops=2)
    a, b = module()
    assert (tuple(a.shape), tuple(b.shape)) == ((2, 3, 5, 7), (4, 3, 5, 7))
    assert not a.any()


def test_dummy_data_draws_anew() -> None:
    for filler, low, high in [
        ('type: "uniform" min: 2 max: 3', 2, 3),
        ('type: "gaussian" mean: 5 std: 0.1', 4, 6),
        ('type: "xavier"', -((3 / 500) ** 0.5), (3 / 500) ** 0.5),
    ]:
        module = layer("DummyData", f"dummy_data_param {{ shape {{ dim: 7 dim: 500 }} data_filler {{ {filler} }} }}")
        first, second = module(), module()
        assert not torch.equal(first, second)
        assert low <= first.min() <= first.max() <= high
        assert first.std() > 0


def test_dummy_data_of_every_filler() -> None:
    """As the weight fillers, which are written apart from it."""

    def drawn(filler: str, *shape: int) -> torch.Tensor:
        dims = " ".join(f"dim: {n}" for n in shape)
        top = layer("DummyData", f"dummy_data_param {{ shape {{ {dims} }} data_filler {{ {filler} }} }}")()
        assert tuple(top.shape) == shape
        return top

    for shape in ((3, 2, 4, 4), (2, 5, 3, 3), (1, 2, 1, 1)):
        rng, filler = np.random.default_rng(0), Message("FillerParameter", type="bilinear")
        np.testing.assert_allclose(drawn('type: "bilinear"', *shape), fill(filler, shape, rng), atol=1e-6)
    ball = drawn('type: "positive_unitball"', 4, 3, 50)
    assert ball.min() >= 0
    torch.testing.assert_close(ball.sum((1, 2)), torch.ones(4))
    assert ball[0].std() > 0
    assert drawn('type: "positive_unitball"', 7).tolist() == [1] * 7
    sparse = drawn('type: "gaussian" std: 3 sparse: 2', 8, 5000)
    assert 0.23 < float((sparse != 0).double().mean()) < 0.27
    assert 2.8 < float(sparse[sparse != 0].std()) < 3.2
    assert drawn('type: "xavier"', 7000).abs().max() <= 3**0.5
    assert 1.3 < drawn('type: "msra"', 7000).std() < 1.5


@pytest.mark.parametrize(
    ("param", "tops", "text"),
    [
        ("shape { dim: 2 } shape { dim: 3 }", 3, "gives shape 2 times for 3 tops"),
        ("shape { dim: 2 } num: 2", 1, "gives both shape and num, channels, height, width"),
        ("num: 2 channels: 3 height: 4", 1, "gives width 0 times for 1 tops"),
        ("", 1, "gives shape 0 times for 1 tops"),
        ("shape { dim: 2 } data_filler { } data_filler { }", 1, "gives data_filler 2 times for 1 tops"),
        ('shape { dim: 2 } data_filler { type: "bilinear" }', 1, "needs a square 4-D blob"),
        ('shape { dim: 2 } data_filler { type: "orthogonal" }', 1, "does not support the filler 'orthogonal'"),
        ("shape { dim: 2 } data_filler { type: 'gaussian' sparse: 3 }", 1, "does not support .* 'gaussian, sparse,'"),
    ],
)
def test_senseless_dummy_data(param: str, tops: int, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        layer("DummyData", f"dummy_data_param {{ {param} }}", tops=tops)


def test_parameter() -> None:
    module = layer("Parameter", "parameter_param { shape { dim: 3 dim: 4 } }")
    assert module.blob_names() == ["value"]
    module.set_blob("value", torch.arange(12.0).reshape(3, 4))
    top = module()
    assert torch.equal(top, torch.arange(12.0).reshape(3, 4))
    assert top.requires_grad
    filler = type(module).fillers(module.own_message(message("Parameter", "")))["value"]
    assert (filler.type, filler.value) == ("constant", 0)
    with pytest.raises(SpecError, match="1 bottom; the layer takes 0"):
        layer("Parameter", "parameter_param { shape { dim: 3 } }", (2, 3))


def test_hdf5_output_gives_nothing() -> None:
    assert layer("HDF5Output", "", (2, 3), (2,), tops=0)(torch.ones(2, 3), torch.ones(2)) == ()


@pytest.fixture
def _registries() -> Iterator[None]:
    with registries.forgotten():
        yield


@pytest.mark.usefixtures("_registries")
def test_python_layer_of_a_plugin() -> None:
    @python_layer("my.layers", "Scale")
    class ScaleByText(Layer):
        param = "python_param"

        @classmethod
        def from_caffe(cls, p: Message, bottoms: object) -> dict[str, float]:
            return {"factor": float(p.param_str)}

        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    module = layer("Python", 'python_param { module: "my.layers" layer: "Scale" param_str: "2.5" }', (2,))
    assert isinstance(module, ScaleByText)
    assert module(torch.ones(2)).tolist() == [2.5, 2.5]
    with pytest.raises(SpecError, match=r"my\.layers\.Scales, which works only with pycaffe\. Did you mean"):
        layer("Python", 'python_param { module: "my.layers" layer: "Scales" }', (2,))


def test_python_layer_without_plugin() -> None:
    with pytest.raises(SpecError, match=r"runs the Python code rpn\.anchor_target_layer\.AnchorTargetLayer") as caught:
        layer("Python", 'python_param { module: "rpn.anchor_target_layer" layer: "AnchorTargetLayer" }', (2, 3))
    assert "--plugin" in caught.value.hint
