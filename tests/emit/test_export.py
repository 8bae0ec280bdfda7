"""ONNX, torch.export and Caffe's own files give the same numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cv2
import golden_nets
import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import caffe_port
from caffe_port.emit import caffe_files, export
from caffe_port.emit.convert import convert
from caffe_port.emit.model_source import model
from caffe_port.emit.self_check import example_inputs, read_model
from caffe_port.errors import CaffePortError, DependencyError, WeightsError
from caffe_port.net.state_dict import write_safetensors

ZOO = {
    "mnist_9972": (None, "simplenet/mnist_9972/weights.caffemodel"),
    "svhn_9757": (None, "simplenet/svhn_9757/weights.caffemodel"),
    "det1": ("zoo/mtcnn_v2/det1.prototxt", "zoo/mtcnn_v2/det1.caffemodel"),
    "det3": ("zoo/mtcnn_v2/det3.prototxt", "zoo/mtcnn_v2/det3.caffemodel"),
    "cifar10_full": (
        "zoo/caffe2014_cifar10_v1/cifar10_full.prototxt",
        "zoo/caffe2014_cifar10_v1/cifar10_full_iter_70000.caffemodel",
    ),
    "wechat_sr": ("zoo/wechat_qrcode_sr/sr.prototxt", "zoo/wechat_qrcode_sr/sr.caffemodel"),
    "ultralight": ("zoo/ultralight_slim-320/slim-320.prototxt", "zoo/ultralight_slim-320/slim-320.caffemodel"),
    "quantized": (
        "zoo/arm_cmsisnn_cifar10/cifar10_m4_train_test.prototxt",
        "zoo/arm_cmsisnn_cifar10/quantized_cifar10_m4_iter_70000.caffemodel",
    ),
}

ONNX_GOLDEN = (
    "batchnorm_scale_inplace",
    "convolution_3d",
    "convolution_axis2",
    "crop_offsets",
    "deconvolution_group",
    "eltwise_three_max",
    "lrn_across_k",
    "lrn_within5",
    "lstm_static",
    "mvn_across",
    "pooling_ave_k3s2p1_odd",
    "pooling_max_k3s2p1_odd",
    "prelu_shared",
    "reshape_num_axes2",
    "scale_axis1_naxes2",
    "softmaxwithloss_spatial",
)


def port(name: str, shared: Path) -> caffe_port.Ported:
    prototxt, weights = (shared / "models" / path if path else None for path in ZOO[name])
    return caffe_port.port(prototxt, weights)


def as_dict(made: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return made if isinstance(made, dict) else {"": made}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    limit = 1e-4 * max(float(expected.abs().max()), 0.1)
    torch.testing.assert_close(actual.reshape(expected.shape), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["det1", "wechat_sr"])
def test_convert_to_onnx_and_pt2(name: str, shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    import onnxruntime

    ported = port(name, shared)
    result = convert(ported, tmp_path / "out", formats=["onnx", "pt2"])
    assert result.files == ("model.onnx", "model.pt2", "port.json")
    assert "model.onnx differs from the model by" in result.check
    assert b"site-packages" not in (tmp_path / "out" / "model.onnx").read_bytes()
    inputs = example_inputs(ported.net, seed=3)
    with torch.no_grad():
        wanted = as_dict(ported.net(*inputs))
    plan = ported.net.plan
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(plan.inputs)
    assert [o.name for o in session.get_outputs()] == [blob for blob, _ in plan.outputs]
    got = session.run(None, {blob: x.numpy() for blob, x in zip(plan.inputs, inputs, strict=True)})
    for value, expected in zip(got, wanted.values(), strict=True):
        assert_close(torch.from_numpy(value), expected)
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    with torch.no_grad():
        for value, expected in zip(as_dict(module(*inputs)).values(), wanted.values(), strict=True):
            assert_close(value, expected)


@pytest.mark.parametrize("name", ONNX_GOLDEN)
def test_golden_net_as_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    golden = golden_nets.load(GOLDEN / "layers" / f"{name}.prototxt")
    golden.net.eval()
    source = model(golden.net)
    write_safetensors(tmp_path / "w", source.state)
    module = read_model(source.source, source.class_name, tmp_path / "w")
    said = export.onnx(export.Source(module, module, golden.net.plan), golden.inputs, tmp_path / "model.onnx")
    assert said.startswith("model.onnx differs from the model by ")


def test_a_wrong_onnx_is_found(tmp_path: Path) -> None:
    """PyTorch's exporter ignores divisor_override: without a check the file would be wrong by a factor."""
    pytest.importorskip("onnxruntime")
    golden = golden_nets.load(GOLDEN / "layers" / "pooling_ave_k2s2.prototxt")
    path = tmp_path / "model.onnx"

    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool2d(x, 2, divisor_override=1)

    source = export.Source(Wrong(), Wrong(), golden.net.plan)
    with pytest.raises(CaffePortError, match="output 'y' differs from the model's by"):
        export.onnx(source, golden.inputs, path, plain_pooling=True)
    assert export.onnx(source, golden.inputs, path).startswith("model.onnx differs from the model by ")


