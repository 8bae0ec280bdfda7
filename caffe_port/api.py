"""The main entry points: files in, a Net out. Each file is read once; parsed files may be given instead of paths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from caffe_port.definition import odd_values, reading
from caffe_port.definition.definition import Definition
from caffe_port.definition.phases import Phases, phases, with_remedy
from caffe_port.errors import SpecError, WeightsError, suggests_keywords
from caffe_port.formats.caffemodel import Weights
from caffe_port.formats.dialects import assuming
from caffe_port.layers import fillers
from caffe_port.layers.stub import Stub
from caffe_port.net.net import LoadReport, Net
from caffe_port.spec import NetSpec
from caffe_port.terminal import count
from caffe_port.typing import PathLike


@dataclass(frozen=True)
class Ported:
    """A Net with its sources.

    Attributes:
        net: the Net, in phase TEST (``eval()``).
        definition: the definition from which it was built.
        weights: the weights; None if the parameters were initialized from the fillers.
        report: which layers were loaded.
        notes: warnings, one per entry.
        shared: large parameters are views of ``weights``, only for :func:`caffe_port.convert`; see :func:`port`.
    """

    net: Net
    definition: Definition
    weights: Weights | None
    report: LoadReport | None
    notes: tuple[str, ...]
    shared: bool = False


Prototxt: TypeAlias = "PathLike | Definition | Ported"
"""A net: a file, or its parsed contents."""

Stored: TypeAlias = "PathLike | Weights"
"""Weights: a file, or its parsed contents."""


@suggests_keywords
def load(
    prototxt: Prototxt | None = None,
    weights: Stored | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool = False,
    level: int = 0,
    stages: Sequence[str] = (),
    seed: int = 0,
    stub: bool = False,
    ignore_fields: Collection[str] = (),
    dialect: str | None = None,
) -> Net:
    """Loads a Caffe net.

    Args:
        prototxt: the prototxt, in any format version, for training or deployment; or the weights, if they are to be
            loaded by the definition inside them (the order of the two does not matter); or a model archive of DIGITS
            (.tar.gz, .zip), which includes its weights; or a parsed
            :class:`~caffe_port.definition.definition.Definition`; or a :class:`Ported`, which includes its weights.
            None: the definition inside the weights.
        weights: a .caffemodel or .caffemodel.h5, or its parsed contents; None: parameters are initialized from the
            fillers.
        input_shapes, keep_loss, level, stages, seed, stub, ignore_fields, dialect: as for :func:`port`.

    Returns:
        The Net in phase TEST, on the CPU, in float32.

    Raises:
        CaffePortError: bad input; says where, what, and what to do.
    """
    return port(
        prototxt,
        weights,
        input_shapes=input_shapes,
        keep_loss=keep_loss,
        level=level,
        stages=stages,
        seed=seed,
        stub=stub,
        ignore_fields=ignore_fields,
        dialect=dialect,
    ).net


def read(
    prototxt: Prototxt | None,
    weights: Stored | None = None,
    writable: bool = False,
    ignore_fields: Collection[str] = (),
) -> tuple[Definition, Weights | None]:
    """Reads a net's files; parsed files are returned as they are.

    Args:
        prototxt, weights: as for :func:`load`.
        writable: make the blobs writable; changes never reach the file.
        ignore_fields: names of fields to go without, see :func:`port`.

    Raises:
        CaffePortError: a file cannot be read, or neither is given.
    """
    if isinstance(prototxt, Ported):
        weights = prototxt.weights if weights is None else weights
        prototxt = prototxt.definition
    return reading.read(prototxt, weights, writable, ignore_fields)


@suggests_keywords
def port(
    prototxt: Prototxt | None = None,
    weights: Stored | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool = False,
    level: int = 0,
    stages: Sequence[str] = (),
    seed: int = 0,
    stub: bool = False,
    share: bool = False,
    ignore_fields: Collection[str] = (),
    dialect: str | None = None,
) -> Ported:
    """Like :func:`load`, but returns the Net together with its sources, a load report and notes.

    Args:
        prototxt, weights: as for :func:`load`.
        input_shapes: blob name -> shape, if the net does not define it or to override it.
        keep_loss: keep losses, Accuracy and the label input; by default, the net outputs the scores.
        level, stages: Caffe's NetState.
        seed: seed of the fillers.
        stub: a layer of an unknown type becomes a :class:`~caffe_port.layers.stub.Stub`, to be completed by hand.
        share: do not copy large parameters: they remain views of the mapped file, where they may be misaligned. This
            is for :func:`caffe_port.convert`, which handles it and saves the memory and time of a copy; such a Net must
            not be run or trained. Weights that were read without ``writable`` are copied anyway.
        ignore_fields: names of fields to go without. A net is refused if a field changes what a layer computes and
            nothing here follows it; the names of those that you know to change nothing are recorded, and a
            verification says that it passed without them.
        dialect: the fork whose meaning numbers and fields have on which forks disagree, one of
            ``caffe-port dialects``; None: as the files tell.
    """
    with assuming(dialect):
        definition, stored = read(prototxt, weights, share, ignore_fields)
    return build(
        definition,
        stored,
        input_shapes=input_shapes,
        keep_loss=keep_loss,
        level=level,
        stages=stages,
        seed=seed,
        share=share,
        stub=stub,
    )


def build(
    definition: Definition,
    stored: Weights | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool = False,
    level: int = 0,
    stages: Sequence[str] = (),
    seed: int = 0,
    share: bool = False,
    stub: bool = False,
    resolved: NetSpec | None = None,
    found: Phases | None = None,
) -> Ported:
    """Like :func:`port`, for parsed files.

    The definition is resolved once per phase: a Net computes both phases, and any layer may differ between them.

    Args:
        definition, stored: the parsed definition and weights.
        input_shapes, keep_loss, level, stages, seed, share, stub: as for :func:`port`.
        resolved: the net in one phase, if already resolved by :func:`phase_spec` with the same options.
        found: both phases, if already known by :func:`phases` with the same options.
    """

    share = share and stored is not None and stored.mapping is not None and stored.mapping.writable
    if found is None:
        found = phases(
            definition,
            stored,
            input_shapes=input_shapes,
            keep_loss=keep_loss,
            level=level,
            stages=stages,
            stub=stub,
            resolved=resolved,
        )
    draw, stand_in = None if stored else seed, Stub if stub else None
    try:
        net = Net(found.test, found.shapes, found.train, draw, stand_in)
    except SpecError as error:
        if found.train is None:
            raise
        found = found.without_train(error)
        net = Net(found.test, found.shapes, None, draw, stand_in)
    notes = list(found.notes)
    report = None
    if stored is not None:
        try:
            report = net.load_weights(stored, share)
        except WeightsError as error:
            raise with_remedy(error, definition, stored, found.test, input_shapes or {}) from None
        notes += [*load_notes(report), *odd_values.notes(stored, definition.net.layer)]
    else:
        notes.append(f"no weights given: parameters initialized from the fillers (seed {seed})")
    if made := sorted({module.caffe_type for module in net.modules() if isinstance(module, Stub)}):
        notes.append(f"stubs to be completed by hand in model.py: {', '.join(made)}")
    if net.copies:
        names = ", ".join(dict.fromkeys(layer.name for layer, *_ in net.copies))
        notes.append(
            f"share_mode PERMISSIVE: the blobs that {names} shares in another shape are copies of equal values"
        )
    notes += _odd_fillers(net, net.caffe_layers() if report is None else report.initialised)
    return Ported(net, definition, stored, report, tuple(notes), share)


def load_notes(report: LoadReport) -> list[str]:
    """Notes on the layers that are on one side only, net or file."""
    notes = []
    if report.initialised:
        absent = f"no weights in the file for {count(len(report.initialised), 'layer')}"
        notes.append(f"{absent}; initialized from the fillers: {', '.join(report.initialised)}")
    if report.unused:
        unused = f"the weights of {count(len(report.unused), 'layer')} in the file are not used by the net"
        notes.append(f"{unused}: {', '.join(report.unused)}")
    return notes


def _odd_fillers(net: Net, drawn: Collection[str]) -> list[str]:
    """A note about unknown filler types in the layers that were initialized."""
    odd: dict[str, str] = {}
    messages = {step.layer.name: step.layer.param for training in (True, False) for step in net.plans[training].steps}
    for name, module in net.caffe_layers().items():
        if name in drawn and module.blob_names():
            for filler in module.fillers(module.own_message(messages[name])).values():
                if filler.type not in fillers.TYPES:
                    odd.setdefault(filler.type, name)
    told = ", ".join(f"{kind} (layer '{name}')" for kind, name in odd.items())
    return [f"xavier is used for fillers that do not exist in Caffe: {told}"] if odd else []
