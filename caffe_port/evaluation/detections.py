"""Measures a detector's mean average precision on images with boxes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port import devices
from caffe_port.api import Prototxt, Stored, build, read
from caffe_port.data import class_names
from caffe_port.data.annotated import AnnotatedFeed, BoxTransform
from caffe_port.data.annotations import AnnotatedDatabase, AnnotatedFiles, Examples
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.data.records import locate
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.devices import find_device
from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.evaluation.average_precision import VERSIONS, Detections, check_version
from caffe_port.evaluation.evaluate import only_input
from caffe_port.evaluation.known import UNKNOWN, known
from caffe_port.formats.caffemodel import Weights
from caffe_port.formats.message import Message
from caffe_port.layers.forks.detection_loss import DetectionEvaluate
from caffe_port.spec import LayerSpec, NetSpec

BATCH_SIZE = 16
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DetectionEvaluation:
    """A detector's mean average precision, and what it was measured with.

    Attributes:
        found: the detections and the number of objects, by class.
        images: the number of images.
        classes: names by label; empty if unknown.
        overlap: the least overlap of a detection that is right.
        difficult: whether difficult objects count.
        data: name of the data.
        preprocessing, origin: how images became the net's input, and who says so.
        notes: warnings.
    """

    found: Detections
    images: int
    classes: tuple[str, ...]
    overlap: float
    difficult: bool
    data: str
    preprocessing: str
    origin: str
    notes: tuple[str, ...]

    def mean(self, version: str = VERSIONS[0]) -> float:
        """The mean average precision, in percent."""
        return 100 * self.found.mean(version)

    def per_class(self, version: str = VERSIONS[0]) -> list[tuple[str, float, int]]:
        """(class, average precision in percent, objects), by label."""
        check_version(version)
        values = self.found.by_class(version)
        return [
            (self.name(label), 100 * values.get(label, 0.0), count)
            for label, count in sorted(self.found.objects.items())
        ]

    def name(self, label: int) -> str:
        """The name of a class."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def verdict(self, expected: float, version: str = VERSIONS[0], tolerance: float = 0.1) -> str:
        """``"equal"``, ``"better"`` or ``"worse"`` than a reported figure, in percent; equal within the tolerance."""
        difference = self.mean(version) - expected
        return "equal" if abs(difference) <= tolerance else "better" if difference > 0 else "worse"

    def as_dict(self, version: str = VERSIONS[0]) -> dict[str, Any]:
        """For JSON."""
        return {
            "mean_average_precision": {name: self.mean(name) for name in VERSIONS},
            "version": version,
            "images": self.images,
            "overlap": self.overlap,
            "difficult": self.difficult,
            "per_class": [
                {"class": name, "average_precision": value, "objects": count}
                for name, value, count in self.per_class(version)
            ],
        }


def evaluate_detections(
    weights: Stored,
    prototxt: Prototxt | None = None,
    *,
    data: str | Path | None = None,
    split: str = "test",
    labels: str | Path | None = None,
    mean: Any = None,
    scale: float | None = None,
    channel_order: str | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    output: str | None = None,
    progress: Progress | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    level: int = 0,
    stages: Sequence[str] = (),
    ignore_fields: Collection[str] = (),
) -> DetectionEvaluation:
    """Measures the mean average precision of a net that ends in DetectionOutput or in another layer with such rows.

    Boxes are compared as the net's DetectionEvaluate says; without one, as in PASCAL VOC: a detection is right if it
    overlaps an object of its class by half, and difficult objects do not count.

    Args:
        weights, prototxt: as for :func:`caffe_port.evaluation.evaluate.evaluate_files`.
        data: an LMDB or LevelDB of AnnotatedDatum; a folder as of PASCAL VOC; or a list of images and annotations.
            None: what the net's AnnotatedData layer of phase TEST reads, with all that the layer does to it.
        split: for a folder, the part that ``ImageSets/Main`` lists.
        labels: the names of the classes: a labelmap.prototxt or a file with one name per line.
        mean, scale, channel_order: replace what is known, see :func:`caffe_port.evaluation.known.known_of`.
        limit: use only the first images.
        batch_size, device, progress: as for :func:`caffe_port.evaluation.evaluate.evaluate`.
        output: the output with the detections, if there are several.
        input_shapes, level, stages, ignore_fields: as for :func:`caffe_port.port`.

    Raises:
        CaffePortError: the net gives no detections, or it and the data do not fit each other.
    """
    device = find_device(device)
    definition, stored = read(prototxt, weights, ignore_fields=ignore_fields)
    spec = phase_spec(definition, "TEST", level, stages, input_shapes or {}, keep_loss=False)
    whole, notes = spec.full or spec, list[str]()
    reader = next((one for one in whole.layers if one.type == "AnnotatedData"), None)
    path = _source(reader, spec) if data is None else Path(data)
    (blob, _), name = only_input(spec), _output(spec, output)
    judge = _judge(whole)
    file = labels if labels is not None else class_names.file_of(whole.layers)
    names = class_names.label_map(file) if file is not None or judge.num_classes == len(class_names.VOC) else {}
    given = {"mean": mean, "scale": scale, "channel_order": channel_order and channel_order.upper()}
    transform, origin = _transform(spec, reader, stored, given, data is None, notes)
    color = not (reader is not None and reader.param.transform_param.force_gray)
    shapes = dict(input_shapes or {})
    records = _records(path, names, split, color)
    if blob not in shapes and (data is None or transform.crop is not None or transform.resize is not None):
        shapes[blob] = (1, *transform.shape(records[0].picture))
    ported = build(definition, stored, input_shapes=shapes, level=level, stages=stages, resolved=spec)
    plan = ported.net.plans[False]
    _, channels, *size = plan.shapes[plan.spec.inputs[0][1]]
    if transform.resize is None and transform.crop is None:
        transform = replace(transform, resize=Message("ResizeParameter", height=size[0], width=size[1]))
    if channels == 1 and color:
        records = _records(path, names, split, False)
    feed = AnnotatedFeed(records, min(batch_size, len(records)), transform)
    if not feed.annotated:
        raise CaffePortError("holds images without boxes", str(path))
    total = min(limit or len(records), len(records))
    found = _measure(ported.net, feed, judge, total, device, name, progress)
    by_label = {label: word for word, label in reversed(names.items())}
    return DetectionEvaluation(
        found,
        total,
        tuple(by_label.get(label, str(label)) for label in range(judge.num_classes)),
        judge.overlap_threshold,
        judge.evaluate_difficult_gt,
        str(path),
        str(replace(transform.plan, resize=(size[0], size[1]))),
        origin,
        (*notes, *ported.notes),
    )