def written(text: str, folder: Path, **how: Any) -> tuple[caffe_port.Ported, str]:
    """A net without weights, and what convert says."""
    (folder / "net.prototxt").write_text(text)
    ported = caffe_port.port(folder / "net.prototxt")
    return ported, convert(ported, folder / "out", formats=["torch", "onnx", "pt2"], **how).check


def run_onnx(folder: Path, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


CONV = """
input: "x" input_shape { dim: 2 dim: 3 dim: 12 dim: 10 }
layer { name: "conv" type: "Convolution" bottom: "x" top: "y"
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "z" }
"""
IP = """
layer { name: "ip" type: "InnerProduct" bottom: "z" top: "s"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""
MERGING = """
layer { name: "reshape" type: "Reshape" bottom: "z" top: "r" reshape_param { shape { dim: 2 dim: -1 dim: 4 } } }
"""


@pytest.mark.parametrize(
    ("more", "dynamic", "words", "sizes"),
    [
        ("", "size", "any batch, and height and width from 12 x 10 up", [(1, 12, 10), (5, 30, 41)]),
        ("", "batch", "any batch", [(1, 12, 10), (5, 12, 10)]),
        (IP, "size", "any batch", [(1, 12, 10), (7, 12, 10)]),
        (MERGING, "size", "any batch", [(1, 12, 10), (5, 12, 10)]),
    ],
)
def test_open_axes(tmp_path: Path, more: str, dynamic: str, words: str, sizes: list[tuple[int, int, int]]) -> None:
    pytest.importorskip("onnxscript")
    ported, check = written(CONV + more, tmp_path, dynamic=dynamic)
    said = check.split("; ")
    assert said[1].startswith("model.onnx differs from the model by ")
    assert said[1].endswith(f"with {words}")
    source = (tmp_path / "out/model.py").read_text()
    module = read_model(source, model(ported.net).class_name, tmp_path / "out/weights.safetensors")
    for n, height, width in sizes:
        x = torch.randn(n, 3, height, width)
        with torch.no_grad():
            assert_close(run_onnx(tmp_path, x), module(x))


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        ("x in p s q add s last", ["s"]),  # the exporter calls the first sum "add"; "s" is taken by the output
        ("a in a sum", ["a_1"]),
        (" in x sum", ["x"]),
        ("x in  sum", ["blob_1"]),
        ("x in y  z last", ["z"]),  # a layer without a name
    ],
)
def test_names_that_meet(tmp_path: Path, names: str, outputs: list[str]) -> None:
    """A layer that is called as the exporter calls a value, an output that is called as an input, a blob without a
    name: ONNX has one space of names, without an empty one."""
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    words = names.split(" ")
    text = f'layer {{ name: "in" type: "Input" top: "{words[0]}" input_param {{ shape {{ dim: [2, 3] }} }} }}'
    bottom = words[0]
    for top, layer in zip(words[2::2], words[3::2], strict=True):
        shift = "power_param { shift: 1 }"
        text += f'layer {{ name: "{layer}" type: "Power" bottom: "{bottom}" top: "{top}" {shift} }}'
        bottom = top
    (tmp_path / "net.prototxt").write_text(text)
    convert(caffe_port.port(tmp_path / "net.prototxt"), tmp_path / "out", formats=["onnx"], dynamic="none")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [output.name for output in graph.output] == outputs
    assert [node.name for node in graph.node] == words[3::2]
    x = torch.randn(2, 3)
    assert_close(run_onnx(tmp_path, x), x + len(words[3::2]))


def test_a_batch_that_is_written_out_is_kept(tmp_path: Path) -> None:
    """Caffe would merge the images of another batch; model.py keeps them apart, and says so."""
    (tmp_path / "net.prototxt").write_text(CONV + MERGING)
    ported = caffe_port.port(tmp_path / "net.prototxt")
    result = convert(ported, tmp_path / "out")
    assert any("Reshape layers with the batch size written out" in note for note in result.notes)
    module = read_model(
        (tmp_path / "out/model.py").read_text(), result.class_name, tmp_path / "out/weights.safetensors"
    )
    x = torch.randn(6, 3, 12, 10)
    with torch.no_grad():
        assert ported.net(x).shape == (2, 60, 4)  # type: ignore[union-attr]  as Caffe's
        assert_close(module(x), torch.cat([ported.net(part) for part in x.split(2)]))  # type: ignore[misc]


def test_nothing_is_left_open_where_the_net_fixes_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    fixed = MERGING.replace("dim: 2 dim: -1 dim: 4", "dim: 1 dim: -1 dim: 8")
    _, check = written(CONV + fixed, tmp_path)
    assert "model.onnx differs" in check
    assert check.count("takes inputs of 2 x 3 x 12 x 10 only") == 2
    with pytest.raises(CaffePortError, match="dynamic 'all' is not one of size, batch, none"):
        written(CONV, tmp_path, dynamic="all", force=True)


class Branches(nn.Module):
    """Its control flow depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    golden = golden_nets.load(GOLDEN / "layers" / "relu_default.prototxt")
    for write in (export.onnx, export.pt2):
        with pytest.raises(CaffePortError, match="cannot be"):
            write(export.Source(Branches(), Branches(), golden.net.plan), golden.inputs, tmp_path / "model")


def test_onnx_without_onnxscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a))
    golden = golden_nets.load(GOLDEN / "layers" / "relu_default.prototxt")
    with pytest.raises(DependencyError, match=r"pip install 'caffe-port\[onnx\]'"):
        export.onnx(export.Source(nn.ReLU(), nn.ReLU(), golden.net.plan), golden.inputs, tmp_path / "model.onnx")


