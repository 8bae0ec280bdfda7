import math
from typing import Any

import pytest
import torch

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import Layer, lookup
from caffe_port.typing import Shape

SHAPE = (2, 6, 7, 5)


def layer(type_: str, param: str, *shapes: Shape, tops: int = 1) -> Layer:
    lines = " ".join(f'top: "t{i}"' for i in range(tops))
    message = prototxt.parse(f'name: "l" type: "{type_}" {lines} {param}', "LayerParameter")
    found = lookup(type_)
    assert found is not None
    return found.build(message, shapes or [SHAPE]).eval()


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


CASES = [
    ("ArgMax", "", [SHAPE], 1),
    ("ArgMax", "argmax_param { top_k: 3 out_max_val: true }", [SHAPE], 1),
    ("ArgMax", "argmax_param { top_k: 3 axis: 1 }", [SHAPE], 1),
    ("Concat", "", [(2, 3, 5), (2, 1, 5), (2, 4, 5)], 1),
    ("Concat", "concat_param { axis: 0 }", [(2, 3)], 1),
    ("Concat", "concat_param { axis: -1 }", [(2, 3, 5), (2, 3, 4)], 1),
    ("Crop", "", [SHAPE, (2, 6, 4, 3)], 1),
    ("Crop", "crop_param { axis: 1 offset: 1 offset: 2 offset: 0 }", [SHAPE, (9, 4, 5, 3)], 1),
    ("Eltwise", "", [SHAPE, SHAPE], 1),
    ("Eltwise", "eltwise_param { operation: PROD }", [SHAPE, SHAPE, SHAPE], 1),
    ("Eltwise", "eltwise_param { operation: MAX }", [SHAPE, SHAPE], 1),
    ("Eltwise", "eltwise_param { operation: MAX }", [SHAPE, SHAPE, SHAPE], 1),
    ("Eltwise", "eltwise_param { coeff: -0.3 coeff: 1 coeff: -1 coeff: 0.7 }", [SHAPE] * 4, 1),
    ("Flatten", "", [SHAPE], 1),
    ("Flatten", "flatten_param { axis: 1 end_axis: 2 }", [SHAPE], 1),
    ("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", [SHAPE], 1),
    ("Permute", "permute_param { order: 3 }", [SHAPE], 1),
    ("Reduction", "", [SHAPE], 1),
    ("Reduction", "reduction_param { operation: ASUM axis: 2 coeff: 0.5 }", [SHAPE], 1),
    ("Reduction", "reduction_param { operation: SUMSQ axis: -1 }", [SHAPE], 1),
    ("Reduction", "reduction_param { operation: MEAN axis: 1 coeff: 2 }", [SHAPE], 1),
    ("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 5 } }", [SHAPE], 1),
    ("Reshape", "reshape_param { shape { dim: 2 dim: 3 } axis: 1 num_axes: 1 }", [SHAPE], 1),
    ("Reshape", "reshape_param { shape { dim: -1 } axis: -4 num_axes: 2 }", [SHAPE], 1),
    ("Reshape", "reshape_param { shape { dim: 1 } axis: -1 num_axes: 0 }", [SHAPE], 1),
    ("ShuffleChannel", "shuffle_channel_param { group: 3 }", [SHAPE], 1),
    ("Slice", "", [SHAPE], 3),
    ("Slice", "", [SHAPE], 1),
    ("Slice", "slice_param { axis: -2 slice_point: 1 slice_point: 3 }", [SHAPE], 3),
    ("Split", "", [SHAPE], 3),
    ("Tile", "tile_param { axis: 2 tiles: 3 }", [SHAPE], 1),
    ("Transpose", "transpose_param { dim: 3 dim: 2 dim: 0 dim: 1 }", [SHAPE], 1),
]


def as_tuple(tops: Any) -> tuple[torch.Tensor, ...]:
    return tops if isinstance(tops, tuple) else (tops,)


