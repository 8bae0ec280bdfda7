"""caffe.Net: its blobs are memory, its passes are Caffe's."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from pycaffe_nets import APART, DEPLOY, IN_PLACE, LOSS, NETS, TELL

import caffe_port
import caffe_port.pycaffe as caffe
from caffe_port.errors import CaffePortError
from caffe_port.layers.activation import ReLU
from caffe_port.pycaffe import blob as blob_module
from caffe_port.pycaffe.blob import Blob

Make = Callable[..., caffe.Net]


@pytest.fixture(params=["cpu", "apart"])
def make(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A net of a text, seeded; also as if its memory were that of a GPU, of which arrays are copies."""
    if request.param == "apart":
        monkeypatch.setattr(blob_module, "is_apart", lambda _: True)

    def made(text: str, phase: int = caffe.TEST, **options: object) -> caffe.Net:
        path = tmp_path / "net.prototxt"
        path.write_text(text)
        caffe.set_random_seed(1)
        net = caffe.Net(str(path), phase, **options)  # type: ignore[arg-type]
        draw = np.random.default_rng(3)
        for name, vector in net.params.items():
            for blob in vector:
                values = 0.3 * draw.standard_normal(blob.data.shape)
                blob.data[...] = abs(values) + 0.5 if net.layer_dict[name].type == "BatchNorm" else values
        if net.inputs == ["data"] or "label" in net.blobs:
            net.blobs["data"].data[...] = draw.standard_normal(net.blobs["data"].data.shape)
        return net

    return made


def test_it_is_what_caffe_says(caffe: Path, tmp_path: Path) -> None:
    """The same script under Caffe itself and here: every name, shape, id, number and gradient."""
    for name, text in NETS.items():
        (tmp_path / f"{name}.prototxt").write_text(text)
    (tmp_path / "tell.py").write_text(TELL)
    environment = {**os.environ, "GLOG_minloglevel": "2", "PYTHONPATH": str(ROOT)}
    for out, command in (("real", [str(caffe / "bin/python")]), ("ours", [sys.executable, "-m", "caffe_port.pycaffe"])):
        done = subprocess.run(
            [*command, "tell.py", out, *NETS], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    real, ours = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("real", "ours"))
    for key, facts in real.items():
        for fact, value in facts.items():
            assert ours[key][fact] == value, (key, fact)
    expected, actual = np.load(tmp_path / "real.npz"), np.load(tmp_path / "ours.npz")
    assert set(expected.files) == set(actual.files)
    assert len(expected.files) > 1000
    for name in expected.files:
        assert expected[name].shape == actual[name].shape, name
        size = max(1.0, float(np.abs(expected[name]).max(initial=0)))
        assert np.abs(expected[name] - actual[name]).max(initial=0) <= 2e-5 * size, name


# -- memory ---------------------------------------------------------------------------------------------------------


def test_arrays_are_the_memory_of_the_net(make: Make) -> None:
    net = make(IN_PLACE)
    held, top = net.blobs["data"].data, net.blobs["prob"].data
    assert held.dtype == np.float32
    assert not top.any()
    net.forward()
    first = top.copy()
    assert np.allclose(first.sum(1).ravel(), 1)
    held[...] = 5.0  # an array that was taken before
    net.forward()
    assert not np.allclose(top, first)  # shows the new numbers
    part = net.blobs["pool1"].data[0, 1:3]
    net.params["conv1"][0].data[...] *= -1
    before = part.copy()
    net.forward()
    assert not np.allclose(part, before)  # so does a view of an array


@pytest.mark.parametrize("make", ["cpu"], indirect=True)
def test_a_blob_that_nobody_looks_at_is_not_copied(make: Make) -> None:
    net = make(IN_PLACE)
    net.forward()
    where = [net.blobs["a"].data.ctypes.data for _ in range(2)]
    assert where[0] == where[1]
    held = net.blobs["a"].data
    for _ in range(3):
        net.forward()
        assert net.blobs["a"].data.ctypes.data == held.ctypes.data
    del held
    gc.collect()
    memory = net.blobs["a"].memory
    before = memory.tensor
    net.forward()
    assert memory.tensor is not before


def test_blobs_outlive_their_net(make: Make) -> None:
    net = make(IN_PLACE)
    net.forward()
    blobs, params = list(net.blobs.values()), [b for v in net.params.values() for b in v]
    del net
    gc.collect()
    assert sum(float(b.data.sum() + b.diff.sum()) for b in (*blobs, *params)) != 0


