"""Decides which call of a port computes which layer with parameters, and copies Caffe's parameters into the port.

Calls and layers are paired by the size of their parameters and by their place in the flow of the data: what comes
before and after them, never by position alone. Once numbers flow, a call that reads the bottom of another layer than
its own gets that layer's parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.net import fusion
from caffe_port.signatures.signature import Trait, has, has_weights, keeps_blobs
from caffe_port.spec import LayerSpec
from caffe_port.typing import Array
from caffe_port.verification.references.reference import Case
from caffe_port.verification.user_module import parametrized
from caffe_port.verification.user_module.recorder import Call

_DEPTH = 4
_ORDER = 0.02
"""How much a place in the order of execution counts, beside a difference in the flow of the data."""


def alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes differ only in additional axes of 1: (N, C) and (N, C, 1, 1), but not (1, N) and (N, 1)."""
    short, long = sorted((tuple(one), tuple(other)), key=len)
    for n in long:
        if short[:1] == (n,):
            short = short[1:]
        elif n != 1:
            return False
    return not short and (len(one) != len(other) or tuple(one) == tuple(other))


def family(type_: str) -> str:
    """What tells parameters of one use from those of another; empty for types without."""
    if not keeps_blobs(type_):
        return ""
    if has(type_, Trait.BATCH_STATISTICS):
        return "statistics"
    if has(type_, Trait.ACTIVATION):
        return "slopes"
    if has(type_, Trait.SPREADS):
        return "spread"
    return "weight" if has_weights(type_) and not has(type_, Trait.AFFINE) else ""


def parameter(call: Call) -> Tensor | None:
    """The parameter that tells a call from others: its weight, or the mean of a batch norm."""
    if call.kind == "BatchNorm":
        mean = call.named.get("running_mean")
        return mean if isinstance(mean, Tensor) else None
    return call.weight if call.kind or "InnerProduct" in call.hints else None


def call_family(call: Call) -> str:
    """The family of the layer that a call would be; empty if it reads no parameter."""
    if parameter(call) is None:
        return ""
    if not call.kind:
        return "weight" if call.leaves.get("weight") else ""
    return family(call.kind)


class _Graph:
    """The nodes with parameters, what they read and what reads them, through everything between."""

    def __init__(self, sizes: Sequence[int], reads: Sequence[Sequence[int]], between: Sequence[Sequence[str]]) -> None:
        self.sizes, self.between = list(sizes), [Counter(kinds) for kinds in between]
        self.reads = [sorted(set(r)) for r in reads]
        self.readers: list[list[int]] = [[] for _ in sizes]
        for n, read in enumerate(self.reads):
            for r in read:
                self.readers[r].append(n)
        self.back = self._labels(self.reads)
        self.ahead = self._labels(self.readers)

    def _labels(self, edges: Sequence[Sequence[int]]) -> list[list[int]]:
        """Hashes of the surroundings of each node in one direction, of depth 1, 2, ... and at last of all of it."""
        now = [hash(size) for size in self.sizes]
        found = []
        for depth in range(max(_DEPTH, len(self.sizes)) + 1):
            new = [hash((self.sizes[n], tuple(sorted(now[e] for e in edges[n])))) for n in range(len(now))]
            if depth < _DEPTH:
                found.append(new)
            if len(set(new)) == len(set(now)) and depth >= _DEPTH:
                now = new
                break
            now = new
        deep = [0] * len(now)
        order = range(len(now)) if edges is self.reads else range(len(now) - 1, -1, -1)
        for n in order:
            deep[n] = hash((self.sizes[n], tuple(sorted(deep[e] for e in edges[n]))))
        return [*found, deep]


