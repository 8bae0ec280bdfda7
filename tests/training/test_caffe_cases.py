"""Solvers, data layers and files that Caffe takes: what it makes of them is in tests/cases, or said by its source."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
import torch
from beside_caffe import caffe_train, furthest, start_state
from conftest import HERE
from small_lmdb import write
from small_training import DATA, assert_equal, blobs, project

from caffe_port import api
from caffe_port.errors import CaffePortError, SpecError
from caffe_port.formats import caffemodel, solverstate
from caffe_port.formats.message import Message
from caffe_port.net.net import Net
from caffe_port.training import caffe_log, run_folder, solver
from caffe_port.training import train as training
from caffe_port.training.train import TrainOptions, train

CASES = HERE / "cases"


def lines(run: Path, kind: str) -> list[dict]:
    return [line for line in run_folder.read_metrics(run) if line["kind"] == kind]


# -- data layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seg", "reg"])
def test_data_and_labels_from_two_databases(tmp_path: Path, name: str) -> None:
    """Data layers of one top: pictures in one database, a label map or float labels in another. Run by Caffe 1.0."""
    shutil.copytree(CASES / "one_top_data_layers", tmp_path / "case")
    start = tmp_path / f"case/{name}_start.caffemodel"
    train(tmp_path / f"case/{name}_solver.prototxt", tmp_path / "run", TrainOptions(weights=str(start)))
    with np.load(tmp_path / f"case/{name}_ref.npz") as reference:
        losses = [line["loss"] for line in lines(tmp_path / "run", "train")]
        np.testing.assert_allclose(losses, reference["losses"], rtol=1e-5)
        held = blobs(tmp_path / "run")
        for key in set(reference.files) - {"losses"}:
            layer, index = key.split(".")
            np.testing.assert_allclose(held[layer][int(index)], reference[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ae", "mix"])
def test_an_autoencoder_and_a_database_beside_hdf5(tmp_path: Path, name: str) -> None:
    shutil.copytree(CASES / "one_top_data_layers", tmp_path / "case")
    assert train(tmp_path / f"case/{name}_solver.prototxt", tmp_path / "run").iter == 6


def test_a_net_that_makes_its_own_data_and_is_never_tested(tmp_path: Path) -> None:
    """test_interval alone means that there is no test net (Solver::InitTestNets counts test_iter)."""
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "d" type: "DummyData" top: "x" top: "l" dummy_data_param {
          shape { dim: 4 dim: 3 } shape { dim: 4 } data_filler { type: "gaussian" } data_filler { type: "constant" } } }
        layer { name: "f" type: "InnerProduct" bottom: "x" top: "f"
          inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
        layer { name: "s" type: "SoftmaxWithLoss" bottom: "f" bottom: "l" top: "s" }
    """)
    path = tmp_path / "solver.prototxt"
    path.write_text('net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 3 test_interval: 1 display: 1')
    result = train(path, tmp_path / "run")
    assert (result.iter, result.outputs, len(lines(tmp_path / "run", "train"))) == (3, {}, 3)
    with pytest.raises(CaffePortError, match="reads no data, which could be counted in epochs"):
        train(path, tmp_path / "epochs", TrainOptions(epochs=1))


def test_rand_skip_starts_elsewhere_and_goes_around(tmp_path: Path) -> None:
    """ImageData skips fewer records than rand_skip, once, before the first batch. Source: image_data_layer.cpp."""
    import cv2

    from caffe_port.data.records import from_layer

    for k in range(5):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((3, 4, 3), k, np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{k}.png {k}\n" for k in range(5)))
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "d" type: "ImageData" top: "x" top: "l"
          image_data_param { source: "list.txt" batch_size: 2 rand_skip: 4 } }
        layer { name: "p" type: "Power" bottom: "x" top: "p" }
    """)
    layer = api.Definition.read(tmp_path / "net.prototxt").spec("TRAIN").layers[0]
    starts = set()
    for seed in range(20):
        feed = from_layer(layer, "TRAIN", seed=seed)
        labels = [int(label) for number in range(3) for label in feed.batch(number)[1]]
        starts.add(labels[0])
        assert labels == [(labels[0] + k) % 5 for k in range(6)]
    assert starts == {0, 1, 2, 3}


def test_what_a_data_layer_cannot_have(tmp_path: Path) -> None:
    shutil.copytree(CASES / "one_top_data_layers", tmp_path / "case")
    net = tmp_path / "case/ae.prototxt"
    net.write_text(net.read_text().replace('top: "data"', 'top: "data" top: "b" top: "c"', 1))
    with pytest.raises(CaffePortError, match=r"has 3 tops, expected data, or data and label"):
        train(tmp_path / "case/ae_solver.prototxt", tmp_path / "run")


FCN = """
layer { name: "data" type: "Data" top: "data" transform_param { mean_value: 104 mean_value: 117 mean_value: 123 }
  data_param { source: "images" batch_size: 1 backend: LMDB } }