def test_data_cannot_be_replaced(make: Make) -> None:
    blob = make(IN_PLACE).blobs["data"]
    with pytest.raises(AttributeError, match="write into it"):
        blob.data = np.zeros(3)
    with pytest.raises(AttributeError, match="write into it"):
        blob.diff = np.zeros(3)


def test_reshape_keeps_what_fits() -> None:
    blob = Blob((2, 3))
    blob.data[...] = np.arange(6).reshape(2, 3)
    blob.reshape(3, 1)
    assert blob.data.ravel().tolist() == [0, 1, 2]
    blob.reshape(2, 3)
    assert blob.data.ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (2, 3, 1, 1, 6)
    for wrong in ((-1, 2), (1,) * 33, (1 << 20, 1 << 20)):
        with pytest.raises(CaffePortError, match="reshape"):
            blob.reshape(*wrong)
    blob.reshape(1, 1, 1, 1, 2)
    with pytest.raises(CaffePortError, match="at most 4 axes"):
        _ = blob.num


def test_statistics_written_through_numpy_count(make: Make) -> None:
    """BatchNorm's statistics are kept prepared for eval(), and PyTorch does not see what NumPy writes."""
    net = make(IN_PLACE)
    for blob, value in zip(net.params["bn1"], (0.0, 1.0, 1.0), strict=True):
        blob.data[...] = value
    net.params["sc1"][1].data[...] = 0
    for _ in range(2):
        net.forward()
    first = net.blobs["conv1"].data.copy()
    net.params["bn1"][1].data[...] = 4.0
    net.forward()
    assert np.allclose(net.blobs["conv1"].data, first / 2, atol=1e-5)
    held = net.params["bn1"][1].data
    net.forward()
    held[...] = 1.0
    net.forward()
    assert np.allclose(net.blobs["conv1"].data, first, atol=1e-5)


# -- forward ----------------------------------------------------------------------------------------------------------


def test_forward_equals_the_nets_own(make: Make, tmp_path: Path) -> None:
    net = make(IN_PLACE)
    own = caffe_port.load(tmp_path / "net.prototxt")
    for name, blobs in own.blobs().items():
        for k, array in enumerate(blobs):
            net.params[name][k].data[...] = array.reshape(net.params[name][k].data.shape)
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 11)).astype(np.float32)
    for _ in range(2):  # layer by layer at first, then as the program made of it
        out = net.forward(data=x)
        with torch.no_grad():
            assert np.array_equal(out["prob"], own(torch.tensor(x)).numpy())


def test_layers_that_overwrite_a_blob_run_as_one(make: Make) -> None:
    net = make(IN_PLACE)
    net.forward()
    net.forward()
    operations, _, _ = net._programs[0, len(net.layers) - 1]
    assert len(operations) < len([name for name in net._layer_names if name != "input"]) - 1
    calls = []
    hook = net.layer_dict["drop1"].module.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    net.forward()
    hook.remove()
    assert calls == []


def test_blobs_between_layers_of_their_own_are_right(make: Make) -> None:
    """What fusion would skip or overwrite is there where it has a name of its own."""
    net = make(APART)
    net.params["conv1"][0].data[...] = np.random.default_rng(1).standard_normal(net.params["conv1"][0].data.shape)
    for blob, value in zip(net.params["bn1"], (0.5, 4.0, 1.0), strict=True):
        blob.data[...] = value
    for blob, value in zip(net.params["sc1"], (-3, 0), strict=True):
        blob.data[...] = value
    for _ in range(2):
        net.forward()
        b = {name: blob.data for name, blob in net.blobs.items()}
        assert np.allclose(b["b"], (b["c"] - 0.5) / 2, atol=1e-4)
        assert np.allclose(b["s"], -3 * b["b"], atol=1e-4)
        assert np.array_equal(b["r"], np.maximum(b["s"], 0))
        assert np.array_equal(b["x"], b["r"][:, :2])
    b["x"][...] = 7  # in Caffe, memory of its own
    assert b["r"].max() != 7 or not np.array_equal(b["x"], b["r"][:, :2])


def test_a_range_of_layers(make: Make) -> None:
    net = make(IN_PLACE)
    assert sorted(net.forward(end="pool1")) == ["pool1"]
    net.blobs["pool1"].data[...] = 2.0
    net.params["a"][1].data[...] = 0
    out = net.forward(start="pool1_pool1_0_split", end="a", blobs=["pool1"])
    assert sorted(out) == ["a", "pool1"]
    assert np.allclose(out["a"], net.params["a"][0].data.sum((1, 2, 3)).reshape(1, 4, 1, 1) * 2, atol=1e-5)
    with pytest.raises(ValueError, match="nothing"):
        net.forward(start="nothing")


