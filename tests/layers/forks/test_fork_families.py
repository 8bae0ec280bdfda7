"""Every feed-forward type of the forks' families: as model.py, in float64, through torch.export and torch.compile."""

import numpy as np
import pytest
import torch
from fork_cases import CASES, DETECTIONS
from fork_layers import build

from caffe_port.api import port
from caffe_port.emit.convert import convert
from caffe_port.emit.self_check import read_model
from caffe_port.verification.references.numpy_formulas import compute


@pytest.mark.parametrize("name", [*CASES, *DETECTIONS])
def test_model_py_gives_the_same(tmp_path, name):
    text, *inputs = (CASES | DETECTIONS)[name]
    net = "".join(
        f'layer {{ name: "in{i}" type: "Input" top: "in{i}" input_param {{ shape {{'
        + "".join(f" dim: {n}" for n in x.shape)
        + " } } }\n"
        for i, x in enumerate(inputs)
    )
    bottoms = " ".join(f'bottom: "in{i}"' for i in range(len(inputs)))
    path = tmp_path / "net.prototxt"
    path.write_text(f'name: "Net"\n{net}layer {{ name: "l" type: "{name.split()[0]}" {bottoms} top: "l" {text} }}')
    made = port(path)
    result = convert(made, tmp_path / "out", channels_last=False)
    model = read_model(
        (result.folder / "model.py").read_text(), result.class_name, result.folder / "weights.safetensors"
    )
    want = made.net(*inputs)
    torch.testing.assert_close(model(*inputs), want, rtol=0, atol=0)
    wide = made.net.double()(*[x.double() for x in inputs])
    assert wide.dtype == torch.float64
    if name in CASES:
        torch.testing.assert_close(wide.float(), want, rtol=1e-3, atol=1e-4)
    step = made.net.plan.steps[-1]
    blobs = made.net.blobs().get("l", [])
    tops, why = compute(step.layer, [x.numpy() for x in inputs], blobs)
    assert tops is not None or why.startswith("no formula"), why
    if tops is not None:
        np.testing.assert_allclose(tops[0].reshape(wide.shape), wide.detach().numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.parametrize("name", CASES)
def test_torch_exports_and_compiles_without_breaks(name):
    text, *inputs = CASES[name]
    layer = build(name.split()[0], text, *(x.shape for x in inputs))
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter)
    program = torch.export.export(layer, tuple(inputs)).module()
    torch.testing.assert_close(program(*inputs), layer(*inputs))
    torch.compile(layer, backend="eager", fullgraph=True)(*inputs)