layer { name: "label" type: "Data" top: "label" data_param { source: "maps" batch_size: 1 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
  num_output: 4 kernel_size: 3 pad: 1 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up" param { lr_mult: 0 } convolution_param {
  num_output: 4 kernel_size: 4 stride: 2 group: 4 bias_term: false weight_filler { type: "bilinear" } } }
layer { name: "score" type: "Crop" bottom: "up" bottom: "data" top: "score" crop_param { axis: 2 offset: 1 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss"
  loss_param { ignore_label: 255 normalize: false } }
"""
FCN_SOLVER = """
train_net: "net.prototxt" test_net: "test.prototxt" test_iter: 3 test_interval: 4 base_lr: 1e-6 lr_policy: "fixed"
momentum: 0.99 iter_size: 2 max_iter: 6 display: 1 snapshot_prefix: "fcn" solver_mode: CPU
"""


def segmentation(folder: Path) -> Path:
    """Images of three sizes and their maps, in two databases, as FCN has them; returns the solver's path."""
    rng = np.random.default_rng(5)
    for k, size in enumerate([(12, 10), (9, 14), (16, 11), (9, 14), (12, 10)]):
        for name, array in (("images", rng.integers(0, 256, (3, *size))), ("maps", rng.integers(0, 4, (1, *size)))):
            shape = dict(zip(("channels", "height", "width"), array.shape, strict=True))
            with lmdb.open(str(folder / name), map_size=1 << 24) as env, env.begin(write=True) as txn:
                txn.put(b"%08d" % k, write(Message("Datum", **shape, data=array.astype(np.uint8).tobytes())))
    (folder / "net.prototxt").write_text(FCN)
    # in the fork, two nets that read one database in a layer of the same name wait forever
    (folder / "test.prototxt").write_text(
        FCN.replace('name: "data"', 'name: "d"').replace('name: "label"', 'name: "l"')
    )
    (folder / "solver.prototxt").write_text(FCN_SOLVER)
    return folder / "solver.prototxt"


def test_images_of_several_sizes_one_by_one(tmp_path: Path, caffe: Path) -> None:
    solver_path = segmentation(tmp_path)
    train(solver_path, tmp_path / "start", TrainOptions(max_iter=0))
    start = tmp_path / "start/last.caffemodel"
    log = caffe_log.parse(
        caffe_train(caffe, tmp_path, "-solver", "solver.prototxt", "-snapshot", str(start_state(start)))
    )
    train(solver_path, tmp_path / "run", TrainOptions(weights=str(start)))
    losses = [line["loss"] for line in lines(tmp_path / "run", "train")]
    assert losses == pytest.approx([line["loss"] for line in log.trained][:6], rel=1e-4)
    tests = [line["outputs"]["loss"] for line in lines(tmp_path / "run", "test")]
    assert tests[:2] == pytest.approx([line["outputs"]["loss"] for line in log.tests], rel=1e-4)
    assert furthest(tmp_path / "run/snapshots/fcn_iter_6.caffemodel", tmp_path / "fcn_iter_6.caffemodel") < 1e-5


def test_a_layer_that_cannot_take_another_size(tmp_path: Path) -> None:
    path = segmentation(tmp_path)
    net = tmp_path / "net.prototxt"
    path.write_text("net: 'net.prototxt' base_lr: 0.1 lr_policy: 'fixed' max_iter: 6")
    net.write_text("""
        layer { name: "data" type: "Data" top: "data" top: "label"
          data_param { source: "images" batch_size: 1 backend: LMDB } }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
          inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1e-4 } } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
    """)
    with pytest.raises(SpecError, match=r"layer 'ip' .* has weight \(2, 360\) .* have \(2, 378\) .* \(1, 3, 9, 14\)"):
        train(path, tmp_path / "run")


NVIDIAS = """
    default_forward_type: FLOAT16 default_backward_type: FLOAT16 global_grad_scale: 1000
    layer { name: "d" type: "DummyData" top: "x" top: "l" dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
      data_filler { type: "gaussian" } data_filler { type: "constant" } } }
    layer { name: "f" type: "InnerProduct" bottom: "x" top: "f" forward_type: FLOAT
      inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
    layer { name: "s" type: "SoftmaxWithLoss" bottom: "f" bottom: "l" top: "s" }
"""


@pytest.mark.parametrize(("phase", "other"), [("TRAIN", "TEST"), ("TEST", "TRAIN")])
def test_the_data_of_another_phase_are_not_taken(tmp_path: Path, phase: str, other: str) -> None:
    """Caffe: Unknown bottom blob 'data'. The net is not trained on what it is tested on, nor the reverse."""
    path = project(tmp_path, data=DATA.replace("hdf5_data_param", f"include {{ phase: {other} }} hdf5_data_param"))
    with pytest.raises(SpecError, match=f"'data' .* phase or stage, and in phase {phase} no layer makes 'data'"):
        train(path, tmp_path / "run")


def test_hdf5_is_not_transformed(tmp_path: Path) -> None:
    """Caffe: HDF5Data does not transform data. Source: hdf5_data_layer.cpp."""
    path = project(tmp_path, data=DATA.replace("hdf5_data_param", "transform_param { scale: 0.5 } hdf5_data_param"))
    with pytest.raises(SpecError, match=r"'data' \(HDF5Data\): does not transform its data"):
        train(path, tmp_path / "run")


def test_labels_are_checked_against_the_loss_that_reads_them(tmp_path: Path) -> None:
    """The images' database has labels, too, which nobody reads; and two losses have their own numbers of classes."""
    rng, labels = np.random.default_rng(0), {"a": [0, 1, 2], "b": [7, 3, 8], "images": [999, 500, 3]}
    for name, own in labels.items():
        with lmdb.open(str(tmp_path / name), map_size=1 << 24) as env, env.begin(write=True) as txn:
            for k, label in enumerate(own):
                data = rng.integers(0, 256, 24).astype(np.uint8).tobytes()
                datum = Message("Datum", channels=2, height=3, width=4, data=data, label=label)
                txn.put(b"%08d" % k, write(datum))
    net = 'layer { name: "i" type: "Data" top: "x" data_param { source: "images" batch_size: 3 backend: LMDB } }'
    for name, classes in (("a", 3), ("b", 9)):
        net += f"""
            layer {{ name: "{name}" type: "Data" top: "x_{name}" top: "label_{name}"
              data_param {{ source: "{name}" batch_size: 3 backend: LMDB }} }}
            layer {{ name: "cat_{name}" type: "Concat" bottom: "x" bottom: "x_{name}" top: "cat_{name}" }}
            layer {{ name: "ip_{name}" type: "InnerProduct" bottom: "cat_{name}" top: "ip_{name}"
              inner_product_param {{ num_output: {classes} }} }}
            layer {{ name: "loss_{name}" type: "SoftmaxWithLoss" bottom: "ip_{name}" bottom: "label_{name}"
              top: "loss_{name}" }}"""
    (tmp_path / "net.prototxt").write_text(net)
    path = tmp_path / "solver.prototxt"
    path.write_text('net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 2')
    assert train(path, tmp_path / "run").iter == 2
    (tmp_path / "net.prototxt").write_text(net.replace("num_output: 9", "num_output: 8"))
    with pytest.raises(CaffePortError, match="record 2 has label 8; the net has 8 classes"):
        train(path, tmp_path / "again")


def test_an_infogain_matrix_in_the_folder_of_the_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, matrix = project(tmp_path), np.random.default_rng(0).uniform(0.1, 1, (1, 1, 5, 5)).astype(np.float32)
    (tmp_path / "h.binaryproto").write_bytes(write(caffemodel.blob_message(matrix)))
    net = tmp_path / "net.prototxt"
    losses = """layer { name: "p" type: "Softmax" bottom: "ip" top: "p" }
        layer { name: "l" type: "InfogainLoss" bottom: "p" bottom: "label" top: "loss"
          infogain_loss_param { source: "h.binaryproto" } }"""
    net.write_text(net.read_text().partition('layer { name: "accuracy"')[0] + losses)
    monkeypatch.chdir("/")
    assert train(path, tmp_path / "run", TrainOptions(max_iter=1)).iter == 1
    net.write_text(net.read_text().replace("h.binaryproto", "absent.binaryproto"))
    with pytest.raises(CaffePortError, match=r"absent\.binaryproto: "):
        train(path, tmp_path / "again", TrainOptions(max_iter=1))


def test_half_precision_of_nvidias_is_trained_in_float32(tmp_path: Path) -> None:
    """Its factor of gradients, which the solver divides by, cancels out; but a loss that does not multiply by it does
    not.
    """
    path, said = tmp_path / "solver.prototxt", []
    path.write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3 solver_data_type: FLOAT16')
    (tmp_path / "net.prototxt").write_text(NVIDIAS)
    train(path, tmp_path / "half", listen=said.append)
    notes = [event["text"] for event in said if event["kind"] == "note"]
    assert [("FLOAT16" in note, "float32" in note) for note in notes] == [(True, True)] * 2
    whole = NVIDIAS.replace("FLOAT16", "FLOAT").replace("global_grad_scale: 1000", "")
    (tmp_path / "net.prototxt").write_text(whole)
    train(path, tmp_path / "whole")
    assert_equal(blobs(tmp_path / "half"), blobs(tmp_path / "whole"))
    (tmp_path / "net.prototxt").write_text(NVIDIAS.replace("SoftmaxWithLoss", "HingeLoss"))
    with pytest.raises(CaffePortError, match="'global_grad_scale' of NetParameter is not followed"):
        train(path, tmp_path / "hinge")


# -- tests ----------------------------------------------------------------------------------------------------------


def test_several_test_nets_each_with_its_state(tmp_path: Path) -> None:
    path = project(tmp_path)
    net = (tmp_path / "net.prototxt").read_text()
    first = net.replace("include { phase: TEST }", 'include { phase: TEST not_stage: "second" }')
    second = (
        'layer { name: "twice" type: "Accuracy" bottom: "ip" bottom: "label" top: "top2" '
        'accuracy_param { top_k: 2 } include { phase: TEST stage: "second" } }\n'
    )
    (tmp_path / "net.prototxt").write_text(first + second)
    own = net.replace('name: "ip"', 'name: "other"').replace('top: "accuracy"', 'top: "own"')
    (tmp_path / "own.prototxt").write_text(own)
    text = path.read_text().replace("test_iter: 2", "test_iter: 2 test_iter: 3 test_iter: 1")
    path.write_text(text + 'test_net: "own.prototxt" test_state { } test_state { } test_state { stage: "second" }')
    result = train(path, tmp_path / "run")
    tests = lines(tmp_path / "run", "test")
    assert [(line["iter"], line.get("net", 0)) for line in tests] == [(it, k) for it in (0, 4, 8, 12) for k in range(3)]
    assert [sorted(line["outputs"]) for line in tests[:3]] == [["loss", "own"], ["accuracy", "loss"], ["loss", "top2"]]
    assert set(result.outputs) == {"own", "loss", "#1 accuracy", "#1 loss", "#2 top2", "#2 loss"}

    # The second net has the trained weights: the same as the net that was saved, on the batches that came next.
    trained = api.port(
        tmp_path / "net.prototxt",
        tmp_path / "run/last.caffemodel",
        keep_loss=True,
        input_shapes={"data": (6, 2, 7, 6), "label": (6,)},
    )
    from caffe_port.data.records import from_layer

    feed = from_layer(trained.definition.spec("TEST").layers[0], "TEST")
    with torch.no_grad():
        accuracies = [float(trained.net(*feed.batch(9 + k))["accuracy"]) for k in range(3)]
    assert result.outputs["#1 accuracy"] == pytest.approx(sum(accuracies) / 3)


def test_a_test_net_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = project(tmp_path)
    net = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "own.prototxt").write_text(net.replace("num_output: 4", "num_output: 3"))
    text = path.read_text().replace("test_iter: 2", "test_iter: 2 test_iter: 2")
    nets = 'train_net: "net.prototxt" test_net: "net.prototxt" test_net: "own.prototxt"'
    path.write_text(text.replace('net: "net.prototxt"', nets))
    with pytest.raises(SpecError, match=r"layer 'conv' of the test net gets weight \(4, 2, 3, 3\)"):
        train(path, tmp_path / "run")