def test_inputs_are_checked(make: Make) -> None:
    net = make(IN_PLACE)
    with pytest.raises(Exception, match="Input blob arguments do not match net inputs"):
        net.forward(date=np.zeros((2, 3, 9, 11)))
    with pytest.raises(Exception, match="Input is not batch sized"):
        net.forward(data=np.zeros((1, 3, 9, 11)))


def test_other_sizes_follow(make: Make) -> None:
    net = make(IN_PLACE)
    net.forward()
    net.blobs["data"].reshape(1, 3, 14, 13)
    assert net.forward()["prob"].shape[0] == 1  # without net.reshape
    assert net.blobs["pool1"].shape == [1, 5, 6, 6]
    net.blobs["data"].reshape(4, 3, 9, 9)
    net.reshape()
    assert net.blobs["prob"].shape[0] == 4
    wrong = make(LOSS)
    wrong.blobs["data"].reshape(3, 2, 7, 5)
    with pytest.raises(CaffePortError, match="need a weight of shape"):
        wrong.forward(start="data_data_0_split")


def test_all_at_once_in_batches(make: Make) -> None:
    net = make(IN_PLACE)
    x = np.random.default_rng(5).standard_normal((5, 3, 9, 11))
    every = net.forward_all(data=x, blobs=["fc"])
    assert every["prob"].shape == (5, 4)
    one = net.forward(data=x[2:4])["prob"]
    assert np.allclose(every["prob"][2:4], one, atol=1e-6)
    outs, diffs = net.forward_backward_all(data=x, prob=np.ones((5, 4)), diffs=["fc"])
    assert outs["prob"].shape == (5, 4)
    assert diffs["data"].shape == x.shape
    assert diffs["fc"].shape == (5, 4)


def test_forward_and_backward_of_inputs_alone(make: Make) -> None:
    """Without diffs of the outputs, as scripts of Python 2 call it: the blobs hold them."""
    net = make(DEPLOY + "force_backward: true")
    many = np.random.default_rng(0).standard_normal((3, *net.blobs["data"].shape[1:]))
    forward, backward = net.forward_backward_all(data=many)
    assert all(len(value) == 3 for value in forward.values())
    np.testing.assert_array_equal(forward[net.outputs[0]], net.forward_all(data=many)[net.outputs[0]])
    assert backward.keys() == {"data"}


def test_wrong_calls_say_what_is_wrong(make: Make, tmp_path: Path) -> None:
    net = make(DEPLOY)
    with pytest.raises(TypeError, match="takes the inputs by name: data"):
        net.forward_all()
    with pytest.raises(TypeError, match="takes the inputs by name: data"):
        net.forward_backward_all()
    with pytest.raises(ValueError, match=r"the net has no layer 'conv9'\. Did you mean"):
        net.forward(end="conv9")
    with pytest.raises(TypeError, match="got phase 7"):
        caffe.Net(str(tmp_path / "net.prototxt"), 7)
    with pytest.raises(TypeError, match="got phase 'TEST'"):
        caffe.Net(str(tmp_path / "net.prototxt"), "net.caffemodel", "TEST")


def test_callbacks_are_called_for_every_layer(make: Make) -> None:
    net, seen = make(IN_PLACE), []
    net.before_forward(lambda i: seen.append(("before", i)))
    net.after_forward(lambda i: seen.append(("after", i)))
    net.before_backward(lambda i: seen.append(("down", i)))
    net.after_backward(lambda i: seen.append(("up", i)))
    net.forward()
    net.backward()
    n = len(net.layers)
    assert [i for what, i in seen if what == "before"] == list(range(n))
    assert [i for what, i in seen if what == "down"] == list(range(n - 1, -1, -1))
    assert len(seen) == 4 * n


# -- backward ---------------------------------------------------------------------------------------------------------


