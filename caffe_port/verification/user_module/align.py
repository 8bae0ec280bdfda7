"""Matches the calls of a hand-written port with the layers of the Caffe net.

Layers are paired by kind, parameter shapes and values, output shape, and the order in which data flows through them,
never by position alone. An extra layer is therefore reported as an extra layer and does not make everything after it
look wrong, and parallel branches may run in any order.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_port.net import fusion
from caffe_port.signatures.signature import Trait, has, has_weights
from caffe_port.spec import LayerSpec
from caffe_port.typing import Array
from caffe_port.verification.references.reference import Case
from caffe_port.verification.user_module.recorder import KINDS, Call

PAIRED = frozenset((*KINDS.values(), "Eltwise")) - {"Scale"}
"""Types of layers that a call may stand for: what the recorder tells apart. A Scale is usually part of a batch norm."""

_SAME_FLOW = 0.5
"""The score for a layer and its call reading from each other's partners."""
_ROUNDS = 4


@dataclass(frozen=True)
class Pair:
    """A Caffe layer and a call, one of which may be missing.

    Attributes:
        scale: the Scale after a BatchNorm, if the call computes it too.
        after: the layers directly after a Convolution or InnerProduct that have no partner and may therefore be
            folded into its weights.
        folded: those of them that are; see :class:`~caffe_port.verification.user_module.injection.Injector`.
    """

    layer: LayerSpec | None
    call: Call | None
    scale: LayerSpec | None = None
    after: tuple[LayerSpec, ...] = ()
    folded: tuple[LayerSpec, ...] = ()

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """All layers that the call computes; its output is the last one's top."""
        own = [layer for layer in (self.layer, self.scale) if layer is not None]
        return (*own, *self.folded)


def align(case: Case, calls: Sequence[Call]) -> list[Pair]:
    """Pairs the net's layers with a module's calls; the best total score wins.

    The pairs keep the order of both sides: the net's order for the layers, and for the calls the order of execution, or
    another one that the data flow allows if that explains more.
    """
    apart = any(call.kind == "Scale" for call in calls)  # otherwise batch norms include it, as is usual in PyTorch
    scales = {} if apart else fusion.scales_by_name(case.spec)
    merged = {scale.name for scale in scales.values()}
    types = PAIRED | {"Scale"} if apart else PAIRED
    layers = [layer for layer in case.spec.layers if layer.type in types and layer.name not in merged]
    matching = _Matching(case, layers, calls)
    best = matching.in_order(range(len(layers)), range(len(calls)))
    score = matching.score(best)
    if score < matching.perfect(best):
        again = [matching.walk()]
        for _ in range(_ROUNDS):
            again.append(matching.leftovers(best))
            found = [matching.in_order(range(len(layers)), matching.sorted_calls(places)) for places in again]
            scored = [(matching.score(steps), steps) for steps in found]
            better = max(scored, key=lambda one: one[0])
            if better[0] <= score:
                break
            (score, best), again = better, []
    pairs = [
        Pair(
            None if i is None else layers[i],
            None if j is None else calls[j],
            None if i is None else scales.get(layers[i].name),
        )
        for i, j in best
    ]
    return _with_foldable(case, pairs)


_Steps = list[tuple[int | None, int | None]]
"""Indices of a layer and a call, one of which may be missing."""


