"""The model archives that NVIDIA's DIGITS gives for download: definition, weights, mean, labels, and info.json.

The names are those of DIGITS: deploy.prototxt, train_val.prototxt, original.prototxt, snapshot_iter_N.caffemodel,
mean.binaryproto, labels.txt; info.json may give others. Archives of other origin are read alike if they hold one net.
Source: digits/model/views.py, digits/model/tasks/caffe_train.py and examples/classification of DIGITS.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.caffemodel import ImageFacts, Weights
from caffe_port.formats.message import Message
from caffe_port.storage import archive
from caffe_port.storage.archive import Member
from caffe_port.storage.files import sha256
from caffe_port.typing import Array

_MOST_TEXT = 16 << 20
_DEPLOY, _TRAIN_VAL, _ORIGINAL = "deploy.prototxt", "train_val.prototxt", "original.prototxt"


@dataclass(frozen=True)
class ModelArchive:
    """A net from an archive.

    Attributes:
        definition: of the net to deploy.
        weights: of the newest snapshot, with what the archive says about images.
        facts: what was found, by label.
    """

    definition: Definition
    weights: Weights
    facts: tuple[tuple[str, str], ...]


_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".zip")


def is_archive(path: str | Path) -> bool:
    """Whether a file is an archive that may hold a model, by its name and its first bytes."""
    return str(path).lower().endswith(_SUFFIXES) and archive.is_archive(path)


def read(path: str | Path, writable: bool = False, ignore_fields: Collection[str] = ()) -> ModelArchive:
    """Reads the net in an archive. What the archive holds besides is not looked at, and nothing of it is run.

    Args:
        writable: as for :func:`caffe_port.formats.caffemodel.read`.
        ignore_fields: names of fields that may be unknown; they are still in the definition.

    Raises:
        ParseError: the archive, or a file in it, is damaged, or it holds no weights.
    """
    where, found = str(path), archive.members(path)
    info = _info(path, found)
    snapshot = _snapshot(found, info)
    if snapshot is None:
        names = ", ".join(sorted(member.base for member in found)[:8])[:200] or "nothing"
        raise ParseError(f"is an archive without a .caffemodel (a PyTorch file?); it holds {names}", where)
    suffix = ".caffemodel.h5" if snapshot.base.lower().endswith(".h5") else ".caffemodel"
    with archive.unpacked(path, snapshot, suffix) as file:
        weights = caffemodel.read(file, writable, where=f"{where}/{snapshot.base}")
    notes: list[str] = []
    try:
        train_val = _text(path, _pick(found, info.get("train_val file"), (_TRAIN_VAL,)), ignore_fields)
    except CaffePortError as error:
        train_val = None
        notes.append(f"what it says about images is not known: {error}")
    chosen = _pick(found, info.get("deploy file"), (_DEPLOY, _TRAIN_VAL, _ORIGINAL))
    chosen = chosen or next((one for one in found if one.base.endswith(".prototxt") and "solver" not in one.base), None)
    deploy = _text(path, chosen, ignore_fields)
    if deploy is not None and chosen is not None:
        definition = Definition.parse(deploy, f"{where}/{chosen.base}")
    else:
        definition = Definition.embedded(weights)
    mean = _mean(path, _pick(found, info.get("mean file"), ("mean.binaryproto",), ".binaryproto"))
    labels = _pick(found, info.get("labels file"), ("labels.txt",))
    classes = _labels(path, labels)
    facts = _image_facts(where, train_val, mean, classes, notes)
    if (mode := info.get("image resize mode")) not in (None, "squash"):
        notes.append(f"{where}: DIGITS resized images by '{str(mode)[:20]}'; here they are squashed to the net's input")
    python = [member.base for member in found if member.base.startswith("digits_python_layers.")]
    if python:
        notes.append(f"{where}: {python[0]} is not run; map its layers with --plugin")
    definition = dataclasses.replace(definition, remarks=tuple(notes))
    weights = dataclasses.replace(weights, path=where, images=facts)
    vars(weights)["sha256"] = sha256(path)  # of the archive, whose path it has
    shown = [("archive", f"{len(found)} files"), ("definition", chosen.base if chosen else "inside the weights")]
    shown += [("weights", snapshot.base)]
    shown += [("mean", "x".join(map(str, mean.shape)))] if mean is not None else []
    shown += [("labels", str(len(classes)))] if classes else []
    shown += [(label, str(info[key])[:80]) for label, key in _SHOWN if key in info]
    return ModelArchive(definition, weights, tuple(shown))


_SHOWN = (
    ("name", "name"),
    ("made by", "digits version"),
    ("images", "image dimensions"),
    ("resized by", "image resize mode"),
)


def _pick(found: Sequence[Member], told: Any, names: Sequence[str], suffix: str = "") -> Member | None:
    """The member that info.json names, or of the first of these names, or the first with a suffix. Of equal names, the
    one in the outermost folder.
    """
    by_name: dict[str, Member] = {}
    for member in sorted(found, key=lambda one: (one.name.count("/"), one.order)):
        by_name.setdefault(member.base, member)
    wanted = [str(told).replace("\\", "/").rpartition("/")[2]] if told else []
    for name in (*wanted, *names):
        if name in by_name:
            return by_name[name]
    return next((one for name, one in sorted(by_name.items()) if suffix and name.endswith(suffix)), None)


def _snapshot(found: Sequence[Member], info: dict[str, Any]) -> Member | None:
    """The weights that info.json names, or those of the latest iteration."""
    models = [one for one in found if one.base.lower().endswith((".caffemodel", ".caffemodel.h5"))]

    def iteration(member: Member) -> tuple[int, int]:
        number = re.search(r"_iter_(\d{1,18})\.", member.base)
        return (int(number[1]) if number else -1, -member.name.count("/"))

    return _pick(models, info.get("snapshot file"), ()) or max(models, key=iteration, default=None)


def _info(path: str | Path, found: Sequence[Member]) -> dict[str, Any]:
    member = _pick(found, None, ("info.json",))
    if member is None:
        return {}
    try:
        table = json.loads(archive.read(path, member, _MOST_TEXT))
    except (ValueError, RecursionError):
        raise ParseError("is not JSON", f"{path}/{member.base}") from None
    return table if isinstance(table, dict) else {}


def _text(path: str | Path, member: Member | None, ignore_fields: Collection[str]) -> Message | None:
    if member is None:
        return None
    where = f"{path}/{member.base}"
    text = _decoded(archive.read(path, member, _MOST_TEXT), where)
    return prototxt.parse(text, "NetParameter", where, ignore_fields)


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ParseError("is not text", where) from None


def _mean(path: str | Path, member: Member | None) -> Array | None:
    if member is None:
        return None
    with archive.unpacked(path, member, ".binaryproto") as file:
        return _named(lambda: caffemodel.read_mean(file), f"{path}/{member.base}")


def _named(function: Callable[[], Array], where: str) -> Array:
    try:
        return function()
    except CaffePortError as error:
        raise type(error)(error.what, where, error.hint) from None


def _labels(path: str | Path, member: Member | None) -> tuple[str, ...]:
    """One class per line, without empty lines, as DIGITS reads them."""
    if member is None:
        return ()
    text = _decoded(archive.read(path, member, _MOST_TEXT), f"{path}/{member.base}")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _image_facts(
    where: str, train_val: Message | None, mean: Array | None, classes: tuple[str, ...], notes: list[str]
) -> ImageFacts:
    """What is subtracted: what the data layers of train_val.prototxt say; else the mean of each channel, as in DIGITS'
    own example, for older archives do not tell.
    """
    layers = [] if train_val is None else [layer for layer in train_val.layer if layer.has("transform_param")]
    tested = [layer for layer in layers if any(rule.phase == "TEST" for rule in layer.include)]
    p = (tested or layers or [Message("LayerParameter")])[0].transform_param
    chosen: Array | None = None
    if train_val is None and mean is not None:
        chosen = mean.mean((1, 2))
        notes.append(
            f"{where}: does not tell whether the mean image or its mean color is subtracted; the latter is assumed"
        )
    elif p.has("mean_file"):
        chosen = mean
    elif len(p.mean_value):
        chosen = caffemodel.vector(p.mean_value)
    return ImageFacts(chosen, float(p.scale), classes, where)
