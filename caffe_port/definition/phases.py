"""The two phases of a net as they will be built, checked without torch: what building the Net would refuse is refused
here, before torch is imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from caffe_port.definition.chained import settled
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.definition.fits import fitted
from caffe_port.definition.input_shapes import channels_read, resolve
from caffe_port.definition.structure import Structure, check_types
from caffe_port.errors import CaffePortError, SpecError, WeightsError
from caffe_port.formats.caffemodel import Weights
from caffe_port.spec import NetSpec
from caffe_port.terminal import count
from caffe_port.typing import Shape


@dataclass(frozen=True)
class Phases:
    """A net in both phases.

    Attributes:
        test: what eval() computes; the net in phase TRAIN where TEST makes no sense.
        train: what train() computes; None: the layers of ``test``.
        shapes: by input blob, of both.
        notes: warnings, one per entry.
    """

    test: NetSpec
    train: NetSpec | None
    shapes: Mapping[str, Shape]
    notes: tuple[str, ...]

    def without_train(self, error: SpecError | WeightsError) -> Phases:
        """The net in phase TEST only, with a note that says why."""
        shapes = {blob: self.shapes[blob] for blob, _ in self.test.inputs}
        note = f"phase TRAIN cannot be built; train() uses the layers of TEST: {error.where}: {error.what}"
        return Phases(self.test, None, shapes, (*self.notes, note))


def phases(
    definition: Definition,
    stored: Weights | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool = False,
    level: int = 0,
    stages: Sequence[str] = (),
    stub: bool = False,
    resolved: NetSpec | None = None,
) -> Phases:
    """Resolves a definition once per phase, finds the shapes of its inputs, and checks its layers and their blobs.

    Args:
        definition, stored: the parsed definition and weights.
        input_shapes, keep_loss, level, stages, stub: as for :func:`caffe_port.port`.
        resolved: the net in one phase, if already resolved by :func:`phase_spec` with the same options.

    Raises:
        SpecError: the net cannot be built.
        WeightsError: the weights do not fit it; the hint says what might.
    """

    def spec(phase: str, given: Collection[str]) -> NetSpec:
        if resolved is not None and resolved.phase == phase:
            return resolved
        return phase_spec(definition, phase, level, stages, given, keep_loss, stub)

    notes: list[str] = []
    try:
        test = spec("TEST", input_shapes or {})
    except SpecError as error:
        try:
            test = spec("TRAIN", input_shapes or {})
        except SpecError:
            raise error from None
        notes.append(f"phase TEST cannot be built; eval() uses the layers of TRAIN: {error.where}: {error.what}")
    shapes = resolve(test, stored, input_shapes, guess=True)
    test = fitted(test, shapes.shapes)
    structure = Structure()
    structure.add(test, shapes.shapes, stub)
    found = Phases(test, None, shapes.shapes, (*notes, *test.notes, *shapes.notes))
    try:
        train = spec("TRAIN", shapes.shapes)
        known = {blob: shape for blob, shape in shapes.shapes.items() if blob in dict(train.inputs)}
        both = resolve(train, stored, known, guess=True).shapes | shapes.shapes
        train = fitted(train, both)
        structure.add(train, both, stub)
        found = Phases(test, train, both, found.notes)
    except SpecError as error:
        found = found.without_train(error)
        structure = Structure()  # without the layers of TRAIN that it took in
        structure.add(test, shapes.shapes, stub)
    if stored is not None:
        try:
            structure.check(stored)
        except WeightsError as error:
            if found.train is None or not _fit(stored, test, shapes.shapes, stub):
                raise with_remedy(error, definition, stored, test, input_shapes or {}) from None
            found = found.without_train(error)
    return found


def _fit(stored: Weights, test: NetSpec, shapes: Mapping[str, Shape], stub: bool) -> bool:
    """Whether weights fit the net in phase TEST: in TEST, Caffe never sees the layers that are in TRAIN alone."""
    alone = Structure()
    alone.add(test, shapes, stub)
    try:
        alone.check(stored)
    except WeightsError:
        return False
    return True


def check_layers(
    definition: Definition, level: int = 0, stages: Sequence[str] = (), given: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Raises SpecError if the wiring, the types or the fields of phase TEST make no sense. Shapes do not count."""
    check_types([phase_spec(definition, "TEST", level, stages, given or {}, keep_loss=False)])


def with_remedy(
    error: WeightsError, definition: Definition, stored: Weights, spec: NetSpec, given: Mapping[str, Sequence[int]]
) -> WeightsError:
    """Adds a hint to the error for weights that do not match: an input shape that was given may be wrong, and most
    caffemodels carry a definition that does match.
    """
    for blob, shape in given.items():
        producer = dict(spec.inputs).get(blob)
        asked = None if producer is None else channels_read(spec, producer, stored)
        if asked is not None and len(shape) > 1 and asked != shape[1]:
            fits = ",".join(map(str, (shape[0], asked, *shape[2:])))
            what = f"the shape {tuple(shape)} that is given for '{blob}' has {count(shape[1], 'channel')}"
            return WeightsError(f"{what}; the weights ask for {asked}", error.where, f"Give {blob}={fits}.")
    if definition.path == stored.path or stored.net is None:
        return error
    what = error.what.replace("the definition asks", "the prototxt asks")
    diff = "`caffe-port inspect --diff`"
    fits_own = "The caffemodel matches its own definition: run without the prototxt, or compare them with"
    hint = f"Compare them with {diff}."
    with contextlib.suppress(CaffePortError):
        own = settled(stored)
        phases(Definition.embedded(own).beside(own), own)
        hint = f"{fits_own} {diff}."
    return WeightsError(what, error.where, hint)
