"""The folder that convert writes, with its port.json: built next to the target and moved there once it is complete."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffePortError
from caffe_port.storage.files import lock, sha256

REPORT = "port.json"
MEAN = "mean.npy"
"""The mean image that preprocess of model.py subtracts."""


@dataclass(frozen=True)
class Result:
    """What convert wrote.

    Attributes:
        folder: where the files are.
        files: their names, port.json last.
        class_name: the class in model.py; empty if there is none.
        layers, parameters: how many; parameters that layers share count once.
        check: the result of running the model against the Net, as a sentence; without a model, what was written.
        notes: warnings.
        channels_last: model.py computes in that memory format.
    """

    folder: Path
    files: tuple[str, ...]
    class_name: str
    layers: int
    parameters: int
    check: str
    notes: tuple[str, ...]
    channels_last: bool = False


def check(folder: Path, force: bool) -> None:
    """Raises CaffePortError for a folder that must not be written to: it is not empty, or not a folder.

    Args:
        force: whether files of an earlier run may be replaced.
    """
    try:
        if folder.is_dir():
            if not force and any(folder.iterdir()):
                raise CaffePortError("is not empty", str(folder), "Use --force to replace the files of an earlier run.")
        elif folder.exists():
            raise CaffePortError("is a file; expected a folder", str(folder))
        elif folder.is_symlink():
            raise CaffePortError(f"is a link to {os.readlink(folder)}, which does not exist", str(folder))
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror}", str(folder)) from None


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A temporary folder next to where ``folder`` will be; removed at the end, with any parents created for it.

    A symbolic link is followed. The temporary folder is inside ``folder`` where it cannot be next to it: ``folder`` is
    a mount point, or its parent is read-only.

    Raises:
        CaffePortError: it cannot be created or written to.
    """
    real = Path(os.path.realpath(folder))
    missing = [parent for parent in real.parents if not parent.exists()]
    temporary = None
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        inside = real.is_dir() and (os.path.ismount(real) or not os.access(real.parent, os.W_OK))
        temporary = Path(tempfile.mkdtemp(prefix=".caffe-port.", suffix=".part", dir=real if inside else real.parent))
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
    except CaffePortError as error:
        if temporary is not None and error.where.startswith(str(temporary)):
            error.where = str(folder) + error.where.removeprefix(str(temporary))
        raise
    except OSError as error:
        raise CaffePortError(f"cannot be written: {error.strerror or error}", str(folder)) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()


def move_in(temporary: Path, folder: Path, files: Sequence[str]) -> None:
    """Moves ``files`` from a temporary folder to ``folder``, port.json last; other files there are kept.

    All of them are moved, or none: after an error, the files that they replaced are there again.

    Raises:
        CaffePortError: a folder has the name of one of the files; or the old files could not be put back, and where
            they are.
        OSError: a file cannot be moved.
    """
    for path in list(temporary.iterdir()):
        if path.name not in files:
            path.unlink()
    real = Path(os.path.realpath(folder))
    if not real.exists():
        os.rename(temporary, real)
        return
    for name in files:
        if (real / name).is_dir() and not (real / name).is_symlink():
            raise CaffePortError("is a folder; expected a file", str(folder / name), "Remove it, or choose another -o.")
    with lock(real, "the folder is being written to"):
        _replace(temporary, real, files)


def _replace(temporary: Path, folder: Path, files: Sequence[str]) -> None:
    """Moves files to an existing folder. Each name always refers to a whole file, old or new, even after a kill."""
    old = Path(tempfile.mkdtemp(prefix=".caffe-port.old.", suffix=".part", dir=temporary.parent))
    keep = False
    try:
        kept = {name for name in files if os.path.lexists(folder / name)}
        for name in kept:
            _keep(folder / name, old / name)
        moved: list[str] = []
        try:
            if REPORT in files:  # it comes last, so that all files it lists are complete
                (folder / REPORT).unlink(missing_ok=True)
            for name in files:
                os.replace(temporary / name, folder / name)
                moved.append(name)
        except BaseException:
            keep = True
            for name in moved:
                if name not in kept:
                    (folder / name).unlink()
            for name in sorted(kept & {*moved, REPORT}, key=lambda name: name == REPORT):
                os.replace(old / name, folder / name)
            keep = False
            raise
    except OSError as error:
        if not keep:
            raise
        what = f"was written in part, and the files of before could not be put back: {error.strerror or error}"
        raise CaffePortError(what, str(folder), f"They are in {old}") from None
    finally:
        if not keep:
            shutil.rmtree(old, ignore_errors=True)


def _keep(path: Path, copy: Path) -> None:
    """A second name for a file, or a copy of it where the file system has no hard links."""
    try:
        os.link(path, copy, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(path, copy, follow_symlinks=False)


# -- port.json ----------------------------------------------------------------------------------------------------


def fingerprint(path: Path, digest: str | None = None) -> dict[str, Any]:
    """Name, size and checksum of a file; ``digest`` where it is known already."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest or sha256(path)}


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes port.json: indented JSON, with lists of numbers on one line."""
    text = json.dumps(report, indent=2)
    text = re.sub(r"\[\s+((?:\d+,?\s+)+)\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"
    (folder / REPORT).write_text(text, encoding="utf-8")


def now() -> str:
    """The current time, or SOURCE_DATE_EPOCH (reproducible-builds.org), in UTC."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    utc = datetime.timezone.utc
    moment = datetime.datetime.fromtimestamp(int(epoch), utc) if epoch.isdecimal() else datetime.datetime.now(utc)
    return moment.isoformat(timespec="seconds")