@pytest.mark.parametrize(("type_", "param", "shapes", "tops"), CASES)
def test_source_export_float64_and_meta(type_: str, param: str, shapes: list[Shape], tops: int) -> None:
    module = layer(type_, param, *shapes, tops=tops)
    torch.manual_seed(0)
    bottoms = [torch.randn(shape) for shape in shapes]
    made = as_tuple(module(*bottoms))
    assert len(made) == tops
    names = [f"b{i}" for i in range(len(bottoms))]
    if source := module.call_source(*names):
        again = as_tuple(eval(source, {"torch": torch, **dict(zip(names, bottoms, strict=True))}))
        assert all(torch.equal(a, b) for a, b in zip(again, made, strict=True))
    if source := module.torch_source():
        assert torch.equal(eval(source, {"nn": torch.nn})(*bottoms), made[0])
    meta = as_tuple(module.infer(*[x.to("meta") for x in bottoms]))
    assert [t.shape for t in meta] == [t.shape for t in made]
    assert all(t.dtype == torch.float64 for t in as_tuple(module.double()(*[x.double() for x in bottoms])))
    if type_ not in {"Split", "Slice"} or tops > 1:
        exported = as_tuple(torch.export.export(module, tuple(bottoms)).module()(*bottoms))
        assert all(torch.equal(a, b) for a, b in zip(exported, made, strict=True))


@pytest.mark.parametrize(
    ("type_", "param", "shape", "tops"),
    [
        ("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }", SHAPE, 1),
        ("Slice", "slice_param { axis: 0 slice_point: 1 }", SHAPE, 2),
        ("Flatten", "", SHAPE, 1),
        ("Permute", "permute_param { order: 1 }", SHAPE, 1),
    ],
)
def test_another_batch_size(type_: str, param: str, shape: Shape, tops: int) -> None:
    made = as_tuple(layer(type_, param, shape, tops=tops)(numbers(9, *shape[1:])))
    assert sum(t.numel() for t in made) == 9 * math.prod(shape[1:])


def test_argmax_layouts() -> None:
    x = torch.tensor([[[1.0, 5.0, 2.0], [9.0, 0.0, 3.0]], [[4.0, 7.0, 6.0], [2.0, 8.0, 1.0]]])
    assert layer("ArgMax", "argmax_param { top_k: 2 }", (2, 2, 3))(x).tolist() == [[[3, 1]], [[4, 1]]]
    both = layer("ArgMax", "argmax_param { top_k: 2 out_max_val: true }", (2, 2, 3))(x)
    assert both.tolist() == [[[3, 1], [9, 5]], [[4, 1], [8, 7]]]
    assert layer("ArgMax", "argmax_param { axis: 1 }", (2, 2, 3))(x).tolist() == [[[1, 0, 1]], [[0, 1, 0]]]
    values = layer("ArgMax", "argmax_param { axis: -1 out_max_val: true }", (2, 2, 3))(x)
    assert values.tolist() == [[[5], [9]], [[7], [8]]]
    assert tuple(layer("ArgMax", "", (4, 3))(numbers(4, 3)).shape) == (4, 1, 1)
    assert tuple(layer("ArgMax", "", (4, 3, 2, 5, 1))(numbers(4, 3, 2, 5, 1)).shape) == (4, 1, 1, 1, 1)


def test_argmax_of_equal_values_is_the_last() -> None:
    x = torch.tensor([[0.0, 2.0, 2.0, 1.0, 2.0]])
    assert layer("ArgMax", "argmax_param { top_k: 4 }", (1, 5))(x).flatten().tolist() == [4, 2, 1, 3]