class _Matching:
    """Layers and calls as two graphs, and how similar each layer is to each call."""

    def __init__(self, case: Case, layers: Sequence[LayerSpec], calls: Sequence[Call]) -> None:
        self.layers, self.calls = layers, calls
        self.like = np.array([[_likeness(case, layer, call) for call in calls] for layer in layers])
        self.like = self.like.reshape(len(layers), len(calls))
        index = {layer.name: i for i, layer in enumerate(layers) if layer.type != "Dropout"}
        through: dict[str, tuple[int, ...]] = {}
        own: dict[str, tuple[int, ...]] = {}
        for layer in case.spec.layers:
            reads = tuple(i for name, _ in layer.producers for i in through.get(name, ()))
            through[layer.name] = (index[layer.name],) if layer.name in index else reads
            own[layer.name] = reads
        self.layer_reads = [own[layer.name] for layer in layers]
        self.call_reads: list[tuple[int, ...]] = []
        for call in calls:
            read = [i for source in call.sources for i in source]
            self.call_reads.append(
                tuple(j for i in read for j in (self.call_reads[i] if calls[i].kind == "Dropout" else (i,)))
            )

    def in_order(self, rows: Sequence[int], columns: Sequence[int]) -> _Steps:
        """The best pairs of some layers and some calls that keep both orders."""
        lone_layers = [_alone(self.layers[i].type) for i in rows]
        lone_calls = [_alone(self.calls[j].kind) for j in columns]
        scores = np.zeros((len(rows) + 1, len(columns) + 1))
        steps = np.zeros(scores.shape, np.int8)  # 1: pair, 2: the layer alone, 3: the call alone
        scores[1:, 0], scores[0, 1:] = np.cumsum(lone_layers), np.cumsum(lone_calls)
        steps[1:, 0], steps[0, 1:] = 2, 3
        for i, row in enumerate(rows, 1):
            for j, column in enumerate(columns, 1):
                options = (
                    scores[i - 1, j - 1] + self.like[row, column],
                    scores[i - 1, j] + lone_layers[i - 1],
                    scores[i, j - 1] + lone_calls[j - 1],
                )
                steps[i, j] = 1 + int(np.argmax(options))
                scores[i, j] = max(options)
        found: _Steps = []
        i, j = len(rows), len(columns)
        while i or j:
            step = steps[i, j]
            i, j = i - (step != 3), j - (step != 2)
            found.append((rows[i] if step != 3 else None, columns[j] if step != 2 else None))
        return found[::-1]

    def score(self, steps: _Steps) -> float:
        """The sum over all pairs and over everything without a partner."""
        total = _SAME_FLOW * self._agreeing(steps)
        for i, j in steps:
            if i is not None and j is not None:
                total += self.like[i, j]
            else:
                total += _alone(self.layers[i].type) if i is not None else _alone(self.calls[j or 0].kind)
        return float(total)

    def perfect(self, steps: _Steps) -> float:
        """The score of a pairing in which everything has a partner and reads what its partner reads."""
        best = sum(self.like[i, j] for i, j in steps if i is not None and j is not None)
        return float(best) + _SAME_FLOW * max(len(self.layers), len(self.calls))

    def _agreeing(self, steps: _Steps) -> int:
        """The number of pairs that read from each other's partners, skipping those without one on both sides."""
        partner = {i: j for i, j in steps if i is not None and j is not None}
        paired = set(partner.values())
        through_layers: list[list[int]] = []
        for reads in self.layer_reads:
            through_layers.append([c for r in reads for c in ([partner[r]] if r in partner else through_layers[r])])
        through_calls: list[list[int]] = []
        for reads in self.call_reads:
            through_calls.append([c for r in reads for c in ([r] if r in paired else through_calls[r])])
        return sum(
            self._ordered(i, through_layers[i]) == self._ordered(i, through_calls[j]) for i, j in partner.items()
        )

    def _ordered(self, i: int, reads: Sequence[int]) -> Sequence[int]:
        return reads if self.layers[i].type == "Concat" else sorted(reads)

    def walk(self) -> dict[int, int]:
        """Call -> layer, found by following the data from the inputs."""
        partner: dict[int, int] = {}
        taken: dict[int, int] = {}
        through: list[list[int]] = []
        ahead_of_layer = _ahead([_kind(layer.type) for layer in self.layers], self.layer_reads)
        ahead_of_call = _ahead([_kind(call.kind) for call in self.calls], self.call_reads)
        by_reads = defaultdict(list)
        for j, calls_read in enumerate(self.call_reads):
            by_reads[tuple(sorted(calls_read))].append(j)
        for i, layer in enumerate(self.layers):
            reads = [c for r in self.layer_reads[i] for c in ([partner[r]] if r in partner else through[r])]
            through.append(reads)
            if layer.type == "Dropout":
                continue
            open_calls = [j for j in by_reads[tuple(sorted(reads))] if j not in taken and self.like[i, j] > 0]
            open_calls = [j for j in open_calls if self.calls[j].kind != "Dropout"]
            if open_calls:
                j = max(open_calls, key=lambda j: (self.like[i, j], ahead_of_layer[i] == ahead_of_call[j], -j))
                partner[i], taken[j] = j, i
        return taken

    def leftovers(self, steps: _Steps) -> dict[int, int]:
        """Call -> layer, with those that had no partner paired with each other."""
        places = {j: i for i, j in steps if i is not None and j is not None}
        lone = self.in_order(
            sorted(i for i, j in steps if i is not None and j is None),
            sorted(j for i, j in steps if j is not None and i is None),
        )
        return places | {j: i for i, j in lone if i is not None and j is not None}

    def sorted_calls(self, places: Mapping[int, int]) -> list[int]:
        """The calls in the order of their layers, as far as the data flow allows."""
        place: list[int] = []
        waits, readers = [], defaultdict(list)
        for j, call in enumerate(self.calls):
            before = {i for source in call.sources for i in source}
            place.append(places.get(j, max((place[i] for i in before), default=-1)))
            waits.append(len(before))
            for i in before:
                readers[i].append(j)
        ready = [(place[j], j) for j, n in enumerate(waits) if n == 0]
        heapq.heapify(ready)
        order = []
        while ready:
            j = heapq.heappop(ready)[1]
            order.append(j)
            for reader in readers[j]:
                waits[reader] -= 1
                if not waits[reader]:
                    heapq.heappush(ready, (place[reader], reader))
        return order


