"""The library's front door: files in, a Net out. Each file is read once; what was read may be given in its place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.definition.input_shapes import resolve
from caffe_port.errors import CaffePortError, SpecError, WeightsError
from caffe_port.formats import caffemodel
from caffe_port.formats.caffemodel import Weights
from caffe_port.layers import fillers
from caffe_port.layers.stub import Stub
from caffe_port.net.net import LoadReport, Net
from caffe_port.spec import NetSpec
from caffe_port.typing import PathLike


@dataclass(frozen=True)
class Ported:
    """A Net with what it was made from.

    Attributes:
        net: in phase TEST (``eval()``).
        definition: what the net was built from.
        weights: the weights file; None where the fillers drew the parameters.
        report: which layers were loaded.
        notes: what the user should hear of, a sentence each.
        shared: large parameters are views of ``weights``, for :func:`caffe_port.convert` alone; see :func:`port`.
    """

    net: Net
    definition: Definition
    weights: Weights | None
    report: LoadReport | None
    notes: tuple[str, ...]
    shared: bool = False


Prototxt: TypeAlias = "PathLike | Definition | Ported"
"""A net: a file, or what was read of one."""

Stored: TypeAlias = "PathLike | Weights"
"""Weights: a file, or what was read of one."""


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
) -> Net:
    """Loads a Caffe net.

    Args:
        prototxt: a net of any age, deploy or training; None: the definition inside the weights. Or what was read: a
            :class:`~caffe_port.definition.definition.Definition`, or a :class:`Ported`, which brings its weights too.
        weights: .caffemodel or .caffemodel.h5, or what was read of one; None: parameters are drawn by the net's
            fillers.
        input_shapes, keep_loss, level, stages, seed, stub: as for :func:`port`.

    Returns:
        The Net in phase TEST, on the CPU, in float32.

    Raises:
        CaffePortError: says where, what and what to do.
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
    ).net


