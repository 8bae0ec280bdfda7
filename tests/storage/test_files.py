"""atomic_write: the whole file under its name, or nothing; read_bytes: the whole file, and no more memory."""

from __future__ import annotations

import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.storage import files
from caffe_port.storage.files import atomic_write

not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def test_writes_bytes_and_text(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"\x00\xff")
        assert not (tmp_path / "a.bin").exists(), "the name stands for a whole file only"
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    with atomic_write(tmp_path / "b.txt", "w") as file:
        file.write("é\n")
    assert (tmp_path / "b.txt").read_bytes() == "é\n".encode()
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b.txt"]


def test_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old and longer")
    with atomic_write(path, "w") as file:
        file.write("new")
    assert path.read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with atomic_write(path, "w") as file:
            file.write("text")

    with pytest.raises(CaffePortError, match="cannot be written"):  # nobody reads; it does not wait
        write()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write()
    assert os.read(reader, 99) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="has no terminals")
def test_a_device_is_written_to_and_stays() -> None:
    """`--html /dev/null`, as root, replaced the device by a file."""
    reader, device = os.openpty()
    path = Path(os.ttyname(device))
    with atomic_write(path) as file:
        file.write(b"text")
    assert os.read(reader, 99) == b"text"
    assert stat.S_ISCHR(path.stat().st_mode)
    os.close(reader)
    os.close(device)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="has no /dev/fd")
def test_an_open_file_is_written_to(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb", buffering=0) as out:
        out.write(b"before ")
        with atomic_write(f"/dev/fd/{out.fileno()}") as file:
            file.write(b"text")
        assert (tmp_path / "a").stat().st_ino == os.fstat(out.fileno()).st_ino
    assert (tmp_path / "a").read_bytes() == b"before text"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, CaffePortError])
def test_an_error_leaves_everything_as_it_was(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path, "w") as file:
            file.write("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write_half()
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_text() == "old"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """A temporary file is its owner's alone; a result is not."""
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"x")
        assert os.umask(0o027) == 0o027, "the umask is left as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/a", "No such file or directory"),
        ("file/a", "Not a directory"),
        ("folder", "Is a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_places_that_cannot_be_written(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(CaffePortError, match=f"cannot be written: {reason}") as caught, atomic_write(tmp_path / name):
        pass
    assert caught.value.where == str(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    name = "x" * 255
    with atomic_write(tmp_path / name) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == [name]


def test_a_nul_in_the_name(tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="cannot be written"), atomic_write(f"{tmp_path}/a\0b"):
        pass
    assert not os.listdir(tmp_path)


@not_root
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CaffePortError, match="cannot be written: Permission denied"), atomic_write(tmp_path / "a"):
            pass
    finally:
        tmp_path.chmod(0o755)
    assert not os.listdir(tmp_path)


def test_a_full_disk(tmp_path: Path) -> None:
    """/dev/full refuses every byte; its error comes from the block, as a full disk's does."""
    with (
        pytest.raises(CaffePortError, match="a: cannot be written: No space left on device"),
        atomic_write(tmp_path / "a"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert not os.listdir(tmp_path)


def test_reading_allocates_the_size_of_the_file(tmp_path: Path) -> None:
    """And not the limit: Python's read() allocates what it is asked for."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    tracemalloc.start()
    assert files.read_bytes(path) == b"abc"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert files.read_bytes(path, 3) == b"abc"
    with pytest.raises(ParseError, match="is larger than"):
        files.read_bytes(path, 2)
    if Path("/proc/version").is_file():  # its size is said to be 0
        assert files.read_bytes("/proc/version") == Path("/proc/version").read_bytes()
