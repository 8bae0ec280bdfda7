"""Activations, sums, sequences and other small layers of forks: against formulas in float64, by hand, OpenCV."""

import itertools
import math

import numpy as np
import pytest
import torch
from fork_layers import build, layer_text, random
from opencv_layer import opencv

from caffe_port.errors import CaffePortError, SpecError
from caffe_port.layers import lookup

X = random(2, 3, 5, 6, scale=3.0)


@pytest.mark.parametrize(
    ("kind", "text", "formula"),
    [
        ("HSwish", "", lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ("HSigmoid", "", lambda x: np.clip(x + 3, 0, 6) / 6),
        ("SELU", "", lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
        ("SELU", "selu_param { lambda: 2 alpha: 3 }", lambda x: 2 * np.where(x > 0, x, 3 * np.expm1(x))),
        ("SeLu", "selu_param { lambda: 2 alpha: 3 }", lambda x: 2 * np.where(x > 0, x, 3 * np.expm1(x))),
        ("Atan", "", np.arctan),
        ("Flip", "", lambda x: x[..., ::-1]),
        ("Flip", "flip_param { flip_width: false flip_height: true }", lambda x: x[:, :, ::-1]),
        ("VoxelSoftmax", "", lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
        ("PowerFile", "", lambda x: x),
        ("NegReLU", "relu_param { negative_slope: 0.1 }", lambda x: np.minimum(x, 0) + 0.1 * np.maximum(x, 0)),
        ("SignedSqrt", "", lambda x: np.sign(x) * np.sqrt(np.abs(x))),
        ("Softplus", "", lambda x: np.log1p(np.exp(x))),
        ("Truncation", "truncation_param { truncation_min: -1 truncation_max: 2 }", lambda x: np.clip(x, -1, 2)),
        ("Truncation", "truncation_param { truncation_max: 2 }", lambda x: np.minimum(x, 2)),
        ("Insanity", "", lambda x: np.where(x > 0, x, x * math.log(2) / 5)),
        ("Noise", "noise_param { gaussian_std: 2 }", lambda x: x),
        ("SpatialDropout", "", lambda x: x),
        ("SeLuDropout", "selu_dropout_param { dropout_ratio: 0.3 }", lambda x: x),
        ("GradientScaler", "", lambda x: x),
        ("Sum", "", lambda x: x.sum((1, 2, 3)).reshape(2, 1, 1, 1)),
        ("L2Normalize", "", lambda x: x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True) + 1e-7)),
        ("Normalization", "", lambda x: x / np.sqrt((x**2).sum((1, 2, 3), keepdims=True))),
        (
            "Mean",
            "mean_param { operation: SUBTRACT value: [1, 2, 3] input_scale: 0.5 output_scale: 4 mean_scale: 2 }",
            lambda x: 4 * (0.5 * x - 2 * np.array([1.0, 2, 3])[:, None, None]),
        ),
        ("MIL", "mil_param { type: MAX }", lambda x: x.max((2, 3), keepdims=True)),
        (
            "BatchReduction",
            "batch_reduction_param { reduction_param { axis: 2 operation: MEAN } }",
            lambda x: x.mean(2),
        ),
        (
            "BatchReduction",
            "batch_reduction_param { level: [1, 2] reduction_param { axis: 2 } }",
            lambda x: np.stack((x[:, :, 0], x[:, :, 1:].sum(2)), 2),
        ),
    ],
)
def test_the_formula(kind, text, formula):
    layer = build(kind, text, X.shape)
    want = formula(X.double().numpy())
    np.testing.assert_allclose(layer(X).numpy(), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.double()(X.double()).numpy(), want, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize(("kind", "name"), [("HSwish", "HardSwish"), ("SELU", "Selu")])
def test_opencv_says_the_same(kind, name):
    np.testing.assert_allclose(
        build(kind, "", X.shape)(X).numpy(), opencv(layer_text(name, 1, ""), X), rtol=1e-4, atol=1e-5
    )
    assert lookup(name) is lookup(kind)


@pytest.mark.parametrize(
    "kind", ["HSwish", "SELU", "NegReLU", "Insanity", "EltwiseAffine", "CompactBilinear", "Scalar"]
)
def test_gradients(kind):
    text = {
        "EltwiseAffine": "eltwise_affine_param { channel_shared: true }",
        "CompactBilinear": "compact_bilinear_param { num_output: 6 sum_pool: false }",
    }
    bottoms = [random(2, 3, 2, 4).double().requires_grad_() for _ in range(1 + (kind == "CompactBilinear"))]
    layer = build(kind, text.get(kind, ""), *(x.shape for x in bottoms)).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.autograd.gradcheck(layer, bottoms)


def test_signed_sqrt_has_a_finite_gradient():
    x = torch.tensor([[0.0, 4, -9]], requires_grad=True)
    build("SignedSqrt", "", x.shape)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[5000.0, 0.5 / 2.0001, 0.5 / 3.0001]]))