# -- back to Caffe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_written_back_to_caffe(name: str, shared: Path, tmp_path: Path) -> None:
    ported = port(name, shared)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in ported.net.parameters():  # as training would
            p += 0.01 * p.abs().mean() * torch.randn(p.shape, generator=generator)
    paths = caffe_files.write_caffe(ported, tmp_path)
    assert [p.name for p in paths] == ["net.prototxt", "net.caffemodel"]
    inputs = example_inputs(ported.net)
    with torch.no_grad():
        wanted = as_dict(ported.net(*inputs))
        again = as_dict(caffe_port.load(*paths)(*inputs))
        alone = as_dict(caffe_port.load(weights=paths[1])(*inputs))
    for blob, value in wanted.items():
        assert torch.equal(again[blob], value)
        assert torch.equal(alone[blob], value)
    reader = cv2.dnn.readNetFromCaffe(*map(str, paths))
    plan = ported.net.plan
    for blob, x in zip(plan.inputs, inputs, strict=True):
        reader.setInput(x.numpy(), blob)
    got = reader.forward([source[0] for _, source in plan.spec.outputs])
    for value, expected in zip(got, wanted.values(), strict=True):
        assert_close(torch.from_numpy(np.asarray(value)), expected)


def test_a_net_trained_as_pytorch_goes_back_to_caffe(shared: Path, tmp_path: Path) -> None:
    ported = port("mnist_9972", shared)
    folder = tmp_path / "out"
    result = convert(ported, folder)
    module = read_model((folder / "model.py").read_text(), result.class_name, folder / "weights.safetensors")
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for seed in range(2):
        x = example_inputs(ported.net, seed, batch=8)
        optimizer.zero_grad()
        module(*x).square().mean().backward()
        optimizer.step()
    module.eval()
    save_file(module.state_dict(), folder / "trained.safetensors")
    caffe_files.load_state(ported.net, folder / "trained.safetensors")
    paths = caffe_files.write_caffe(ported.net, folder / "caffe")
    x = example_inputs(ported.net, batch=3)
    with torch.no_grad():
        assert_close(caffe_port.load(*paths)(*x), module(*x))
    convert(ported, tmp_path / "folded", fold=True)
    with pytest.raises(CaffePortError, match="belongs to a model written with --fold"):
        caffe_files.load_state(ported.net, tmp_path / "folded" / "weights.safetensors")


def test_the_state_of_another_model(shared: Path, tmp_path: Path) -> None:
    ported = port("det1", shared)
    convert(ported, tmp_path / "out")
    state = load_file(tmp_path / "out" / "weights.safetensors")
    before = {name: value.clone() for name, value in ported.net.state_dict().items()}
    cases = [
        ({k: v for k, v in state.items() if k != "conv2.bias"}, r"lacks 'conv2\.bias', which the net's model\.py has"),
        ({**state, "other": torch.zeros(1)}, r"contains 'other', which the net's model\.py does not have"),
        ({**state, "conv1.bias": torch.zeros(3)}, r"'conv1\.bias' is \(3,\), the net's is \(10,\)"),
    ]
    for wrong, said in cases:
        save_file(wrong, tmp_path / "w")
        with pytest.raises(WeightsError, match=said):
            caffe_files.load_state(ported.net, tmp_path / "w")
    (tmp_path / "w").write_bytes(b"no")
    with pytest.raises(CaffePortError, match="is not a state_dict"):
        caffe_files.load_state(ported.net, tmp_path / "w")
    with pytest.raises(CaffePortError, match="cannot be read"):
        caffe_files.load_state(ported.net, tmp_path / "absent")
    for name, value in ported.net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "name",
    [
        "convolution_shared_weights",
        "batchnorm_scale_inplace",
        "innerproduct_transpose",
        "prelu_shared",
        "net_slash_names",
        "lstm_static",
    ],
)
def test_golden_net_written_back(name: str, tmp_path: Path) -> None:
    golden = golden_nets.load(GOLDEN / "layers" / f"{name}.prototxt")
    paths = caffe_files.write_caffe(golden.net.eval(), tmp_path)
    with torch.no_grad():
        wanted, got = as_dict(golden.net(*golden.inputs)), as_dict(caffe_port.load(*paths)(*golden.inputs))
    for blob, value in wanted.items():
        assert torch.equal(got[blob], value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    golden = golden_nets.load(GOLDEN / "layers" / "relu_default.prototxt")
    (tmp_path / "file").write_text("")
    with pytest.raises(CaffePortError, match="cannot be written"):
        caffe_files.write_caffe(golden.net, tmp_path / "file" / "out")
