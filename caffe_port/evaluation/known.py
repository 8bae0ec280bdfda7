"""What is known about the images that a net expects, and about its classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffe_port.data import class_names
from caffe_port.data.preprocessing import MEAN_IMAGE, Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import registry
from caffe_port.formats.caffemodel import Weights
from caffe_port.spec import NetSpec
from caffe_port.storage.output_folder import MEAN, REPORT

if TYPE_CHECKING:  # inspect asks this module, and does not import torch
    from caffe_port.api import Ported

UNKNOWN = (
    "how images become its input is not known; Caffe nets usually take them in BGR order, 0..255, minus a mean such as "
    "104,117,123 (--mean, --scale, --channel-order)"
)


@dataclass(frozen=True)
class Known:
    """How images become a net's input.

    Attributes:
        preprocessing: the rule.
        origin: its source: ``"registry entry 'mnist-slim-310k'"``, ``"transform_param of layer 'data'"``, ...
        classes: names by label; empty if unknown.
    """

    preprocessing: Preprocessing
    origin: str
    classes: tuple[str, ...] = ()


def known(
    specs: Sequence[NetSpec], stored: Weights | None, channel_order: str | None, notes: list[str]
) -> Known | None:
    """The preprocessing of a net: of the registry, by the checksum of the weights; of the run that trained them; of the
    archive that holds them; or of the data layers' transform_param.

    Args:
        specs: the net in its phases, TEST first.
        stored: the weights.
        channel_order: the channel order of images in a database, which no transform_param gives.
        notes: receives warnings.

    Returns:
        None if nothing is known.
    """
    if stored is not None:
        entry = registry.find_weights(stored)
        if entry is not None:
            classes = class_names.OF_DATA_SET.get(entry.dataset, ())
            return Known(entry.preprocessing, f"registry entry '{entry.name}'", classes)
        if (trained := of_run(Path(stored.path))) is not None:
            return Known(trained[0], f"the run in {trained[1]}")
        if (facts := stored.images) is not None:
            plan = Preprocessing("BGR", scale=facts.scale).changed(mean=facts.mean)
            return Known(plan, facts.origin, facts.classes)
    for spec in specs:
        for layer in spec.layers:
            if layer.param.has("transform_param"):
                plan = Preprocessing.from_transform_param(layer, channel_order, notes, inference=True)
                return Known(plan, f"transform_param of layer '{layer.name}'")
    return None


def known_of(
    ported: Ported,
    notes: list[str],
    *,
    mean: Any = None,
    scale: float | None = None,
    channel_order: str | None = None,
    labels: str | Path | None = None,
) -> Known | None:
    """What is known of a ported net, with changes by the user.

    Args:
        notes: receives warnings, among them one if nothing is known of a net that takes images.
        mean, scale, channel_order: as for :class:`~caffe_port.data.preprocessing.Preprocessing`; they replace what is
            known.
        labels: a file of class names.

    Raises:
        CaffePortError: a file cannot be read, or a value is wrong.
    """
    plans = ported.net.plans
    classes = class_names.read(labels) if labels is not None else ()
    given = {"mean": mean, "scale": scale, "channel_order": channel_order and channel_order.upper()}
    changed = [name for name, value in given.items() if value is not None]
    found = None
    if "mean" not in changed or "scale" not in changed:
        try:
            found = known([plans[False].spec, plans[True].spec], ported.weights, None, notes)
        except CaffePortError as error:
            notes.append(f"transform_param is not followed: {error.what}")
    if found is None:
        if not changed:
            if _takes_images(ported):
                notes.append(UNKNOWN)
            return None
        found = Known(Preprocessing(None), "")
    plan = found.preprocessing.changed(**given)
    if plan.channel_order is None and _takes_images(ported, 3):
        plan = plan.changed(channel_order="BGR")
        notes.append("the channel order is not known: BGR is assumed, as convert_imageset writes it (--channel-order)")
    if plan.lacks_mean_image:
        notes.append(f"{found.origin} subtracts the {MEAN_IMAGE}, which is not at hand: give it with --mean FILE")
    origin = ", ".join([*([found.origin] if found.origin else []), *changed])
    return Known(plan, origin, classes or found.classes)


def _takes_images(ported: Ported, channels: int | None = None) -> bool:
    plan = ported.net.plans[False]
    shape = plan.shapes[plan.spec.inputs[0][1]] if len(plan.spec.inputs) == 1 else ()
    return len(shape) == 4 and (shape[1] == channels if channels else shape[1] in (1, 3))


def of_run(weights: Path) -> tuple[Preprocessing, Path] | None:
    """The preprocessing with which a ``caffe-port train`` run trained these weights, from its config.json."""
    for folder in (weights.parent, weights.parent.parent):
        path = folder / "config.json"
        try:
            table = json.loads(path.read_text(encoding="utf-8"))["preprocessing"]
            return Preprocessing.from_dict(table, str(path)), folder
        except (OSError, ValueError, KeyError, TypeError, RecursionError, CaffePortError):
            continue
    return None


def of_folder(report: dict[str, Any], folder: Path) -> Known | None:
    """What a folder that ``convert`` wrote says in its port.json; None if it says nothing.

    Raises:
        CaffePortError: the table, or the mean image, is damaged.
    """
    table, classes = report.get("preprocessing"), report.get("classes")
    if not isinstance(table, dict):
        return None
    plan = Preprocessing.from_dict(table, str(folder / REPORT))
    if plan.lacks_mean_image:
        plan = plan.changed(mean=folder / MEAN)
    return Known(plan, str(folder / REPORT), tuple(map(str, classes)) if isinstance(classes, list) else ())
