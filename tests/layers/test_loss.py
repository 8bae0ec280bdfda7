import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from caffe_port import api
from caffe_port.emit import model_source as emit_source
from caffe_port.emit.self_check import read_model
from caffe_port.errors import CaffePortError, SpecError
from caffe_port.formats import prototxt, wire
from caffe_port.formats.caffemodel import blob_message
from caffe_port.layers import Layer, lookup
from caffe_port.typing import Shape


def layer(type_: str, param: str, *shapes: Shape, tops: int = 1) -> Layer:
    lines = " ".join(f'top: "t{i}"' for i in range(tops))
    message = prototxt.parse(f'name: "l" type: "{type_}" {lines} {param}', "LayerParameter")
    found = lookup(type_)
    assert found is not None
    return found.build(message, shapes)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ALL = [
    ("Accuracy", "", [(4, 5), (4,)]),
    ("ContrastiveLoss", "", [(4, 5), (4, 5), (4,)]),
    ("EuclideanLoss", "", [(4, 5), (4, 5, 1)]),
    ("HingeLoss", "", [(4, 5), (4,)]),
    ("InfogainLoss", "", [(4, 5), (4, 1, 1, 1), (1, 1, 5, 5)]),
    ("MultinomialLogisticLoss", "", [(4, 5), (4,)]),
    ("SigmoidCrossEntropyLoss", "", [(4, 5), (4, 5)]),
    ("SmoothL1Loss", "", [(4, 5), (4, 5), (4, 5), (4, 5)]),
    ("SoftmaxWithLoss", "", [(4, 5), (4, 1)]),
]


@pytest.mark.parametrize(("type_", "param", "shapes"), ALL)
def test_scalar_top_for_labels_of_any_dtype(type_: str, param: str, shapes: list[Shape]) -> None:
    module = layer(type_, param, *shapes)
    assert module.labels
    assert module.loss == (type_ != "Accuracy")
    bottoms = [randn(*shape, seed=i).abs() / 2 for i, shape in enumerate(shapes)]
    labels = 2 if type_ == "ContrastiveLoss" else 1
    bottoms[labels] = torch.arange(math.prod(shapes[labels])).remainder(3).reshape(shapes[labels])
    tops = [
        module(*bottoms[:labels], bottoms[labels].to(kind), *bottoms[labels + 1 :])
        for kind in (torch.float32, torch.float64, torch.int64, torch.uint8)
    ]
    for top in tops:
        assert tuple(top.shape) == ()
        torch.testing.assert_close(top, tops[0], check_dtype=False)
    exact = module.double()(*[x.double() for x in bottoms])
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), tops[0])
    assert tuple(module.to("meta").infer(*[x.to("meta") for x in bottoms]).shape) == ()  # type: ignore[union-attr]


def test_euclidean_by_hand() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    assert layer("EuclideanLoss", "", (2, 2), (2, 2))(a, b) == (1 + 4 + 9) / 2 / 2


def test_hinge_by_hand() -> None:
    x, label = torch.tensor([[0.5, -2.0, 0.25], [2.0, 0.0, -0.5]]), torch.tensor([0.0, 2.0])
    assert layer("HingeLoss", "", (2, 3), (2,))(x, label) == (0.5 + 0 + 1.25 + 3 + 1 + 1.5) / 2
    squared = (0.25 + 1.5625 + 9 + 1 + 2.25) / 2
    assert layer("HingeLoss", "hinge_loss_param { norm: L2 }", (2, 3), (2,))(x, label) == squared


