"""model_defs/registry.toml: who reported which accuracy, on which data, and with which preprocessing.

Nothing here imports torch, so that `caffe-port reproduce --list` starts quickly.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.formats.caffemodel import Weights
from caffe_port.storage import tables
from caffe_port.storage.files import read_bytes, sha256, stays_inside

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Reported:
    """A published accuracy: top-1 on the test set, in percent.

    ``mirror_test``, if not None, overrides that of the entry's preprocessing.
    """

    accuracy: float
    source: str
    by: str
    date: str = ""
    mirror_test: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class WeightsFile:
    """Available weights: path below a mirror folder, checksum, size in bytes, and download address."""

    file: str
    sha256: str
    size: int
    url: str = ""


@dataclass(frozen=True)
class Verified:
    """The result of ``caffe-port verify``: how many tops agree, and with which versions of the references."""

    tops: int
    opencv: str = ""
    caffe: str = ""


@dataclass(frozen=True)
class Entry:
    """A table of registry.toml. The fields are explained at the top of that file."""

    name: str
    dataset: str
    classes: int
    parameters: int
    reported: tuple[Reported, ...]
    preprocessing: Preprocessing
    model: str = ""
    solver: str = ""
    weights: WeightsFile | None = None
    verified: Verified | None = None
    note: str = field(default="", repr=False)

    @property
    def model_path(self) -> Path | None:
        """The prototxt; None if the definition inside the weights is used."""
        return model_defs() / self.model if self.model else None

    @property
    def solver_path(self) -> Path | None:
        """The solver prototxt, or None."""
        return model_defs() / self.solver if self.solver else None


def model_defs() -> Path:
    """The folder model_defs: inside the installed package, or next to it in a checkout.

    Raises:
        CaffePortError: it does not exist.
    """
    package = Path(str(resources.files("caffe_port")))
    for folder in (package / "model_defs", package.parent / "model_defs"):
        if (folder / "registry.toml").is_file():
            return folder
    raise CaffePortError("contains no model_defs/registry.toml: the installation is incomplete", str(package))


@functools.cache
def entries() -> Mapping[str, Entry]:
    """All entries by name, in file order."""
    return read(model_defs() / "registry.toml")


def entry(name: str) -> Entry:
    """The entry with this name.

    Raises:
        CaffePortError: there is none; suggests a similar name.
    """
    found = entries().get(name)
    if found is None:
        near = did_you_mean(name, entries())
        raise CaffePortError(f"'{name}' is not in the registry.{near}", hint=f"Its entries: {', '.join(entries())}")
    return found


def find_weights(weights: str | Path | Weights) -> Entry | None:
    """The entry with these weights, identified by size and SHA-256; None if there is none."""
    path = weights.path if isinstance(weights, Weights) else weights
    try:
        size = Path(path).stat().st_size
    except OSError:
        return None
    candidates = [e for e in entries().values() if e.weights is not None and e.weights.size == size]
    if not candidates:
        return None
    digest = weights.sha256 if isinstance(weights, Weights) else sha256(path)
    return next((e for e in candidates if e.weights is not None and e.weights.sha256 == digest), None)


# -- reading --------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[str, Entry]:
    """Reads a registry.

    Raises:
        CaffePortError: it is not TOML, or a table has a missing, unknown or invalid field.
    """
    where = str(path)
    try:
        tables = tomllib.loads(read_bytes(path, 1 << 20).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CaffePortError(f"is not TOML: {error}", where) from None
    return {name: _entry(name, table, where) for name, table in tables.items()}


def _entry(name: str, table: Any, where: str) -> Entry:
    at = f"{where}: [{name}]"
    if not isinstance(table, dict):
        raise CaffePortError("is outside any table", f"{where}: {name}")
    nested: dict[str, Any] = {}
    reported = table.get("reported")
    if not isinstance(reported, list):
        raise CaffePortError("'reported' is missing or not a list", at)
    nested["reported"] = tuple(tables.build(Reported, r, f"{at} reported") for r in reported)
    nested["preprocessing"] = Preprocessing.from_dict(table.get("preprocessing"), f"{at} preprocessing")
    nested["weights"] = tables.build(WeightsFile, table["weights"], f"{at} weights") if "weights" in table else None
    nested["verified"] = tables.build(Verified, table["verified"], f"{at} verified") if "verified" in table else None
    plain = {key: value for key, value in table.items() if key not in nested}
    built: Entry = tables.build(Entry, {"name": name, **plain}, at, nested)
    _check_files(built, at)
    return built


def _check_files(entry: Entry, at: str) -> None:
    """Checks an entry's name and files; names and paths are used below caffe-port's folders and must stay there."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", entry.name):
        raise CaffePortError("an entry's name may contain letters, digits, '.', '-' and '_'", at)
    weights = entry.weights
    for key, path in {"model": entry.model, "solver": entry.solver, "file": weights.file if weights else ""}.items():
        if not stays_inside(path):
            raise CaffePortError(f"'{key}' is {path!r}, expected a path below the folder", at)
    if weights is not None and not re.fullmatch("[0-9a-f]{64}", weights.sha256):
        raise CaffePortError(f"'sha256' is {weights.sha256!r}, expected 64 hexadecimal digits", at)
    if weights is not None and (weights.size < 1 or (weights.url and not weights.url.startswith("https://"))):
        raise CaffePortError("'size' must be at least 1, and 'url' must begin with https://", at)
