"""model.py gives what the Net gives, bit by bit; it is readable, and no data in it is code."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import golden_nets
import pytest
import torch
from conftest import GOLDEN, ROOT
from emit_nets import assert_same, conv, data, drawn, forward_of, layer, outputs, written
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import caffe_port
from caffe_port.api import Ported
from caffe_port.emit import copied_classes as emit_classes
from caffe_port.emit import model_source as emit_source
from caffe_port.emit.convert import convert
from caffe_port.emit.self_check import example_inputs, read_model, self_check
from caffe_port.errors import CaffePortError
from caffe_port.layers import Layer
from caffe_port.net import fusion

MODEL_DEFS = ROOT / "model_defs"

CASES = sorted((GOLDEN / "layers").glob("*.prototxt"))

REAL = {
    "mnist_9972": (None, "simplenet/mnist_9972/weights.caffemodel"),
    "svhn_9757": (None, "simplenet/svhn_9757/weights.caffemodel"),
    "det1": ("zoo/mtcnn_v2/det1.prototxt", "zoo/mtcnn_v2/det1.caffemodel"),
    "det2": ("zoo/mtcnn_v2/det2.prototxt", "zoo/mtcnn_v2/det2.caffemodel"),
    "det3": ("zoo/mtcnn_v2/det3.prototxt", "zoo/mtcnn_v2/det3.caffemodel"),
    "lenet": ("zoo/caffe2014_lenet_v1/lenet.prototxt", "zoo/caffe2014_lenet_v1/lenet_iter_10000.caffemodel"),
    "cifar10_full": (
        "zoo/caffe2014_cifar10_v1/cifar10_full.prototxt",
        "zoo/caffe2014_cifar10_v1/cifar10_full_iter_70000.caffemodel",
    ),
    "wechat_sr": ("zoo/wechat_qrcode_sr/sr.prototxt", "zoo/wechat_qrcode_sr/sr.caffemodel"),
    "ultralight": ("zoo/ultralight_slim-320/slim-320.prototxt", "zoo/ultralight_slim-320/slim-320.caffemodel"),
    "train_val": ("simplenet/cifar10_9532/train_val.prototxt", None),
}


@pytest.fixture
def port(tmp_path: Path) -> Callable[[str], Ported]:
    """A net from the text of a prototxt, drawn by its fillers."""
    return functools.partial(drawn, tmp_path)


# -- golden nets and real ones ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden_net_is_bit_equal(path: Path, tmp_path: Path) -> None:
    golden = golden_nets.load(path)
    made, module = written(golden.net, tmp_path)
    assert_same(golden.net, module, golden.inputs, training=False)
    if not golden.net.scales:
        assert_same(golden.net, module, golden.inputs, training=True)
    assert max(map(len, made.source.splitlines())) <= 120
    assert "caffe_port" not in made.source.replace("caffe-port", "")
    assert not re.search(r"from_caffe|torch_source|type: ignore|Message|\bLayer\b", made.source)


@pytest.mark.parametrize("name", REAL)
def test_real_model(name: str, shared: Path, tmp_path: Path) -> None:
    prototxt, weights = (shared / "models" / path if path else None for path in REAL[name])
    ported = caffe_port.port(prototxt, weights)
    result = convert(ported, tmp_path / "out")
    assert result.check == "outputs are bit-equal to the Net's"
    source = (tmp_path / "out" / "model.py").read_text()
    stored = tmp_path / "out" / "weights.safetensors"
    exact = not ported.net.scales  # which TRAIN runs by themselves, model.py as halves of nn.BatchNorm2d
    fixed = any("batch size written out" in note for note in result.notes)
    check = self_check(
        ported.net,
        source,
        result.class_name,
        stored,
        exact=exact,
        training=True,
        per_item=fixed,
        channels_last=result.channels_last,
    )
    assert check.startswith("outputs ")
    module = read_model(source, result.class_name, stored)
    inputs = example_inputs(ported.net, batch=2)
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="eager")(*inputs)
        exported = torch.export.export(module, inputs).module()(*inputs)
        plain = module(*inputs)
    torch._dynamo.reset()
    for made in (compiled, exported):
        torch.testing.assert_close(made, plain, rtol=0, atol=0)


def test_mtcnn_reads_as_if_written_by_hand(shared: Path) -> None:
    net = caffe_port.load(shared / "models/zoo/mtcnn_v2/det1.prototxt")
    source = emit_source.model(net).source
    assert "from torch import Tensor, nn\n\n\nclass PNet(nn.Module):\n" in source
    assert "        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)\n" in source
    assert forward_of(source) == (
        "x = self.PReLU1(self.conv1(data))\n"
        "x = self.pool1(x)\n"
        "x = self.PReLU2(self.conv2(x))\n"
        "x = self.PReLU3(self.conv3(x))\n"
        "conv4_1 = self.conv4_1(x)\n"
        "conv4_2 = self.conv4_2(x)\n"
        "prob1 = self.prob1(conv4_1)\n"
        'return {"conv4-2": conv4_2, "prob1": prob1}'
    )


@pytest.mark.parametrize("name", ["mnist_9972", "svhn_9757"])
def test_fold(name: str, shared: Path, tmp_path: Path) -> None:
    ported = caffe_port.port(None, shared / "models" / str(REAL[name][1]))
    plain = convert(ported, tmp_path / "plain", channels_last=False)
    folded = convert(ported, tmp_path / "folded", fold=True, channels_last=False)
    assert folded.check.startswith("outputs differ from the Net's by ")
    source = (tmp_path / "folded" / "model.py").read_text()
    assert "Scale" not in source
    assert "self.bn1 " not in source
    plain_source = (tmp_path / "plain" / "model.py").read_text()
    assert re.search(r"self\.bn1 = nn\.BatchNorm2d\(\d+, momentum=0\.05\)\n", plain_source)
    assert "Scale" not in plain_source
    reports = [json.loads((tmp_path / kind / "port.json").read_text()) for kind in ("plain", "folded")]
    assert [report["attributes"]["scale1"] for report in reports] == ["bn1", "conv1"]
    assert "for inference" in reports[1]["notes"][-1]
    assert folded.parameters == plain.parameters
    inputs = list(example_inputs(ported.net, batch=3))
    for fold in (False, True):
        _, module = written(ported.net, tmp_path, fold=fold)
        torch.testing.assert_close(outputs(module, inputs), outputs(ported.net, inputs), rtol=1e-4, atol=1e-5)
    _, module = written(ported.net, tmp_path)
    ported.net.train()
    module.train()
    torch.testing.assert_close(outputs(module, inputs), outputs(ported.net, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", ["true", "false"])
@pytest.mark.parametrize("kind", ["BatchNorm", "BatchNorm Scale", "Scale", "BN", "BatchNorm BN Scale"])
@pytest.mark.parametrize("base", ["Convolution", "InnerProduct"])
def test_fold_into_weights(base: str, kind: str, bias: str, port: Callable[[str], Ported], tmp_path: Path) -> None:
    size = "num_output: 6 group: 3 kernel_size: 2" if base == "Convolution" else "num_output: 6"
    param = "convolution_param" if base == "Convolution" else "inner_product_param"
    text = data(2, 3, 5, 4) + layer("y", base, "data", "y", f"{param} {{ {size} bias_term: {bias} }}")
    for n, type_ in enumerate(kind.split()):
        text += layer(f"l{n}", type_, "y", "y", f"scale_param {{ bias_term: {bias} }}" if type_ == "Scale" else "")
    net = port(text + layer("relu", "ReLU", "y", "y")).net
    for module in net.caffe_layers().values():
        for name in module.blob_names():
            module.set_blob(name, torch.rand(module.get_blob(name).shape) + 0.5)
    made, module = written(net, tmp_path, fold=True)
    assert sorted(made.state) == ["y.bias", "y.weight"]
    inputs = [torch.randn(2, 3, 5, 4)]
    torch.testing.assert_close(outputs(module, inputs), outputs(net, inputs), rtol=1e-5, atol=1e-6)
    assert outputs(net, inputs)[""].count_nonzero() > 5


def test_fold_leaves_shared_weights(port: Callable[[str], Ported], tmp_path: Path) -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    net = port(
        data(2, 3, 5, 4)
        + conv("a", "data", "a", 3, 1, shared)
        + layer("n", "BatchNorm", "a", "n")
        + conv("b", "n", "b", 3, 1, shared)
    ).net
    made, module = written(net, tmp_path, fold=True)
    assert "self.n = nn.BatchNorm2d(3, " in made.source
    assert_same(net, module, [torch.randn(2, 3, 5, 4)], training=False)


def test_frozen_batch_norm(port: Callable[[str], Ported], tmp_path: Path) -> None:
    net = port(
        data(2, 3, 5, 4)
        + layer("bn", "BatchNorm", "data", "bn", "batch_norm_param { use_global_stats: true }")
        + layer("s", "Scale", "bn", "s", 'scale_param { filler { type: "uniform" min: 1 max: 2 } }')
    ).net
    net.bn.load_blobs([torch.randn(3).numpy(), torch.rand(3).numpy() + 1, torch.ones(1).numpy()])
    net.train()
    inputs = [torch.randn(2, 3, 5, 4)]
    for fold in (False, True):
        made, module = written(net, tmp_path, fold)
        assert "self.bn = FrozenBatchNorm2d(3)\n" in made.source
        torch.testing.assert_close(outputs(module.train(), inputs), outputs(net, inputs))


def test_fold_leaves_what_others_read(port: Callable[[str], Ported], tmp_path: Path) -> None:
    scale = "scale_param { bias_term: true }"
    net = port(
        data(2, 3, 5, 4)
        + layer("bn", "BatchNorm", "data", "bn")
        + layer("s", "Scale", "bn", "s", scale)
        + layer("sum", "Eltwise", "bn s", "sum")
    ).net
    made = emit_source.model(net, fold=True)
    assert "class Scale" in made.source
    assert made.notes == ()


# -- forward ------------------------------------------------------------------------------------------------------


def test_residual_block_and_branches(port: Callable[[str], Ported], tmp_path: Path) -> None:
    text = (
        data(2, 3, 9, 7)
        + conv("conv1", "data", "conv1")
        + layer("relu1", "ReLU", "conv1", "conv1")
        + conv("a", "conv1", "a")
        + layer("relu_a", "ReLU", "a", "a")
        + conv("b", "a", "b")
        + layer("sum", "Eltwise", "conv1 b", "sum")
        + layer("relu_sum", "ReLU", "sum", "sum")
        + layer("cut", "Slice", "sum", "left right")
        + layer("cat", "Concat", "right left", "cat")
        + layer("flat", "Flatten", "cat", "flat")
        + layer("ip", "InnerProduct", "cat", "ip", "inner_product_param { num_output: 5 }")
        + layer("quiet", "Silence", "flat", "")
    )
    net = port(text).net
    made, module = written(net, tmp_path)
    assert forward_of(made.source) == (
        "conv1 = self.relu1(self.conv1(data))\n"
        "x = self.relu_a(self.a(conv1))\n"
        "x = self.b(x)\n"
        "x = self.relu_sum(conv1 + x)\n"
        "left, right = torch.tensor_split(x, 2, dim=1)\n"
        "x = torch.cat((right, left), dim=1)\n"
        "return self.ip(x.flatten(1))"
    )
    assert made.attributes["flat"] is None
    assert made.attributes["quiet"] is None
    assert_same(net, module, [torch.randn(2, 3, 9, 7)], training=False)


def test_methods_are_chained_onto_calls_only(port: Callable[[str], Ported], tmp_path: Path) -> None:
    order = "permute_param { order: 0 order: 2 order: 1 }"
    net = port(
        data(2, 3, 5)
        + layer("log", "Log", "data", "log", "log_param { base: 2 shift: 9 }")
        + layer("p", "Permute", "log", "p", order)
        + layer("flat", "Flatten", "p", "flat")
    ).net
    made, module = written(net, tmp_path)
    assert forward_of(made.source) == ("x = torch.log(data + 9) / math.log(2)\nreturn x.permute(0, 2, 1).flatten(1)")
    assert_same(net, module, [torch.rand(2, 3, 5)], training=False)


def test_explicit_split_vanishes(port: Callable[[str], Ported], tmp_path: Path) -> None:
    net = port(
        data(2, 3, 5, 4)
        + layer("two", "Split", "data", "a b")
        + layer("s", "Sigmoid", "a", "s")
        + layer("sum", "Eltwise", "s b", "sum")
    ).net
    assert forward_of(emit_source.model(net).source) == "x = self.s(data)\nreturn x + data"


def test_layer_with_several_bottoms_is_called_for_each(port: Callable[[str], Ported], tmp_path: Path) -> None:
    net = port(data(2, 3, 5, 4) + data(2, 3, 5, 4, name="other") + conv("c", "data other", "y z", more="")).net
    made, module = written(net, tmp_path)
    assert forward_of(made.source) == 'y = self.c(data)\nz = self.c(other)\nreturn {"y": y, "z": z}'
    assert_same(net, module, [torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)], training=False)


def test_phases_share_one_forward(port: Callable[[str], Ported], tmp_path: Path) -> None:
    train, test = "include { phase: TRAIN }", "include { phase: TEST }"
    net = port(
        data(2, 3, 5, 4)
        + conv("c", "data", "c")
        + layer("noise", "Sigmoid", "c", "c", train)
        + conv("d", "c", "d")
        + layer("t", "TanH", "d", "out", train)
        + layer("e", "ELU", "d", "out", test)
        + layer("p", "Softmax", "out", "p")
        + layer("extra", "AbsVal", "d", "extra", test)
    ).net
    made, module = written(net, tmp_path)
    assert forward_of(made.source) == (
        "x = self.c(data)\n"
        "if self.training:\n"
        "    x = self.noise(x)\n"
        "d = self.d(x)\n"
        "if self.training:\n"
        "    x = self.t(d)\n"
        "else:\n"
        "    x = self.e(d)\n"
        "p = self.p(x)\n"
        "if self.training:\n"
        "    return p\n"
        "extra = d.abs()\n"
        'return {"extra": extra, "p": p}'
    )
    for training in (False, True):
        assert_same(net, module, [torch.randn(2, 3, 5, 4)], training)


def test_phases_that_cannot_share_variables_get_a_method_each(port: Callable[[str], Ported], tmp_path: Path) -> None:
    train, test = "include { phase: TRAIN }", "include { phase: TEST }"
    net = port(
        data(2, 3, 5, 4)
        + conv("a", "data", "a", outputs=3)
        + layer("n", "Sigmoid", "a", "n", train)
        + layer("n", "TanH", "data", "n", test)
        + conv("b", "n", "b", outputs=3)
        + layer("e", "Eltwise", "b a", "e", train)
        + layer("e", "Eltwise", "b data", "e", test)
        + layer("f", "Eltwise", "e a", "f")
    ).net
    made, module = written(net, tmp_path)
    assert "def _forward_train(self, data: Tensor) -> Tensor:" in made.source
    for training in (False, True):
        assert_same(net, module, [torch.randn(2, 3, 5, 4)], training)


def test_loss_and_accuracy(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        data(4, 3, 5, 2)
        + data(4, name="label")
        + layer("ip", "InnerProduct", "data", "ip", "inner_product_param { num_output: 5 }")
        + layer("acc", "Accuracy", "ip label", "acc", "include { phase: TEST }")
        + layer("loss", "SoftmaxWithLoss", "ip label", "loss")
    )
    net = caffe_port.port(path, keep_loss=True).net
    made, module = written(net, tmp_path)
    assert "return loss\n" in made.source
    inputs = [torch.randn(4, 3, 5, 2), torch.tensor([0.0, 4.0, 2.0, 1.0])]
    for training in (False, True):
        assert_same(net, module, inputs, training)


def test_shared_parameters_stay_tied(port: Callable[[str], Ported], tmp_path: Path) -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    stats = 'param { name: "m" } param { name: "v" } param { name: "f" }'
    net = port(
        data(2, 3, 5, 4)
        + conv("c1", "data", "c1", 3, 1, shared)
        + layer("n1", "BatchNorm", "c1", "n1", stats)
        + conv("c2", "n1", "c2", 3, 1, shared)
        + layer("n2", "BatchNorm", "c2", "n2", stats)
    ).net
    made, module = written(net, tmp_path)
    for line in ("c2.weight = self.c1.weight", "c2.bias = self.c1.bias", "n2.running_mean = self.n1.running_mean"):
        assert f"        self.{line}\n" in made.source
    stored = load_file(str(tmp_path / "weights.safetensors"))
    assert {"c1.weight", "c2.weight", "n2.running_var"} <= set(stored)
    assert module.c1.weight is module.c2.weight
    assert module.n1.running_var is module.n2.running_var
    assert len(list(module.parameters())) == 2


# -- copied classes -----------------------------------------------------------------------------------------------


def helper_of_plugin(x: Tensor) -> Tensor:  # what it does
    """Doubles."""
    return x * FACTOR


FACTOR = 2


class EmitTestBase(Layer):
    """A layer of a plugin."""

    param, blobs = None, ("weight",)
    wide: bool

    @classmethod
    def from_caffe(cls, p, bottoms):  # type: ignore[no-untyped-def]
        return {"size": 3, "limit": float("inf"), "text": 'a"""\n\\'}

    def __init__(self, size: int, limit: float = 1.0, text: str = "") -> None:
        super().__init__()
        self.limit, self.text = limit, text
        # why it is so
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)

    def step(self, x: Tensor) -> Tensor:
        return helper_of_plugin(x).clamp(max=self.limit)  # type: ignore[misc]

    def never_called(self) -> None:
        raise NotImplementedError


