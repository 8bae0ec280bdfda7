"""What is known of a port while it is searched for mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from caffe_port.net import fusion
from caffe_port.signatures.signature import Trait, has
from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import Difference, Tolerance, difference, failure
from caffe_port.verification.references.reference import Case
from caffe_port.verification.user_module.recorder import Ask, Call, Value
from caffe_port.verification.user_module.tops import Tops, regrouped
from caffe_port.verification.user_module.trial import Key, Trial
from caffe_port.verification.user_module.weights import Weights


@dataclass
class Verdict:
    """What was found wrong in a layer.

    Attributes:
        layer, top: which.
        difference: the layer alone, on the reference's bottoms.
        cause: empty if nothing known explains the difference.
        call: what computes it in the port; None if nothing does.
        key: the tensor that stands for its top.
        actual: its numbers.
        folded: layers after it that are folded into its weights; the verdict is on the last of them.
        same: further layers with the same mistake; ``same_as``: the first that has it.
    """

    layer: LayerSpec
    difference: Difference
    cause: str = ""
    call: Call | None = None
    key: Key | None = None
    top: int = 0
    actual: Array | None = None
    folded: tuple[LayerSpec, ...] = ()
    same: list[str] = field(default_factory=list)
    same_as: str = ""


@dataclass
class Extra:
    """A call that Caffe does not have, and the layer before it."""

    call: Call
    after: LayerSpec | None


@dataclass
class Examination:
    """A port, the net it should compute, and what is known of the two.

    Attributes:
        module, inputs: the port, and what it is run on.
        case, tops: the Caffe net, and what the reference made of the same inputs.
        keep: whether the port keeps its own parameters; otherwise it gets Caffe's.
        ask: calls the port with its inputs.
        constants: tensors that no recorded call makes, and that are the same in every run; None before the first.
        notes: sentences for the report.
        verdicts: (layer, top) -> what is wrong there.
        extras: calls that Caffe does not have.
        alone: BatchNorm or Scale that one call computes together -> its own top, on the reference's bottoms.
        put, feed: what the next run replaces, see :class:`Trial`.
        wired: layer -> the call that reads a top instead of another, the place of that bottom, and the two tops.
        stopped: the port fails on right tops, so that the layers after that are unknown.
        diagnosed: how many layers were diagnosed.
        shape_only: (reader, top) -> whether it reads only the shape.
        weights: which calls hold the parameters of which layers.
        last: the corrected run, in which all that is known to be wrong is right.
        free: the run of the port on its own.
        fine: layer -> whether it is in order in the last run.
        otherwise: tops that are in order, though no tensor holds them.
        apart: layers that only join or divide what the port returns one by one, or in one.
        left_out: layers that nothing in the port computes -> the outputs of the net that need them, none of which the
            port returns.
        odd: layer -> the call that computes it with other numbers.
        scales: BatchNorm -> the Scale after it.
        sole: top -> the layer that reads it, if it is the only one.
    """

    module: nn.Module
    case: Case
    tops: Tops
    tolerance: Tolerance
    inputs: Sequence[Tensor]
    keep: bool
    ask: Ask | None = None
    constants: list[Tensor] | None = None
    notes: list[str] = field(default_factory=list)
    verdicts: dict[Producer, Verdict] = field(default_factory=dict)
    extras: dict[int, Extra] = field(default_factory=dict)
    alone: dict[str, Array] = field(default_factory=dict)
    put: dict[Key, Producer] = field(default_factory=dict)
    feed: dict[Key, Producer] = field(default_factory=dict)
    wired: dict[str, tuple[Call | None, int, Producer, Producer]] = field(default_factory=dict)
    stopped: bool = False
    diagnosed: int = 0
    shape_only: dict[tuple[str, Producer], bool] = field(default_factory=dict)
    weights: Weights = field(init=False)
    last: Trial = field(init=False)
    free: Trial = field(init=False)
    fine: dict[str, bool] = field(init=False, default_factory=dict)
    otherwise: set[Producer] = field(init=False, default_factory=set)
    apart: set[str] = field(init=False, default_factory=set)
    left_out: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    odd: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.scales = fusion.scales_by_name(self.case.spec)
        self.sole = fusion.sole_readers(self.case.spec)

    def found(self, producer: Producer) -> bool:
        """Whether a tensor of the last run holds a top."""
        return bool(self.last.carriers.get(producer) or self.last.makers.get(producer))

    def place(self, producer: Producer) -> int:
        """The position of a layer in the net."""
        return next(n for n, layer in enumerate(self.case.spec.layers) if layer.name == producer[0])

    def top(self, layer: LayerSpec) -> Array:
        """The reference's first top of a layer."""
        return self.tops.arrays[layer.name, 0]

    def missing(self, layer: LayerSpec, size: int) -> int:
        """Which top of a layer, of this size, is neither found nor judged; the first if there is none."""
        tops = [(layer.name, k) for k in range(len(layer.tops)) if (layer.name, k) in self.tops.arrays]
        left = [p for p in tops if not self.found(p) and p not in self.verdicts and self.tops.arrays[p].size == size]
        return left[0][1] if left else 0

    def bottoms(self, layer: LayerSpec) -> list[Array]:
        """The reference's bottoms of a layer."""
        return [self.tops.arrays[source] for source in layer.producers]

    def same(self, expected: Array, actual: Array) -> bool:
        """Whether two arrays hold the same numbers, whatever their shapes."""
        if expected.size != actual.size:
            return False
        return difference(expected.reshape(-1), actual.reshape(-1), self.tolerance).passed

    def only_reader(self, producer: Producer) -> LayerSpec | None:
        """The layer that reads a top, if it is the only one."""
        readers = self.tops.readers.get(producer, [])
        return readers[0] if len(readers) == 1 else None

    def conclude(
        self,
        layer: LayerSpec,
        value: Value | None,
        cause: str,
        call: Call | None,
        actual: Array | None,
        reason: str = "",
        put: Producer | None = None,
        top: int = 0,
    ) -> None:
        """Records a verdict, and corrects the tensor in the next run."""
        expected = self.tops.arrays[layer.name, top]
        if actual is None or reason:
            found = failure(reason or "no counterpart in the port")
        else:
            found = difference(expected, like(actual, expected), self.tolerance)
        key = None if value is None else value.key
        self.verdicts[layer.name, top] = Verdict(layer, found, cause, call, key, top, actual)
        if value is not None:
            self.correct(value, put or self._stands_for(layer, value))

    def correct(self, value: Value, producer: Producer) -> None:
        """Replaces a tensor by a top in the next run: where it is made, or where it is read if no call returns it."""
        call = value.call
        if value.place < 0 or (call is not None and value.place >= len(call.outputs)):
            for reader, place in self.last.reads(value):
                self.feed[reader.index, place] = producer
        else:
            self.put[value.key] = producer

    def _stands_for(self, layer: LayerSpec, value: Value) -> Producer:
        """The top that a wrong tensor is replaced by: the layer's, or one after it that only cuts it to size."""
        size, producer = value.array.numel(), (layer.name, 0)
        if self.tops.arrays[producer].size == size:
            return producer
        reader = self.only_reader(producer)
        while reader is not None and has(reader.type, Trait.REARRANGES) and len(reader.tops) == 1:
            producer = (reader.name, 0)
            if self.tops.arrays[producer].size == size:
                return producer
            reader = self.only_reader(producer)
        return layer.name, 0


def like(actual: Array, expected: Array) -> Array:
    """``actual`` in the shape of ``expected``, if it has as many elements and the same batch."""
    same = actual.shape[:1] == expected.shape[:1] or _squeezed(actual) == _squeezed(expected)
    return actual.reshape(expected.shape) if same and regrouped(actual.shape, expected.shape) else actual


def _squeezed(values: Array) -> list[int]:
    return [n for n in values.shape if n != 1]


def blob_name(producer: Producer) -> str:
    """A top as messages name it: the layer, and which of its tops if not the first."""
    return producer[0] + (f":{producer[1]}" if producer[1] else "")


def blob_names(producers: Sequence[Producer]) -> str:
    """The names of the first six tops."""
    return ", ".join(f"'{blob_name(p)}'" for p in producers[:6]) + (", ..." if len(producers) > 6 else "")