def _ahead(kinds: Sequence[str], reads: Sequence[tuple[int, ...]]) -> list[int]:
    """For each node, a hash of its kind and of everything that reads it, directly or not."""
    found = [0] * len(kinds)
    readers: list[list[int]] = [[] for _ in kinds]
    for n in range(len(kinds) - 1, -1, -1):
        found[n] = hash((kinds[n], tuple(sorted(readers[n]))))
        for read in reads[n]:
            readers[read].append(found[n])
    return found


def _kind(kind: str) -> str:
    return "activation" if has(kind, Trait.ACTIVATION) else kind


def _with_foldable(case: Case, pairs: list[Pair]) -> list[Pair]:
    """The pairs, each with the layers that may be folded into the weights of its call."""
    present = {layer.name for pair in pairs if pair.call is not None for layer in pair.layers}
    readers = fusion.sole_readers(case.spec)
    found = []
    for pair in pairs:
        after: list[LayerSpec] = []
        last = pair.layer
        while last is not None and pair.call is not None and pair.layer is not None:
            last = readers.get((last.name, 0))
            if last is None or not has(last.type, Trait.AFFINE) or len(last.bottoms) > 1 or last.name in present:
                break
            after.append(last)
        holds = pair.layer is not None and has_weights(pair.layer.type) and not has(pair.layer.type, Trait.SPREADS)
        found.append(Pair(pair.layer, pair.call, pair.scale, tuple(after)) if holds and after else pair)
    return found


def _alone(kind: str) -> float:
    """What it costs the alignment to leave a layer or call without a partner."""
    if has_weights(kind):
        return -9.0
    if has(kind, Trait.BATCH_STATISTICS):
        return -4.0
    return -0.1 if has(kind, Trait.NO_NUMBERS) else -1.0


def _likeness(case: Case, layer: LayerSpec, call: Call) -> float:
    kinds = layer.type, call.kind
    if kinds[0] != kinds[1] and not all(has(kind, Trait.ACTIVATION) for kind in kinds):
        return -100.0
    score = 2.0 if kinds[0] == kinds[1] else 1.0
    if tuple(call.output.shape[1:]) == tuple(case.shapes[layer.name, 0][1:]):
        score += 2.0
    blobs, weight = case.blobs.get(layer.name), call.named.get("weight")
    if has_weights(layer.type) and blobs and isinstance(weight, Tensor):
        own = np.asarray(blobs[0])
        if own.size != weight.numel():
            return -20.0
        score += 4.0 + 4.0 * (tuple(own.shape) == tuple(weight.shape))
        same = np.abs(own.reshape(-1)[:64] - weight.detach().cpu().numpy().reshape(-1)[:64]).max(initial=0) < 1e-5
        score += 6.0 * bool(same)
    if layer.type == "BatchNorm" and blobs and isinstance(mean := call.named.get("running_mean"), Tensor):
        score += 4.0 if np.asarray(blobs[0]).size == mean.numel() else -20.0
    return score


