"""model_defs/registry.toml: what was reported, by whom, on what data, and with which preprocessing.

Nothing here imports torch: `caffe-port reproduce --list` answers at once.
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
    """A figure that somebody published: top-1 on the test set, in per cent.

    ``mirror_test`` differs from the entry's preprocessing where it is not None.
    """

    accuracy: float
    source: str
    by: str
    date: str = ""
    mirror_test: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class WeightsFile:
    """Weights that can be had: path below a mirror folder, checksum, size in bytes, and where they are published."""

    file: str
    sha256: str
    size: int
    url: str = ""


@dataclass(frozen=True)
class Entry:
    """A table of registry.toml. Field by field as explained at the head of that file."""

    name: str
    dataset: str
    classes: int
    parameters: int
    reported: tuple[Reported, ...]
    preprocessing: Preprocessing
    model: str = ""
    solver: str = ""
    weights: WeightsFile | None = None
    note: str = field(default="", repr=False)

    @property
    def model_path(self) -> Path | None:
        """The prototxt, or None where only the weights' own definition is meant."""
        return model_defs() / self.model if self.model else None

    @property
    def solver_path(self) -> Path | None:
        """The solver prototxt, or None."""
        return model_defs() / self.solver if self.solver else None


def model_defs() -> Path:
    """The folder model_defs: inside the installed package, or beside it in a checkout.

    Raises:
        CaffePortError: it is in neither place.
    """
    package = Path(str(resources.files("caffe_port")))
    for folder in (package / "model_defs", package.parent / "model_defs"):
        if (folder / "registry.toml").is_file():
            return folder
    raise CaffePortError("holds no model_defs/registry.toml: the installation is incomplete", str(package))


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every entry by name, in the file's order."""
    return read(model_defs() / "registry.toml")


def entry(name: str) -> Entry:
    """The entry of this name.

    Raises:
        CaffePortError: there is none; names the nearest.
    """
    found = entries().get(name)
    if found is None:
        near = did_you_mean(name, entries())
        raise CaffePortError(f"'{name}' is not in the registry.{near}", hint=f"It has: {', '.join(entries())}")
    return found


def find_weights(weights: str | Path | Weights) -> Entry | None:
    """The entry whose weights are this file, by size and sha256; None where no entry is."""
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
        CaffePortError: not TOML, or a table with a missing, unknown or senseless field; says which.
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
        raise CaffePortError("stands outside any table", f"{where}: {name}")
    nested: dict[str, Any] = {}
    reported = table.get("reported")
    if not isinstance(reported, list):
        raise CaffePortError("'reported' is missing or no list", at)
    nested["reported"] = tuple(tables.build(Reported, r, f"{at} reported") for r in reported)
    nested["preprocessing"] = Preprocessing.from_dict(table.get("preprocessing"), f"{at} preprocessing")
    nested["weights"] = tables.build(WeightsFile, table["weights"], f"{at} weights") if "weights" in table else None
    plain = {key: value for key, value in table.items() if key not in nested}
    built: Entry = tables.build(Entry, {"name": name, **plain}, at, nested)
    _check_files(built, at)
    return built


def _check_files(entry: Entry, at: str) -> None:
    """Names and paths end up in folders of ours: they must stay there."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", entry.name):
        raise CaffePortError("names are letters, digits, '.', '-' and '_'", at)
    weights = entry.weights
    for key, path in {"model": entry.model, "solver": entry.solver, "file": weights.file if weights else ""}.items():
        if not stays_inside(path):
            raise CaffePortError(f"'{key}' is {path!r}, expected a path below the folder", at)
    if weights is not None and not re.fullmatch("[0-9a-f]{64}", weights.sha256):
        raise CaffePortError(f"'sha256' is {weights.sha256!r}, expected 64 hexadecimal digits", at)
    if weights is not None and (weights.size < 1 or (weights.url and not weights.url.startswith("https://"))):
        raise CaffePortError("'size' is at least 1, 'url' begins with https://", at)