class Weights:
    """Which call computes which layer with parameters.

    Attributes:
        layers: call -> name of the layer.
        notes: a sentence for each parameter that could not be copied.
        unsure: parameters that several of Caffe's would fit as well: the first that is used has the first.
    """

    def __init__(self, case: Case, module: nn.Module, calls: Sequence[Call]) -> None:
        self.case, self.module = case, module
        self.notes: list[str] = []
        self.unsure: list[str] = []
        families = {call_family(call) for call in calls} - {""}
        self.nodes = [layer for layer in case.spec.layers if self._size(layer) and family(layer.type) in families]
        known = {family(layer.type) for layer in self.nodes}
        self.calls = [call for call in calls if call_family(call) in known]
        self.scales = fusion.scales_by_name(case.spec)
        self.order, self.recurrent = _uses(calls)
        self.scores = self._scores(calls)
        self.layers = self._assigned()

    def _size(self, layer: LayerSpec) -> int:
        blobs = self.case.blobs.get(layer.name, ())
        return int(np.size(blobs[0])) if blobs and family(layer.type) else 0

    def _own(self, call: Call) -> Tensor | None:
        """The parameter of a call; the whole of it if the call reads a part, as of a convolution in groups."""
        own = parameter(call)
        name = call.leaves.get("weight")
        whole = None if name is None else self._named().get(name)
        return whole if own is not None and whole is not None and whole.numel() > own.numel() else own

    def _scores(self, calls: Sequence[Call]) -> dict[tuple[int, int], float]:
        """(layer, call) -> how well they fit; only those whose parameters have the same size."""
        layers, ours = self._layer_graph(), self._call_graph(calls)
        found = {}
        for i, layer in enumerate(self.nodes):
            shape = tuple(np.shape(self.case.blobs[layer.name][0]))
            for j, call in enumerate(self.calls):
                own = self._own(call)
                if own is None or call_family(call) != family(layer.type) or layers.sizes[i] != ours.sizes[j]:
                    continue
                score = 4.0 * alike(tuple(own.shape), shape) + 1.0 * (call.kind == layer.type)
                for a, b in ((layers.back, ours.back), (layers.ahead, ours.ahead)):
                    score += 8.0 * (a[-1][i] == b[-1][j])
                    score += sum(x[i] == y[j] for x, y in zip(a[:-1], b[:-1], strict=True))
                score += _overlap(layers.between[i], ours.between[j])
                score += _overlap(
                    Counter(k for r in layers.readers[i] for k in layers.between[r]),
                    Counter(k for r in ours.readers[j] for k in ours.between[r]),
                )
                score += 0.5 * (self.layer_joins[i] == self.call_joins[j])
                score -= _ORDER * abs(i - j)
                found[i, j] = score
        return found

    def _layer_graph(self) -> _Graph:
        index = {layer.name: i for i, layer in enumerate(self.nodes)}
        through: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        reads, between = [], []
        joins: list[tuple[int, ...]] = [() for _ in self.nodes]
        for layer in self.case.spec.layers:
            parts = [through.get(name, ((), ())) for name, _ in layer.producers]
            read = tuple(i for part, _ in parts for i in part)
            kinds = tuple(k for _, part in parts for k in part)
            if layer.type == "Concat":
                for place, (part, _) in enumerate(parts):
                    for i in part:
                        joins[i] = joins[i] or (place, len(parts))
            if layer.name in index:
                reads.append(read)
                between.append(kinds)
                through[layer.name] = ((index[layer.name],), ())
            else:
                own = () if has(layer.type, Trait.NO_NUMBERS) else (layer.type,)
                through[layer.name] = (read, tuple(sorted({*kinds, *own})))
        self.layer_joins = joins
        return _Graph([self._size(layer) for layer in self.nodes], reads, between)

    def _call_graph(self, calls: Sequence[Call]) -> _Graph:
        index = {call.index: j for j, call in enumerate(self.calls)}
        through: dict[int, tuple[tuple[int, ...], tuple[str, ...]]] = {}
        reads, between, sizes = [], [], []
        joins: list[tuple[int, ...]] = [() for _ in self.calls]
        for call in calls:
            parts = [through.get(v.call.index, ((), ())) if v.call else ((), ()) for v in call.inputs]
            read = tuple(i for part, _ in parts for i in part)
            kinds = tuple(k for _, part in parts for k in part)
            if call.kind == "Concat":
                for place, (part, _) in enumerate(parts):
                    for j in part:
                        joins[j] = joins[j] or (place, len(parts))
            if call.index in index:
                own = self._own(call)
                reads.append(read)
                between.append(kinds)
                sizes.append(0 if own is None else own.numel())
                through[call.index] = ((index[call.index],), ())
            else:
                kind = () if not call.kind or has(call.kind, Trait.NO_NUMBERS) else (call.kind,)
                through[call.index] = (read, tuple(sorted({*kinds, *kind})))
        self.call_joins = joins
        return _Graph(sizes, reads, between)

    def _assigned(self) -> dict[int, str]:
        """Call -> layer, the best pairs first; what is left of a family is paired in order."""
        found: dict[int, str] = {}
        taken = set()
        for (i, j), _ in sorted(self.scores.items(), key=lambda item: (-item[1], item[0])):
            if i not in taken and self.calls[j].index not in found and not self._is_rest(self.calls[j], found):
                taken.add(i)
                found[self.calls[j].index] = self.nodes[i].name
        left_layers = [layer for i, layer in enumerate(self.nodes) if i not in taken]
        owned = {call.leaves["weight"] for call in self.calls if call.index in found and call.leaves.get("weight")}
        left_calls = [c for c in self.calls if c.index not in found and c.leaves.get("weight") not in owned]
        self.odd: set[int] = set()
        for name in {family(layer.type) for layer in left_layers}:
            some_layers = [layer for layer in left_layers if family(layer.type) == name]
            some_calls = [call for call in left_calls if call_family(call) == name]
            if len(some_layers) == len(some_calls):
                for layer, call in zip(some_layers, some_calls, strict=True):
                    found[call.index] = layer.name
                    self.odd.add(call.index)
        return found

    def _is_rest(self, call: Call, found: Mapping[int, str]) -> bool:
        """Whether a call reads a part of a parameter of which another call, that has its layer, reads another part."""
        own, name = parameter(call), call.leaves.get("weight")
        whole = self._own(call)
        if own is None or whole is None or own.numel() == whole.numel():
            return False
        return any(other.leaves.get("weight") == name for other in self.calls if other.index in found)

    def revise(self, calls: Sequence[Call]) -> bool:
        """Exchanges layers between calls of which one reads the bottom of another layer than its own.

        Args:
            calls: those of a run, in which the inputs say which tops they carry.

        Returns:
            Whether anything was exchanged.
        """
        by_index = {call.index: call for call in calls}
        places = {call.index: j for j, call in enumerate(self.calls)}
        owner = {name: index for index, name in self.layers.items()}
        changed = False
        for index, name in list(self.layers.items()):
            call = by_index.get(index)
            if call is None or self.layers[index] != name or self._reads(call, name) or not _carried(call):
                continue
            j = places[index]
            better = []
            for i, layer in enumerate(self.nodes):
                other = by_index.get(owner.get(layer.name, -1))
                if (i, j) not in self.scores or not self._reads(call, layer.name):
                    continue
                if other is not None and self._reads(other, layer.name):
                    continue
                better.append((self.scores[i, j], layer.name))
            if better:
                new = max(better)[1]
                before = owner.get(new)
                self.layers[index], owner[new] = new, index
                if before is not None:
                    self.layers[before], owner[name] = name, before
                changed = True
        return changed

    def _reads(self, call: Call, name: str) -> bool:
        return bool(_carried(call) & set(self.case.spec.by_name[name].producers))

    # -- copying ------------------------------------------------------------------------------------------------------

    def copy(self) -> None:
        """Copies Caffe's parameters into the port, by the present pairs."""
        self.notes, self.unsure = [], []
        by_index = {call.index: call for call in self.calls}
        filled: set[int] = set()
        done: set[tuple[str, str]] = set()
        with torch.no_grad():
            for index, name in self.layers.items():
                call, layer = by_index[index], self.case.spec.by_name[name]
                for key, values in self._targets(layer, call).items():
                    target = self._leaf(call, key)
                    if target is None:
                        continue
                    done.add((name, key))
                    made_of = parametrized.parameters_of(self.module, call, key)
                    if made_of:
                        filled |= {id(parameter) for parameter in made_of}
                        new = torch.empty_like(target)
                        self._fill(call.name, layer, key, new, values)
                        self.notes += parametrized.set_to(self.module, call, key, new)
                        continue
                    filled.add(id(target))
                    self._fill(call.name, layer, key, target, values)
                if name in self.scales and isinstance(call.named.get("weight"), Tensor):
                    done |= {(self.scales[name].name, key) for key in ("weight", "bias")}
            self._split_groups(filled, done)
            self._rest(filled, done)

    def _leaf(self, call: Call, key: str) -> Tensor | None:
        """The parameter itself, of which the call may read a view: ``x @ weight.t()``."""
        name = call.leaves.get(key)
        found = call.named.get(key)
        if name is not None:
            return self._named()[name]
        return found if isinstance(found, Tensor) else None

    def _named(self) -> dict[str, Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def _fill(self, where: str, layer: LayerSpec, key: str, target: Tensor, values: Array | None) -> None:
        if values is None:
            target.zero_()
            self.notes.append(f"{where} has a {key}, Caffe's '{layer.name}' does not: set to 0")
            return
        reshapes = has(layer.type, Trait.DENSE) and target.ndim > 2 and target.shape[0] == values.shape[0]
        if has(layer.type, Trait.DENSE) and target.ndim == 2 and tuple(target.shape) == tuple(values.shape[::-1]):
            values = values if target.shape[0] == target.shape[1] else values.T
        elif not (alike(target.shape, values.shape) or (reshapes and target.numel() == values.size)):
            self.notes.append(f"{where}: {key} {tuple(target.shape)} cannot hold Caffe's {values.shape}")
            return
        target.copy_(torch.tensor(np.ascontiguousarray(values, np.float32)).reshape(target.shape))

    def _targets(self, layer: LayerSpec, call: Call) -> dict[str, Array | None]:
        """Argument of the call -> Caffe's value for it; None for a bias that Caffe's layer does not have."""
        blobs = [np.asarray(b) for b in self.case.blobs[layer.name]]
        if layer.type == "BatchNorm":
            factor = float(blobs[2].reshape(-1)[0])
            values: dict[str, Array | None] = {
                "running_mean": blobs[0] / (factor or 1.0),
                "running_var": blobs[1] / (factor or 1.0),
            }
            if layer.name in self.scales:
                gamma, *beta = (np.asarray(b) for b in self.case.blobs[self.scales[layer.name].name])
                values |= {"weight": gamma, "bias": beta[0] if beta else np.zeros_like(gamma)}
            return values
        if has(layer.type, Trait.DENSE):
            blobs[0] = matrix(layer, blobs[0])
        return {"weight": blobs[0], "bias": blobs[1] if len(blobs) > 1 else None}

    def _split_groups(self, filled: set[int], done: set[tuple[str, str]]) -> None:
        """A convolution in groups that the port computes as several convolutions."""
        for layer in self.case.spec.layers:
            if (layer.name, "weight") in done or layer.name not in self.case.blobs or not has(layer.type, Trait.SLIDES):
                continue
            weight, *bias = (np.asarray(b) for b in self.case.blobs[layer.name])
            groups = int(getattr(getattr(layer.param, "convolution_param", None), "group", 1) or 1)
            if groups < 2 or weight.ndim < 2:
                continue
            shape = (weight.shape[0] // groups, *weight.shape[1:])
            parts = [c for c in self.calls if c.index not in self.layers and c.weight is not None]
            parts = [c for c in parts if tuple(c.weight.shape) == shape and id(c.weight) not in filled][:groups]  # type: ignore[union-attr]
            if len(parts) < groups:
                continue
            done |= {(layer.name, key) for key in ("weight", "bias")}
            for n, call in enumerate(parts):
                own = slice(n * shape[0], (n + 1) * shape[0])
                for key, values in (("weight", weight), ("bias", bias[0] if bias else None)):
                    target = self._leaf(call, key)
                    if target is not None:
                        filled.add(id(target))
                        self._fill(call.name, layer, key, target, None if values is None else values[own])

    def _rest(self, filled: set[int], done: set[tuple[str, str]]) -> None:
        """Parameters that no known call reads directly: a batch norm by hand, a product written out."""
        left = [(layer, role, values) for layer in self.case.spec.layers for role, values in self._roles(layer, done)]
        last = len(self.order)
        for name, target in sorted(self._named().items(), key=lambda item: self.order.get(item[0], last)):
            if id(target) in filled or not target.is_floating_point():
                continue
            if "bias_hh" in name and isinstance(self._owner(name), _RECURRENT):
                target.zero_()  # PyTorch adds two biases, of which Caffe has the first
                continue
            fits = [n for n, (_, _, values) in enumerate(left) if values.size == target.numel()]
            if not fits:
                continue
            scores = [self._fitness(name, left[n][1]) for n in fits]
            best = fits[scores.index(max(scores))]
            if scores.count(max(scores)) > 1:
                self.unsure.append(name)
            layer, _, values = left.pop(best)
            if values.ndim == 2 and tuple(target.shape) == values.shape[::-1] != values.shape:
                values = values.T
            if layer.type == "LSTM" and isinstance(self._owner(name), _LSTM):
                values = _in_torch_order(values)
            target.copy_(torch.tensor(np.ascontiguousarray(values, np.float32)).reshape(target.shape))
            self.notes.append(f"the port's {name} was filled from Caffe's '{layer.name}'")

    def _fitness(self, name: str, role: str) -> int:
        """How much speaks for a parameter having a role: its name, and whether what it makes comes back to it."""
        short = name.rpartition(".")[2].lower()
        if role not in ("onward", "recurrent"):
            return _ROLES[role](short)
        back = 5 * any(w in short for w in ("hh", "h2h", "recurrent")) - 5 * any(w in short for w in ("ih", "i2h"))
        back = back or (3 if name in self.recurrent else -3)
        return _ROLES["weight"](short) + (back if role == "recurrent" else -back)

    def _owner(self, parameter: str) -> nn.Module:
        return self.module.get_submodule(parameter.rpartition(".")[0])

    def _roles(self, layer: LayerSpec, done: set[tuple[str, str]]) -> Iterator[tuple[str, Array]]:
        if layer.name not in self.case.blobs:
            return
        targets: Mapping[str, Array | None]
        if layer.type == "BatchNorm":
            blobs = [np.asarray(b) for b in self.case.blobs[layer.name]]
            factor = float(blobs[2].reshape(-1)[0]) or 1.0
            targets = {"running_mean": blobs[0] / factor, "running_var": blobs[1] / factor}
        else:
            blobs = [np.asarray(b) for b in self.case.blobs[layer.name]]
            if has(layer.type, Trait.DENSE):
                blobs[0] = matrix(layer, blobs[0])
            for n, blob in enumerate(blobs):
                back = {"LSTM": len(blobs) - 1, "RNN": len(blobs) - 3}.get(layer.type)
                is_bias = n == 1 or (layer.type == "RNN" and n == len(blobs) - 1)
                role = "bias" if is_bias else "weight" if back is None else "recurrent" if n == back else "onward"
                if n > 1 or (layer.name, role) not in done:
                    yield role, blob
            return
        for role, values in targets.items():
            if values is not None and (layer.name, role) not in done:
                yield role, values


_ROLES: dict[str, Callable[[str], int]] = {
    "running_mean": lambda name: 2 * ("mean" in name or name in ("mu", "m")),
    "running_var": lambda name: 2 * ("var" in name or name in ("v", "sigma2")),
    "weight": lambda name: int(any(w in name for w in ("weight", "gamma", "scale", "slope", "alpha", "kernel"))),
    "bias": lambda name: int(any(w in name for w in ("bias", "beta", "shift", "offset"))),
}
"""What a parameter's name says for a role."""


def _uses(calls: Sequence[Call]) -> tuple[dict[str, int], set[str]]:
    """The parameters in the order of their first use, and those that meet what they made before, as a state's do."""
    order: dict[str, int] = {}
    recurrent: set[str] = set()
    before: dict[int, set[str]] = {}
    for call in calls:
        above = {name for value in call.inputs if value.call is not None for name in before[value.call.index]}
        recurrent |= above.intersection(call.uses)
        for name in call.uses:
            order.setdefault(name, len(order))
        before[call.index] = above.union(call.uses)
    return order, recurrent


_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_LSTM = (nn.LSTM, nn.LSTMCell)


def _in_torch_order(values: Array) -> Array:
    """An LSTM's gates: Caffe has input, forget, output, candidate; PyTorch has the candidate before the output."""
    i, f, o, g = np.split(values, 4)
    return np.concatenate([i, f, g, o])


def matrix(layer: LayerSpec, weight: Array) -> Array:
    """The weight of an InnerProduct as (out, in)."""
    p = layer.param.inner_product_param
    return weight.reshape(-1, p.num_output).T if p.transpose else weight.reshape(p.num_output, -1)


def _carried(call: Call) -> set[tuple[str, int]]:
    return set(call.inputs[0].carries) if call.inputs else set()


def _overlap(one: Counter[str], other: Counter[str]) -> float:
    every = sum((one | other).values())
    return sum((one & other).values()) / every if every else 1.0
