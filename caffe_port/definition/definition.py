"""The definition of a net as in its file, and the NetSpec of one phase.

All normalization happens here, once: old forms are upgraded, include/exclude rules applied, in-place tops made
explicit (a bottom names its producer, not a blob whose contents change), automatic Split layers undone, offsets of old
Crop layers worked out.
Sources: net.cpp (Init, FilterNet, StateMeetsRule, AppendTop), insert_splits.cpp.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caffe_port.definition import crop_offsets, fields
from caffe_port.definition.python_layers import translated
from caffe_port.definition.stored_blobs import with_scale
from caffe_port.definition.unfused import unfused
from caffe_port.errors import SpecError, did_you_mean
from caffe_port.formats import caffemodel, meanings, prototxt
from caffe_port.formats.message import Message, at
from caffe_port.formats.upgrade_v1 import upgrade
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import Trait, compares_labels, has, keeps_blobs
from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.storage.files import find as find_file
from caffe_port.storage.files import sha256
from caffe_port.terminal import count

PHASES = ("TRAIN", "TEST")
DEPLOY = "deploy"
"""The stage of DIGITS' nets that is for use, and not for training or validation."""


@dataclass(frozen=True)
class Definition:
    """A net as a file defines it, upgraded to V2, with the layers of both phases.

    Attributes:
        net: NetParameter with ``layer`` entries only.
        path: the file.
        saved_in: the phase whose rules were already applied when Caffe wrote it into a weights file; None for text.
        ignored: names of fields that were left out at the user's request.
        notes: which fork's meaning fields have; see :mod:`caffe_port.formats.meanings`.
        dialect: the fork whose meaning holds where no field tells, and why it is this one; empty strings where nothing
            tells. See :func:`caffe_port.formats.meanings.recognized`.
        remarks: notes on the archive that the file is from.
    """

    net: Message
    path: str
    saved_in: str | None = None
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    dialect: tuple[str, str] = ("", "")
    remarks: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, ignore: Collection[str] = (), everywhere: bool = True) -> Definition:
        """Reads a prototxt in any format version.

        Args:
            path: the file.
            ignore, everywhere: names of fields to go without, see :meth:`without`.

        Raises:
            ParseError, SpecError, CaffePortError: with line and column.
        """
        return cls.parse(prototxt.read(path, "NetParameter", ignore), str(path)).without(ignore, everywhere)

    @classmethod
    def parse(cls, net: Message, path: str = "<text>") -> Definition:
        """The Definition of a NetParameter that was read as text."""
        if not (net.has("layer") or net.has("layers")):
            raise SpecError("is a label map, not a net" if "item" in net.unknown else "contains no layers", path)
        net, notes = meanings.translate(_upgraded(net, path))
        return cls(net, path, notes=notes, dialect=meanings.recognized(net.layer))

    @classmethod
    def embedded(cls, weights: caffemodel.Weights) -> Definition:
        """The definition inside a weights file.

        Raises:
            SpecError: it has none (HDF5).
        """
        if weights.net is None:
            raise SpecError("contains no definition (HDF5 stores only weights)", weights.path, "Add the prototxt.")
        upgraded, era = _upgraded(weights.net, weights.path), "V2" if weights.format == "V2" else "V1"
        net, notes = meanings.translate(upgraded, whose=weights.recognition, era=era)
        if weights.recognition is not None and weights.recognition.note:
            notes = (f"{weights.path}: {weights.recognition.note}", *notes)
        path = weights.path
        saved_in = next((p for p in PHASES if all(_included(layer, p, 0, (), path) for layer in net.layer)), None)
        explicit = {layer.phase for layer in net.layer if layer.has("phase")}
        if saved_in and len(explicit) == 1:
            saved_in = explicit.pop()
        return cls(
            net, weights.path, saved_in, notes=notes, dialect=meanings.recognized(net.layer, weights.recognition)
        )

    def beside(self, weights: caffemodel.Weights | None) -> Definition:
        """The definition for these weights: a BatchNorm that holds a scale and a shift there becomes two layers, and
        fields have the meanings of the fork that wrote the weights, where these tell it.

        Raises:
            CaffePortError: the definition contradicts the weights as they were read, and fits another dialect.
        """
        if weights is None:
            return self
        net, notes, known, dialect = self.net, self.notes, weights.recognition, self.dialect
        if weights.net is not None and self.saved_in is None and self.path != weights.path:
            known = None if known is None else known.agree(net.layer, weights.path, self.path)
            theirs = upgrade(weights.net, weights.path).layer
            net, notes = meanings.translate(net, theirs, known)
            dialect = meanings.recognized([*net.layer, *theirs], known)
            if known is not None and known.note:
                notes = (f"{weights.path}: {known.note}", *notes)
        names = {layer.name for layer in net.layer}
        held = {name for name in with_scale(weights) if name in names and f"{name}/scale" not in names}
        net = net.copy(layer=unfused(net.layer, held)) if held else net
        same = net is self.net and (notes, dialect) == (self.notes, self.dialect)
        return self if same else dataclasses.replace(self, net=net, notes=notes, dialect=dialect)

    def without(self, names: Collection[str], everywhere: bool = True) -> Definition:
        """The definition without the fields of these names, which nothing here follows.

        Args:
            names: of the fields; :attr:`ignored` will hold those that were there.
            everywhere: each name must be that of a field; False: some may belong to another file.

        Raises:
            SpecError: a name is that of no such field.
        """
        if not names:
            return self
        net, gone = fields.without(self.net, self.path, names, everywhere)
        return dataclasses.replace(self, net=net, ignored=tuple(dict.fromkeys((*self.ignored, *gone))))

    @functools.cached_property
    def sha256(self) -> str | None:
        """The checksum of the file, taken once; None if the definition is not from a file."""
        return sha256(self.path) if Path(self.path).is_file() else None

    def spec(
        self, phase: str = "TEST", level: int = 0, stages: Sequence[str] | None = (), inputs: Collection[str] = ()
    ) -> NetSpec:
        """The net in one phase, resolved once for the same arguments.

        Args:
            phase, level, stages: Caffe's NetState. None: no stages, but "deploy" in phase TEST if layers belong to it,
                as in the nets of NVIDIA's DIGITS.
            inputs: blobs that may come from outside though no layer of this phase makes them: a net without a data
                layer, as published architectures are, or whose data layers belong to other phases and stages.

        Raises:
            SpecError: with the line: rules that exclude each other, a bottom that does not exist, a top made twice.
        """
        asked = (phase, level, None if stages is None else tuple(stages), tuple(inputs))
        if asked not in self._specs:
            self._specs[asked] = self._resolved(*asked)
        return self._specs[asked]

    @functools.cached_property
    def _specs(self) -> dict[tuple[str, int, tuple[str, ...] | None, tuple[str, ...]], NetSpec]:
        return {}

    def _resolved(self, phase: str, level: int, stages: tuple[str, ...] | None, inputs: tuple[str, ...]) -> NetSpec:
        state = self.net.state
        notes: list[str] = [*self.remarks, *self.notes]
        if stages is None and phase == "TEST" and not state.stage and self._has_stage(DEPLOY):
            stages = (DEPLOY,)
            notes.append(f"{self.path}: its stage '{DEPLOY}' is used (--stage chooses another)")
        chosen = stages is not None or state.stage
        level, stages = level or state.level, (*(stages or ()), *state.stage)
        layers = list(self.net.layer)
        if self.saved_in is None:
            layers = [entry for entry in layers if _included(entry, phase, level, stages, self.path)]
        if not layers:
            used = dict.fromkeys(stage for entry in self.net.layer for rule in entry.include for stage in rule.stage)
            hint = f"Its layers belong to stages; choose one: --stage {' | '.join(used)}" if used else ""
            raise SpecError(f"contains no layers in phase {phase}", self.path, hint)
        if not chosen and phase == "TEST" and self.saved_in is None:
            notes += self._unchosen(phase, level)
        own = set(map(id, layers))
        layers = self._with_sources(layers, inputs, notes)
        taken = set(map(id, layers)) - own
        borrowed = tuple(entry.name for entry in self.net.layer if id(entry) in taken)
        layers = [_beside(entry, self.path) for entry in layers]
        unfollowed = tuple(fields.unfollowed(self.net.copy(layer=layers), self.path))
        notes += fields.notes(unfollowed)
        layers = [_data_layer(entry, self.path, notes) for entry in layers]
        layers = _settled(layers, self.dialect, self.path, notes)
        layers, switched = _batch_statistics_by_phase(layers, self.saved_in)
        if switched:
            notes.append(
                f"{count(switched, 'BatchNorm layer')} saved in TRAIN with use_global_stats: false; eval() uses the "
                "stored statistics, as Caffe's TEST phase does"
            )
        notes += _softened_twice(layers)
        resolved = crop_offsets.align(_resolve(layers, self.path, notes), notes)
        return NetSpec(
            self.net.name,
            phase,
            resolved,
            self.path,
            tuple(notes),
            unfollowed=unfollowed,
            ignored=self.ignored,
            borrowed=borrowed,
        )

    def _unchosen(self, phase: str, level: int) -> list[str]:
        """Notes on stages with an input of their own, if none is chosen: such a stage may be the net to deploy."""
        found = []
        for stage in dict.fromkeys(stage for entry in self.net.layer for rule in entry.include for stage in rule.stage):
            brought = [
                entry
                for entry in self.net.layer
                if _included(entry, phase, level, (stage,), self.path)
                and not _included(entry, phase, level, (), self.path)
            ]
            if any(entry.type == "Input" for entry in brought):
                what = f"{count(len(brought), 'layer')} of stage '{stage}' ({', '.join(each.name for each in brought)})"
                verb, them = ("is", "it") if len(brought) == 1 else ("are", "them")
                found.append(f"{what} {verb} left out; --stage {stage} takes {them}")
        return found

    def _has_stage(self, name: str) -> bool:
        return any(name in rule.stage for layer in self.net.layer for rule in layer.include)

    def _with_sources(self, layers: Sequence[Message], inputs: Collection[str], notes: list[str]) -> list[Message]:
        """The layers of a phase, and what makes the blobs that they lack: data layers of other phases and stages (and
        what only other phases do to the data), or the caller.
        """
        made = {top for layer in layers for top in layer.top}
        missing = {bottom for layer in layers for bottom in layer.bottom if bottom not in made}
        if not missing:
            return list(layers)
        own = set(map(id, layers))
        sources = self._sources_of(missing, made)
        borrowed: set[int] = set()
        for layer in reversed(self.net.layer):  # from the end: the layers that a borrowed layer reads are borrowed too
            new = missing.intersection(layer.top).difference(layer.bottom)
            if new and layer.bottom and id(layer) not in own and not made.intersection(layer.top):
                borrowed.add(id(layer))
                missing.difference_update(layer.top)
                made.update(layer.top)
                missing.update(bottom for bottom in layer.bottom if bottom not in made)
                notes.append(
                    f"{at(self.path, layer)}: layer '{layer.name}' ({layer.type}) is taken from another phase or "
                    f"stage, because no layer in this one produces '{min(new)}'"
                )
        sources += self._sources_of(missing, made)
        bare = [name for name in missing if name in inputs or (inputs and _only_a_label(name, layers))]
        sources += [Message("LayerParameter", name=name, type="Input", top=[name]) for name in sorted(bare)]
        return [*sources, *(layer for layer in self.net.layer if id(layer) in own | borrowed)]

    def _sources_of(self, missing: set[str], made: set[str]) -> list[Message]:
        """Data layers that make missing blobs, which then are made."""
        found = []
        for layer in self.net.layer:
            fills = not layer.bottom and not keeps_blobs(layer.type)  # DummyData
            is_source = has(layer.type, Trait.SOURCE) or fills or _brings_data(layer)
            if is_source and missing.intersection(layer.top) and not made.intersection(layer.top):
                found.append(layer)
                missing.difference_update(layer.top)
                made.update(layer.top)
        return found