def test_backward_needs_no_recorded_forward(make: Make) -> None:
    """In TEST the first backward computes again what it needs, in-place layers too; the next forward records it."""
    net = make(IN_PLACE)
    x = net.blobs["data"].data.copy()
    net.forward()
    net.forward()  # the program
    net.blobs["prob"].diff[...] = np.random.default_rng(2).standard_normal(net.blobs["prob"].diff.shape)
    first = net.backward()["data"].copy()
    assert np.abs(first).max() > 0
    net.forward()
    assert net._record
    assert np.allclose(net.backward()["data"], first, atol=1e-7)
    net.forward(data=x)
    net.forward(data=x)
    assert not net._record  # nobody asked for the last one
    net.blobs["data"].data[...] *= -1
    net.forward()
    other = net.backward()["data"].copy()
    assert np.abs(other - first).max() > 1e-4 * np.abs(first).max()
    net.forward(data=x)
    assert np.allclose(net.backward()["data"], first, atol=1e-7)


def test_gradients_are_those_of_differences(make: Make) -> None:
    net = make(IN_PLACE)
    for blob, value in zip(net.params["bn1"], (0.1, 1.5, 1.0), strict=True):
        blob.data[...] = value
    direction = np.random.default_rng(4).standard_normal(net.blobs["data"].data.shape).astype(np.float32)
    x = net.blobs["data"].data.copy()
    net.forward(data=x)
    net.blobs["fc"].diff[...] = 1
    slope = float((net.backward(start="fc")["data"] * direction).sum())
    step = 1e-2
    values = [
        float(net.forward(end="fc", data=x + s * step * direction)["fc"].astype(np.float64).sum()) for s in (1, -1)
    ]
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_gradients_do_not_depend_on_who_looks(make: Make, phase: int) -> None:
    """A held array is overwritten by every layer in place; what they read must be kept for backward all the same."""
    found = []
    for held in (False, True):
        net = make(IN_PLACE, phase)
        kept = [blob.data for blob in net.blobs.values()] if held else []
        for _ in range(2):
            net.clear_param_diffs()
            net.forward()
            net.blobs["prob"].diff[...] = np.arange(8).reshape(2, 4)
            net.backward()
        found.append([net.blobs["data"].diff.copy()] + [b.diff.copy() for v in net.params.values() for b in v])
        assert len(kept) == len(net.blobs) * held
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


def test_the_mask_of_dropout_is_the_same_in_backward(make: Make) -> None:
    text = DEPLOY.split("layers")[0] + (
        'force_backward: true layer { name: "d" type: "Dropout" bottom: "data" top: "y" '
        "dropout_param { dropout_ratio: 0.3 } }"
    )
    net = make(text, caffe.TRAIN)
    net.blobs["data"].data[...] = 1
    net.forward()
    net.blobs["y"].diff[...] = 1
    assert np.array_equal(net.backward()["data"], net.blobs["y"].data)
    assert 0 < (net.blobs["y"].data == 0).mean() < 1


def test_parameter_diffs_add_up_until_cleared(make: Make) -> None:
    net = make(LOSS, caffe.TRAIN)
    net.blobs["label"].data[...] = [1, 3, 0]
    net.blobs["data"].data[...] = np.random.default_rng(3).standard_normal(net.blobs["data"].shape)
    net.forward()
    net.backward()
    once = net.params["ip1"][0].diff.copy()
    net.backward()
    assert np.allclose(net.params["ip1"][0].diff, 2 * once, atol=1e-6)
    assert net.params["aux"][0].diff.ctypes.data == net.params["ip1"][0].diff.ctypes.data  # shared by name
    net.clear_param_diffs()
    assert not net.params["ip1"][0].diff.any()
    assert not net.params["ip2"][0].diff.any()  # lr_mult 0


def test_a_net_without_loss_has_no_backward_unless_forced(make: Make) -> None:
    net = make(DEPLOY)
    net.forward()
    net.blobs["prob"].diff[...] = 1
    assert not net.backward()["data"].any()
    assert not net.params["conv1"][0].diff.any()


def test_statistics_move_once_a_forward(make: Make) -> None:
    net = make(IN_PLACE, caffe.TRAIN)
    net.params["bn1"][2].data[...] = 0
    net.forward()
    assert net.params["bn1"][2].data.item() == pytest.approx(1.0)
    net.backward()
    net.layer_dict["bn1"].record = None  # type: ignore[attr-defined]  # as if its forward was not recorded
    net.backward()
    assert net.params["bn1"][2].data.item() == pytest.approx(1.0)


# -- files ------------------------------------------------------------------------------------------------------------


