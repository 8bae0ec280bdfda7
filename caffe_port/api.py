"""The library's front door: files in, a Net out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.definition.input_shapes import resolve
from caffe_port.errors import CaffePortError, SpecError, WeightsError
from caffe_port.formats import caffemodel
from caffe_port.formats.caffemodel import Weights
from caffe_port.layers import fillers
from caffe_port.layers.stub import Stub
from caffe_port.net.net import LoadReport, Net
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


def load(prototxt: PathLike | None = None, weights: PathLike | None = None, **options: object) -> Net:
    """Loads a Caffe net.

    Args:
        prototxt: a net of any age, deploy or training; None: the definition inside the weights.
        weights: .caffemodel or .caffemodel.h5; None: parameters are drawn by the net's fillers.
        options: as for :func:`port`.

    Returns:
        The Net in phase TEST, on the CPU, in float32.

    Raises:
        CaffePortError: says where, what and what to do.
    """
    return port(prototxt, weights, **options).net  # type: ignore[arg-type]


def port(
    prototxt: PathLike | None = None,
    weights: PathLike | None = None,
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
            run or trained. It spares convert the memory of the weights and the time to fill it.
    """
    if prototxt is None and weights is None:
        raise CaffePortError("a prototxt, a caffemodel, or both are needed")
    stored = caffemodel.read(weights, writable=share) if weights is not None else None
    share = share and stored is not None and stored.mapping is not None
    if prototxt is not None:
        definition = Definition.read(prototxt)
    else:
        assert stored is not None
        definition = Definition.embedded(stored)
    notes: list[str] = []
    try:
        test = phase_spec(definition, "TEST", level, stages, input_shapes or {}, keep_loss, stub)
    except SpecError as error:
        try:
            test = phase_spec(definition, "TRAIN", level, stages, input_shapes or {}, keep_loss, stub)
        except SpecError:
            raise error from None
        notes.append(f"phase TEST cannot be built, eval() computes the layers of TRAIN: {error.where}: {error.what}")
    shapes = resolve(test, stored, input_shapes, guess=True)
    notes += [*test.notes, *shapes.notes]
    draw, stand_in = None if stored else seed, Stub if stub else None
    try:
        train = phase_spec(definition, "TRAIN", level, stages, shapes.shapes, keep_loss, stub)
        known = {blob: shape for blob, shape in shapes.shapes.items() if blob in dict(train.inputs)}
        resolved = resolve(train, stored, known, guess=True).shapes
        net = Net(test, resolved | shapes.shapes, train, draw, stand_in)
    except SpecError as error:
        net = Net(test, shapes.shapes, None, draw, stand_in)
        notes.append(f"phase TRAIN cannot be built, train() computes the layers of TEST: {error.where}: {error.what}")
    report = None
    if stored is not None:
        try:
            report = net.load_weights(stored, share)
        except WeightsError as error:
            raise _with_remedy(error, prototxt, stored) from None
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


def _with_remedy(error: WeightsError, prototxt: PathLike | None, stored: Weights) -> WeightsError:
    """Says what to do about weights that do not fit: most caffemodels carry a definition that does."""
    if prototxt is None or stored.net is None:
        return error
    what = error.what.replace("the definition asks", "the prototxt asks")
    diff = "`caffe-port inspect --diff`"
    own = "The caffemodel carries its own definition and fits it: run without the prototxt, or"
    return WeightsError(what, error.where, f"{own} {diff}." if _fits_itself(stored) else f"Compare them: {diff}.")


def _fits_itself(stored: Weights) -> bool:
    try:
        port(None, stored.path, share=True)
    except CaffePortError:
        return False
    return True
