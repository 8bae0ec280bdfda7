"""Layers in the words of forks, as Caffe's own layers; the figures are in tests/cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE

import caffe_port
from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError
from caffe_port.formats import caffemodel, prototxt

CASES = HERE / "cases"
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 5 dim: 7 } } }\n'


@pytest.mark.parametrize(
    ("case", "figures", "weights", "blobs"),
    [
        ("fields_nobody_reads/batchnorm_relu", "fields_nobody_reads/batchnorm_relu", None, ("data", "y")),
        ("fields_nobody_reads/nvidia_scale_bias", "fields_nobody_reads/nvidia_scale_bias", None, ("data", "y")),
        ("unknown_fields/inner_product_relu", "unknown_fields/inner_product_relu", None, ("data", "y")),
        ("unknown_fields/torch_pooling", "unknown_fields/torch_pooling", None, ("data", "y")),
        ("fields_of_forks/pad_four_sides", "fields_of_forks/pad_four_sides", None, ("data", "c")),
        ("nvidia_batchnorm/nv5a", "nvidia_batchnorm/nv", "nvidia_batchnorm/nv5", ("data", "y")),
        ("nvidia_batchnorm/nv5b", "nvidia_batchnorm/nv", "nvidia_batchnorm/nv5", ("data", "y")),
        ("nvidia_batchnorm/nv4a", "nvidia_batchnorm/nv", "nvidia_batchnorm/nv4", ("data", "y")),
    ],
)
def test_the_figures_of_the_forks(
    case: str, figures: str, weights: str | None, blobs: tuple[str, str], tmp_path: Path
) -> None:
    stored = None if weights is None else CASES / f"{weights}.caffemodel"
    ported = caffe_port.port(CASES / f"{case}.prototxt", stored)
    with np.load(CASES / f"{figures}.npz") as file:
        x, wanted = torch.from_numpy(file[blobs[0]]), file[blobs[1]]
    made = ported.net(x)
    assert isinstance(made, torch.Tensor)
    assert np.abs(made.detach().numpy() - wanted).max() < 2e-6
    assert caffe_port.convert(ported, tmp_path / "out").check.startswith("outputs are bit-equal")
    report = caffe_port.verify(CASES / f"{case}.prototxt", stored)
    assert report.passed
    assert not report.not_compared


def layers(text: str) -> list[tuple[str, str]]:
    net = Definition.parse(prototxt.parse(INPUT + text, "NetParameter"))
    return [(layer.name, layer.type) for layer in net.net.layer[1:]]


def test_all_three_of_a_fused_layer() -> None:
    text = 'layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" include { phase: TEST } batch_norm_param { '
    text += "scale_bias: true relu: true } param { lr_mult: 0 } param { lr_mult: 0 } param { lr_mult: 0 } "
    text += 'param { name: "w" } }'
    net = Definition.parse(prototxt.parse(INPUT + text, "NetParameter")).spec()
    assert [layer.name for layer in net.layers[1:]] == ["b", "b/scale", "b/relu"]
    assert all(layer.tops == ("y",) and layer.param.include for layer in net.layers[1:])
    assert len(net.by_name["b"].param.param) == 3
    assert [p.name for p in net.by_name["b/scale"].param.param] == ["w"]
    assert net.unfollowed == ()


def test_what_is_not_fused_stays_one_layer() -> None:
    text = (
        'layer { name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 2 kernel_size: 3 '
    )
    assert layers(text + "relu: false } }") == [("c", "Convolution")]
    assert layers(text + "relu: true negative_slope: 0.5 } }") == [("c", "Convolution"), ("c/relu", "ReLU")]


def test_a_slope_of_a_fused_relu() -> None:
    text = 'layer { name: "c" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 3 relu: true '
    text += 'negative_slope: 0.25 weight_filler { type: "constant" value: 1 } } }'
    net = caffe_port.load(Definition.parse(prototxt.parse(INPUT + text, "NetParameter")))
    made = net(-torch.rand(2, 4, 5, 7))
    assert isinstance(made, torch.Tensor)
    assert net.plan.steps[-1].layer.param.relu_param.negative_slope == 0.25
    assert (made < 0).any()


def test_trained_weights_go_back_into_two_layers(tmp_path: Path) -> None:
    from caffe_port.emit import caffe_files

    ported = caffe_port.port(CASES / "nvidia_batchnorm/nv5a.prototxt", CASES / "nvidia_batchnorm/nv5.caffemodel")
    caffe_files.write_caffe(ported, tmp_path / "back")
    (path,) = (tmp_path / "back").glob("*.caffemodel")
    assert [(la.name, len(la.blobs)) for la in caffemodel.read(path).layers] == [("bn", 3), ("bn/scale", 2)]


@pytest.mark.parametrize(
    ("pads", "said"),
    [
        ("pad_l: 1 pad_r: 1 pad_t: 2 pad_b: 2", None),
        ("pad_r: 1 pad: 1", "pad and pad_l, pad_r, pad_t, pad_b exclude each other"),
    ],
)
def test_four_sides(pads: str, said: str | None) -> None:
    window = f"convolution_param {{ num_output: 2 kernel_size: 3 {pads} }}"
    text = f'layer {{ name: "c" type: "Convolution" bottom: "x" top: "y" {window} }}'
    definition = Definition.parse(prototxt.parse(INPUT + text, "NetParameter"))
    if said is not None:
        with pytest.raises(SpecError, match=said):
            caffe_port.load(definition)
        return
    conv = caffe_port.load(definition).c
    assert isinstance(conv, torch.nn.Conv2d)
    assert conv.padding == (2, 1)


def test_the_names_of_another_yolo() -> None:
    net = caffe_port.load(CASES / "fields_of_forks" / "yolo_masks.prototxt")
    assert net.det.anchors[0][0] == (81.0, 82.0)  # type: ignore[union-attr, index]