def test_save_and_read(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    net = make(LOSS, caffe.TRAIN)
    for vector in net.params.values():
        for blob in vector:
            blob.data[...] = np.random.default_rng(blob.count).standard_normal(blob.data.shape)
    net.save(str(tmp_path / "w.caffemodel"))
    net.save_hdf5(str(tmp_path / "w.caffemodel.h5"))
    for name in ("w.caffemodel", "w.caffemodel.h5"):
        other = make(LOSS, caffe.TRAIN)
        other.copy_from(str(tmp_path / name))
        for layer, vector in net.params.items():
            for k, blob in enumerate(vector):
                assert np.array_equal(other.params[layer][k].data, blob.data), (name, layer, k)
    path = str(tmp_path / "net.prototxt")
    for other in (
        caffe.Net(path, caffe.TRAIN, weights=str(tmp_path / "w.caffemodel")),
        caffe.Net(path, str(tmp_path / "w.caffemodel"), caffe.TRAIN),
    ):
        assert np.array_equal(other.params["ip2"][0].data, net.params["ip2"][0].data)
    with pytest.raises(CaffePortError, match="layer 'ip1': blob 0 has shape \\(6, 60\\), the net asks for"):
        make(DEPLOY.replace('"conv1" type', '"ip1" type')).copy_from(str(tmp_path / "w.caffemodel"))


def test_share_with_shares_the_memory(make: Make) -> None:
    one, other = make(IN_PLACE), make(IN_PLACE)
    one.params["fc"][0].data[...] = 3
    other.share_with(one)
    assert np.array_equal(other.params["fc"][0].data, one.params["fc"][0].data)
    one.params["fc"][0].data[0, 0] = -8
    assert other.params["fc"][0].data[0, 0] == -8
    x = np.ones((2, 3, 9, 11))
    assert np.array_equal(one.forward(data=x)["fc" if "fc" in one.outputs else "prob"], other.forward(data=x)["prob"])


def test_what_is_shared_later_is_used_by_forwards_that_ran_before(make: Make) -> None:
    one, other = make(IN_PLACE), make(IN_PLACE)
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 11))
    for _ in range(2):
        other.forward(data=x)
    other.share_with(one)
    for _ in range(2):
        for name in ("bn1", "sc1", "fc"):
            one.params[name][0].data[...] *= 1.5
        second = other.forward(data=x)["prob"].copy()  # before the first net takes over what was written
        assert np.array_equal(one.forward(data=x)["prob"], second)


