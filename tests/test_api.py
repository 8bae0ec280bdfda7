"""load and port on real files: the authors' weights and prototxts, the zoo, and the errors that people meet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SHARED, needs_shared

import caffe_port
from caffe_port import api
from caffe_port.errors import CaffePortError, SpecError, WeightsError
from caffe_port.formats import caffemodel

pytestmark = needs_shared

SIMPLENET = SHARED / "models" / "simplenet"
ZOO = SHARED / "models" / "zoo"
MNIST = SIMPLENET / "mnist_9972"

# Weights, prototxt (empty: the definition inside), input shapes asked for, inputs, outputs with their shapes
ZOO_MODELS = [
    ("caffe2014_lenet_v1/lenet_iter_10000.caffemodel", "", {}, (1, 1, 28, 28), {"ip2": (1, 10)}),
    ("caffe2014_lenet_v1/lenet_iter_10000.caffemodel", "lenet.prototxt", {}, (64, 1, 28, 28), {"prob": (64, 10)}),
    (
        "caffe2014_lenet_v1/lenet_iter_10000.caffemodel",
        "lenet_train_test.prototxt",
        {},
        (1, 1, 28, 28),
        {"ip2": (1, 10)},
    ),
    ("caffe2014_cifar10_v1/cifar10_full_iter_70000.caffemodel", "", {}, (1, 3, 32, 32), {"ip1": (1, 10)}),
    (
        "caffe2014_cifar10_v1/cifar10_full_iter_70000.caffemodel",
        "cifar10_full.prototxt",
        {},
        (1, 3, 32, 32),
        {"prob": (1, 10)},
    ),
    ("caffe2014_cifar10_v1/cifar10_quick_iter_5000.caffemodel", "", {}, (1, 3, 32, 32), {"ip2": (1, 10)}),
    (
        "caffe2014_cifar10_v1/cifar10_quick_iter_5000.caffemodel",
        "cifar10_quick_train_test.prototxt",
        {},
        (1, 3, 32, 32),
        {"ip2": (1, 10)},
    ),
    (
        "arm_cmsisnn_cifar10/cifar10_m4_iter_70000.caffemodel.h5",
        "cifar10_m4_train_test.prototxt",
        {},
        (1, 3, 32, 32),
        {"ip1": (1, 10)},
    ),
    (
        "arm_cmsisnn_cifar10/cifar10_m7_iter_300000.caffemodel.h5",
        "cifar10_m7_train_test.prototxt",
        {},
        (1, 3, 32, 32),
        {"ip1": (1, 10)},
    ),
    ("arm_cmsisnn_cifar10/quantized_cifar10_m4_iter_70000.caffemodel", "", {}, (1, 3, 32, 32), {"ip1": (1, 10)}),
    ("arm_cmsisnn_cifar10/quantized_cifar10_m7_iter_300000.caffemodel", "", {}, (1, 3, 32, 32), {"ip1": (1, 10)}),
    ("mtcnn_v2/det1.caffemodel", "det1.prototxt", {}, (1, 3, 12, 12), {"conv4-2": (1, 4, 1, 1), "prob1": (1, 2, 1, 1)}),
    (
        "mtcnn_v2/det1.caffemodel",
        "",
        {"data12face": (2, 3, 12, 14)},
        (2, 3, 12, 14),
        {"conv4-1": (2, 2, 1, 2), "conv4-2": (2, 4, 1, 2)},
    ),
    ("mtcnn_v2/det2.caffemodel", "det2.prototxt", {}, (1, 3, 24, 24), {"conv5-2": (1, 4), "prob1": (1, 2)}),
    (
        "mtcnn_v2/det3.caffemodel",
        "det3.prototxt",
        {},
        (1, 3, 48, 48),
        {"conv6-2": (1, 4), "conv6-3": (1, 10), "prob1": (1, 2)},
    ),
    (
        "ultralight_slim-320/slim-320.caffemodel",
        "slim-320.prototxt",
        {},
        (1, 3, 240, 320),
        {"boxes": (1, 4420, 4), "scores": (1, 4420, 2)},
    ),
    ("wechat_qrcode_sr/sr.caffemodel", "sr.prototxt", {"data": (2, 1, 17, 23)}, (2, 1, 17, 23), {"fc": (2, 1, 33, 45)}),
]


@pytest.mark.parametrize(("weights", "prototxt", "given", "shape", "outputs"), ZOO_MODELS)
def test_the_zoo(
    weights: str,
    prototxt: str,
    given: dict[str, tuple[int, ...]],
    shape: tuple[int, ...],
    outputs: dict[str, tuple[int, ...]],
) -> None:
    path = ZOO / weights
    ported = api.port(path.parent / prototxt if prototxt else None, path, input_shapes=given)
    net = ported.net
    assert not net.training
    assert [net.plan.shapes[source] for _, source in net.plan.spec.inputs] == [shape]
    assert ported.report is not None
    assert not ported.report.initialised
    with torch.no_grad():
        made = net(torch.zeros(shape))
    made = {net.plan.outputs[0][0]: made} if isinstance(made, torch.Tensor) else made
    assert {blob: tuple(value.shape) for blob, value in made.items()} == outputs
    assert all(value.isfinite().all() for value in made.values())


@pytest.mark.parametrize(("folder", "shape"), [("mnist_9972", (1, 1, 28, 28)), ("svhn_9757", (1, 3, 32, 32))])
def test_the_authors_weights_alone(folder: str, shape: tuple[int, ...]) -> None:
    path = SIMPLENET / folder / "weights.caffemodel"
    ported = api.port(None, path)
    assert ported.net.plan.inputs == ("data",)
    assert ported.net.plan.shapes[ported.net.plan.spec.inputs[0][1]] == shape
    assert ported.net(torch.zeros(3, *shape[1:])).shape == (3, 10)
    assert ported.definition.saved_in == "TRAIN"
    assert "10 BatchNorm layers saved in TRAIN with use_global_stats: false" in ported.notes[0]
    assert ported.report is not None
    assert (ported.report.initialised, ported.report.unused) == ((), ())
    stored = caffemodel.read(path).by_name()
    for name, blobs in ported.net.blobs().items():
        for got, want in zip(blobs, stored[name].blobs, strict=True):
            assert (got.ravel() == want.ravel()).all(), name


def test_the_authors_prototxt_that_fits() -> None:
    ported = api.port(SIMPLENET / "svhn_9757" / "train_test.prototxt", SIMPLENET / "svhn_9757" / "weights.caffemodel")
    assert ported.report is not None
    assert (ported.report.initialised, ported.report.unused) == ((), ())
    assert ported.net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_authors_prototxt_that_does_not_fit() -> None:
    """Of the layers with blobs 10 of 14 with weights differ, 4 of 10 BatchNorms and 4 of 10 Scales."""
    with pytest.raises(WeightsError) as caught:
        caffe_port.load(MNIST / "train_test.prototxt", MNIST / "weights.caffemodel")
    assert str(caught.value) == (
        f"{MNIST / 'weights.caffemodel'}: layer 'conv1' holds weight (32, 1, 3, 3), the prototxt asks for "
        "(64, 1, 3, 3); 18 of 34 layers differ.\n"
        "  The caffemodel matches its own definition: run without the prototxt, or compare them with "
        "`caffe-port inspect --diff`."
    )


def test_six_of_fourteen_widths() -> None:
    """By num_output alone, which is what the prototxt's author changed; the shapes of ten follow."""
    ours = {layer.name: layer for layer in api.port(None, MNIST / "weights.caffemodel").definition.net.layer}
    theirs = {layer.name: layer for layer in api.Definition.read(MNIST / "train_test.prototxt").net.layer}
    widths = [
        (ours[n].convolution_param.num_output, theirs[n].convolution_param.num_output)
        for n in ours
        if n in theirs and ours[n].type in ("Convolution", "InnerProduct")
    ]
    assert (sum(a != b for a, b in widths), len(widths)) == (6, 14)