def test_a_gradient_turns_round():
    for text, slope in (
        ("", -1.0),
        ("upper_bound: 0.5", -0.5),
        ("scale_factor: -0.1", -0.1),  # da-faster-rcnn's, which is the gradient's own factor
        ("lower_bound: 1 upper_bound: 3 alpha: 2", -(1 + 2 * math.tanh(1))),
    ):
        x = torch.ones(2, 3, requires_grad=True)
        build("GradientScaler", f"gradient_scaler_param {{ {text} }}", x.shape)(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.full((2, 3), slope))


def test_what_is_drawn_in_training_has_the_right_size():
    torch.manual_seed(0)
    x = torch.full((50, 40), -10.0)
    assert build("Insanity", "insanity_param { lb: 2 ub: 4 }", x.shape).train()(x).aminmax() == pytest.approx(
        (-5, -2.5), abs=0.01
    )
    noise = build("Noise", "noise_param { gaussian_std: 3 bias: 1 }", x.shape).train()(x) - x
    assert (noise.mean().item(), noise.std().item()) == (pytest.approx(1, abs=2), pytest.approx(30, abs=2))
    noise = build("Noise", "noise_param { uniform_range: 3 bias: 1 }", x.shape).train()(x) - x
    assert noise.aminmax() == pytest.approx((-2, 4), abs=0.05)
    dropped = build("SpatialDropout", "spatial_dropout_param { dropout_ratio: 0.25 }", (9, 8, 3, 2)).train()
    kept = dropped(torch.ones(9, 8, 3, 2)).flatten(2)
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(kept.amin(2), kept.amax(2))


def test_noisy_or_and_its_gradient_are_the_sources():
    p = random(2, 3, 2, 4).sigmoid().double().requires_grad_()
    y = build("MIL", "mil_param { type: NOR }", p.shape)(p)
    y.sum().backward()
    values = p.detach().flatten(2)
    want = torch.maximum(1 - (1 - values).prod(2), values.amax(2))[..., None, None]
    torch.testing.assert_close(y.detach(), want)
    torch.testing.assert_close(p.grad, ((1 - want) / (1 - p.detach())).clamp(max=1))


def test_affine_and_scalar():
    layer = build("EltwiseAffine", "", X.shape)
    with torch.no_grad():
        layer.slope.copy_(torch.tensor([1.0, 2, 3]))
        layer.bias.copy_(torch.tensor([4.0, 5, 6]))
    along = torch.tensor([1.0, 2, 3])[:, None, None]
    torch.testing.assert_close(layer(X).detach(), X * along + 3 + torch.tensor([1.0, 2, 3])[:, None, None])
    assert {name: f.value for name, f in layer.fillers(build_message("eltwise_affine_param")).items()} == {
        "slope": pytest.approx(1.0001),
        "bias": pytest.approx(0.0001),
    }
    scalar = build("Scalar", "", X.shape)
    with torch.no_grad():
        scalar.weight.copy_(torch.tensor([1.0, 2, 3]))
    torch.testing.assert_close(scalar(X).detach(), X * along)
    factor = random(2, 3)
    assert torch.equal(
        build("Scalar", "scalar_param { axis: 0 }", X.shape, factor.shape)(X, factor), X * factor[..., None, None]
    )


def build_message(name):
    from caffe_port.formats.message import Message

    return getattr(Message("LayerParameter"), name)