def test_contrastive_by_hand_and_at_distance_zero() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 0.3], [1.0, 1.0]], requires_grad=True)
    b, similar = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), torch.tensor([1.0, 0.0, 0.0])
    loss = layer("ContrastiveLoss", "", (3, 2), (3, 2), (3,))(a, b, similar)
    assert loss.item() == pytest.approx((25 + 0.7**2 + 1) / 3 / 2)
    (gradient,) = torch.autograd.grad(loss, a)
    assert gradient.tolist()[2] == [0, 0]
    assert gradient[1, 1].item() == pytest.approx(-0.7 * 0.3 / (0.3 + 1e-4) / 3, rel=1e-5)
    legacy = layer("ContrastiveLoss", "contrastive_loss_param { legacy_version: true }", (3, 2), (3, 2), (3,))
    assert legacy(a, b, similar).item() == pytest.approx((25 + 0.91 + 1) / 3 / 2)


def test_softmax_loss_is_cross_entropy_where_nothing_is_clamped() -> None:
    x, label = randn(2, 6, 7, 5), torch.arange(70).remainder(6).reshape(2, 7, 5)
    module = layer("SoftmaxWithLoss", "", (2, 6, 7, 5), (2, 1, 7, 5), tops=2)
    loss, p = module(x, label.unsqueeze(1).float())
    torch.testing.assert_close(loss, F.cross_entropy(x, label))
    assert torch.equal(p, x.softmax(1))
    ignoring = layer("SoftmaxWithLoss", "loss_param { ignore_label: 2 }", (2, 6, 7, 5), (2, 7, 5))
    torch.testing.assert_close(ignoring(x, label), F.cross_entropy(x, label, ignore_index=2))


