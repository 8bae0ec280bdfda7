"""Databases, lists and HDF5 as Caffe's data layers read them."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pytest
from conftest import GOLDEN
from small_lmdb import LABELS, PICTURES, RNG, datums, make_lmdb, write

from caffe_port.data import batches, records
from caffe_port.data.leveldb import LevelDB, unsnappy
from caffe_port.data.lmdb import LMDB
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, ParseError, SpecError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec

FOLDER = GOLDEN / "leveldb"


def layer(folder: Path, text: str, kind: str = "Data") -> LayerSpec:
    path = folder / "net.prototxt"
    path.write_text(f'layer {{ name: "d" type: "{kind}" top: "data" top: "label" {text} }}')
    return Definition.parse(prototxt.read(path, "NetParameter"), str(path)).spec("TRAIN").layers[0]


def data_layer(folder: Path, extra: str = "", size: int = 2) -> LayerSpec:
    return layer(folder, f'data_param {{ source: "db" batch_size: {size} backend: LMDB }} {extra}')


# -- order ----------------------------------------------------------------------------------------------------------


def test_batches_wrap_in_sequence() -> None:
    assert [batches.positions(k, 2, 5).tolist() for k in range(4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_shuffled_epochs_hold_every_record_once_and_differ() -> None:
    rows = np.concatenate([batches.positions(k, 4, 10, shuffle=3) for k in range(10)])
    epochs = rows.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert batches.positions(7, 4, 10, shuffle=3).tolist() == rows[28:32].tolist()


# -- transform_param ------------------------------------------------------------------------------------------------


def test_a_layers_own_transform_param_is_done(tmp_path: Path) -> None:
    mean = RNG.standard_normal((1, 3, 7, 6)).astype(np.float32)
    (tmp_path / "m.binaryproto").write_bytes(write(caffemodel.blob_message(mean)))
    make_lmdb(tmp_path, datums())
    spec = data_layer(tmp_path, 'transform_param { mean_file: "m.binaryproto" crop_size: 4 scale: 0.5 }')
    centre = (PICTURES[:2] - mean)[:, :, 1:5, 1:5] / 2
    np.testing.assert_array_equal(records.from_layer(spec, "TEST").batch(0)[0].numpy(), centre)
    assert not np.array_equal(records.from_layer(spec, "TRAIN").batch(0)[0].numpy(), centre)


def test_a_transform_param_that_does_not_fit_is_found_at_once(tmp_path: Path) -> None:
    make_lmdb(tmp_path, datums())
    for text, message in [
        ("crop_size: 8", "crop 8 is larger than the image, 6x7"),
        ('mean_file: "absent"', "mean_file 'absent' does not exist"),
        ("crop_h: 3", "crop_h belongs to a fork"),
    ]:
        with pytest.raises(CaffePortError, match=rf"layer 'd' \(Data\): (transform_param )?{message}"):
            records.from_layer(data_layer(tmp_path, f"transform_param {{ {text} }}"), "TRAIN")
    feed = records.from_layer(data_layer(tmp_path, "transform_param { mean_value: 1 mean_value: 2 }"), "TRAIN")
    with pytest.raises(CaffePortError, match="mean has 2 values for 3 channels"):
        feed.batch(0)


def test_force_gray_decodes_to_grey(tmp_path: Path) -> None:
    make_lmdb(tmp_path, datums(encoded=True))
    for text, channels in (("", 3), ("transform_param { force_gray: true }", 1)):
        assert records.from_layer(data_layer(tmp_path, text), "TRAIN").shapes == ((2, channels, 7, 6), (2,))


# -- databases ------------------------------------------------------------------------------------------------------


def test_an_empty_data_beside_floats(tmp_path: Path) -> None:
    """Caffe asks for the length of ``data``, not whether it is set. Source: data_transformer.cpp."""
    values = RNG.standard_normal((2, 2 * 3 * 4)).astype(np.float32)
    shape = {"channels": 2, "height": 3, "width": 4}
    make_lmdb(
        tmp_path, [write(Message("Datum", **shape, data=b"", float_data=row, label=k)) for k, row in enumerate(values)]
    )
    data, label = records.from_layer(data_layer(tmp_path), "TRAIN").batch(0)
    np.testing.assert_array_equal(data.numpy().reshape(2, -1), values)
    assert label.tolist() == [0, 1]


@pytest.mark.parametrize("form", ["raw", "encoded", "floats"])
def test_lmdb_is_read_in_sequence(tmp_path: Path, form: str) -> None:
    make_lmdb(tmp_path, datums(encoded=form == "encoded", floats=form == "floats"))
    feed = records.from_layer(data_layer(tmp_path), "TRAIN")
    assert (feed.size, feed.shapes) == (5, ((2, 3, 7, 6), (2,)))
    data, label = feed.batch(2)
    want = PICTURES[[4, 0]] / np.float32(7) if form == "floats" else PICTURES[[4, 0]]
    np.testing.assert_array_equal(data.numpy(), want.astype(np.float32))
    assert label.tolist() == [5, 3]
    shuffled = records.from_layer(data_layer(tmp_path), "TRAIN", shuffle=True, seed=1, batch_size=5)
    assert sorted(shuffled.batch(0)[1].tolist()) == sorted(LABELS)


def test_prefetched_batches_are_the_same(tmp_path: Path) -> None:
    make_lmdb(tmp_path, datums())
    feed = records.from_layer(
        data_layer(tmp_path, "transform_param { mirror: true crop_size: 3 }"), "TRAIN", shuffle=True
    )
    ahead = batches.Prefetch(feed)
    assert (ahead.size, ahead.batch_size, ahead.shapes) == (feed.size, feed.batch_size, feed.shapes)
    for k in [0, 1, 2, 3, 9, 0]:
        for mine, theirs in zip(ahead.batch(k), feed.batch(k), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    ahead.close()


def test_leveldb_written_by_leveldb_itself() -> None:
    """tests/golden/leveldb: by LevelDB 1.22 (plyvel), tables with snappy and a log; key 3 deleted, key 5 rewritten."""
    expected = np.load(FOLDER / "expected.npz")
    database = records.Database(FOLDER / "db")
    assert len(database) == len(expected["labels"])
    for k, (picture, label) in enumerate(zip(expected["pictures"], expected["labels"], strict=True)):
        got, got_label = database[k]
        np.testing.assert_array_equal(got, picture)
        assert got_label == label


def test_a_backend_that_is_not_what_lies_there(tmp_path: Path) -> None:
    make_lmdb(tmp_path, datums())
    feed = records.from_layer(layer(tmp_path, 'data_param { source: "db" batch_size: 2 }'), "TEST")  # says LEVELDB
    assert feed.size == 5
    text = f'data_param {{ source: "{FOLDER / "db"}" batch_size: 2 backend: LMDB }}'
    assert records.from_layer(layer(tmp_path, text), "TEST").size == len(np.load(FOLDER / "expected.npz")["labels"])


def test_databases_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"layer 'd' \(Data\): 'db' does not exist"):
        records.from_layer(data_layer(tmp_path), "TRAIN")
    path = make_lmdb(tmp_path, [*datums(), *[b"x" * 5000] * 20])
    whole = (path / "data.mdb").read_bytes()
    for content, message in [
        (whole[: len(whole) // 2], "is truncated"),
        (whole[:100], "is not an LMDB"),
        (b"\0" * len(whole), "is not an LMDB"),
        (b"", "is empty"),
    ]:
        (path / "data.mdb").write_bytes(content)
        with pytest.raises(CaffePortError, match=rf"layer 'd' \(Data\): {message}"):
            records.from_layer(data_layer(tmp_path), "TRAIN")
    with pytest.raises(SpecError, match="has no batch_size"):
        records.from_layer(data_layer(tmp_path, size=0), "TRAIN")
    with pytest.raises(SpecError, match=r"data of a .* are not read from files; give the data with --data"):
        records.from_layer(layer(tmp_path, "", "MemoryData"), "TRAIN")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff\xff\xff", "db, key 00000000"),
        (write(Message("Datum", channels=3, height=7, width=6, data=b"short")), r"shape \(3, 7, 6\) has 5 values"),
        (write(Message("Datum", encoded=True, data=b"no picture")), "cannot be decoded"),
        (write(Message("Datum", encoded=True, data=b"")), "cannot be decoded"),
    ],
)
def test_records_that_cannot_be_read(tmp_path: Path, value: bytes, message: str) -> None:
    make_lmdb(tmp_path, [value])
    with pytest.raises(CaffePortError, match=message):
        records.from_layer(data_layer(tmp_path), "TRAIN")


def test_an_empty_database_and_pictures_that_differ(tmp_path: Path) -> None:
    other = write(Message("Datum", channels=3, height=2, width=2, data=bytes(12)))
    make_lmdb(tmp_path, [*datums()[:1], other])
    feed = records.from_layer(data_layer(tmp_path), "TRAIN")
    with pytest.raises(CaffePortError, match=r"record 1 has shape \(3, 2, 2\), the first of its batch has \(3, 7, 6\)"):
        feed.batch(0)
    cut = records.from_layer(data_layer(tmp_path, "transform_param { crop_size: 2 }"), "TRAIN")
    assert cut.batch(0)[0].shape == (2, 3, 2, 2)
    cut.classes = 3
    with pytest.raises(CaffePortError, match="record 0 has label 3; the net has 3 classes"):
        cut.batch(0)
    (tmp_path / "e").mkdir()
    make_lmdb(tmp_path / "e", [])
    with pytest.raises(CaffePortError, match="empty"):
        records.from_layer(data_layer(tmp_path / "e"), "TRAIN")


def test_lmdb_gives_what_its_library_gives(tmp_path: Path) -> None:
    """Branches, values on pages of their own, deletions, several transactions; keys in the library's order."""
    rng = np.random.default_rng(0)
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 26) as env:
        for part in range(3):
            with env.begin(write=True) as txn:
                for _ in range(200):
                    txn.put(rng.bytes(7), rng.bytes(int(rng.choice((0, 1, 90, 3000, 9000)))))
                for key in [key for key, _ in txn.cursor()][:: 4 - part]:
                    txn.delete(key)
        with env.begin() as txn:
            wanted = [(bytes(key), bytes(value)) for key, value in txn.cursor()]
    found = LMDB(tmp_path / "db")
    assert len(wanted) > 100
    assert [(found.key(k), bytes(found[k])) for k in range(len(found))] == wanted