def test_compact_bilinear_is_a_circular_convolution_of_sketches():
    a, b = random(2, 3, 2, 4), random(2, 5, 2, 4, seed=1)
    layer = build("CompactBilinear", "compact_bilinear_param { num_output: 7 }", a.shape, b.shape)
    numbers = [1804289383, 846930886, 1681692777, 1714636915, 1957747793, 424238335]  # glibc's rand(), seed 1
    assert layer.places[0] == [n % 7 for n in numbers[:3]]
    assert layer.signs[0] == [2 * (n % 2) - 1 for n in numbers[3:]]
    want = np.zeros((2, 7))
    for n, i, j, h, w in itertools.product(range(2), range(3), range(5), range(2), range(4)):
        place = (layer.places[0][i] + layer.places[1][j]) % 7
        want[n, place] += layer.signs[0][i] * layer.signs[1][j] * a[n, i, h, w].item() * b[n, j, h, w].item()
    np.testing.assert_allclose(layer(a, b).flatten(1).numpy(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("softmax", "boxes"), [(True, 3), (False, 2)])
def test_region_yolo_is_openvinos_loop(softmax, boxes):
    x = random(2, boxes * 9, 3, 4)
    text = f"num: 3 classes: 4 do_softmax: {str(softmax).lower()} mask: [0, 1]"
    got = build("RegionYolo", f"region_yolo_param {{ {text} }}", x.shape)(x)
    want = x.double().numpy().copy()
    for n, k, i, j in np.ndindex(2, boxes, 3, 4):
        v = want[n, 9 * k : 9 * k + 9, i, j]
        v[[0, 1, 4]] = 1 / (1 + np.exp(-v[[0, 1, 4]]))
        v[5:] = np.exp(v[5:]) / np.exp(v[5:]).sum() if softmax else 1 / (1 + np.exp(-v[5:]))
    assert got.shape == ((2, boxes * 9 * 12) if softmax else x.shape)
    np.testing.assert_allclose(got.flatten(1).numpy(), want.reshape(2, -1), rtol=1e-5)


def test_ctc_decoding_by_hand():
    best = torch.tensor([[1, 1, 2], [1, 0, 3], [3, 1, 2], [1, 1, 2], [2, 3, 0]])  # (T, N), blank 3
    x = torch.nn.functional.one_hot(best, 4).float() * torch.arange(1.0, 6)[:, None, None]
    cont = torch.ones(5, 3)
    cont[0], cont[4, 1] = 0, 0
    layer = build("CTCGreedyDecoder", "", x.shape, cont.shape, top=2)
    sequences, scores = layer(x, cont)
    assert sequences.flatten(1).T.tolist() == [[1, 1, 2, -1, -1], [1, 0, 1, -1, -1], [2, 2, 0, -1, -1]]
    assert scores.flatten().tolist() == [-15, -10, -15]
    plain = build(
        "CTCGreedyDecoder", "ctc_decoder_param { blank_index: 0 ctc_merge_repeated: false }", *[x.shape, (5, 3)]
    )
    assert plain(x, cont).flatten(1).T.tolist() == [[1, 1, 3, 1, 2], [1, 1, 1, -1, -1], [2, 3, 2, 2, -1]]


def test_sequences_turn_round_up_to_their_ends():
    x = torch.arange(24.0).reshape(4, 2, 3)
    length = torch.tensor([3.0, 2])
    y = build("ReverseTime", "", x.shape, length.shape)(x, length)
    assert torch.equal(y[:, 0], x[[2, 1, 0, 3], 0])
    assert torch.equal(y[:, 1], x[[1, 0, 2, 3], 1])
    cut = build("ReverseTime", "reverse_time_param { copy_remaining: false }", x.shape, length.shape)(x, length)
    assert torch.equal(cut[:, 1], torch.cat((x[[1, 0], 1], torch.zeros(2, 3))))
    turned = build("ReverseAxis", "reverse_axis_param { axis: 2 }", x.shape)(x)
    assert torch.equal(turned, x.flip(2))


def test_pass_through_is_reorg():
    x = random(2, 8, 4, 6)
    other = build("PassThrough", "pass_through_param { num_output: 32 block_height: 2 block_width: 2 }", x.shape)
    assert torch.equal(other(x), build("Reorg", "reorg_param { stride: 2 }", x.shape)(x))


def test_mask_pooling_and_writers():
    mask = random(2, 1, 5, 6)
    assert torch.equal(build("MaskPooling", "", X.shape, mask.shape)(X, mask), X * mask)
    assert build("FLOWriter", "writer_param { folder: 'x' }", X.shape)(X) == ()


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "says"),
    [
        ("Insanity", "insanity_param { lb: 3 ub: 2 }", [(2, 3)], "lb must be less"),
        ("EltwiseAffine", "", [(2,)], "at least 2 axes"),
        ("Truncation", "truncation_param { truncation_min: 3 truncation_max: 2 }", [(2, 3)], "greater than"),
        ("MIL", "", [(2, 3)], "N, C, H, W"),
        ("BatchReduction", "batch_reduction_param { level: 2 }", [(5, 3)], "axis 0 has 5"),
        ("CompactBilinear", "compact_bilinear_param { num_output: 5 }", [(2, 3, 4, 5), (2, 3, 4, 6)], "differ in C"),
        ("Mean", "mean_param { file: 'x' }", [(2, 3, 4, 5)], "file is not supported"),
        ("RegionYolo", "region_yolo_param { num: 2 }", [(2, 30, 4, 5)], "2 boxes of 25"),
        ("CTCGreedyDecoder", "", [(5, 2, 3), (5, 3)], "cont \\(T, N\\)"),
        ("ReverseTime", "", [(5, 2, 3), (5,)], "N lengths"),
        ("PassThrough", "pass_through_param { block_height: 2 block_width: 3 }", [(2, 12, 4, 6)], "not square"),
    ],
)
def test_bad_definitions_are_refused(kind, text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build(kind, text, *shapes)


def test_dropout_after_selu_keeps_mean_and_variance():
    x = torch.randn(200, 500, generator=torch.Generator().manual_seed(1))
    layer = build("SeLUDropout", "selu_dropout_param { dropout_ratio: 0.3 }", x.shape).train()
    torch.manual_seed(0)
    y = layer(x)
    assert abs(y.mean()) < 0.02
    assert abs(y.std() - 1) < 0.02
    torch.manual_seed(0)
    ours = y - torch.where(torch.rand_like(x) < 0.7, x, -1.75809932) * (0.7 * (1 + 1.75809932**2 * 0.3)) ** -0.5
    torch.testing.assert_close(ours, torch.full_like(x, 0.3 * 1.75809932 * (0.7 * (1 + 1.75809932**2 * 0.3)) ** -0.5))
    with pytest.raises(SpecError, match="is not between 0 and 1"):
        build("SeLUDropout", "selu_dropout_param { dropout_ratio: 1 }", x.shape)


@pytest.mark.parametrize(
    ("numbers", "shift"),
    [("1 0.5 -2", [1, 0.5, -2]), ("1\n2e1", [1, 20, 0]), ("1 2 3 4", [1, 2, 3]), ("1 x 3", [1, 0, 0])],
)
def test_the_numbers_of_a_file_are_added(tmp_path, numbers, shift):
    path = tmp_path / "shift.txt"
    path.write_text(numbers)
    x = torch.arange(6.0).reshape(2, 3, 1)
    layer = build("PowerFile", f'power_file_param {{ shift_file: "{path}" }}', x.shape)
    torch.testing.assert_close(layer(x), x + torch.tensor(shift).reshape(3, 1))


def test_a_file_of_numbers_that_is_not_there(tmp_path):
    with pytest.raises(CaffePortError, match=r"shift\.txt"):
        build("PowerFile", f'power_file_param {{ shift_file: "{tmp_path / "shift.txt"}" }}', (2, 3))


@pytest.mark.parametrize("way", ["COLLECT", "DISTRIBUTE"])
def test_attention_to_one_neighbor(way):
    """A weight for the place to the right alone: taken from there, or given to it."""
    x = torch.arange(2.0 * 3 * 2 * 3).reshape(2, 3, 2, 3) + 1
    mask = torch.zeros(2, 9, 2, 3)
    mask[:, 5] = 2  # the middle row, the last column
    own = f"pointwise_spatial_attention_param {{ attention_mask_height: 3 attention_mask_width: 3 psa_type: {way} }}"
    y = build("PointwiseSpatialAttention", own, x.shape, mask.shape)(x, mask)
    empty = torch.zeros(2, 3, 2, 1)
    moved = torch.cat((x[..., 1:], empty) if way == "COLLECT" else (empty, x[..., :-1]), 3)
    torch.testing.assert_close(y, moved * 2 / 9)


def test_attention_counts_what_the_mask_does_not_reach():
    x, mask = torch.rand(1, 2, 2, 3), torch.zeros(1, 15, 2, 3)
    own = "pointwise_spatial_attention_param { is_softmax: true normalization_factor: 2 }"
    y = build("PointwiseSpatialAttention", own, x.shape, mask.shape)(x, mask)
    torch.testing.assert_close(y, x.mean((2, 3), keepdim=True).expand_as(x) / 2)
    own = "pointwise_spatial_attention_param { attention_mask_height: 3 }"
    with pytest.raises(SpecError, match="odd numbers above 1"):
        build("PointwiseSpatialAttention", own, x.shape, mask.shape)