def test_every_value_of_an_output(tmp_path: Path) -> None:
    path = project(tmp_path)
    net = tmp_path / "net.prototxt"
    net.write_text(net.read_text().replace('top: "accuracy"', 'top: "accuracy" top: "each"'))
    outputs = train(path, tmp_path / "run").outputs
    assert list(outputs) == ["accuracy", *(f"each[{k}]" for k in range(5)), "loss"]


def test_the_best_weights_by_any_output_that_is_no_loss(tmp_path: Path) -> None:
    path = project(tmp_path)
    net = tmp_path / "net.prototxt"
    net.write_text(net.read_text().replace('top: "accuracy"', 'top: "loss/top-1"').replace('top: "loss"', 'top: "l"'))
    result = train(path, tmp_path / "run")
    tests = [line["outputs"]["loss/top-1"] for line in lines(tmp_path / "run", "test")]
    assert result.best is not None
    assert (result.best["name"], result.best["value"]) == ("loss/top-1", max(tests))


# -- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ['weights: "a.caffemodel" weights: "b.caffemodel"', 'weights: "a.caffemodel , b.caffemodel"']
)
@pytest.mark.parametrize("given", [True, False])
def test_all_weights_are_loaded(tmp_path: Path, form: str, given: bool) -> None:
    """In order, by layer name; what no file has keeps its fillers. Source: LoadNetWeights of solver.cpp."""
    path = project(tmp_path)
    train(path, tmp_path / "fillers", TrainOptions(max_iter=0))
    whole = caffemodel.read(tmp_path / "fillers/last.caffemodel")
    assert whole.net is not None
    held = blobs(tmp_path / "fillers")
    one = {name: [np.full_like(a, 1) for a in held[name]] for name in ("conv", "bn")}
    two = {name: [np.full_like(a, 2) for a in held[name]] for name in ("bn",)}
    for name, own in (("a", one), ("b", two)):  # a layer that is in a file without its blobs is refused
        layers = [layer for layer in whole.net.layer if layer.name in own or layer.name not in held]
        caffemodel.write(tmp_path / f"{name}.caffemodel", whole.net.copy(layer=layers), own)
    options = TrainOptions(max_iter=0)
    if given:
        options = TrainOptions(max_iter=0, weights=f"{tmp_path}/a.caffemodel,{tmp_path}/b.caffemodel")
    else:
        path.write_text(path.read_text() + form)
    train(path, tmp_path / "run", options)
    assert_equal(blobs(tmp_path / "run"), held | one | two)


