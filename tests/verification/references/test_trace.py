"""Traces: the golden format, and files that are not what they say."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.verification.references.trace import Trace, read_golden


def _trace() -> Trace:
    return Trace(
        tops={
            ("data", 0): np.zeros((2, 3), np.float32),
            ("a/b:c", 0): np.arange(6.0).reshape(2, 3),
            ("a/b:c", 1): np.ones(4),
        },
        inputs={"data": np.zeros((2, 3), np.float32)},
        phase="TRAIN",
        provenance={"producer": "somebody", "weights": "w.caffemodel"},
        top_gradients={"y": np.ones(1)},
        input_gradients={"data": np.full((2, 3), 2.0)},
        parameter_gradients={("a/b:c", 0): np.full(5, 3.0)},
        changed_parameters={("bn", 2): np.full(1, 4.0)},
    )


def test_saved_and_loaded(tmp_path: Path) -> None:
    trace = _trace()
    trace.save(tmp_path / "t.npz")
    back = Trace.load(tmp_path / "t.npz")
    for name in ("tops", "inputs", "top_gradients", "input_gradients", "parameter_gradients", "changed_parameters"):
        mine, theirs = getattr(trace, name), getattr(back, name)
        assert list(mine) == list(theirs), name
        assert all(np.array_equal(mine[k], theirs[k]) and mine[k].dtype == theirs[k].dtype for k in mine), name
    assert back.phase == "TRAIN"
    assert back.provenance == {**trace.provenance, "file": str(tmp_path / "t.npz")}
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_numpys_own_savez_will_do(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "t.npz", **{"in:x": np.ones((1, 2)), "out:3:relu:0": np.ones((1, 2))})
    trace = Trace.load(tmp_path / "t.npz")
    assert list(trace.tops) == [("relu", 0)]
    assert trace.phase == "TEST"


def test_golden(golden: Path) -> None:
    trace = read_golden(golden / "layers/autosplit_inplace.npz")
    assert [key for key in trace.tops if key[0] != "x"] == [
        ("relu", 0),
        ("power", 0),
        ("sigmoid", 0),
        ("eltwise", 0),
    ]  # y_relu_0_split is Caffe's own
    assert trace.provenance["producer"] == "Caffe 1.0"
    assert set(trace.input_gradients) == {"x"}
    assert set(trace.top_gradients) == {"z"}
    train = read_golden(golden / "layers/batchnorm_train.npz")
    assert train.phase == "TRAIN"
    assert set(train.changed_parameters) == {("batchnorm", 0), ("batchnorm", 1), ("batchnorm", 2)}


def test_every_golden_is_read(golden: Path) -> None:
    paths = sorted((golden / "layers").glob("*.npz"))
    assert paths
    for path in paths:
        assert read_golden(path).tops


def test_two_layers_of_one_name_keep_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **{"out:7:relu:0": np.full(1, 7.0), "out:2:relu:0": np.full(1, 2.0)})
    trace = Trace.load(tmp_path / "t.npz")
    assert {key: float(a[0]) for key, a in trace.tops.items()} == {("relu", 0): 2.0, ("relu#2", 0): 7.0}


def _member(shape: tuple[int, ...], data: bytes, dtype: str = "<f4") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_declared_size_is_not_believed(tmp_path: Path) -> None:
    path = _zip(tmp_path / "t.npz", {"out:0:a:0.npy": _member((1 << 20, 1 << 20), b"\0" * 8)})
    with pytest.raises(ParseError, match="declares 4,398,046,511,104 bytes but holds 8"):
        Trace.load(path)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    np.savez(tmp_path / "t.npz", **{"out:0:a:0": np.array([Evil()], dtype=object)})  # type: ignore[arg-type]
    with pytest.raises(ParseError, match="Python objects"):
        Trace.load(tmp_path / "t.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones(1)}, "an array with the unknown name 'x'"),
        ({"in:x": np.ones(1)}, "contains no output of a layer"),
        ({"out:0:a": np.ones(1)}, "an array with the unknown name 'out:0:a'"),
        ({"out:0:a:0": np.ones(1), "phase": np.array("DEPLOY")}, "phase must be TEST or TRAIN"),
        ({"out:0:a:0": np.ones(1), "meta": np.array("[1]")}, "'meta' is not"),
        ({"out:0:a:0": np.ones(1), "meta": np.array(json.dumps({"provenance": [1]}))}, "'meta' is not"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ParseError, match=says):
        Trace.load(tmp_path / "t.npz")


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    _trace().save(whole)
    data = whole.read_bytes()
    for name, content in {"empty": b"", "text": b"layer {}", "cut": data[: len(data) // 2], "tail": data[100:]}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ParseError, match="trace"):
            Trace.load(path)
    for position in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[position] ^= 0x41
        (tmp_path / "flipped").write_bytes(flipped)
        with contextlib.suppress(CaffePortError):  # a changed number is not noticed; anything else is
            Trace.load(tmp_path / "flipped")
    with pytest.raises(CaffePortError, match="cannot be read"):
        Trace.load(tmp_path / "absent.npz")
    with pytest.raises(CaffePortError, match="folder"):
        Trace.load(tmp_path)


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="cannot be written"):
        _trace().save(tmp_path / "absent" / "t.npz")
    bad = Trace({("a", 0): np.array([object()])}, {})
    with pytest.raises(ValueError, match="Object arrays"):
        bad.save(tmp_path / "t.npz")
    assert not list(tmp_path.iterdir())