@pytest.mark.parametrize(
    ("param", "divisor"),
    [
        ("normalization: NONE", 1),
        ("normalization: FULL", 2 * 3 * 5),
        ("normalization: BATCH_SIZE", 2 * 3),
        ("normalize: false", 2 * 3),
        ("normalize: true", 2 * 3 * 5 - 4),
        ("normalize: false normalization: VALID", 2 * 3 * 5 - 4),
        ("", 2 * 3 * 5 - 4),
    ],
)
def test_normalization(param: str, divisor: int) -> None:
    x, label = randn(2, 3, 4, 5), torch.full((2, 3, 5), 1)
    label[0, 0, :4] = -1
    module = layer(
        "SoftmaxWithLoss",
        f"softmax_param {{ axis: 2 }} loss_param {{ ignore_label: -1 {param} }}",
        (2, 3, 4, 5),
        (2, 3, 5),
    )
    total = F.cross_entropy(x.movedim(2, 1), label, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(module(x, label), total / divisor)


def test_softmax_loss_without_valid_labels_is_zero() -> None:
    module = layer("SoftmaxWithLoss", "loss_param { ignore_label: 3 }", (2, 4), (2,))
    assert module(randn(2, 4), torch.tensor([3.0, 3.0])) == 0


def test_softmax_loss_of_a_hopeless_label() -> None:
    x = torch.tensor([[0.0, 1000.0], [0.0, 0.0]], requires_grad=True)
    loss = layer("SoftmaxWithLoss", "loss_param { normalization: NONE }", (2, 2), (2,))(x, torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(87.3365 + math.log(2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.tolist() == [[-1, 1], [0.5, -0.5]]


def test_multinomial_clamps() -> None:
    p = torch.tensor([[0.0, 1.0], [0.25, 0.75]], requires_grad=True)
    loss = layer("MultinomialLogisticLoss", "", (2, 2), (2,))(p, torch.tensor([0.0, 0.0]))
    assert loss.item() == pytest.approx((-math.log(1e-20) - math.log(0.25)) / 2)
    (gradient,) = torch.autograd.grad(loss, p)
    assert gradient.tolist()[0] == pytest.approx([-0.5e20, 0])
    assert gradient.tolist()[1] == pytest.approx([-2, 0])


def test_sigmoid_cross_entropy() -> None:
    x, target = randn(3, 4), torch.tensor([[0, 1, 0.5, 1], [1, 0, 0, 1], [-1, -1, 1, 0]])
    known = target >= 0
    total = F.binary_cross_entropy_with_logits(x[known], target[known], reduction="sum")
    for param, divisor in [("", 3), ("normalization: VALID", 10), ("normalization: FULL", 12), ("normalize: true", 10)]:
        module = layer("SigmoidCrossEntropyLoss", f"loss_param {{ ignore_label: -1 {param} }}", (3, 4), (3, 4))
        torch.testing.assert_close(module(x, target), total / divisor)
    huge = layer("SigmoidCrossEntropyLoss", "", (1, 2), (1, 2))
    assert huge(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 0.0]])) == 1e4


def test_smooth_l1() -> None:
    a, b = torch.tensor([[0.1, -2.0], [0.0, 3.0]]), torch.zeros(2, 2)
    inside, outside = torch.tensor([[1.0, 1.0], [1.0, 0.5]]), torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    module = layer("SmoothL1Loss", "smooth_l1_loss_param { sigma: 2 }", *[(2, 2)] * 4)
    small, large, halved = 0.5 * (2 * 0.1) ** 2, 2 - 0.5 / 4, 1.5 - 0.5 / 4
    assert module(a, b, inside, outside).item() == pytest.approx((small + 2 * large + halved) / 2)
    assert module(a, b, inside).item() == pytest.approx((small + large + halved) / 2)
    assert module(a, b).item() == pytest.approx((small + large + 3 - 0.5 / 4) / 2)


def infogain(x: torch.Tensor, label: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return -(h[label.long()] * x.log_softmax(1)).sum() / len(x)


def test_infogain_of_a_file(tmp_path: Path) -> None:
    h = randn(5, 5, seed=3).abs()
    path = tmp_path / "h.binaryproto"
    path.write_bytes(b"".join(bytes(c) for c in wire.serialize(blob_message(h.reshape(1, 1, 5, 5).numpy()))))
    x, label = randn(4, 5), torch.tensor([0.0, 4.0, 2.0, 2.0])
    module = layer("InfogainLoss", f'infogain_loss_param {{ source: "{path}" }}', (4, 5), (4,), tops=2)
    loss, p = module(x, label)
    torch.testing.assert_close(loss, infogain(x, label, h))
    torch.testing.assert_close(p, x.softmax(1))
    torch.testing.assert_close(module.double()(x.double(), label)[0], infogain(x.double(), label, h.double()))
    with pytest.raises(SpecError, match=r"h\.binaryproto has shape \(1, 1, 5, 5\), expected \(3, 3\) for 3 classes"):
        layer("InfogainLoss", f'infogain_loss_param {{ source: "{path}" }}', (4, 3), (4,))


def test_infogain_stands_alone(tmp_path: Path) -> None:
    """model.py holds the matrix: the file may go."""
    path = tmp_path / "h.binaryproto"
    h = randn(5, 5, seed=3).abs()
    path.write_bytes(b"".join(bytes(c) for c in wire.serialize(blob_message(h.reshape(1, 1, 5, 5).numpy()))))
    net = tmp_path / "net.prototxt"
    net.write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 5 } } }\n'
        'layer { name: "l" type: "Input" top: "l" input_param { shape { dim: 4 } } }\n'
        'layer { name: "loss" type: "InfogainLoss" bottom: "x" bottom: "l" top: "loss"\n'
        f'        infogain_loss_param {{ source: "{path}" }} }}'
    )
    ported = api.port(net, keep_loss=True)
    path.unlink()
    written = emit_source.model(ported.net)
    module = read_model(written.source, written.class_name, _no_weights(tmp_path))
    x, label = randn(4, 5), torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(module(x, label), infogain(x, label, h))


def _no_weights(folder: Path) -> Path:
    save_file({}, str(folder / "weights.safetensors"))
    return folder / "weights.safetensors"


def test_infogain_without_its_file() -> None:
    with pytest.raises(CaffePortError, match="cannot be read"):
        layer("InfogainLoss", 'infogain_loss_param { source: "missing.binaryproto" }', (4, 5), (4,))