def _upgraded(net: Message, path: str) -> Message:
    net = upgrade(net, path)
    return net.copy(layer=unfused(translated(net.layer)))


def _beside(layer: Message, path: str) -> Message:
    """A layer whose numbers are in a file: it may also be in the folder of the net, as the files of data layers."""
    own = layer.infogain_loss_param
    found = find_file(own.source, Path(path).parent) if own.source else None
    return (
        layer
        if found is None or str(found) == own.source
        else layer.copy(infogain_loss_param=own.copy(source=str(found)))
    )


def _brings_data(layer: Message) -> bool:
    """Whether a layer of an unknown type is treated as a data layer: a fork's, or Python code."""
    return bool(layer.top and layer.type) and not layer.bottom and find(layer) is None


def _data_layer(layer: Message, path: str, notes: list[str]) -> Message:
    if not _brings_data(layer):
        return layer
    tops = f"its {len(layer.top)} tops are inputs" if len(layer.top) > 1 else "its top is an input"
    notes.append(f"{at(path, layer)}: layer '{layer.name}' ({layer.type}) is treated as a data layer: {tops}")
    return layer.copy(type="OtherData")


def _settled(layers: Sequence[Message], dialect: tuple[str, str], path: str, notes: list[str]) -> list[Message]:
    """What forks of Caffe read differently, read in one way: see Signature.settles. A note for each way."""
    settled, told = [], dict[tuple[str, str], list[Message]]()
    for layer in layers:
        signature = find(layer)
        if signature is not None and signature.settles is not None:
            layer, note = signature.settles(layer, dialect[0])
            if note:
                told.setdefault((layer.type, note), []).append(layer)
        settled.append(layer)
    for (type_, note), those in told.items():
        more = f" and {len(those) - 1} more" if len(those) > 1 else ""
        reason = f": {dialect[1]}" if dialect[1] else ""
        notes.append(f"{at(path, those[0])}: layer '{those[0].name}' ({type_}){more}: {note}{reason}")
    return settled


