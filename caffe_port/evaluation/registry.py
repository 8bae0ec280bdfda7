"""model_defs/registry.toml: what was reported, by whom, on what data, and with which preprocessing.

Nothing here imports torch: `caffe-port reproduce --list` answers at once.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.formats.caffemodel import Weights
from caffe_port.storage.files import read_bytes, sha256, stays_inside

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MEAN_IMAGE = "training-set mean image"
CHANNEL_ORDERS = ("RGB", "BGR", "GRAY")

PerChannel = float | tuple[float, ...]


@dataclass(frozen=True)
class Preprocessing:
    """What a net expects of a picture x in 0..255: ``(x - mean) * scale / std``, padded, cut out, mirrored.

    Attributes:
        channel_order: ``"RGB"``, ``"BGR"`` or ``"GRAY"``.
        mean: one number, one per channel in that order, or :data:`MEAN_IMAGE` (one per pixel, of the training set).
        scale: factor.
        std: one number, or one per channel.
        pad: zeros added to each side, of the result; of x, before everything else, where ``pad_first``.
        crop: side of the square cut out, at random in training, from the centre in testing; 0: none.
        mirror_train, mirror_test: flipped left to right with probability 1/2.
    """

    channel_order: str = "RGB"
    mean: PerChannel | str = 0.0
    scale: float = 1.0
    std: PerChannel = 1.0
    pad: int = 0
    pad_first: bool = False
    crop: int = 0
    mirror_train: bool = False
    mirror_test: bool = False

    def __post_init__(self) -> None:
        if self.channel_order not in CHANNEL_ORDERS:
            near = did_you_mean(str(self.channel_order).upper(), CHANNEL_ORDERS)
            raise CaffePortError(f"channel order '{self.channel_order}' is none of {', '.join(CHANNEL_ORDERS)}.{near}")
        channels = 1 if self.channel_order == "GRAY" else 3
        if isinstance(self.mean, str) and self.mean != MEAN_IMAGE:
            raise CaffePortError(f"mean '{self.mean}' is neither a number, a list of numbers nor \"{MEAN_IMAGE}\"")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) not in (1, channels):
                raise CaffePortError(f"{name} has {len(value)} values; {self.channel_order} takes 1 or {channels}")
        numbers = [
            n
            for value in (self.mean, self.std, self.scale)
            if not isinstance(value, str)
            for n in (value if isinstance(value, tuple) else (value,))
        ]
        if not all(math.isfinite(n) for n in numbers):
            raise CaffePortError("mean, scale and std are finite numbers")
        if any(s == 0 for s in (self.std if isinstance(self.std, tuple) else (self.std,))):
            raise CaffePortError("std is 0; pictures are divided by it")
        if self.pad < 0 or self.crop < 0:
            raise CaffePortError(f"pad {self.pad} and crop {self.crop} are at least 0")

    def __str__(self) -> str:
        """One line for the user, e.g. ``GRAY, (x - 33.3184) / 78.5675``."""
        x = "x"
        if self.mean == MEAN_IMAGE:
            x = f"(x - {MEAN_IMAGE})"
        elif self.mean != 0:
            x = f"(x - {_shown(self.mean)})"
        x += f" * {_shown(self.scale)}" if self.scale != 1 else ""
        x += f" / {_shown(self.std)}" if self.std != 1 else ""
        parts = [self.channel_order, x]
        parts += [f"{self.pad} zeros around {'x' if self.pad_first else 'it'}"] if self.pad else []
        parts += [f"crop {self.crop}"] if self.crop else []
        mirrored = [name for name, on in (("training", self.mirror_train), ("testing", self.mirror_test)) if on]
        parts += [f"mirrored at random in {' and '.join(mirrored)}"] if mirrored else []
        return ", ".join(parts)

    def changed(self, **changes: Any) -> Preprocessing:
        """A copy in which the changes that are not None were made.

        Raises:
            CaffePortError: a value that makes no sense.
        """
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items() if v is not None}
        return replace(self, **changes)


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

_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": _NUMBER,
    "bool": (bool,),
    "bool | None": (bool,),
    "PerChannel": (*_NUMBER, list),
    "PerChannel | str": (*_NUMBER, list, str),
}


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
    nested["reported"] = tuple(_build(Reported, r, f"{at} reported") for r in reported)
    nested["preprocessing"] = _build(Preprocessing, table.get("preprocessing"), f"{at} preprocessing")
    nested["weights"] = _build(WeightsFile, table["weights"], f"{at} weights") if "weights" in table else None
    plain = {key: value for key, value in table.items() if key not in nested}
    built: Entry = _build(Entry, {"name": name, **plain}, at, nested)
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


def _build(cls: type[Any], table: Any, at: str, nested: Mapping[str, Any] | None = None) -> Any:
    """A dataclass of a TOML table, every key known, every value of its field's type."""
    if not isinstance(table, dict):
        raise CaffePortError("is missing or no table", at)
    known = {f.name: f for f in fields(cls) if f.name not in (nested or {})}
    for key, value in table.items():
        if key not in known:
            raise CaffePortError(f"'{key}' is no field.{did_you_mean(key, known)}", at)
        allowed = _TYPES[str(known[key].type)]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise CaffePortError(f"'{key}' is {value!r}, expected {' or '.join(t.__name__ for t in allowed)}", at)
        if isinstance(value, list) and not all(isinstance(v, _NUMBER) for v in value):
            raise CaffePortError(f"'{key}' holds something that is no number", at)
    missing = [name for name, f in known.items() if name not in table and f.default is MISSING]
    if missing:
        raise CaffePortError(f"lacks {', '.join(missing)}", at)
    values = {k: tuple(map(float, v)) if isinstance(v, list) else v for k, v in table.items()}
    try:
        return cls(**values, **(nested or {}))
    except CaffePortError as error:
        raise CaffePortError(error.what, at) from None


def _shown(value: PerChannel | str) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(f'{v:g}' for v in value)}]"
    return value if isinstance(value, str) else f"{value:.8g}"