def test_weights_that_do_not_exist(tmp_path: Path) -> None:
    path = project(tmp_path)
    path.write_text(path.read_text() + 'weights: "absent.caffemodel"')
    with pytest.raises(SpecError, match=r"weights 'absent\.caffemodel' do not exist"):
        train(path, tmp_path / "run")


def test_shared_blobs_in_hdf5() -> None:
    """Caffe stores a shared blob once, with its owner (CopyTrainedLayersFromHDF5)."""
    folder = CASES / "hdf5_shared"
    nets = [api.port(folder / "k_dep.prototxt", folder / name).net for name in ("k.caffemodel", "k.h5")]
    for name, arrays in nets[0].blobs().items():
        for mine, theirs in zip(nets[1].blobs()[name], arrays, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


def test_hdf5_without_a_blob_that_nobody_shares(tmp_path: Path) -> None:
    shutil.copyfile(CASES / "hdf5_shared/k.h5", tmp_path / "k.h5")
    with h5py.File(tmp_path / "k.h5", "a") as file:
        del file["data/ip/0"]
    with pytest.raises(CaffePortError, match=r"layer 'ip' holds 1 blob"):
        api.port(CASES / "hdf5_shared/k_dep.prototxt", tmp_path / "k.h5")


@pytest.mark.parametrize("name", ["one.caffemodel", "two.caffemodel.h5"])
def test_fillers_do_not_overwrite_shared_blobs(name: str) -> None:
    """One branch of two is in the file; the other has the same blobs. Run by Caffe 1.0."""
    folder = CASES / "shared_filler_overwrites"
    ported = api.port(folder / "two.prototxt", folder / name)
    outputs = ported.net(a=torch.ones(2, 3), b=torch.full((2, 3), 2.0))
    assert outputs["fa"].tolist() == [[13, 32]] * 2
    assert outputs["fb"].tolist() == [[16, 44]] * 2
    assert not [note for note in ported.notes if "initialized" in note]


def test_a_net_of_python_code_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text("""
        layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
        layer { name: "one" type: "Python" bottom: "data" top: "one" python_param { module: "mm" layer: "Simple" } }
    """)
    with pytest.raises(
        SpecError, match=r'nothing stands for the Python code mm\.Simple.*\n.*@python_layer\("mm", "Simple"\)'
    ):
        api.port(path)


# -- snapshots ------------------------------------------------------------------------------------------------------


def test_hdf5_snapshots(tmp_path: Path) -> None:
    path = project(tmp_path)
    path.write_text(path.read_text() + "snapshot_format: HDF5")
    train(path, tmp_path / "whole")
    train(path, tmp_path / "halves", TrainOptions(max_iter=8))
    folder = tmp_path / "halves/snapshots"
    assert sorted(p.name for p in folder.iterdir())[:3] == [
        "small_iter_4.caffemodel.h5",
        "small_iter_4.json",
        "small_iter_4.solverstate.h5",
    ]
    state = solverstate.read(folder / "small_iter_8.solverstate.h5")
    assert state.learned_net == str(folder / "small_iter_8.caffemodel.h5")
    train(path, tmp_path / "halves", TrainOptions(resume=True, keep=1))
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "halves"))
    assert_equal(blobs(folder, "small_iter_12.caffemodel.h5"), blobs(tmp_path / "halves"))
    assert sorted(p.name for p in folder.iterdir()) == [
        f"small_iter_12.{end}" for end in ("caffemodel.h5", "json", "solverstate.h5")
    ]