def test_an_lmdb_with_damaged_pages(tmp_path: Path) -> None:
    """The library would abort the process; ours gives records or says what is wrong."""
    path = make_lmdb(tmp_path, [*datums(), *[b"x" * 5000] * 5, *[b"y" * 90] * 200]) / "data.mdb"
    whole, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[int(rng.integers(len(whole) // 4096)) * 4096 + int(rng.integers(90))] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            found = LMDB(path)
            assert all(found.key(k) is not None and len(found[k]) >= 0 for k in range(len(found)))
        except ParseError:
            refused += 1
    assert refused > 100


# -- LevelDB's own files --------------------------------------------------------------------------------------------


def test_leveldbs_that_are_damaged(tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in (FOLDER / "db").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    with pytest.raises(CaffePortError, match="no file CURRENT"):
        LevelDB(tmp_path)
    table = next((FOLDER / "db").glob("*.ldb")).name
    folder = copy("no_table")
    (folder / table).unlink()
    with pytest.raises(CaffePortError, match=r"table \d+\.ldb is missing"):
        LevelDB(folder)
    folder = copy("short_table")
    (folder / table).write_bytes((folder / table).read_bytes()[:-1])
    with pytest.raises(ParseError, match="does not end like a table"):
        LevelDB(folder)
    folder = copy("no_manifest")
    next(folder.glob("MANIFEST*")).unlink()
    with pytest.raises(CaffePortError, match="cannot be read"):
        LevelDB(folder)
    for seed in range(60):  # any byte, any file: an error of ours or a readable database, nothing else
        folder = copy(f"flip{seed}")
        random = np.random.default_rng(seed)
        file = sorted(folder.iterdir())[random.integers(len(list(folder.iterdir())))]
        data = bytearray(file.read_bytes())
        if data:
            data[random.integers(len(data))] ^= 1 << random.integers(8)
            file.write_bytes(data)
        try:
            database = LevelDB(folder)
            for k in range(len(database)):
                assert isinstance(database[k], bytes)
        except CaffePortError:
            pass


def one_log(folder: Path, records: int, size: int) -> Path:
    """A LevelDB as convert_cifar_data leaves it: all records in one batch, in a log that was never compacted."""
    folder.mkdir()

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    def log(record: bytes) -> bytes:
        out, at, first = bytearray(), 0, True
        while first or at < len(record):
            left = 32768 - len(out) % 32768
            if left < 7:
                out += bytes(left)
                continue
            part = record[at : at + left - 7]
            at += len(part)
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, at == len(record)]
            out += bytes(4) + struct.pack("<HB", len(part), kind) + part  # checksums are not looked at
            first = False
        return bytes(out)

    batch = bytearray(struct.pack("<QI", 1, records))
    for k in range(records):
        key, value = b"%05d" % k, (b"%07d" % k) * (size // 7)
        batch += b"\1" + varint(len(key)) + key + varint(len(value)) + value
    comparator = b"leveldb.BytewiseComparator"
    (folder / "MANIFEST-000002").write_bytes(log(b"\1" + varint(len(comparator)) + comparator + b"\2\3"))
    (folder / "CURRENT").write_bytes(b"MANIFEST-000002\n")
    (folder / "000003.log").write_bytes(log(bytes(batch)))
    return folder


def test_a_log_of_one_batch_is_read_once(tmp_path: Path) -> None:
    """The batch is joined once, and its values are not copied: else 154 MB take 328 s, and three times their size."""
    folder = one_log(tmp_path / "db", 8000, 3080)
    tracemalloc.start()
    found = LevelDB(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (folder / "000003.log").stat().st_size
    assert len(found) == 8000
    assert found[7999] == b"0007999" * 440
    assert peak < 2.5 * size
    began = time.process_time()
    LevelDB(one_log(tmp_path / "large", 16000, 3080))
    assert time.process_time() - began < 8  # half a second with the writing; 33 s if it is quadratic


def test_snappy_by_hand() -> None:
    # "ab", then a copy of 7 from 2 back (overlapping), then a literal "cd"
    assert (
        unsnappy(bytes([11, 1 << 2]) + b"ab" + bytes([((7 - 4) << 2) | 1, 2]) + bytes([1 << 2]) + b"cd")
        == b"ababababacd"
    )
    long = bytes(range(256))
    assert unsnappy(b"\x80\x04" + bytes([61 << 2, 255, 0]) + long + bytes([(63 << 2) | 2, 0, 1] * 4)) == long * 2
    for damaged in (b"\x05\x00a", bytes([4, 0]) + b"a" + bytes([1, 9]), b"\xff"):
        with pytest.raises(ParseError):
            unsnappy(damaged, "x")


# -- lists and HDF5 -------------------------------------------------------------------------------------------------


def test_lists_of_pictures(tmp_path: Path) -> None:
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"a {k}.png"), PICTURES[k].transpose(1, 2, 0))
    (tmp_path / "list.txt").write_text("a 0.png 7\n\na 1.png 8\na 2.png 9\n")
    feed = records.from_layer(
        layer(tmp_path, 'image_data_param { source: "list.txt" batch_size: 2 }', "ImageData"), "TEST"
    )
    data, label = feed.batch(1)
    np.testing.assert_array_equal(data.numpy(), PICTURES[[2, 0]].astype(np.float32))
    assert label.tolist() == [9, 7]
    text = (
        f'image_data_param {{ source: "list.txt" root_folder: "{tmp_path}/" new_height: 5 new_width: 4 is_color: 0 }}'
    )
    feed = records.from_layer(layer(tmp_path, text, "ImageData"), "TEST")
    assert feed.shapes == ((1, 1, 5, 4), (1,))
    grey = cv2.imread(str(tmp_path / "a 2.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(feed.batch(2)[0][0, 0].numpy(), cv2.resize(grey, (4, 5)).astype(np.float32))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.png\n", "list.txt:1: .*expected a path"),
        ("\n", "lists no images"),
        ("absent.png 1\n", "lists 'absent.png', which does not exist"),
        ("absent.png 0 1\n", "lists 'absent.png 0', which does not exist\n.*one label per image"),
        ("absent.png 0.5\n", "list.txt:1: .*a whole number; got .*\n.*one label per image"),
        ("list.txt 1\n", "cannot be decoded"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(CaffePortError, match=message):
        records.from_layer(layer(tmp_path, 'image_data_param { source: "list.txt" }', "ImageData"), "TEST")


def test_lists_as_people_write_them(tmp_path: Path) -> None:
    """Tabs, which Caffe took before 1.0; Windows' line ends, separators and mark; a root beside the list."""
    (tmp_path / "pictures").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"pictures/a {k}.png"), PICTURES[k].transpose(1, 2, 0))
    lines = "\ufeffpictures\\a 0.png\t7\r\n pictures/a 1.png  +8  \r\npictures\\a 2.png 9\r\n"
    (tmp_path / "list.txt").write_text(lines, encoding="utf-8", newline="")
    (tmp_path / "below.txt").write_text("a 2.png 4\n")
    feed = records.from_layer(
        layer(tmp_path, 'image_data_param { source: "list.txt" batch_size: 3 }', "ImageData"), "TEST"
    )
    data, label = feed.batch(0)
    np.testing.assert_array_equal(data.numpy(), PICTURES[:3].astype(np.float32))
    assert label.tolist() == [7, 8, 9]
    text = 'image_data_param { source: "below.txt" batch_size: 1 root_folder: "pictures/" }'
    data, _ = records.from_layer(layer(tmp_path, text, "ImageData"), "TEST").batch(0)
    np.testing.assert_array_equal(data.numpy(), PICTURES[2:3].astype(np.float32))
    with pytest.raises(CaffePortError, match=r"'picturesa 2\.png', which does not exist\n.*let it end in '/'"):
        records.from_layer(layer(tmp_path, text.replace("pictures/", "pictures"), "ImageData"), "TEST")


def hdf5(folder: Path) -> list[np.ndarray]:
    arrays = [RNG.standard_normal((rows, 2, 3)).astype(np.float32) for rows in (3, 2)]
    for k, array in enumerate(arrays):
        with h5py.File(folder / f"{k}.h5", "w") as file:
            file["data"], file["label"] = array, np.arange(len(array)) + 10 * k
    (folder / "list.txt").write_text("0.h5\n1.h5\n")
    return arrays


@pytest.mark.parametrize("names", ["0.h5\n1.h5\n", "0.h5 1.h5", "\ufeff0.h5\r\n1.h5\r\n\r\n"])
def test_hdf5_files_one_after_the_other(tmp_path: Path, names: str) -> None:
    arrays = np.concatenate(hdf5(tmp_path))
    (tmp_path / "list.txt").write_text(names, encoding="utf-8", newline="")
    feed = records.from_layer(
        layer(tmp_path, 'hdf5_data_param { source: "list.txt" batch_size: 4 }', "HDF5Data"), "TRAIN"
    )
    data, label = feed.batch(1)
    np.testing.assert_array_equal(data.numpy(), arrays[[4, 0, 1, 2]])
    assert label.tolist() == [11, 0, 1, 2]


def test_the_name_of_an_hdf5_file_may_contain_a_space(tmp_path: Path) -> None:
    hdf5(tmp_path)
    (tmp_path / "1.h5").rename(tmp_path / "0.h5 1.h5")
    (tmp_path / "list.txt").write_text("0.h5 1.h5\n")
    text = 'hdf5_data_param { source: "list.txt" batch_size: 2 }'
    assert records.from_layer(layer(tmp_path, text, "HDF5Data"), "TRAIN").batch(0)[1].tolist() == [10, 11]


def test_hdf5_that_cannot_be_read(tmp_path: Path) -> None:
    hdf5(tmp_path)
    wanted = layer(tmp_path, 'hdf5_data_param { source: "list.txt" batch_size: 4 }', "HDF5Data")
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["data"], file["label"] = np.zeros((2, 9)), np.zeros(2)
    with pytest.raises(ParseError, match="in the first file"):
        records.from_layer(wanted, "TRAIN")
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["data"] = np.zeros((2, 2, 3))
    with pytest.raises(ParseError, match="does not contain all of the datasets data, label"):
        records.from_layer(wanted, "TRAIN")
    (tmp_path / "1.h5").write_bytes(b"no")
    with pytest.raises(ParseError, match="cannot be read as HDF5"):
        records.from_layer(wanted, "TRAIN")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(SpecError, match="lists no files"):
        records.from_layer(wanted, "TRAIN")