def _only_a_label(blob: str, layers: Sequence[Message]) -> bool:
    """Whether losses and Accuracy alone read the blob, and not as their first bottom."""
    readers = [layer for layer in layers if blob in layer.bottom]
    return all(compares_labels(r.type) and blob in r.bottom[1:] for r in readers)


def _included(layer: Message, phase: str, level: int, stages: Collection[str], path: str) -> bool:
    if layer.include and layer.exclude:
        raise SpecError(
            f"layer '{layer.name}': has both include and exclude rules",
            at(path, layer),
            "Caffe allows only one of the two per layer.",
        )

    def met(rule: Message) -> bool:
        return not (
            (rule.has("phase") and rule.phase != phase)
            or (rule.has("min_level") and level < rule.min_level)
            or (rule.has("max_level") and level > rule.max_level)
            or any(stage not in stages for stage in rule.stage)
            or any(stage in stages for stage in rule.not_stage)
        )

    return any(map(met, layer.include)) if layer.include else not any(map(met, layer.exclude))


def _batch_statistics_by_phase(layers: list[Message], saved_in: str | None) -> tuple[list[Message], int]:
    """A definition saved in TRAIN says use_global_stats: false because it was TRAIN, not because TEST should."""
    if saved_in != "TRAIN":
        return layers, 0
    result, switched = [], 0
    for layer in layers:
        norm = layer.batch_norm_param
        if layer.type == "BatchNorm" and norm.has("use_global_stats") and not norm.use_global_stats:
            layer = layer.copy(batch_norm_param=norm.copy(use_global_stats=None))
            switched += 1
        result.append(layer)
    return result, switched