def test_names_within_each_other_in_hdf5(tmp_path: Path) -> None:
    """Caffe says "Incompatible number of blobs for layer conv" of its own file; here it can be resumed."""
    path, said = project(tmp_path), []
    net = tmp_path / "net.prototxt"
    net.write_text(net.read_text().replace('name: "bn"', 'name: "conv/bn"'))
    train(path, tmp_path / "binary", TrainOptions(max_iter=1), said.append)
    assert not [event for event in said if event["kind"] == "note" and "HDF5" in event["text"]]
    path.write_text(path.read_text() + "snapshot_format: HDF5")
    train(path, tmp_path / "whole", listen=said.append)
    assert [event["text"] for event in said if event["kind"] == "note" and "'conv' and 'conv/bn'" in event["text"]]
    train(path, tmp_path / "halves", TrainOptions(max_iter=8))
    train(path, tmp_path / "halves", TrainOptions(resume=True))
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "halves"))


def test_a_shared_blob_is_written_once(tmp_path: Path) -> None:
    from caffe_port.training.snapshot import own_blobs

    folder = CASES / "hdf5_shared"
    net = api.port(folder / "k_dep.prototxt", folder / "k.caffemodel").net
    caffemodel.write_hdf5(tmp_path / "k.h5", ["x", "c1", "c2", "s", "ip"], own_blobs(net))
    with h5py.File(tmp_path / "k.h5") as ours, h5py.File(folder / "k.h5") as theirs:
        for name in ("c1", "c2", "ip"):
            assert sorted(ours["data"][name]) == sorted(theirs["data"][name])
        assert len(ours["data"]["s"]) == 0