def test_accuracy_by_hand() -> None:
    x = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.0, 0.4, 0.6], [0.3, 0.3, 0.4]])
    label = torch.tensor([1.0, 2.0, 2.0, 0.0])
    shapes = (4, 3), (4,)
    assert layer("Accuracy", "", *shapes)(x, label) == 0.5
    assert layer("Accuracy", "accuracy_param { top_k: 2 }", *shapes)(x, label) == 0.75  # the tie of the last row loses
    assert layer("Accuracy", "accuracy_param { ignore_label: 2 }", *shapes)(x, label) == 0.5
    overall, per_class = layer("Accuracy", "", *shapes, tops=2)(x, label)
    assert (overall.item(), per_class.tolist()) == (0.5, [0, 1, 0.5])
    nothing, _ = layer("Accuracy", "accuracy_param { ignore_label: 2 }", *shapes, tops=2)(x, torch.full((4,), 2.0))
    assert nothing == 0


def test_accuracy_along_another_axis() -> None:
    x, label = randn(2, 7, 3), np.arange(14).reshape(2, 7) % 3
    module = layer("Accuracy", "accuracy_param { axis: -1 }", (2, 7, 3), (2, 7))
    expected = (x.argmax(2).numpy() == label).mean()
    assert module(x, torch.tensor(label, dtype=torch.float32)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("type_", "param", "shapes", "text"),
    [
        ("Accuracy", "", [(4, 5), (3,)], "label .* holds 3 labels; predictions .* need 4"),
        ("Accuracy", "accuracy_param { top_k: 6 }", [(4, 5), (4,)], "top_k 6 is not in 1..5"),
        ("Accuracy", "", [(4, 5)], "1 bottom; the layer takes 2"),
        ("ContrastiveLoss", "", [(4, 5), (4, 5), (5,)], "holds 5 values for 4 pairs"),
        ("ContrastiveLoss", "", [(4, 5), (4, 5), (1, 4)], "must have one value per item"),
        ("EuclideanLoss", "", [(4, 5), (3, 5)], "differ in their first dimension"),
        ("EuclideanLoss", "", [(4, 5), (4, 6)], "hold different numbers of values"),
        ("HingeLoss", "", [(4, 5), (4, 2)], "holds 8 labels for 4 items"),
        ("InfogainLoss", "", [(4, 5), (4,)], "has no infogain matrix"),
        ("InfogainLoss", "", [(4, 5), (4,), (4, 5)], r"shape \(4, 5\), expected \(5, 5\) for 5 classes"),
        ("MultinomialLogisticLoss", "", [(4, 5), ()], "differ in their first dimension"),
        ("SigmoidCrossEntropyLoss", "", [(4, 5), (4,)], "hold different numbers of values"),
        ("SmoothL1Loss", "smooth_l1_loss_param { sigma: 0 }", [(4, 5), (4, 5)], "sigma must not be 0"),
        ("SoftmaxWithLoss", "", [(2, 6, 7, 5), (2, 7)], r"need 70"),
        ("SoftmaxWithLoss", "softmax_param { axis: 2 }", [(4, 5), (4,)], "axis 2 does not exist"),
    ],
)
def test_senseless_parameters(type_: str, param: str, shapes: list[Shape], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        layer(type_, param, *shapes)


def test_a_hopeless_score_costs_87_however_large() -> None:
    """Untrained BatchNorm in TEST makes scores of 1e21; rounding must not swallow the limit."""
    found = lookup("SoftmaxWithLoss")
    assert found is not None
    layer = prototxt.parse('name: "l" type: "SoftmaxWithLoss" top: "l"', "LayerParameter")
    scores = torch.tensor([[2e21, -1e21, 0.0], [0.0, 3e20, 1e20]], requires_grad=True)
    loss = found.build(layer, [(2, 3), (2,)])(scores, torch.tensor([1, 1]))
    assert loss.item() == pytest.approx(87.3365 / 2, rel=1e-5)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