def test_weights_of_another_net() -> None:
    cifar = ZOO / "caffe2014_cifar10_v1"
    with pytest.raises(
        WeightsError, match=r"layer 'ip1' holds weight \(1, 1, 10, 1024\), the prototxt asks for \(64, 1024\)"
    ):
        caffe_port.load(cifar / "cifar10_quick.prototxt", cifar / "cifar10_full_iter_70000.caffemodel")
    with pytest.raises(WeightsError) as caught:
        caffe_port.load(ZOO / "mtcnn_v2" / "det2.prototxt", ZOO / "mtcnn_v2" / "det1.caffemodel")
    assert caught.value.hint.startswith("The caffemodel matches its own definition")


# -- without weights ------------------------------------------------------------------------------------------------


def test_the_published_cifar10_prototxt_converts_as_it_is() -> None:
    ported = api.port(SIMPLENET / "cifar10_9532" / "train_val.prototxt")
    assert ported.net.plan.inputs == ("data",)
    assert ported.net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in ported.net.parameters()) == pytest.approx(5.48e6, rel=0.005)
    assert ported.weights is ported.report is None
    assert "no weights given: parameters initialized from the fillers (seed 0)" in ported.notes
    assert any("3 assumed" in note for note in ported.notes)
    training = ported.net.train()
    assert training(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_published_cifar10_prototxt_with_its_losses() -> None:
    net = api.port(SIMPLENET / "cifar10_9532" / "train_val.prototxt", keep_loss=True).net
    assert net.plan.inputs == ("data", "label")
    outputs, loss = net.forward_with_loss(torch.zeros(4, 3, 32, 32), torch.tensor([0.0, 1, 2, 3]))
    assert list(outputs) == ["accuracy", "loss"]
    assert loss.item() == pytest.approx(outputs["loss"].item())
    outputs, loss = net.train().forward_with_loss(torch.randn(4, 3, 32, 32), torch.tensor([0.0, 1, 2, 3]))
    assert list(outputs) == ["accuracy_training", "loss"], "the other Accuracy belongs to TEST"
    loss.backward()


def test_a_training_net_whose_size_nobody_says() -> None:
    path = SIMPLENET / "cifar10_9475" / "train_val.prototxt"
    ported = caffe_port.port(path)
    assert ported.net.plan.shapes["cifar", 0] == (1, 3, 32, 32), "the layer's name tells"
    assert (
        "the file does not define the input shapes; assumed (set others if needed): --input-shape data=1,3,32,32"
        in ported.notes
    )
    assert caffe_port.load(path, input_shapes={"data": (2, 3, 32, 32)})(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("DropoutAll", 5_495_818),
        ("NoDropout", 5_495_818),
        ("Slim_version_310KParams", 312_234),
        ("Slim_version_460KParams", 456_862),
    ],
)
def test_published_architectures_without_a_data_layer(name: str, parameters: int) -> None:
    path = SIMPLENET / "architectures" / f"{name}.prototxt"
    with pytest.raises(SpecError, match="bottom 'data' does not exist: the net has no input layer\n  Set its shape"):
        caffe_port.load(path)
    net = caffe_port.load(path, input_shapes={"data": (2, 3, 32, 36)})
    assert net.plan.inputs == ("data",)
    assert net(torch.zeros(2, 3, 32, 36)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_the_seed() -> None:
    path = SIMPLENET / "architectures" / "Slim_version_310KParams.prototxt"
    one, same, other = (caffe_port.load(path, input_shapes={"data": (1, 3, 32, 32)}, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_stages() -> None:
    """The autoencoder's TEST nets differ by their data only, which none of them makes by default."""
    path = ZOO / "caffe2014_lenet_v1" / "mnist_autoencoder.prototxt"
    for stages in ((), ("test-on-test",)):
        net = caffe_port.load(path, input_shapes={"data": (2, 1, 28, 28)}, stages=stages)
        assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 784)


# -- what can go wrong ----------------------------------------------------------------------------------------------


def test_nothing_given() -> None:
    with pytest.raises(CaffePortError, match="give a prototxt, a caffemodel, or both"):
        caffe_port.load()


def test_the_files_the_wrong_way_round() -> None:
    with pytest.raises(CaffePortError) as caught:
        caffe_port.load(MNIST / "weights.caffemodel", MNIST / "train_test.prototxt")
    assert "\n  " in str(caught.value), "it says what to do"


def test_a_solver_instead_of_the_net() -> None:
    with pytest.raises(CaffePortError, match="This looks like a solver; give the net that its 'net:' field names"):
        caffe_port.load(MNIST / "solver.prototxt", MNIST / "weights.caffemodel")


def test_hdf5_needs_a_prototxt() -> None:
    path = ZOO / "arm_cmsisnn_cifar10" / "cifar10_m4_iter_70000.caffemodel.h5"
    with pytest.raises(SpecError, match=r"contains no definition \(HDF5 stores only weights\)\n  Add the prototxt"):
        caffe_port.load(weights=path)


def test_what_is_absent_and_unused_is_told(tmp_path: Path) -> None:
    text = (ZOO / "caffe2014_lenet_v1" / "lenet.prototxt").read_text().replace('"ip2"', '"mine"')
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    ported = api.port(path, ZOO / "caffe2014_lenet_v1" / "lenet_iter_10000.caffemodel")
    assert ported.report is not None
    assert (ported.report.initialised, ported.report.unused) == (("mine",), ("ip2",))
    assert "no weights in the file for 1 layer; initialized from the fillers: mine" in ported.notes
    assert "the weights of 1 layer in the file are not used by the net: ip2" in ported.notes


def test_an_input_shape_for_no_input() -> None:
    with pytest.raises(SpecError, match=r"has no input 'dat'; its inputs are data\. Did you mean 'data'"):
        caffe_port.load(weights=MNIST / "weights.caffemodel", input_shapes={"dat": (1, 1, 28, 28)})


@pytest.mark.parametrize("shape", [(1, 1, 0, 28), (1, 2, 28, 28), (1, 1), (10**6, 1, 10**6, 10**6)])
def test_an_input_shape_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(CaffePortError):
        caffe_port.load(weights=MNIST / "weights.caffemodel", input_shapes={"data": shape})


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, caffe_port; assert 'torch' not in sys.modules; print(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_public_names() -> None:
    assert caffe_port.load is api.load
    assert caffe_port.CaffePortError is CaffePortError
    with pytest.raises(AttributeError, match="module 'caffe_port' has no attribute 'lod'"):
        _ = caffe_port.lod


def test_trouble_in_train_does_not_keep_test_from_being_converted(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } }\n'
        'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }\n'
        'layer { name: "odd" type: "Nonsense" bottom: "r" top: "odd" include { phase: TRAIN } }\n'
    )
    ported = api.port(path)
    assert any("phase TRAIN cannot be built" in note for note in ported.notes)
    assert ported.net.train()(torch.zeros(2, 3, 5, 7)).shape == (2, 3, 5, 7)
