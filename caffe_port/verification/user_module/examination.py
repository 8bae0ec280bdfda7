"""Finds out where a port leaves the Caffe net, and why.

The port is run again and again. Each run is compared by value: a layer is *found* if a tensor of the port holds its
top, and in order if it is found or if what reads it is (the same may be computed with other operations). The first
layers that are not in order, though all that they read is, are examined, and corrected for the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.net import fusion
from caffe_port.signatures.signature import Trait, has, has_weights, signature_of
from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import Difference, Tolerance, difference, failure
from caffe_port.verification.diagnose import Finding, diagnose, other_parameters
from caffe_port.verification.references.numpy_formulas import compute
from caffe_port.verification.references.reference import Case
from caffe_port.verification.user_module import folded_layers
from caffe_port.verification.user_module.recorder import KINDS, Call, Value
from caffe_port.verification.user_module.relations import relation
from caffe_port.verification.user_module.tops import Tops, array, regrouped, tops_of
from caffe_port.verification.user_module.trial import Key, Trial
from caffe_port.verification.user_module.weights import Weights, call_family, family, matrix, parameter

_MAX_RUNS = 60
_MAX_REVISIONS = 8
_MAX_DIAGNOSED = 20
"""The number of layers of which every known mistake is tried, if their parameters are not the file's."""
_MANY = 4
"""Verdicts above which all calls with parameters are corrected in one run."""
_KINDS = frozenset(KINDS.values())
_COARSE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
"""A dtype of fewer digits -> the relative difference that it explains."""


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
    """The search for what is wrong in a port; :meth:`search` fills everything below ``notes``.

    Attributes:
        verdicts: (layer, top) -> what is wrong there.
        extras: calls that Caffe does not have.
        alone: BatchNorm or Scale that one call computes together -> its own top, on the reference's bottoms.
        last: the corrected run, in which all that is known to be wrong is right.
        free: the run of the port on its own.
    """

    module: nn.Module
    case: Case
    tops: Tops
    tolerance: Tolerance
    inputs: Sequence[Tensor]
    keep: bool
    notes: list[str] = field(default_factory=list)
    verdicts: dict[Producer, Verdict] = field(default_factory=dict)
    extras: dict[int, Extra] = field(default_factory=dict)
    alone: dict[str, Array] = field(default_factory=dict)
    put: dict[Key, Producer] = field(default_factory=dict)
    feed: dict[Key, Producer] = field(default_factory=dict)
    wired: dict[str, tuple[Call | None, int, Producer, Producer]] = field(default_factory=dict)
    stopped: bool = False
    diagnosed: int = 0
    _shape_only: dict[tuple[str, Producer], bool] = field(default_factory=dict)

    def search(self) -> None:
        """Runs the port until nothing else is found."""
        first = self._run(free=True)
        self.weights = Weights(self.case, self.module, first.calls)
        if not self.keep:
            self.weights.copy()
        self.scales = fusion.scales_by_name(self.case.spec)
        self.sole = fusion.sole_readers(self.case.spec)
        revisions = 0
        before: Trial | None = None
        kept: tuple[dict[Key, Producer], dict[Key, Producer]] = ({}, {})
        for _ in range(_MAX_RUNS):
            self.last = self._run()
            if not self.keep and revisions < _MAX_REVISIONS and self.weights.revise(self.last.calls):
                revisions += 1
                self.weights.copy()
                for found in (self.verdicts, self.extras, self.alone, self.put, self.feed):
                    found.clear()
                before = None
                continue
            if before is not None and self.last.error and not before.error:
                self.notes.append(f"on the reference's tops, the port fails: {self.last.error}")
                self.put, self.feed = kept
                self.last, self.stopped = before, True
                self._consider()
                break
            before, kept = self.last, (dict(self.put), dict(self.feed))
            self._consider()
            if not self._examine():
                break
        self.free = self._run(free=True)
        self._outputs()
        if self.free.error:
            self.notes.append(f"the port fails: {self.free.error}; what ran before was compared")
        if not self.keep:
            self.notes += self.weights.notes

    def unproven(self) -> list[Producer]:
        """Tops that no tensor of its own stands for in the port: what comes after agrees, or its bottom is the same."""
        found = []
        for layer in self.case.spec.layers:
            producer = (layer.name, 0)
            if layer.is_input or has(layer.type, Trait.NO_NUMBERS) or producer not in self.tops.arrays:
                continue
            reader = self.sole.get(producer)
            if producer in self.otherwise and not (reader is not None and has(reader.type, Trait.AFFINE)):
                found.append(producer)
            makers = self.last.makers.get(producer, [])
            unchanged = bool(makers) and all(set(layer.producers) & value.made for value in makers)
            if unchanged and not any(v.call is not None and layer.type in v.call.hints for v in makers):
                found.append(producer)
        return found

    def _run(self, free: bool = False) -> Trial:
        trial = Trial(self.module, self.tops, self.put, self.feed, free)
        if len(self.verdicts) > _MANY:  # wrong in many layers: do not run once for each
            for index, name in self.weights.layers.items():
                scale = self.scales.get(name)
                trial.expect[index] = (
                    ((scale or self.case.spec.by_name[name]).name, 0),
                    self.case.spec.by_name[name].producers,
                )
        return trial.run(self.module, self.inputs)

    # -- which layers are in order ------------------------------------------------------------------------------------

    def _consider(self) -> None:
        """Finds out which layers are in order in the last run."""
        self.fine: dict[str, bool] = {}
        self.otherwise: set[Producer] = set()
        self.odd = self._odd_calls()
        for layer in reversed(self.case.spec.layers):
            self.fine[layer.name] = all(self._fine(layer, producer) for producer in tops_of(layer))

    def _fine(self, layer: LayerSpec, producer: Producer) -> bool:
        if layer.is_input or producer in self.verdicts or self.found(producer):
            return True
        if producer not in self.tops.arrays:
            return True
        readers = [reader for reader in self.tops.readers.get(producer, ()) if self._reads_numbers(reader, producer)]
        if producer in self.tops.readers and not any(r.tops for r in self.tops.readers[producer]):
            return True  # only Silence and the like read it: nobody needs it
        there = all(self.fine[reader.name] and self._is_there(reader) for reader in readers)
        if readers and there and layer.name not in self.odd:
            self.otherwise.add(producer)
            return True
        return False

    def _reads_numbers(self, reader: LayerSpec, producer: Producer) -> bool:
        """Whether a layer reads the numbers of a top, and not only its shape, as Crop does of its second bottom."""
        if not reader.tops:
            return False
        key = (reader.name, producer)
        if key not in self._shape_only:
            self._shape_only[key] = False
            if len(reader.producers) > 1:
                whole = self._bottoms(reader)
                without = [
                    np.zeros_like(b) if s == producer else b for s, b in zip(reader.producers, whole, strict=True)
                ]
                blobs = self.case.blobs.get(reader.name, ())
                made, right = compute(reader, without, blobs)[0], compute(reader, whole, blobs)[0]
                same = made is not None and right is not None and all(map(np.array_equal, made, right))
                self._shape_only[key] = same and bool(np.any(self.tops.arrays[producer]))
        return not self._shape_only[key]

    def _is_there(self, layer: LayerSpec) -> bool:
        """Whether a layer's own numbers, or those after it, were found: not a verdict alone."""
        return any(self.found(p) or p in self.otherwise for p in tops_of(layer))

    def _odd_calls(self) -> dict[str, int]:
        """Layers that a call of the port computes with other numbers: what comes after must not hide them.

        A softmax that is saturated, or a max pooling, may. Not so where the next layer is affine and the layer has
        weights: a bias may lie there.
        """
        found: dict[str, int] = {}
        for layer in self.case.spec.layers:
            producer = (layer.name, 0)
            if producer not in self.tops.arrays or has(layer.type, Trait.NO_NUMBERS) or not layer.producers:
                continue
            if self.found(producer):
                continue
            reader = self.sole.get(producer)
            if has_weights(layer.type) and reader is not None and has(reader.type, Trait.AFFINE):
                continue
            readers = [call for value in self.carriers(layer.producers[0]) for call, _ in self.last.reads(value)]
            odd = next((call for call in readers if self._stands_in(layer, call)), None)
            if odd is not None:
                found[layer.name] = odd.index
        return found

    def _stands_in(self, layer: LayerSpec, call: Call) -> bool:
        """Whether a call is a layer by its kind, its bottoms and its size, but makes nothing known."""
        curves = has(call.kind, Trait.ACTIVATION) and has(layer.type, Trait.ACTIVATION)
        if not call.kind or not (call.kind == layer.type or curves) or call.index in self.weights.odd:
            return False
        if family(layer.type) and self.weights.layers.get(call.index, layer.name) != layer.name:
            return False
        reads = len(call.inputs) == len(layer.producers) and all(
            source in value.carries for source, value in zip(layer.producers, call.inputs, strict=True)
        )
        same = call.outputs[0].array.numel() == self.tops.arrays[layer.name, 0].size
        return reads and same and not call.outputs[0].made

    def found(self, producer: Producer) -> bool:
        """Whether a tensor of the last run holds a top."""
        return bool(self.last.carriers.get(producer) or self.last.makers.get(producer))

    def _frontier(self) -> list[LayerSpec]:
        return [
            layer
            for layer in self.case.spec.layers
            if not self.fine[layer.name] and all(self.fine[name] for name, _ in layer.producers)
        ]

    def _examine(self) -> bool:
        """Examines the first layers that are not in order; whether anything was found."""
        for call in self.last.expected:
            layer = self.case.spec.by_name[self.weights.layers[call.index]]
            if (layer.name, 0) not in self.verdicts:
                self._judge_call(layer, call)
        frontier = self._frontier()
        found = [layer for layer in frontier if self._judge(layer, bool(self.last.error))]
        self._crossed()
        if not found and self.last.error and frontier:
            reason = self.last.error.partition(": ")[2] or self.last.error
            self._conclude(frontier[0], None, f"the port fails here: {reason}", None, None, "the port fails")
            self.stopped = True
        return bool(found or self.last.expected)

    # -- where a layer would be computed ------------------------------------------------------------------------------

    def carriers(self, producer: Producer) -> list[Value]:
        """The tensors that hold a top, or what it is computed from if none does."""
        found = self.last.carriers.get(producer, [])
        if found or producer[0] not in self.case.spec.by_name:
            return found
        layer = self.case.spec.by_name[producer[0]]
        if layer.is_input:
            return self.last.inputs
        return [value for source in layer.producers for value in self.carriers(source)]

    def region(self, layer: LayerSpec) -> list[tuple[Call, int]]:
        """Calls that computed something unknown from the bottoms of a layer, with their distance, the nearest first."""
        queue = [(value, 0) for source in dict.fromkeys(layer.producers) for value in self.carriers(source)]
        seen: set[int] = set()
        found: list[tuple[Call, int]] = []
        while queue:
            value, distance = queue.pop(0)
            for call, _ in self.last.reads(value):
                if call.index in seen or not (self.last.is_open(call) or call.index in self.odd.values()):
                    continue
                seen.add(call.index)
                found.append((call, distance))
                if not call_family(call):
                    queue += [(out, distance + 1) for out in call.outputs if not out.carries]
        return found

    def partner(self, layer: LayerSpec, region: Sequence[tuple[Call, int]], strong: bool = False) -> Call | None:
        """The call that most likely is a layer; ``strong``: by the function's name alone."""
        best: tuple[float, Call] | None = None
        for call, distance in region:
            score = self._likeness(layer, call)
            if score <= 0 or (strong and call.kind != layer.type and not self._assigned(layer, call)):
                continue
            score -= 0.5 * distance
            if best is None or score > best[0]:
                best = (score, call)
        return None if best is None else best[1]

    def _elsewhere(self, layer: LayerSpec) -> Call | None:
        """A call that would be a layer, but reads other tops: it makes something unknown of what is known."""
        wanted = set(layer.producers)
        top = self.tops.arrays[layer.name, 0]
        ready = [
            (call, 0)
            for call in self.last.calls
            if self.last.is_open(call)
            and call.inputs
            and all(value.carries and not value.carries & wanted for value in call.inputs)
            and any(value.array.numel() == top.size for value in call.outputs)
        ]
        call = self.partner(layer, ready, strong=not family(layer.type))
        return call if call is not None and self._fits(layer, call) else None

    def _fits(self, layer: LayerSpec, call: Call) -> bool:
        """Whether the parameters of a call have the size of a layer's; true for a layer without."""
        own, blobs = parameter(call), self.case.blobs.get(layer.name, ())
        return not family(layer.type) or (own is not None and bool(blobs) and own.numel() == np.size(blobs[0]))

    def _assigned(self, layer: LayerSpec, call: Call) -> bool:
        return self.weights.layers.get(call.index) == layer.name

    def _likeness(self, layer: LayerSpec, call: Call) -> float:
        top = self.tops.arrays[layer.name, 0]
        score = 0.0
        own = parameter(call)
        fits = family(layer.type) == call_family(call) != ""
        if call.kind == layer.type:
            score += 8
        elif (call.kind and has(call.kind, Trait.ACTIVATION) and has(layer.type, Trait.ACTIVATION)) or fits:
            score += 5
        elif layer.type in call.hints:
            score += 4 - 0.5 * call.hints.index(layer.type)
            if layer.type == "Eltwise" and len(call.inputs) < 2:
                return 0.0
            if layer.type in ("Power", "ReLU", "Clip") and len(call.inputs) > 1:
                return 0.0
        else:
            return 0.0
        blobs = self.case.blobs.get(layer.name, ())
        if own is not None and blobs and family(layer.type):
            same = own.numel() == np.size(blobs[0])
            score += 4.0 if same else -2.0
            if same and self.keep:
                score += 3.0 * _share(own, np.asarray(blobs[0]))
            if not self.keep and not self._assigned(layer, call) and call.index in self.weights.layers:
                score -= 20
        sizes = [out.array.numel() for out in call.outputs]
        score += 2.0 * (top.size in sizes) + 1.0 * (tuple(call.outputs[0].array.shape) == top.shape)
        wanted = set(layer.producers)
        read = [bool(value.carries & wanted) for value in call.inputs]
        score += 2.0 * all(read) if read else 0.0
        if len(layer.producers) > 1 and len(call.inputs) == len(layer.producers):
            score += 1.0
        return score

    # -- judging ------------------------------------------------------------------------------------------------------

    def _judge(self, layer: LayerSpec, crashed: bool) -> bool:
        """Finds out what is wrong with a layer; False if nothing can be said yet."""
        region = self.region(layer)
        if self._exchanged(layer, region):
            return True
        call = self.partner(layer, region)
        if call is None or not self._fits(layer, call):
            call = self._elsewhere(layer) or call
        if call is None or not (call.kind or family(layer.type) or self._is_right(layer, call)):
            value = self._end(layer, region)
            maker = None if value is None else value.call
            if maker is not None and family(layer.type) and self._likeness(layer, maker) > 0:
                call = maker  # it reads something else altogether
            elif value is not None:
                return self._by_hand(layer, self._next(layer, region)[0], value)
            call = call or self._idle(layer)
        if call is not None:
            self._judge_call(layer, call)
            return True
        return self._judge_rest(layer, region, crashed)

    def _is_right(self, layer: LayerSpec, call: Call) -> bool:
        """Whether a call makes a layer's top of the right bottoms."""
        made = self._again(call, layer)
        return made is not None and self._same(self._top(layer), made)

    def _end(self, layer: LayerSpec, region: Sequence[tuple[Call, int]]) -> Value | None:
        """The last tensor of calls that compute a layer together: what the next layer reads, or what is returned."""
        chain, reader, call = self._next(layer, region)
        if call is not None and reader is not None:
            fine = {s for s in reader.producers if s not in {p for one in chain for p in tops_of(one)}}
            read = [v for v in call.inputs if not v.carries & fine]
        elif any(self.tops.is_output(p) for one in chain for p in tops_of(one)):
            read = self._returned(chain[-1])
        else:
            return None
        size = self._top(layer).size
        return next((v for v in read if not v.carries and v.call is not None and v.array.numel() == size), None)

    def _idle(self, layer: LayerSpec) -> Call | None:
        """A call that would be a layer of several bottoms, but makes what it reads: it reads the same twice."""
        wanted = set(layer.producers)
        for call in self.last.calls:
            reads = [value.carries for value in call.inputs]
            if len(wanted) < 2 or layer.type not in call.hints or len(reads) != len(layer.producers):
                continue
            if all(reads) and wanted & set().union(*reads) and call.outputs[0].carries <= set().union(*reads):
                return call
        return None

    def _bottoms(self, layer: LayerSpec) -> list[Array]:
        return [self.tops.arrays[source] for source in layer.producers]

    def _top(self, layer: LayerSpec) -> Array:
        return self.tops.arrays[layer.name, 0]

    def _judge_call(self, layer: LayerSpec, call: Call) -> None:
        value = self._output(layer, call)
        if self._coarse(layer, call, value) or self._normalization(layer, call) or self._fold(layer, call, value):
            return
        alone = self._again(call, layer)
        if alone is not None and self._same(self._top(layer), alone):
            self._judge_input(layer, call, value)
            return
        direct = len(call.inputs) == len(layer.producers) and all(
            source in v.carries for source, v in zip(layer.producers, call.inputs, strict=True)
        )
        actual = array(value.own)
        if direct or alone is None:
            wiring = "" if direct else self._wiring(layer, call, actual)
            finding = None if wiring else self._diagnose(layer, actual, call)
            self._conclude(layer, value, wiring or _words(finding), call, actual)
            return
        finding = self._diagnose(layer, actual, call)
        cause = _words(finding)
        if not cause:
            other = self._diagnose(layer, alone, call)
            cause, actual = (_words(other), alone) if other is not None else ("", actual)
        if not cause:
            cause = self._wiring(layer, call, array(value.own))
        self._conclude(layer, value, cause, call, actual)

    def _output(self, layer: LayerSpec, call: Call) -> Value:
        size = self._top(layer).size
        fits = [out for out in call.outputs if out.array.numel() == size and not out.carries]
        return fits[0] if fits else call.outputs[0]

    def _same(self, expected: Array, actual: Array) -> bool:
        return (
            expected.size == actual.size and difference(expected.reshape(-1), actual.reshape(-1), self.tolerance).passed
        )

    def _again(self, call: Call, layer: LayerSpec) -> Array | None:
        """What a call makes of the reference's bottoms; None if it cannot run on them."""
        if len(call.inputs) != len(layer.producers):
            return None
        bottoms = [self.tops.tensor(s, v.array) for s, v in zip(layer.producers, call.inputs, strict=True)]
        return self._attempt(lambda: call.again(*bottoms))

    def _attempt(self, ask: Callable[[], Tensor]) -> Array | None:
        try:
            with torch.no_grad():
                return array(ask())
        except (RuntimeError, ValueError, IndexError, TypeError, StopIteration):
            return None

    def _diagnose(self, layer: LayerSpec, actual: Array, call: Call | None = None) -> Finding | None:
        blobs = self.case.blobs.get(layer.name, ())
        parameters = None if call is None else _parameters(layer, call, blobs)
        self.diagnosed += 1
        if self.diagnosed > _MAX_DIAGNOSED:
            found = other_parameters(layer, blobs, parameters, self.case.blobs)
            if found is not None:
                return found
        top = self._top(layer)
        shaped = actual if actual.ndim == top.ndim else like(actual, top)
        return diagnose(
            layer,
            self._bottoms(layer),
            blobs,
            shaped,
            top,
            parameters=parameters,
            others={} if parameters is None else self.case.blobs,
            tolerance=self.tolerance,
        )

    def _conclude(
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
            self.put[value.key] = put or self._stands_for(layer, value)

    def _stands_for(self, layer: LayerSpec, value: Value) -> Producer:
        """The top that a wrong tensor is replaced by: the layer's, or one after it that only cuts it to size."""
        size, producer = value.array.numel(), (layer.name, 0)
        if self.tops.arrays[producer].size == size:
            return producer
        reader = self._only_reader(producer)
        while reader is not None and has(reader.type, Trait.REARRANGES) and len(reader.tops) == 1:
            producer = (reader.name, 0)
            if self.tops.arrays[producer].size == size:
                return producer
            reader = self._only_reader(producer)
        return layer.name, 0

    def _only_reader(self, producer: Producer) -> LayerSpec | None:
        readers = self.tops.readers.get(producer, [])
        return readers[0] if len(readers) == 1 else None

    # -- special cases of a call --------------------------------------------------------------------------------------

    def _coarse(self, layer: LayerSpec, call: Call, value: Value) -> bool:
        """Numbers of fewer digits."""
        relative = _COARSE.get(value.own.dtype)
        if relative is None:
            read = [_COARSE[v.array.dtype] for v in call.inputs if v.array.dtype in _COARSE]
            relative = max(read, default=None)
        if relative is None:
            return False
        actual, top = array(value.own), self._top(layer)
        dtype = next(d for d, r in _COARSE.items() if r == relative)
        if actual.size != top.size:
            return False
        wide = Tolerance(relative * 4 * max(1.0, float(np.abs(top).max())), 4 * relative)
        if not difference(top.reshape(-1), actual.reshape(-1), wide).passed:
            return False
        name = str(dtype).removeprefix("torch.")
        self._conclude(layer, value, f"it computes in {name} (half precision), Caffe in float32", call, actual)
        return True

    def _normalization(self, layer: LayerSpec, call: Call) -> bool:
        """A batch norm that computes BatchNorm and Scale in one call."""
        scale = self.scales.get(layer.name)
        if call.kind != "BatchNorm" or scale is None or layer.type != "BatchNorm":
            return False
        if not isinstance(call.named.get("weight"), Tensor) and not isinstance(call.named.get("bias"), Tensor):
            return False
        value = call.outputs[0]
        bottom = self.tops.tensor(layer.producers[0], call.inputs[0].array)
        alone = self._attempt(lambda: call.again(bottom, weight=None, bias=None))
        if alone is None:
            return False
        scaled = array(affine(self.tops.tensor((layer.name, 0), call.outputs[0].array), call))
        reads = bool(call.inputs[0].carries & set(layer.producers))
        fine = self._same(self._top(layer), alone), self._same(self._top(scale), scaled)
        if all(fine):
            if reads:
                return False
            self._judge_input(layer, call, value, put=(scale.name, 0))
            self.alone[scale.name] = scaled
            return True
        for one, made, right in zip((layer, scale), (alone, scaled), fine, strict=True):
            if right:
                self.alone[one.name] = made
            else:
                finding = self._diagnose(one, made, call if one is layer else None)
                cause = _words(finding) or (self._scale_cause(call, scale) if one is scale else "")
                self._conclude(one, value, cause, call, made, put=(scale.name, 0))
        self.put[value.key] = (scale.name, 0)
        return True

    def normalized(self, layer: LayerSpec, call: Call) -> Array | None:
        """What the part of a batch norm makes that Caffe calls BatchNorm, on the reference's bottom."""
        bottom = self.tops.tensor(layer.producers[0], call.inputs[0].array)
        return self._attempt(lambda: call.again(bottom, weight=None, bias=None))

    def _scale_cause(self, call: Call, scale: LayerSpec) -> str:
        blobs = [np.asarray(b).reshape(-1) for b in self.case.blobs[scale.name]]
        own = [call.named.get(k) for k in ("weight", "bias")]
        for what, mine, file in zip(("scale", "bias"), own, blobs, strict=False):
            if isinstance(mine, Tensor) and mine.numel() == file.size:
                found = difference(file, array(mine).reshape(-1), Tolerance(1e-9, 1e-6))
                if not found.passed:
                    return f"its {what} differs from the file's ({found.outside} of {found.count} values)"
        return ""

    def _fold(self, layer: LayerSpec, call: Call, value: Value) -> bool:
        """Layers that are folded into the weights of a call, and wrongly."""
        if family(layer.type) != "weight" or not self.keep:
            return False
        after = self._foldable(layer)
        made = like(array(value.own), self._top(layer))
        if not after or made.shape != self._top(layer).shape:
            return False
        steps = [self._top(one) for one in (layer, *after)]
        n = folded_layers.how_many(steps, made, self.tolerance)
        if not n:
            return False
        folded = after[:n]
        last = folded[-1]
        cause = folded_layers.cause_of(self.case, layer, folded, self.tops.arrays, made)
        self._conclude(last, value, cause, call, made, put=(last.name, 0))
        self.verdicts[last.name, 0].folded = (layer, *folded)
        return True

    def _foldable(self, layer: LayerSpec) -> tuple[LayerSpec, ...]:
        """The affine layers directly after one that no call of the port computes."""
        present = set(self.weights.layers.values())
        found: list[LayerSpec] = []
        last = self.sole.get((layer.name, 0))
        while last is not None and has(last.type, Trait.AFFINE) and len(last.bottoms) == 1 and last.name not in present:
            if self.partner(last, self.region(layer), strong=True) is not None:
                break
            found.append(last)
            last = self.sole.get((last.name, 0))
        return tuple(found)

    # -- a call that is right, but reads something wrong --------------------------------------------------------------

    def _judge_input(self, layer: LayerSpec, call: Call, value: Value, put: Producer | None = None) -> None:
        actual = array(value.own)
        extras: list[Call] = []
        for source, read in zip(layer.producers, call.inputs, strict=False):
            if source in read.carries:
                continue
            for step in self._path(read):
                changes = bool(step.kind) and not has(step.kind, Trait.NO_NUMBERS) and _can_be_skipped(step.kind)
                if changes or step.kind == "Dropout":
                    extras.append(step)
        if extras:
            for extra in extras:
                self._extra(extra, layer)
            return
        cause = self._wiring(layer, call, actual)
        if cause:
            self._conclude(layer, value, cause, call, actual, put=put)
            return
        special = self._specific(layer, actual)
        for source, read in zip(layer.producers, call.inputs, strict=False):
            if source not in read.carries:
                cause = self._changed(source, read) or cause
                if not special and read.call is not None:
                    self.put[read.key] = source
        self._conclude(layer, value, special or cause, call, actual, put=put)

    def _specific(self, layer: LayerSpec, actual: Array) -> str:
        """A known slip of this type, rather than one of any layer."""
        if not has_weights(layer.type):
            return ""
        finding = self._diagnose(layer, actual)
        return finding.cause if finding is not None and finding.specific else ""

    def _path(self, value: Value) -> Iterator[Call]:
        """The calls from a known tensor to this one, the last first."""
        while value.call is not None and value.call.inputs and not value.carries:
            yield value.call
            unknown = [v for v in value.call.inputs if not v.carries]
            value = unknown[0] if unknown else value.call.inputs[0]

    def _root(self, value: Value) -> Value:
        for call in self._path(value):
            unknown = [v for v in call.inputs if not v.carries]
            value = unknown[0] if unknown else call.inputs[0]
        return value

    def _extra(self, call: Call, before: LayerSpec) -> None:
        root = None if not call.inputs else call.inputs[0] if call.inputs[0].carries else self._root(call.inputs[0])
        known = sorted(root.carries, key=self.place) if root is not None else []
        after = self.case.spec.by_name[known[-1][0]] if known else None
        self.extras[call.index] = Extra(call, None if after is None or after.is_input else after)
        if root is not None and known:
            wanted = next((source for source in before.producers if source in root.carries), known[-1])
            self.put[call.outputs[0].key] = wanted

    def place(self, producer: Producer) -> int:
        return next(n for n, layer in enumerate(self.case.spec.layers) if layer.name == producer[0])

    def _wiring(self, layer: LayerSpec, call: Call, actual: Array) -> str:
        """Whether a call reads the tops of other layers, or the right ones in another order."""
        if len(call.inputs) != len(layer.producers):
            return ""
        reads: list[Producer] = []
        for source, read in zip(layer.producers, call.inputs, strict=True):
            root = read if read.carries else self._root(read)
            if source in root.carries:
                reads.append(source)
                continue
            near = [p for p in layer.producers if p in root.carries]
            others = near or sorted(root.carries, key=self.place)
            if not others:
                return ""
            reads.append(others[-1])
        if tuple(reads) == layer.producers:
            return ""
        made = self._attempt(
            lambda: call.again(*(self.tops.tensor(s, v.array) for s, v in zip(reads, call.inputs, strict=True)))
        )
        if made is None or not self._same(made, actual):
            return ""
        if sorted(reads) == sorted(layer.producers):
            order = tuple(layer.producers.index(source) for source in reads)
            told = "reversed" if order == tuple(range(len(order)))[::-1] else f"{order}, by their places in Caffe"
            return f"the order of its bottoms is {told}: it reads {_blobs(reads)}, Caffe's {_blobs(layer.producers)}"
        n = next(n for n, source in enumerate(layer.producers) if reads[n] != source)
        root = call.inputs[n] if call.inputs[n].carries else self._root(call.inputs[n])
        place = f", which {root.call.name} computes in place" if root.call is not None and root.call.in_place else ""
        self.wired[layer.name] = (call, n, reads[n], layer.producers[n])
        return f"it reads '{_blob(reads[n])}'{place}, Caffe's reads '{_blob(layer.producers[n])}' (another bottom)"

    def _crossed(self) -> None:
        """Two layers that read each other's bottoms: the weights of those before them may be exchanged."""
        if not self.keep:
            return
        for one, (call, n, reads, wanted) in list(self.wired.items()):
            for other, (call2, n2, reads2, wanted2) in list(self.wired.items()):
                if one >= other or (reads, wanted) != (wanted2, reads2):
                    continue
                first, second = self._weighted(wanted), self._weighted(reads)
                if first is None or second is None or first is second:
                    continue
                shapes = [[np.shape(b) for b in self.case.blobs.get(layer.name, ())] for layer in (first, second)]
                if shapes[0] != shapes[1]:
                    continue
                for name, reader, place, right in ((one, call, n, wanted), (other, call2, n2, wanted2)):
                    verdict = self.verdicts.pop((name, 0), None)
                    if verdict is not None and verdict.key is not None:
                        self.put.pop(verdict.key, None)
                    if reader is not None:
                        self.feed[reader.index, place] = right
                    del self.wired[name]
                for layer, its in ((first, second), (second, first)):
                    cause = f"the weights of '{layer.name}' and '{its.name}' are exchanged: it has the other's"
                    made = self._top(its)
                    found = difference(self._top(layer), made, self.tolerance)
                    value = next(iter(self.last.makers.get((its.name, 0), ())), None)
                    self.verdicts[layer.name, 0] = Verdict(
                        layer, found, cause, None if value is None else value.call, None if value is None else value.key
                    )
                break

    def _weighted(self, producer: Producer) -> LayerSpec | None:
        """The layer with weights that a top comes from, through layers of one bottom."""
        layer = self.case.spec.by_name[producer[0]]
        while not family(layer.type) and len(layer.producers) == 1:
            layer = self.case.spec.by_name[layer.producers[0][0]]
        return layer if family(layer.type) else None

    def _changed(self, source: Producer, read: Value) -> str:
        """How what a call reads differs from the top that it should read."""
        right = self.tops.arrays[source]
        made = array(read.array)
        words = relation(made, right, self.tolerance)
        steps = list(self._path(read))
        changer = next((step for step in steps if step.in_place), None)
        what = "the input" if self.case.spec.by_name[source[0]].is_input else "its bottom"
        name = f"{what} '{_blob(source)}'"
        if changer is not None:
            detail = f": what it reads {words}" if words else ""
            return f"{name} was changed in place by {changer.name} before it reads it{detail}"
        if words:
            through = ", ".join(step.name for step in reversed(steps))
            return f"it reads {name} in another form: what it reads {words}" + (f"; by {through}" if through else "")
        others = sorted(self._root(read).carries, key=self.place)
        if others and source not in others:
            through = ", ".join(step.name for step in reversed(steps))
            return f"it reads what {through} makes of '{_blob(others[-1])}', Caffe's reads '{_blob(source)}'"
        return ""

    # -- a layer without a call ---------------------------------------------------------------------------------------

    def _judge_rest(self, layer: LayerSpec, region: Sequence[tuple[Call, int]], crashed: bool) -> bool:
        chain, reader, call = self._next(layer, region)
        read: list[Value] = []
        if call is not None and reader is not None:
            wanted = {p for one in chain for p in tops_of(one)}
            fine = {s for s in reader.producers if s not in wanted}
            read = [v for v in call.inputs if not v.carries & fine]
        elif any(self.tops.is_output(p) for one in chain for p in tops_of(one)):
            read = self._returned(chain[-1])
        if not read and not crashed:
            top = self._top(layer).size
            steps = [out for step, _ in region for out in step.outputs if not out.carries and out.array.numel() == top]
            read = steps[-1:]
        if not read and crashed:
            return False
        for value in read:
            if not value.carries and value.call is not None:
                return self._by_hand(layer, chain, value)
        self._missing(layer, chain, reader, call, read)
        return True

    def _next(
        self, layer: LayerSpec, region: Sequence[tuple[Call, int]]
    ) -> tuple[list[LayerSpec], LayerSpec | None, Call | None]:
        """The layers from this one to the next that a call of the port computes, that layer and that call."""
        queue: list[list[LayerSpec]] = [[layer]]
        longest = [layer]
        while queue:
            chain = queue.pop(0)
            longest = chain if len(chain) > len(longest) else longest
            for producer in tops_of(chain[-1]):
                for reader in self.tops.readers.get(producer, ()):
                    if not reader.tops:
                        continue
                    wide = [*region, *((c, 9) for c, _ in self.region(reader) if all(c is not r for r, _ in region))]
                    call = self.partner(reader, wide, strong=has_weights(reader.type) or reader.type in _KINDS)
                    if call is not None:
                        return chain, reader, call
                    if len(chain) < 5:
                        queue.append([*chain, reader])
        return longest, None, None

    def _by_hand(self, layer: LayerSpec, chain: Sequence[LayerSpec], value: Value) -> bool:
        """A layer, or several, that the port computes by other calls, and wrongly."""
        actual = array(value.own)
        stands = [one for one in chain if self._top(one).size == actual.size]
        last = stands[-1] if stands else layer
        between = chain[: chain.index(last) + 1] if last in chain else [layer]
        numbers = [one for one in between if not has(one.type, Trait.NO_NUMBERS)]
        cause = ""
        if len(numbers) <= 1 or last is layer:
            cause = _words(self._diagnose(layer, actual))
        if not cause and value.call is not None and stands:
            words = relation(actual, self._top(last), self.tolerance)
            cause = f"its top {words}" if words else ""
        bottom = layer.producers[0] if layer.producers else None
        if not cause and bottom is not None and len(self._bottoms(layer)) == 1:
            words = relation(actual, self._bottoms(layer)[0], self.tolerance)
            cause = f"the port has no {layer.type} here: its bottom {words}" if words else ""
        self._conclude(layer, value, cause, value.call, actual, put=(last.name, 0))
        return True

    def _missing(
        self,
        layer: LayerSpec,
        chain: Sequence[LayerSpec],
        reader: LayerSpec | None,
        call: Call | None,
        read: Sequence[Value],
    ) -> None:
        """A layer that the port leaves out: what reads its bottom gets its top instead."""
        cause = f"the port has no {layer.type} here"
        if has(layer.type, Trait.REARRANGES):
            cause += ": the numbers of its bottom stay in their order"
        self._conclude(layer, None, cause, None, None)
        last = chain[-1] if call is not None else layer
        if call is not None and reader is not None:
            for one in chain[1:]:
                if not has(one.type, Trait.NO_NUMBERS):
                    told = "" if one.type == "Scale" else f"the port has no {one.type} here"
                    if told:
                        self._conclude(one, None, told, None, None)
                    else:
                        self.otherwise.add((one.name, 0))
        bottoms = set(layer.producers)
        sole = len(bottoms) == 1 and all(
            len([r for r in self.tops.readers.get(bottom, ()) if r.tops]) == 1 for bottom in bottoms
        )
        if sole:
            for value in self.last.carriers.get(layer.producers[0], ()):
                self.put[value.key] = (last.name, 0)
            return
        region = self.region(layer)
        for one in self.tops.readers.get((last.name, 0), ()):
            other = call if one is reader else self.partner(one, region)
            for place, value in enumerate(() if other is None else other.inputs):
                if other is not None and value.carries & bottoms:
                    self.feed[other.index, place] = (last.name, 0)
                    break

    def _exchanged(self, layer: LayerSpec, region: Sequence[tuple[Call, int]]) -> bool:
        """Two layers in the other order: a pooling before its activation."""
        reader = self._only_reader((layer.name, 0))
        if reader is None or len(layer.producers) != 1 or len(reader.producers) != 1 or len(reader.tops) != 1:
            return False
        if has_weights(layer.type) or has_weights(reader.type) or reader.type == layer.type:
            return False
        blobs = self.case.blobs
        first, _ = compute(reader, self._bottoms(layer), blobs.get(reader.name, ()))
        if first is None:
            return False
        second, _ = compute(layer, first, blobs.get(layer.name, ()))
        if second is None or self._same(self._top(reader), second[0]):
            return False
        for step, _ in region:
            for value in step.outputs:
                if not value.carries and self._same(second[0], array(value.own)):
                    cause = (
                        f"the order of '{layer.name}' and '{reader.name}' is exchanged: the port computes "
                        f"'{reader.name}' before '{layer.name}', Caffe after it"
                    )
                    actual = array(value.own)
                    self._conclude(layer, value, cause, step, actual, "computed in another order", (reader.name, 0))
                    return True
        return False

    # -- what the module returns --------------------------------------------------------------------------------------

    def _returned(self, layer: LayerSpec) -> list[Value]:
        """What the module returns for an output."""
        value = self.returns(self.last).get((layer.name, 0))
        return [] if value is None else [value]

    def returns(self, trial: Trial) -> dict[Producer, Value]:
        """Output of the net -> what the module returns for it."""
        outputs = [producer for _, producer in self.case.spec.outputs if producer in self.tops.arrays]
        left = list(dict.fromkeys(trial.returned))
        found: dict[Producer, Value] = {}
        for producer in outputs:
            value = next((v for v in left if producer in v.carries), None)
            if value is not None:
                found[producer] = value
                left.remove(value)
        rest = [producer for producer in outputs if producer not in found]
        scores = []
        for n, producer in enumerate(rest):
            top = self.tops.arrays[producer]
            for m, value in enumerate(left):
                if not value.data:
                    continue
                behind = self._behind(value)
                score = 8.0 * (producer in behind) + 2.0 * (tuple(value.array.shape) == top.shape)
                score += 2.0 * (value.array.numel() == top.size) - 0.1 * abs(n - m)
                score += len(behind & self._above(producer)) / (1 + len(behind))
                scores.append((-score, n, m))
        for _, n, m in sorted(scores):
            if rest[n] not in found and all(left[m] is not value for value in found.values()):
                found[rest[n]] = left[m]
        return found

    def _behind(self, value: Value) -> set[Producer]:
        """The tops that a tensor was computed from."""
        found: set[Producer] = set()
        queue, seen = [value], {id(value)}
        while queue:
            one = queue.pop()
            found |= one.carries
            for source in one.call.inputs if one.call is not None else ():
                if id(source) not in seen:
                    seen.add(id(source))
                    queue.append(source)
        return found

    def _above(self, producer: Producer) -> set[Producer]:
        queue, found = [producer], {producer}
        while queue:
            for source in self.case.spec.by_name[queue.pop()[0]].producers:
                if source not in found:
                    found.add(source)
                    queue.append(source)
        return found

    def _outputs(self) -> None:
        """Compares what the module returns with the net's outputs."""
        if self.last.error or self.stopped:
            return
        returned = self.returns(self.last)
        outputs = [producer for _, producer in self.case.spec.outputs if producer in self.tops.arrays]
        if outputs and not returned and outputs[0] not in self.verdicts:
            layer = self.case.spec.by_name[outputs[0][0]]
            cause = "the port returns none of the net's outputs"
            self._conclude(layer, None, cause, None, None, "not returned", top=outputs[0][1])
        for _, producer in self.case.spec.outputs:
            if producer not in self.tops.arrays or producer in self.verdicts:
                continue
            layer, value = self.case.spec.by_name[producer[0]], returned.get(producer)
            if value is None:
                self.notes.append(f"the port does not return '{_blob(producer)}', an output of the net")
                continue
            if producer in value.carries and not self._shape_differs(value, producer):
                continue
            self._judge_output(layer, producer, value)

    def _shape_differs(self, value: Value, producer: Producer) -> bool:
        own, top = tuple(value.array.shape), self.tops.arrays[producer].shape
        return own[:1] != top[:1] and [n for n in own if n != 1] != [n for n in top if n != 1]

    def _judge_output(self, layer: LayerSpec, producer: Producer, value: Value) -> None:
        steps = list(self._path(value))
        root = self._root(value)
        extras = [step for step in steps if step.kind and _can_be_skipped(step.kind)]
        if extras and producer in root.carries and all(s.kind or s.view for s in steps):
            for extra in extras:
                self.extras[extra.index] = Extra(extra, layer)
            return
        right, actual = self.tops.arrays[producer], array(value.array)
        words = relation(actual, right, self.tolerance)
        other = sorted((p for p in value.carries if p != producer), key=self.place)
        if other and producer not in value.carries and self.tops.arrays[other[-1]].size == right.size:
            self.wired[layer.name] = (None, 0, other[-1], producer)
            chain = other[-1] in self._above(producer)
            words = f"is '{_blob(other[-1])}', not '{_blob(producer)}'"
            words += f": the port has no {layer.type} there (it is missing)" if chain else " (another order of outputs)"
        if not words and actual.shape != right.shape:
            words = f"has the shape {actual.shape}, Caffe's output {right.shape}"
        through = ", ".join(step.name for step in reversed(steps) if not step.kind)
        cause = f"what the port returns for the output '{_blob(producer)}' {words}" if words else ""
        if cause and through:
            cause += f"; extra at the end: {through}"
        self._conclude(layer, None, cause, value.call, actual, top=producer[1])
        self._crossed()


def like(actual: Array, expected: Array) -> Array:
    """``actual`` in the shape of ``expected``, if it has as many elements and the same batch."""
    same = actual.shape[:1] == expected.shape[:1] or _squeezed(actual) == _squeezed(expected)
    return actual.reshape(expected.shape) if same and regrouped(actual.shape, expected.shape) else actual


def _squeezed(values: Array) -> list[int]:
    return [n for n in values.shape if n != 1]


def affine(x: Tensor, call: Call) -> Tensor:
    """The part of a batch norm that Caffe calls Scale."""
    weight, bias = call.named.get("weight"), call.named.get("bias")
    shape = (1, -1, *([1] * (x.ndim - 2)))
    x = x * weight.detach().reshape(shape) if isinstance(weight, Tensor) else x
    return x + bias.detach().reshape(shape) if isinstance(bias, Tensor) else x


def _can_be_skipped(kind: str) -> bool:
    """Whether an extra call of a kind can be left out without the module noticing."""
    signature = signature_of(kind)
    return signature is not None and signature.bottoms == (1, 1) and not has_weights(kind)


def _words(finding: Finding | None) -> str:
    return "" if finding is None else str(finding)


def _blob(producer: Producer) -> str:
    return producer[0] + (f":{producer[1]}" if producer[1] else "")


def _blobs(producers: Sequence[Producer]) -> str:
    return ", ".join(f"'{_blob(p)}'" for p in producers[:6]) + (", ..." if len(producers) > 6 else "")


def _share(one: Tensor, other: Array) -> float:
    """The share of the numbers that are the same, in whatever order of axes."""
    a, b = np.sort(array(one).reshape(-1)), np.sort(other.reshape(-1))
    return float((np.abs(a - b) <= 1e-3 * max(float(np.abs(b).max()), 1e-12)).mean()) if a.size == b.size else 0.0


def _parameters(layer: LayerSpec, call: Call, blobs: Sequence[Array]) -> list[Array] | None:
    """The parameters of a call in Caffe's layout; None if they do not have that size."""
    if layer.type == "BatchNorm" and call.kind == "BatchNorm" and len(blobs) == 3:
        mean, variance = call.named.get("running_mean"), call.named.get("running_var")
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            return None
        factor = float(np.asarray(blobs[2]).reshape(-1)[0]) or 1.0
        return [array(mean) * factor, array(variance) * factor, np.asarray(blobs[2])]
    weight, bias = call.weight, call.named.get("bias")
    if weight is None or not blobs or weight.numel() != np.size(blobs[0]):
        return None
    own = array(weight)
    first = np.asarray(blobs[0])
    if has(layer.type, Trait.DENSE):
        p = layer.param.inner_product_param
        own = own.T if call.word in ("matmul", "mm") and own.ndim == 2 else own
        if matrix(layer, first).shape != own.reshape(own.shape[0], -1).shape:
            return None
        own = own.reshape(own.shape[0], -1).T if p.transpose else own
    found = [own.reshape(first.shape) if own.size == first.size else own]
    if len(blobs) > 1:
        second = np.asarray(blobs[1])
        found.append(array(bias).reshape(second.shape) if isinstance(bias, Tensor) else np.zeros_like(second))
    return found