def copy_weights(case: Case, pairs: Sequence[Pair]) -> list[str]:
    """Copies Caffe's parameters into the tensors that the paired calls read.

    Returns:
        A sentence for each parameter that could not be copied.
    """
    notes = []
    with torch.no_grad():
        for pair in pairs:
            if pair.layer is None or pair.call is None or pair.layer.name not in case.blobs:
                continue
            for name, values in _targets(case, pair).items():
                target = pair.call.named.get(name)
                if not isinstance(target, Tensor):
                    continue
                if values is None:
                    target.zero_()
                    notes.append(f"{pair.call.name} has a {name}, Caffe's '{pair.layer.name}' does not: set to 0")
                elif not alike(target.shape, values.shape):
                    notes.append(f"{pair.call.name}: {name} {tuple(target.shape)} cannot hold Caffe's {values.shape}")
                else:
                    target.copy_(torch.tensor(np.asarray(values, np.float32)).reshape(target.shape))
    return notes


def alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes differ only in additional axes of 1: (N, C) and (N, C, 1, 1), but not (1, N) and (N, 1)."""
    short, long = sorted((tuple(one), tuple(other)), key=len)
    for n in long:
        if short[:1] == (n,):
            short = short[1:]
        elif n != 1:
            return False
    return not short and (len(one) != len(other) or tuple(one) == tuple(other))


def _targets(case: Case, pair: Pair) -> dict[str, Array | None]:
    """Argument of the call -> Caffe's value for it; None for a bias that Caffe's layer does not have."""
    assert pair.layer is not None
    blobs = [np.asarray(b) for b in case.blobs[pair.layer.name]]
    if pair.layer.type == "BatchNorm":
        factor = float(blobs[2].reshape(-1)[0])
        values: dict[str, Array | None] = {
            "running_mean": blobs[0] / (factor or 1.0),
            "running_var": blobs[1] / (factor or 1.0),
        }
        if pair.scale is not None:
            gamma, *beta = (np.asarray(b) for b in case.blobs[pair.scale.name])
            values |= {"weight": gamma, "bias": beta[0] if beta else np.zeros_like(gamma)}
        return values
    if pair.layer.type == "InnerProduct":
        p = pair.layer.param.inner_product_param
        blobs[0] = blobs[0].reshape(-1, p.num_output).T if p.transpose else blobs[0].reshape(p.num_output, -1)
    return {"weight": blobs[0], "bias": blobs[1] if len(blobs) > 1 else None}


def training_notes(pairs: Sequence[Pair]) -> Iterator[str]:
    """A sentence for each difference that only matters in training."""
    for pair in pairs:
        layer, call = pair.layer, pair.call
        if layer is None or call is None:
            continue
        if layer.type == "Dropout" and isinstance(call.named.get("p"), (int, float)):
            ours, theirs = call.named["p"], layer.param.dropout_param.dropout_ratio
            if abs(ours - theirs) > 1e-6:
                yield f"{call.name}: dropout ratio {ours:g}, Caffe's '{layer.name}' has {theirs:g}"
        if layer.type == "BatchNorm" and call.named.get("momentum") is not None:
            momentum, fraction = call.named["momentum"], layer.param.batch_norm_param.moving_average_fraction
            if abs(momentum - (1 - fraction)) > 1e-6:
                yield (
                    f"{call.name}: momentum {momentum:g}, Caffe's '{layer.name}' has moving_average_fraction "
                    f"{fraction:g}, which is momentum {1 - fraction:g}"
                )