def test_batch_reindex_and_filter() -> None:
    x = numbers(3, 2)
    index = torch.tensor([2.0, 0.0, 2.0, 1.0])
    reindex = layer("BatchReindex", "", (3, 2), (4,))
    assert torch.equal(reindex(x, index), x[[2, 0, 2, 1]])
    keep = layer("Filter", "", (3, 2), (3, 4), (3, 1), tops=2)
    y = numbers(3, 4)
    first, second = keep(x, y, torch.tensor([[1.0], [0.0], [-2.0]]))
    assert torch.equal(first, x[[0, 2]])
    assert torch.equal(second, y[[0, 2]])
    allocated = keep.infer(x, y, torch.empty(3, 1))
    assert [tuple(t.shape) for t in as_tuple(allocated)] == [(3, 2), (3, 4)]


def test_crop_follows_the_reference() -> None:
    crop = layer("Crop", "crop_param { offset: 1 offset: 2 }", (1, 3, 8, 9), (1, 5, 4, 6))
    x = numbers(2, 3, 8, 9)
    assert torch.equal(crop(x, torch.empty(2, 5, 4, 6)), x[:, :, 1:5, 2:8])
    assert torch.equal(crop(x, torch.empty(2, 5, 7, 3)), x[:, :, 1:8, 2:5])


def test_maximum_gradient_goes_to_one_bottom() -> None:
    a, b, c = (torch.tensor([1.0, 2.0, 2.0], requires_grad=True) for _ in range(3))
    layer("Eltwise", "eltwise_param { operation: MAX }", (3,), (3,), (3,))(a, b, c).sum().backward()
    assert [x.grad.tolist() for x in (a, b, c) if x.grad is not None] == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("param", "bottoms", "source"),
    [
        ("", 2, "a + b"),
        ("operation: PROD", 3, "a * b * c"),
        ("coeff: 1 coeff: 1", 2, "a + b"),
        ("coeff: 2 coeff: -1", 2, "2 * a - b"),
        ("coeff: 1 coeff: -0.5 coeff: 0.25", 3, "a - 0.5 * b + 0.25 * c"),
        ("operation: MAX", 2, "torch.where(a > b, a, b)"),
        ("operation: MAX", 3, None),
    ],
)
def test_eltwise_source(param: str, bottoms: int, source: str | None) -> None:
    module = layer("Eltwise", f"eltwise_param {{ {param} }}", *[SHAPE] * bottoms)
    assert module.call_source(*"abc"[:bottoms]) == source


@pytest.mark.parametrize(
    ("type_", "param", "shape", "tops", "source"),
    [
        ("Flatten", "", SHAPE, 1, "x.flatten(1)"),
        ("Permute", "permute_param { order: 0 order: 2 order: 3 }", SHAPE, 1, "x.permute(0, 2, 3, 1)"),
        ("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }", SHAPE, 1, "x.reshape(x.shape[0], -1)"),
        ("Slice", "slice_param { slice_point: 2 }", SHAPE, 2, "torch.tensor_split(x, (2,), dim=1)"),
        ("Reduction", "reduction_param { axis: 3 coeff: 2 }", SHAPE, 1, "2 * x.sum(dim=3)"),
        ("Tile", "tile_param { tiles: 2 }", SHAPE, 1, "x.repeat(1, 2, 1, 1)"),
    ],
)
def test_readable_source(type_: str, param: str, shape: Shape, tops: int, source: str) -> None:
    assert layer(type_, param, shape, tops=tops).call_source("x") == source


def test_layers_without_tops() -> None:
    assert layer("Silence", "", SHAPE, (3, 4), tops=0)(numbers(2), numbers(3)) == ()