def _softened_twice(layers: Sequence[Message]) -> Iterator[str]:
    """Notes on nets for older versions of Caffe, in which InfogainLoss takes probabilities."""
    soft: dict[str, bool] = {}
    for layer in layers:
        if layer.type == "InfogainLoss" and soft.get(next(iter(layer.bottom), "")):
            yield (
                f"InfogainLoss layer '{layer.name}' computes Softmax itself, as in Caffe 1.0, of what is a Softmax "
                "already; for older versions of Caffe, give it that layer's bottom"
            )
        soft.update(dict.fromkeys(layer.top, layer.type == "Softmax"))


def _resolve(layers: Sequence[Message], path: str, notes: list[str]) -> Iterator[LayerSpec]:
    """Layers in order with their producers: what Net::Init checks, and static single assignment."""
    current: dict[str, Producer] = {}
    names: dict[str, Message] = {}
    split_of: dict[str, str] = {}
    readers: collections.Counter[Producer] = collections.Counter()
    memory: dict[Producer, Producer] = {}  # whose memory a blob is in, if not its own
    overwritten: dict[Producer, LayerSpec] = {}
    for layer in layers:
        where = at(path, layer)
        bottoms = tuple(split_of.get(b, b) for b in layer.bottom)
        if _automatic_split(layer):
            split_of.update(dict.fromkeys(layer.top, bottoms[0]))
            current.update(dict.fromkeys(layer.top, current[bottoms[0]]) if bottoms[0] in current else {})
            continue
        name = _unique(layer, names, where, notes)
        # A loss whose top nobody names gets one: AutoTopBlobs.
        unnamed_loss = not layer.top and (has(layer.type, Trait.LOSS) or layer.type.endswith("Loss"))
        tops = (name if name not in current else f"{name} (automatic)",) if unnamed_loss else tuple(layer.top)
        spec = LayerSpec(name, layer.type, bottoms, tops, (), layer, where, has(layer.type, Trait.SOURCE))
        if not layer.type:
            raise spec.error("has no type")
        producers = tuple(_producer(spec, b, current, layers) for b in bottoms)
        for index, top in enumerate(spec.tops):
            in_place = index < len(bottoms) and bottoms[index] == top
            if top in spec.tops[:index] or (top in current and not in_place):
                maker = f"layer '{current[top][0]}'" if top in current else "this layer"
                raise spec.error(f"top '{top}' is already produced by {maker}; a blob has only one source")
        readers.update(producers)
        _check_in_place(spec, producers, readers)
        if _loses_its_bottom(spec):
            notes.append(
                f"{where}: layer '{name}' (Eltwise) works in place: Caffe 1.0 clears '{tops[0]}' before it reads it, "
                "and loses it; here it counts, as in OpenCV. Give the top another name to have the same everywhere"
            )
        if layer.type == "Reshape" and tops[:1] == bottoms[:1]:
            notes.append(f"{where}: layer '{name}' (Reshape) works in place, which Caffe 1.0 refuses")
        for bottom, producer in zip(bottoms, producers, strict=True):
            if changer := overwritten.get(producer):
                raise spec.error(
                    f"reads '{bottom}', whose memory layer '{changer.name}' has overwritten",
                    f"Caffe would read what that layer made. Give '{changer.name}' a top of its own.",
                )
        for index, (producer, top) in enumerate(zip(producers, tops, strict=False)):
            if bottoms[index] == top:
                mine = memory.get(producer, producer)
                overwritten.update((one, spec) for one in {mine, *memory} if memory.get(one, one) == mine)
        alone = len(producers) == len(tops) == 1 and has(layer.type, Trait.SHARES_ALONE)
        if producers and (alone or has(layer.type, Trait.SHARES_MEMORY)):
            memory.update({(name, k): memory.get(producers[0], producers[0]) for k in range(len(tops))})
        current.update({top: (name, k) for k, top in enumerate(spec.tops)})
        readers.update({(name, k): 1 for k, weight in enumerate(layer.loss_weight[: len(spec.tops)]) if weight})
        yield dataclasses.replace(spec, producers=producers)