def read(
    prototxt: Prototxt | None, weights: Stored | None = None, writable: bool = False
) -> tuple[Definition, Weights | None]:
    """Reads a net's files; what was read already is taken as it is.

    Args:
        prototxt, weights: as for :func:`load`.
        writable: the blobs may be written to, which never reaches the file.

    Raises:
        CaffePortError: a file cannot be read, or neither is given.
    """
    if isinstance(prototxt, Ported):
        weights = prototxt.weights if weights is None else weights
        prototxt = prototxt.definition
    if prototxt is None and weights is None:
        raise CaffePortError("a prototxt, a caffemodel, or both are needed")
    stored = weights if isinstance(weights, Weights) or weights is None else caffemodel.read(weights, writable)
    if isinstance(prototxt, Definition):
        return prototxt, stored
    if prototxt is not None:
        return Definition.read(prototxt), stored
    assert stored is not None
    return Definition.embedded(stored), stored


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
) -> Ported:
    """Like :func:`load`, with the whole story.

    Args:
        prototxt, weights: as for :func:`load`.
        input_shapes: blob name -> shape, where the net does not say it or another one is wanted.
        keep_loss: keeps losses, Accuracy and the label input; by default the net outputs the scores.
        level, stages: Caffe's NetState.
        seed: of the fillers.
        stub: a layer of an unknown type becomes a :class:`~caffe_port.layers.stub.Stub`, to be finished by hand.
        share: copies no large parameter: they stay views of the mapped file, wherever it has them, which need not be
            where a tensor may begin. :func:`caffe_port.convert` knows how to deal with that; such a Net is not to be
            run or trained. It spares convert the memory of the weights and the time to fill it. Weights that were read
            without ``writable`` are copied all the same.
    """
    definition, stored = read(prototxt, weights, writable=share)
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
) -> Ported:
    """What :func:`port` does once the files are read.

    A definition is resolved once a phase: a Net computes both, and they may differ in any layer.

    Args:
        definition, stored: what was read.
        input_shapes, keep_loss, level, stages, seed, share, stub: as for :func:`port`.
        resolved: the net in one phase, from :func:`phase_spec` with the same options, where the caller had to know it.
    """

    def spec(phase: str, given: Collection[str]) -> NetSpec:
        if resolved is not None and resolved.phase == phase:
            return resolved
        return phase_spec(definition, phase, level, stages, given, keep_loss, stub)

    share = share and stored is not None and stored.mapping is not None and stored.mapping.writable
    notes: list[str] = []
    try:
        test = spec("TEST", input_shapes or {})
    except SpecError as error:
        try:
            test = spec("TRAIN", input_shapes or {})
        except SpecError:
            raise error from None
        notes.append(f"phase TEST cannot be built, eval() computes the layers of TRAIN: {error.where}: {error.what}")
    shapes = resolve(test, stored, input_shapes, guess=True)
    notes += [*test.notes, *shapes.notes]
    draw, stand_in = None if stored else seed, Stub if stub else None
    try:
        train = spec("TRAIN", shapes.shapes)
        known = {blob: shape for blob, shape in shapes.shapes.items() if blob in dict(train.inputs)}
        resolved_shapes = resolve(train, stored, known, guess=True).shapes
        net = Net(test, resolved_shapes | shapes.shapes, train, draw, stand_in)
    except SpecError as error:
        net = Net(test, shapes.shapes, None, draw, stand_in)
        notes.append(f"phase TRAIN cannot be built, train() computes the layers of TEST: {error.where}: {error.what}")
    report = None
    if stored is not None:
        try:
            report = net.load_weights(stored, share)
        except WeightsError as error:
            raise _with_remedy(error, definition, stored) from None
        if report.initialised:
            drawn = ", ".join(report.initialised)
            notes.append(
                f"{len(report.initialised)} layers have no weights in the file, their fillers drew them: {drawn}"
            )
        if report.unused:
            notes.append(f"{len(report.unused)} layers of the file are not in the net: {', '.join(report.unused)}")
    else:
        notes.append(f"no weights were given: the fillers drew them (seed {seed})")
    if made := sorted({module.caffe_type for module in net.modules() if isinstance(module, Stub)}):
        notes.append(f"to be finished by hand in model.py, as stubs: {', '.join(made)}")
    notes += _odd_fillers(net, net.caffe_layers() if report is None else report.initialised)
    return Ported(net, definition, stored, report, tuple(notes), share)


def _odd_fillers(net: Net, drawn: Collection[str]) -> list[str]:
    """A note about fillers that are not Caffe's, of the layers that were drawn."""
    odd: dict[str, str] = {}
    messages = {step.layer.name: step.layer.param for training in (True, False) for step in net.plans[training].steps}
    for name, module in net.caffe_layers().items():
        if name in drawn and module.blob_names():
            for filler in module.fillers(module.own_message(messages[name])).values():
                if filler.type not in fillers.TYPES:
                    odd.setdefault(filler.type, name)
    told = ", ".join(f"{kind} (layer '{name}')" for kind, name in odd.items())
    return [f"fillers that Caffe does not have were drawn as xavier: {told}"] if odd else []


def _with_remedy(error: WeightsError, definition: Definition, stored: Weights) -> WeightsError:
    """Says what to do about weights that do not fit: most caffemodels carry a definition that does."""
    if definition.path == stored.path or stored.net is None:
        return error
    what = error.what.replace("the definition asks", "the prototxt asks")
    diff = "`caffe-port inspect --diff`"
    own = "The caffemodel carries its own definition and fits it: run without the prototxt, or"
    return WeightsError(what, error.where, f"{own} {diff}." if _fits_itself(stored) else f"Compare them: {diff}.")


def _fits_itself(stored: Weights) -> bool:
    try:
        port(None, stored, share=True)
    except CaffePortError:
        return False
    return True