def test_plateau_is_resumed_to_the_bit(tmp_path: Path) -> None:
    path = project(tmp_path)
    text = path.read_text().replace('lr_policy: "step" stepsize: 5', 'lr_policy: "plateau"')
    path.write_text(text + "plateau_winsize: [1, 2, 1]")
    train(path, tmp_path / "whole")
    rates = [line["lr"] for line in lines(tmp_path / "whole", "train")]
    assert len(set(rates)) > 1
    train(path, tmp_path / "halves", TrainOptions(max_iter=8))
    state = solverstate.read(tmp_path / "halves/snapshots/small_iter_8.solverstate")
    assert state.minimum_loss < 10
    train(path, tmp_path / "halves", TrainOptions(resume=True))
    assert [line["lr"] for line in lines(tmp_path / "halves", "train")] == rates
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "halves"))


# -- the time limit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", ["test", "iteration"])
def test_the_time_limit_within_a_test_or_an_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: str
) -> None:
    """The run stops there, and its pieces are the same as a whole run."""
    path = project(tmp_path, more="momentum: 0.9 iter_size: 3 snapshot_after_train: false")
    train(path, tmp_path / "whole")
    over = False
    if within == "test":
        forward = Net.forward

        def slow(net: Net, *args: torch.Tensor, **named: torch.Tensor) -> object:
            nonlocal over
            over = over or not net.training
            return forward(net, *args, **named)

        monkeypatch.setattr(Net, "forward", slow)
    else:
        gradients = training._gradients

        def slow_gradients(t: object, batches: list, *more: object) -> torch.Tensor:
            nonlocal over
            over = len(asked) == 5
            asked.append(len(batches))
            return gradients(t, batches, *more)

        asked: list[int] = []
        monkeypatch.setattr(training, "_gradients", slow_gradients)
    monkeypatch.setattr(training, "_time_over", lambda _: over)
    first = train(path, tmp_path / "pieces", TrainOptions(max_seconds=1000))
    assert (first.stopped, first.iter) == ("max_seconds", 1 if within == "test" else 5)
    monkeypatch.undo()
    train(path, tmp_path / "pieces", TrainOptions(resume=True))
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "pieces"))