@torch.inference_mode()
def _measure(
    net: nn.Module,
    feed: AnnotatedFeed,
    judge: DetectionEvaluate,
    total: int,
    device: torch.device,
    output: str,
    progress: Progress | None,
) -> Detections:
    training, found = net.training, Detections()
    net.to(device).eval()
    try:
        with devices.memory_kept(device):
            for number in range(-(-total // feed.batch_size)):
                pictures, rows = feed.batch(number)
                left = total - number * feed.batch_size  # the last batch begins anew, as Caffe's do
                pictures, rows = pictures[:left], rows[:, :, rows[0, 0, :, 0] < left]
                made = net(pictures.to(device))
                detections: Tensor = made[output] if isinstance(made, dict) else made
                if detections.shape[-1] != 7:
                    raise CaffePortError(
                        f"output '{output}' has shape {tuple(detections.shape)}; expected rows of 7 values"
                    )
                found.add(judge(detections.float().cpu(), rows).numpy())
                if progress is not None:
                    progress(min((number + 1) * feed.batch_size, total), total)
    finally:
        net.train(training)
    return found


def _output(spec: NetSpec, wanted: str | None) -> str:
    """The output with the detections."""
    kinds = {blob: spec.by_name[layer].type for blob, (layer, _) in spec.outputs}
    if wanted is not None:
        if wanted not in kinds:
            near = did_you_mean(wanted, kinds)
            raise CaffePortError(f"the net has no output '{wanted}'; it has {', '.join(kinds)}.{near}", spec.path)
        return wanted
    found = [blob for blob, kind in kinds.items() if "DetectionOutput" in kind]
    if len(found) != 1:
        what = f"the net's outputs are {', '.join(f'{blob} ({kind})' for blob, kind in kinds.items())}"
        raise CaffePortError(f"{what}; expected one of DetectionOutput", spec.path)
    return found[0]


def _source(reader: LayerSpec | None, spec: NetSpec) -> Path:
    """The database that the net reads."""
    if reader is None:
        what = "has no data layer that evaluate reads (it reads AnnotatedData)"
        raise CaffePortError(what, spec.path, "Give the data: --data NAME or PATH")
    return locate(reader.param.data_param.source, reader.folder, reader)


def _records(path: Path, names: dict[str, int], split: str, color: bool) -> Examples:
    if path.suffix.lower() == ".mdb" or any((path / one).is_file() for one in ("data.mdb", "CURRENT")):
        return AnnotatedDatabase(path, int(color))
    if not path.exists():
        raise CaffePortError("does not exist", str(path))
    return AnnotatedFiles.of(path, names, split, color)


def _judge(spec: NetSpec) -> DetectionEvaluate:
    """What tells right detections from wrong ones: the net's own DetectionEvaluate, or what PASCAL VOC does."""
    for layer in spec.layers:
        if layer.type == "DetectionEvaluate":
            p = layer.param.detection_evaluate_param
            return DetectionEvaluate(p.num_classes, p.background_label_id, p.overlap_threshold, p.evaluate_difficult_gt)
    counts = [
        (int(p.num_classes), int(p.background_label_id) if p.has("background_label_id") else 0)
        for layer in spec.layers
        for _, p in layer.param.items()
        if "DetectionOutput" in layer.type and isinstance(p, Message) and p.has("num_classes")
    ]
    if not counts:
        raise CaffePortError("does not say how many classes it detects (num_classes)", spec.path)
    return DetectionEvaluate(*counts[0], evaluate_difficult_gt=False)


def _transform(
    spec: NetSpec,
    reader: LayerSpec | None,
    stored: Weights | None,
    given: dict[str, Any],
    own_data: bool,
    notes: list[str],
) -> tuple[BoxTransform, str]:
    """What happens to the images, and who says so.

    Args:
        own_data: they are those that the net reads, with which everything happens that Caffe does.
    """
    if reader is not None and (own_data or reader.param.has("transform_param")):
        transform, origin = BoxTransform.of(reader), f"transform_param of layer '{reader.name}'"
        if not own_data:
            transform = replace(transform, samplers=(), distort=None, expand=None, noise=None, mirror=False)
    else:
        found = known([spec], stored, None, notes)
        if found is None and not any(value is not None for value in given.values()):
            notes.append(UNKNOWN)
        plan = found.preprocessing if found is not None else Preprocessing("BGR")
        transform = BoxTransform(replace(plan, crop=0, resize=None, mirror_train=False, mirror_test=False))
        origin = found.origin if found is not None else "none"
    if changed := [name for name, value in given.items() if value is not None]:
        transform = replace(transform, plan=transform.plan.changed(**given))
        origin += f", overridden: {', '.join(changed)}"
    return transform, origin