def _loses_its_bottom(layer: LayerSpec) -> bool:
    """Whether Caffe's Eltwise overwrites its first bottom before it reads it: SUM, and MAX on a CPU.

    Source: eltwise_layer.cpp; measured.
    """
    in_place = len(layer.bottoms) > 1 and layer.tops[:1] == layer.bottoms[:1]
    return layer.type == "Eltwise" and in_place and layer.param.eltwise_param.operation != "PROD"


def _check_in_place(layer: LayerSpec, producers: Sequence[Producer], readers: Mapping[Producer, int]) -> None:
    """Refuses to overwrite a blob that others read: Caffe gives each reader a copy, and then there is no such blob."""
    for bottom, producer, top in zip(layer.bottoms, producers, layer.tops, strict=False):
        if bottom == top and has(layer.type, Trait.NOT_IN_PLACE):
            raise layer.error(f"cannot overwrite its bottom '{bottom}'", "Give the top a name of its own.")
        if bottom == top and readers[producer] > 1:
            raise layer.error(
                f"overwrites '{bottom}', which other layers read, or a loss_weight counts",
                f"Caffe's words: Top blob '{bottom}' produced by multiple sources. Give the top a name of its own, "
                "for the layers that follow.",
            )


def _producer(layer: LayerSpec, bottom: str, current: dict[str, Producer], layers: Sequence[Message]) -> Producer:
    if bottom in current:
        return current[bottom]
    later = next((other for other in layers if bottom in other.top), None)
    if later is not None:
        at = f" (line {later.line})" if later.line else ""
        raise layer.error(
            f"bottom '{bottom}' does not exist yet: layer '{later.name}'{at} produces it",
            "Layers run in file order: move the layer after those whose tops it reads.",
        )
    if not current:
        raise layer.error(
            f"bottom '{bottom}' does not exist: the net has no input layer",
            f"Set its shape to make it an input: --input-shape {bottom}=1,3,H,W",
        )
    shown = ", ".join(list(current)[-8:])
    dots = "..., " if len(current) > 8 else ""
    raise layer.error(f"bottom '{bottom}' does not exist; blobs so far: {dots}{shown}.{did_you_mean(bottom, current)}")