@pytest.mark.parametrize(
    ("type_", "param", "shapes", "tops", "message"),
    [
        ("ArgMax", "argmax_param { top_k: 7 axis: 1 }", [SHAPE], 1, r"top_k 7 is not in 1..6"),
        ("ArgMax", "argmax_param { axis: -5 }", [SHAPE], 1, "axis -5 does not exist"),
        ("BatchReindex", "", [SHAPE, (3, 1)], 1, r"shape \(3, 1\), expected one axis"),
        ("Concat", "", [(2, 3, 5), (2, 3, 4)], 1, "cannot be concatenated along axis 1"),
        ("Concat", "", [(2, 3, 5), (2, 3)], 1, "cannot be concatenated along axis 1"),
        ("Concat", "concat_param { axis: 0 concat_dim: 1 }", [(2, 3), (2, 3)], 1, "axis and concat_dim are both given"),
        ("Concat", "concat_param { concat_dim: 4 }", [SHAPE, SHAPE], 1, "axis 4 does not exist"),
        ("Crop", "crop_param { offset: 5 }", [SHAPE, SHAPE], 1, "offset 5 plus size 7 exceeds 7"),
        ("Crop", "crop_param { axis: 1 offset: 1 offset: 1 }", [SHAPE, SHAPE], 1, "2 offsets, expected 1 or 3"),
        ("Crop", "", [SHAPE, (2, 3)], 1, "which has fewer axes"),
        ("Eltwise", "", [SHAPE, (2, 6, 7, 4)], 1, "differ in shape"),
        ("Eltwise", "eltwise_param { coeff: 1 }", [SHAPE, SHAPE], 1, "1 coefficient for 2 bottoms"),
        (
            "Eltwise",
            "eltwise_param { operation: PROD coeff: 1 coeff: 1 }",
            [SHAPE, SHAPE],
            1,
            "does not use coefficients",
        ),
        ("Filter", "", [SHAPE, (3,)], 1, "has 2 items, the selector 3"),
        ("Filter", "", [SHAPE, (2, 2)], 1, "all axes except the first must be 1"),
        ("Flatten", "flatten_param { axis: 3 end_axis: 1 }", [SHAPE], 1, "axis 3 comes after end_axis 1"),
        ("Permute", "permute_param { order: 1 order: 1 }", [SHAPE], 1, r"order \[1, 1\] must list distinct axes"),
        ("Permute", "permute_param { order: 4 }", [SHAPE], 1, "less than 4"),
        ("Reduction", "reduction_param { axis: 4 }", [SHAPE], 1, "axis 4 does not exist"),
        ("Reshape", "reshape_param { shape { dim: 0 dim: 4 } }", [SHAPE], 1, "does not match the 420 values"),
        ("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 4 } }", [SHAPE], 1, "does not match the 420 values"),
        ("Reshape", "reshape_param { shape { dim: -1 dim: -1 } }", [SHAPE], 1, "-1 may occur once"),
        ("Reshape", "reshape_param { shape { dim: -2 } }", [SHAPE], 1, "other lengths must not be negative"),
        ("Reshape", "reshape_param { shape { dim: 0 } axis: 4 }", [SHAPE], 1, "does not have"),
        ("Reshape", "reshape_param { shape { dim: 1 } axis: 5 }", [SHAPE], 1, "axis 5 is out of range"),
        ("Reshape", "reshape_param { shape { dim: 1 } axis: 3 num_axes: 2 }", [SHAPE], 1, "num_axes 2 do not fit"),
        ("ShuffleChannel", "shuffle_channel_param { group: 4 }", [SHAPE], 1, "group 4 does not divide"),
        ("Slice", "", [SHAPE], 4, "4 tops do not divide the 6 of axis 1"),
        ("Slice", "slice_param { slice_point: 1 }", [SHAPE], 3, "1 slice points for 3 tops"),
        ("Slice", "slice_param { slice_point: 4 slice_point: 2 }", [SHAPE], 3, r"slice points \[4, 2\] must increase"),
        ("Slice", "slice_param { slice_point: 6 }", [SHAPE], 2, "within 1..5"),
        ("Tile", "tile_param { axis: 1 }", [SHAPE], 1, "tiles is not given"),
        ("Tile", "tile_param { tiles: 0 }", [SHAPE], 1, "tiles is 0"),
    ],
)
def test_senseless_parameters(type_: str, param: str, shapes: list[Shape], tops: int, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        layer(type_, param, *shapes, tops=tops)