class EmitTest(EmitTestBase):
    """The layer itself."""

    def step(self, x: Tensor) -> Tensor:
        return -super().step(x)


def test_a_plugins_class_is_copied(port: Callable[[str], Ported], tmp_path: Path) -> None:
    net = port(data(2, 3) + layer("mine", "EmitTest", "data", "y")).net
    made, module = written(net, tmp_path)
    assert "class EmitTest(EmitTestBase):" in made.source
    assert 'class EmitTestBase(nn.Module):\n    """A layer of a plugin."""\n\n    wide: bool\n' in made.source
    for text in ("FACTOR = 2\n", "# why it is so", "# what it does"):
        assert text in made.source
    for text in ("never_called", "type: ignore", "from_caffe", "blobs"):
        assert text not in made.source
    assert 'self.mine = EmitTest(3, limit=float("inf"), text=\'a"""\\n\\\\\')' in made.source
    assert_same(net, module, [torch.randn(2, 3)], training=False)


def test_a_local_class_is_refused(port: Callable[[str], Ported]) -> None:
    class LocalEmitTest(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(CaffePortError, match=r"layer 'mine': layer class .* is defined inside a function"):
        emit_source.model(port(data(2, 3) + layer("mine", "LocalEmitTest", "data", "y")).net)


def test_every_layer_class_can_be_copied() -> None:
    from caffe_port import layers

    for family in Path(layers.__file__).parent.glob("[a-z]*.py"):
        importlib.import_module(f"caffe_port.layers.{family.stem}")
    for cls in {c for c in layers.REGISTRY.values() if c.__module__.startswith("caffe_port.") and not c.source}:
        copied = emit_classes.Copied()
        if cls.__name__ == "Python":
            continue
        copied.add_layer(cls)
        source = "\n".join([*copied.import_lines(), *(line for _, lines in copied.blocks for line in lines)])
        tree = ast.parse("from __future__ import annotations\n" + source)
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not any(m and m.startswith("caffe_port") for m in modules), cls
        exec(compile(tree, cls.__name__, "exec"), {"__name__": "copied"})


@pytest.mark.parametrize("value", [object(), torch.zeros(2)])
def test_a_value_without_source(value: object) -> None:
    with pytest.raises(CaffePortError, match=r"which cannot be written in model\.py"):
        emit_classes.literal(value)


@pytest.mark.parametrize("value", [(1,), (), [1.5, None], {"a": (True, b"x")}, -0.0, 1e30, "'\"", "\u202e\ud800"])
def test_literal(value: object) -> None:
    assert ast.literal_eval(emit_classes.literal(value)) == value


def test_a_top_that_nobody_reads(port: Callable[[str], Ported], tmp_path: Path) -> None:
    net = port(
        data(2, 4, 5)
        + layer("cut", "Slice", "data", "a b")
        + layer("quiet", "Silence", "b", "")
        + layer("s", "Sigmoid", "a", "s")
    ).net
    made, module = written(net, tmp_path)
    assert forward_of(made.source) == "a, _ = torch.tensor_split(data, 2, dim=1)\nreturn self.s(a)"
    assert_same(net, module, [torch.randn(2, 4, 5)], training=False)


def test_a_layer_with_weights_whose_top_nobody_reads(port: Callable[[str], Ported], tmp_path: Path) -> None:
    net = port(
        data(2, 3, 5, 4)
        + conv("side", "data", "side")
        + layer("quiet", "Silence", "side", "")
        + layer("s", "Sigmoid", "data", "s")
    ).net
    made, module = written(net, tmp_path)
    assert "_ = self.side(data)\n" in made.source
    assert "side.weight" in made.state
    assert_same(net, module, [torch.randn(2, 3, 5, 4)], training=False)


# -- what eval() runs ---------------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """Counts what torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def operators(module: nn.Module, x: Tensor) -> Counter[str]:
    with torch.no_grad(), Operators() as running:
        module(x)
    return running.count


def test_simplenet_runs_what_a_handwritten_one_does(tmp_path: Path) -> None:
    net = caffe_port.load(MODEL_DEFS / "simplenet_cifar10.prototxt")
    x = torch.randn(2, 3, 32, 32)
    norms, relus, pools = 10, 13, 5
    hand = {
        "convolution": 13,
        "native_batch_norm": norms,
        "empty": norms,
        "relu_": relus,
        "max_pool2d_with_indices": pools,
        "view": 1,
        "t": 1,
        "addmm": 1,
    }
    assert operators(written(net, tmp_path)[1], x) == hand
    assert operators(net, x) - Counter(hand) == {"reciprocal": norms, "nan_to_num": norms, "mul": 2 * norms}
    folded = operators(written(net, tmp_path, fold=True)[1], x)
    assert Counter(hand) - folded == {"native_batch_norm": norms - 1, "empty": norms - 1}  # one stands behind a pooling


def test_nothing_is_overwritten_that_somebody_sees(port: Callable[[str], Ported], tmp_path: Path) -> None:
    net = port(
        data(2, 3, 5, 4)
        + layer("first", "ReLU", "data", "first")
        + conv("a", "first", "a")
        + layer("relu_a", "ReLU", "a", "ra")
        + layer("n", "BatchNorm", "ra", "n")
        + layer("s", "Scale", "n", "s")
        + layer("relu_s", "ReLU", "s", "rs")
        + conv("b", "rs", "b")
        + layer("relu_b", "ReLU", "b", "rb")
        + layer("sum", "Eltwise", "b rb", "sum")
    ).net
    for name, value in (("mean", 0.3), ("variance", 1.0), ("scale_factor", 1.0)):
        net.n.get_blob(name).fill_(value)
    marked = {step.layer.name for step in net.plan.steps if step.operation is fusion.overwrite}
    assert marked == {"relu_a", "relu_s"}
    source = emit_source.model(net).source
    assert re.findall(r"self\.(\w+) = nn.ReLU\(inplace=True\)", source) == ["relu_a", "relu_s"]
    x = torch.randn(2, 3, 5, 4)
    kept = x.clone()
    turns = {turn.layer.name: turn.tops[0] for turn in net.steps(x)}
    seen: dict[str, Tensor] = {}
    for name in ("a", "n", "s"):
        net.get_submodule(name).register_forward_hook(lambda _, __, top, name=name: seen.update({name: top}))
    made = net(x)
    assert torch.equal(x, kept)
    for name, top in seen.items():
        assert torch.equal(top, turns[name]), name
        assert top.lt(0).any()
    assert torch.equal(made, turns["sum"])


def test_another_module_in_the_place_of_one(port: Callable[[str], Ported]) -> None:
    net = port(
        data(2, 3, 5, 4)
        + conv("a", "data", "a", 3)
        + layer("n", "BatchNorm", "a", "n")
        + layer("s", "Scale", "n", "s")
        + layer("r", "ReLU", "s", "r")
    ).net
    x = torch.randn(2, 3, 5, 4)
    net.n = net.s = net.a = nn.Identity()
    assert torch.equal(net(x), x.relu())
    assert x.lt(0).any()


def test_detections_of_two_batches_are_compared_with_those_of_each(tmp_path: Path) -> None:
    """A net whose Reshape writes the batch out runs on one image only, its model.py on any number."""
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "x" type: "Input" top: "x" input_param { shape: { dim: 1 dim: 6 dim: 4 dim: 3 } } }
        layer { name: "flat" type: "Reshape" bottom: "x" top: "flat" reshape_param { shape { dim: 1 dim: 72 } } }
        layer { name: "loc" type: "InnerProduct" bottom: "flat" top: "loc"
          inner_product_param { num_output: 16 weight_filler { type: "gaussian" std: 0.2 } } }
        layer { name: "conf" type: "InnerProduct" bottom: "flat" top: "conf"
          inner_product_param { num_output: 12 weight_filler { type: "gaussian" std: 0.2 } } }
        layer { name: "p" type: "PriorBox" bottom: "x" bottom: "x" top: "p" prior_box_param { min_size: 2 } }
        layer { name: "four" type: "Slice" bottom: "p" top: "q" top: "rest" slice_param { axis: 2 slice_point: 16 } }
        layer { name: "gone" type: "Silence" bottom: "rest" }
        layer { name: "d" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "q" top: "d"
          detection_output_param { num_classes: 3 confidence_threshold: 0.1 keep_top_k: 3
            nms_param { nms_threshold: 0.45 } } }
    """)
    ported = caffe_port.port(tmp_path / "net.prototxt")
    result = caffe_port.convert(ported, tmp_path / "out")
    assert any("batch size written out" in note for note in (*ported.notes, *result.notes))
    assert result.check == "outputs are bit-equal to the Net's"


SOURCE = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.PReLU(1)
        self.own = nn.Parameter(torch.zeros(4))
"""


