"""Small nets for the tests of model.py, and how to read back what was written."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import caffe_port
from caffe_port.api import Ported
from caffe_port.emit import model_source as emit_source
from caffe_port.emit.self_check import read_model
from caffe_port.formats.prototxt import quoted
from caffe_port.net.net import Net
from caffe_port.net.state_dict import write_safetensors


def drawn(folder: Path, text: str) -> Ported:
    """A net from the text of a prototxt, initialized from its fillers."""
    path = folder / "net.prototxt"
    path.write_text(text, encoding="utf-8")
    return caffe_port.port(path)


def layer(name: str, type_: str, bottoms: str, tops: str, more: str = "") -> str:
    ends = [f"bottom: {quoted(b)}" for b in bottoms.split()] + [f"top: {quoted(t)}" for t in tops.split()]
    return f"layer {{ name: {quoted(name)} type: {quoted(type_)} {' '.join(ends)} {more} }}\n"


def data(*dims: int, name: str = "data") -> str:
    shape = " ".join(f"dim: {n}" for n in dims)
    return layer(name, "Input", "", name, f"input_param {{ shape {{ {shape} }} }}")


def conv(name: str, bottom: str, top: str, outputs: int = 4, kernel: int = 1, more: str = "") -> str:
    filler = 'weight_filler { type: "xavier" }'
    size = f"num_output: {outputs} kernel_size: {kernel}"
    return layer(name, "Convolution", bottom, top, f"convolution_param {{ {size} {filler} }} {more}")


def written(net: Net, tmp_path: Path, fold: bool = False) -> tuple[emit_source.Model, nn.Module]:
    """The source of a net, and the module that it gives when read back with its weights."""
    made = emit_source.model(net, fold)
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, made.state)
    return made, read_model(made.source, made.class_name, path)


def forward_of(source: str) -> str:
    """The body of the last ``forward``, without the indentation of the class."""
    text = source[source.rindex("    def forward(") :]
    return "\n".join(line[8:] for line in text.splitlines()[1:])


def outputs(module: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(5)
    with torch.no_grad():
        made = module(*(x.clone() for x in inputs))
    return made if isinstance(made, dict) else {"": made}


def assert_same(net: Net, module: nn.Module, inputs: list[Tensor], training: bool) -> None:
    """Asserts bit-equal outputs, and bit-equal gradients of the inputs if there are any."""
    net.train(training)
    module.train(training)
    wanted, got = outputs(net, inputs), outputs(module, inputs)
    assert list(wanted) == list(got)
    for name, value in wanted.items():
        assert value.dtype == got[name].dtype
        assert torch.allclose(value, got[name], rtol=0, atol=0, equal_nan=True), name