def _unique(layer: Message, names: dict[str, Message], where: str, notes: list[str]) -> str:
    """The layer's name; a further layer of a name gets a suffix.

    Caffe copies the blobs of a caffemodel into the first layer of their name (CopyTrainedLayersFrom), those of an HDF5
    file into the last one: the others keep their fillers.
    """
    name: str = layer.name
    first = names.setdefault(name, layer)
    if first is layer:
        return name
    count = 2
    while f"{name}#{count}" in names:
        count += 1
    names[f"{name}#{count}"] = layer
    which = f"layer name '{name}' is used twice" if name else "a second layer has no name"
    told = "; weights are loaded only into the first one (from HDF5 the last), as in Caffe"
    told = told if keeps_blobs(layer.type) else ""
    notes.append(f"{where}: {which}; this one is renamed '{name}#{count}'{told}")
    return f"{name}#{count}"


def _automatic_split(layer: Message) -> bool:
    """Whether Caffe itself inserted this Split (insert_splits.cpp names it <blob>_<layer>_<index>_split)."""
    return (
        layer.type == "Split"
        and len(layer.bottom) == 1
        and re.fullmatch(r".*_\d+_split", layer.name, re.DOTALL) is not None
        and list(layer.top) == [f"{layer.name}_{k}" for k in range(len(layer.top))]
    )