@pytest.mark.parametrize(
    ("gone", "more", "says"),
    [("a.bias", "", "bias"), ("own", "", "lacks own"), ("", "c.weight", "c"), ("", "a.other", "other"), ("", "x", "x")],
)
def test_a_model_is_loaded_strictly(gone: str, more: str, says: str) -> None:
    state = {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3), "b.weight": torch.ones(1), "own": torch.ones(4)}
    loaded = read_model(SOURCE, "Two", state)
    assert loaded.state_dict().keys() == state.keys()
    assert all((value == 1).all() for value in loaded.state_dict().values())
    state = {name: value for name, value in state.items() if name != gone} | ({more: torch.ones(1)} if more else {})
    with pytest.raises((RuntimeError, AttributeError), match=says):
        read_model(SOURCE, "Two", state)


def test_a_net_of_many_layers_is_loaded_in_linear_time() -> None:
    """torch's own load_state_dict looks through all names again for each child."""
    count = 4000
    lines = "".join(f"        self.l{i} = nn.PReLU(1)\n" for i in range(count))
    source = (
        "from torch import nn\nclass Many(nn.Module):\n    def __init__(self):\n        super().__init__()\n" + lines
    )
    looked = 0

    class Name(str):
        __slots__ = ()

        def startswith(self, *args: object) -> bool:  # type: ignore[override]
            nonlocal looked
            looked += 1
            return str.startswith(self, *args)  # type: ignore[arg-type]

    read_model(source, "Many", {Name(f"l{i}.weight"): torch.ones(1) for i in range(count)})
    assert looked < 20 * count