# -- recurrent layers -----------------------------------------------------------------------------------------------

RECURRENT = """
layer { name: "data" type: "HDF5Data" top: "data" top: "cont" top: "label" include { phase: TRAIN }
  hdf5_data_param { source: "train.txt" batch_size: 3 } }
layer { name: "data" type: "HDF5Data" top: "data" top: "cont" top: "label" include { phase: TEST }
  hdf5_data_param { source: "test.txt" batch_size: 4 } }
layer { name: "one" type: "LSTM" bottom: "data" bottom: "cont" top: "one" recurrent_param { num_output: 6
  weight_filler { type: "uniform" min: -0.5 max: 0.5 } } }
layer { name: "two" type: "RNN" bottom: "one" bottom: "cont" top: "two" recurrent_param { num_output: 5
  weight_filler { type: "uniform" min: -0.5 max: 0.5 } } }
layer { name: "out" type: "InnerProduct" bottom: "two" top: "out" inner_product_param { num_output: 3 axis: 2
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "out" bottom: "label" top: "loss" softmax_param { axis: 2 } }
"""
RECURRENT_SOLVER = """net: "net.prototxt"
base_lr: 0.2 lr_policy: "fixed" momentum: 0.9 iter_size: 2 max_iter: 12 display: 1
test_iter: 3 test_interval: 4 snapshot: 6 snapshot_prefix: "small" solver_mode: CPU
"""


def sequences(folder: Path) -> Path:
    """Two streams of steps, most of which go on from batch to batch; returns the solver's path."""
    rng = np.random.default_rng(4)
    for name, steps in (("train", 36), ("test", 23)):  # 12 of train's steps are read in two iterations
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["data"] = rng.standard_normal((steps, 2, 4)).astype(np.float32)
            file["cont"] = (rng.random((steps, 2)) < 0.8).astype(np.float32)
            file["label"] = rng.integers(0, 3, (steps, 2)).astype(np.float32)
        (folder / f"{name}.txt").write_text(f"{name}.h5\n")
    (folder / "net.prototxt").write_text(RECURRENT)
    (folder / "solver.prototxt").write_text(RECURRENT_SOLVER)
    return folder / "solver.prototxt"