def test_missing_files_are_runtime_errors(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Could not open file nothing"):
        caffe.Net("nothing.prototxt", caffe.TEST)
    (tmp_path / "n.prototxt").write_text(DEPLOY)
    with pytest.raises(RuntimeError, match="Could not open file nothing"):
        caffe.Net(str(tmp_path / "n.prototxt"), caffe.TEST, weights="nothing.caffemodel")
    with pytest.raises(TypeError):
        caffe.Net(str(tmp_path / "n.prototxt"))


def test_level_and_stages_choose_layers(make: Make) -> None:
    text = DEPLOY.split("layers")[0]
    for name, rule in (("s", 'stage: "A"'), ("l", "min_level: 1"), ("n", 'not_stage: "A"')):
        text += f'layer {{ name: "{name}" type: "TanH" bottom: "data" top: "{name}" include {{ {rule} }} }}\n'
    assert make(text).outputs == ["n"]
    assert make(text, stages=["A"]).outputs == ["s"]
    assert make(text, level=1, stages=["A"]).outputs == ["l", "s"]


def test_memory_data(make: Make) -> None:
    net = make(
        'layer { name: "m" type: "MemoryData" top: "data" top: "label" '
        "memory_data_param { batch_size: 2 channels: 1 height: 3 width: 4 } }"
    )
    with pytest.raises(RuntimeError, match="set_input_arrays first"):
        net.forward()
    data, labels = np.arange(48, dtype=np.float32).reshape(4, 1, 3, 4), np.arange(4, dtype=np.float32)
    net.set_input_arrays(data, labels)
    for number in (0, 1, 0):
        out = net.forward()
        assert np.array_equal(out["data"], data[2 * number : 2 * number + 2])
        assert out["label"].tolist() == [2 * number, 2 * number + 1]
    for wrong, words in (
        (data.astype(np.float64), "must be float32"),
        (data[:, :, ::-1], "C contiguous"),
        (data[:3], "same first dimension"),
        (data.reshape(4, 1, 4, 3), "wrong height"),
    ):
        with pytest.raises(RuntimeError, match=words):
            net.set_input_arrays(wrong, labels)
    with pytest.raises(RuntimeError, match="multiple of batch size"):
        net.set_input_arrays(data[:3].copy(), labels[:3])
    with pytest.raises(RuntimeError, match="MemoryDataLayer"):
        make(DEPLOY).set_input_arrays(data, labels)


def test_data_comes_from_the_files_that_a_net_names(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    from small_lmdb import LABELS, PICTURES, datums, make_lmdb

    make_lmdb(tmp_path, datums())
    text = (
        'layer { name: "d" type: "Data" top: "data" top: "label" transform_param { scale: 0.5 } '
        'data_param { source: "db" batch_size: 2 backend: LMDB } } '
        'layer { name: "y" type: "Power" bottom: "data" top: "y" power_param { scale: 2 } }'
    )
    net = make(text)
    assert net.inputs == []
    assert net.blobs["data"].shape == [2, 3, 7, 6]
    assert net.blobs["label"].shape == [2]
    for start in (0, 2, 4):
        out = net.forward(blobs=["label"])
        rows = [k % 5 for k in (start, start + 1)]
        assert np.array_equal(out["y"], PICTURES[rows])
        assert out["label"].tolist() == [LABELS[k] for k in rows]
    with pytest.raises(CaffePortError, match=r"layer 'd'.*'nowhere' does not exist") as caught:
        make(text.replace('"db"', '"nowhere"'))
    assert "--data" not in str(caught.value)


def test_recurrent_layers_go_on_in_the_next_forward(make: Make) -> None:
    net = make(
        'layer { name: "in" type: "Input" top: "data" top: "cont" input_param { shape { dim: 1 dim: 2 dim: 3 } '
        'shape { dim: 1 dim: 2 } } } layer { name: "l" type: "LSTM" bottom: "data" bottom: "cont" top: "y" '
        'recurrent_param { num_output: 4 weight_filler { type: "uniform" min: -1 max: 1 } } }'
    )
    net.blobs["cont"].data[...] = 0
    first = net.forward()["y"].copy()
    net.blobs["cont"].data[...] = 1
    assert not np.allclose(net.forward()["y"], first)
    net.blobs["cont"].data[...] = 0
    assert np.allclose(net.forward()["y"], first)


def test_a_relu_of_its_own_does_not_overwrite(make: Make) -> None:
    net = make(APART)
    module = net.layer_dict["relu1"].module  # type: ignore[attr-defined]
    assert type(module) is ReLU
    net.params["conv1"][1].data[...] = -1
    for blob in net.params["bn1"]:
        blob.data[...] = 1
    net.params["sc1"][0].data[...] = 1
    for _ in range(2):
        net.forward()
        assert net.blobs["s"].data.min() < 0 <= net.blobs["r"].data.min()


OUTPUT = """
layer { name: "in" type: "Input" top: "x" top: "l" input_param { shape { dim: 3 dim: 4 } shape { dim: 3 } } }
layer { name: "out" type: "HDF5Output" bottom: "x" bottom: "l" hdf5_output_param { file_name: "%s" } }
"""


def test_hdf5_output_writes_what_caffe_writes(make: Make, tmp_path: Path) -> None:
    """The shapes, types and numbers that Caffe wrote, and its refusal of a second forward."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "out.h5"
    net = make(OUTPUT % path, caffe.TEST)
    net.blobs["x"].data[...] = np.arange(12).reshape(3, 4)
    net.blobs["l"].data[...] = [7, 8, 9]
    net.forward()
    with h5py.File(path) as file:
        assert {name: (data.shape, data.dtype) for name, data in file.items()} == {
            "data": ((3, 4, 1, 1), np.float32),
            "label": ((3, 1, 1, 1), np.float32),
        }
        assert file["data"][...].ravel().tolist() == list(range(12))
        assert file["label"][...].ravel().tolist() == [7, 8, 9]
    with pytest.raises(CaffePortError, match="writes once, as in Caffe"):
        net.forward()
    make(OUTPUT % path, caffe.TEST).forward()  # replaces it


@pytest.mark.parametrize(
    ("name", "words"),
    [("notes.txt", "is not an HDF5 file"), ("none/out.h5", "no such folder"), ("", "is not an HDF5 file")],
)
def test_hdf5_output_replaces_nothing_else(make: Make, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CaffePortError, match=words):
        make(OUTPUT % (tmp_path / name), caffe.TEST)
    assert (tmp_path / "notes.txt").read_text() == "mine"