def test_sequences_go_on_in_the_next_batch(tmp_path: Path, caffe: Path) -> None:
    """The training net and the test net each continue where their own last batch ended."""
    path = sequences(tmp_path)
    train(path, tmp_path / "start", TrainOptions(max_iter=0))
    start = tmp_path / "start/last.caffemodel"
    log = caffe_log.parse(caffe_train(caffe, tmp_path, "-solver", path.name, "-snapshot", str(start_state(start))))
    train(path, tmp_path / "run", TrainOptions(weights=str(start)))
    for kind, theirs in (("train", log.trained[:12]), ("test", log.tests)):
        losses = [
            line["loss"] if kind == "train" else line["outputs"]["loss"] for line in lines(tmp_path / "run", kind)
        ]
        wanted = [line["loss"] if kind == "train" else line["outputs"]["loss"] for line in theirs]
        assert losses == pytest.approx(wanted, rel=1e-4)
    assert furthest(tmp_path / "run/snapshots/small_iter_12.caffemodel", tmp_path / "small_iter_12.caffemodel") < 1e-5


def test_a_resumed_run_goes_on_in_its_sequences(tmp_path: Path) -> None:
    path = sequences(tmp_path)
    train(path, tmp_path / "whole")
    train(path, tmp_path / "halves", TrainOptions(max_iter=6))
    train(path, tmp_path / "halves", TrainOptions(resume=True))
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "halves"))
    runs = [[(line["iter"], line["outputs"]) for line in lines(tmp_path / run, "test")] for run in ("whole", "halves")]
    assert [line for line in runs[1] if line[0] in (0, 4, 8, 12)] == runs[0]
    snapshot = tmp_path / "halves/snapshots/small_iter_12.json"
    table = json.loads(snapshot.read_text())
    assert [[shape for shape, _ in own["one"]] for own in table["recurrent"]] == [[[2, 6], [2, 6]]] * 2
    table["recurrent"][1]["one"][0][0] = [2, 7]
    snapshot.write_text(json.dumps(table))
    with pytest.raises(CaffePortError, match=r"is damaged: the states of recurrent layers"):
        train(path, tmp_path / "halves", TrainOptions(resume=True, max_iter=13))


# -- databases ------------------------------------------------------------------------------------------------------


def test_a_log_of_one_great_batch_opens_at_once(tmp_path: Path) -> None:
    """As convert_cifar_data leaves it: one write of all records, never compacted."""
    import struct

    from caffe_port.data.leveldb import LevelDB

    def varint(n: int) -> bytes:
        return (bytes([n & 127 | 128]) + varint(n >> 7)) if n > 127 else bytes([n])

    def in_blocks(record: bytes) -> bytes:
        out, at = bytearray(), 0
        while at < len(record):
            left = 32768 - len(out) % 32768
            if left < 7:
                out += bytes(left)
                continue
            size = min(left - 7, len(record) - at)
            kind = {(1, 1): 1, (1, 0): 2, (0, 1): 4, (0, 0): 3}[not at, at + size == len(record)]
            out += struct.pack("<IHB", 0, size, kind) + record[at : at + size]
            at += size
        return bytes(out)

    values = [bytes([k % 251]) * 3073 for k in range(15_000)]
    puts = (b"\1\5" + b"%05d" % k + varint(len(value)) + value for k, value in enumerate(values))
    (tmp_path / "000003.log").write_bytes(in_blocks(struct.pack("<QI", 1, len(values)) + b"".join(puts)))
    (tmp_path / "MANIFEST-000002").write_bytes(in_blocks(b"\1\x1aleveldb.BytewiseComparator\2\3"))
    (tmp_path / "CURRENT").write_text("MANIFEST-000002\n")
    began = time.process_time()
    database = LevelDB(tmp_path)
    assert time.process_time() - began < 3  # 46 MB; joined part by part, it takes half a minute
    assert [database[k] for k in (0, 7, 14_999)] == [values[k] for k in (0, 7, 14_999)]


# -- learning rates -------------------------------------------------------------------------------------------------


def test_a_solver_of_ssd_with_a_fork_s_warm_up(tmp_path: Path) -> None:
    path = project(tmp_path)
    path.write_text(path.read_text() + "warmup_iter: 4 warmup_start_lr: 0.01")
    train(path, tmp_path / "run")
    rates = [line["lr"] for line in lines(tmp_path / "run", "train")]
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, *[0.025] * 5, 0.0125, 0.0125])
    assert solver.current_step(solver.SolverSpec.read(path), 11) == 2
