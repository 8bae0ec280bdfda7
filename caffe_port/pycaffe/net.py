"""caffe.Net: a net as Caffe builds it, with its Splits, blobs and in-place layers, run by caffe-port's modules.

A forward of a whole net, or of a range of layers, is a list of operations that is made once. Where one blob is
overwritten in place, the layers that do so run as one, as in :mod:`caffe_port.net.fusion`, for nobody can see what was
between them. ``backward`` goes layer by layer, as Caffe's does; what it needs of the forward is either kept, or
computed again from the blobs.

Sources: net.cpp, insert_splits.cpp, pycaffe.py, _caffe.cpp.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.definition.definition import Definition
from caffe_port.definition.fields import refuse
from caffe_port.definition.stored_blobs import for_layers
from caffe_port.errors import WeightsError, did_you_mean
from caffe_port.formats import caffemodel, meanings
from caffe_port.formats.caffemodel import Weights, shapes_agree
from caffe_port.formats.message import Message
from caffe_port.layers.activation import Dropout, ReLU
from caffe_port.net import fusion
from caffe_port.pycaffe import layer as layers
from caffe_port.pycaffe.blob import Blob, BlobVec
from caffe_port.pycaffe.layer import Layer, ModuleLayer, Phase, SplitLayer
from caffe_port.pycaffe.settings import TEST, TRAIN, log, note, settings
from caffe_port.signatures.signature import Holds, Trait, has, holds
from caffe_port.spec import LayerSpec, NetSpec
from caffe_port.typing import Array

Callback = Callable[[int], object]
Operation = Callable[[], None]


class Net:
    """A net in one phase.

    ``Net(prototxt, phase, level=0, stages=None, weights=None)``, or in the old way ``Net(prototxt, weights, phase)``,
    or as in 2014 ``Net(prototxt, weights)``, in the phase of ``caffe.set_phase_test()``, TRAIN without it.

    Raises:
        RuntimeError: a file does not exist.
        CaffePortError: the files make no net; says where, what, and what to do.
    """

    layers: list[Layer]

    def __init__(
        self,
        network_file: str | os.PathLike[str],
        phase: Any = None,
        level: Any = None,
        stages: Sequence[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(phase, (str, os.PathLike)) and level is None and stages is None and weights is None:
            phase, weights = settings.phase, phase
            settings.without_phase.add(self)
            note(f"Net(prototxt, weights) has the phase {Phase(phase)}, as in 2014; give caffe.TEST or caffe.TRAIN")
        level = 0 if level is None else level
        if isinstance(phase, (str, os.PathLike)):  # (prototxt, weights, phase)
            if stages is not None or weights is not None:
                raise TypeError("Net(network_file, weights_file, phase) takes no further arguments")
            phase, weights, level = level, phase, 0
        if not isinstance(phase, int) or phase not in (TRAIN, TEST) or not isinstance(level, int):
            raise TypeError(f"Net takes a prototxt and a phase (caffe.TRAIN or caffe.TEST), got phase {phase!r}")
        _check_file(network_file)
        if weights is not None:
            _check_file(weights)
        stored = None if weights is None else caffemodel.read(os.fspath(weights))
        self._build(Definition.read(os.fspath(network_file)), phase, level, tuple(stages or ()), stored)

    @classmethod
    def of(cls, definition: Definition, phase: int, level: int = 0, stages: Sequence[str] = ()) -> Net:
        """The net of a parsed definition."""
        self = cls.__new__(cls)
        self._build(definition, phase, level, tuple(stages), None)
        return self

    # -- building ---------------------------------------------------------------------------------------------------

    def _build(
        self, definition: Definition, phase: int, level: int, stages: tuple[str, ...], stored: Weights | None
    ) -> None:
        definition = definition.beside(stored)
        spec = refuse(definition.spec("TEST" if phase == TEST else "TRAIN", level, stages))
        self._name, self._phase, self._force = spec.name, phase, bool(definition.net.force_backward)
        self._parts = arranged(spec)
        self.layers, self._device = [], settings.device
        self._before_forward: list[Callback] = []
        self._after_forward: list[Callback] = []
        self._before_backward: list[Callback] = []
        self._after_backward: list[Callback] = []
        self._blobs: list[Blob] = []
        self._blob_names: list[str] = []
        self._blob_loss_weights: list[float] = []
        self._input_ids: list[int] = []
        self._layer_names = [part.name for part in self._parts]
        preset = set() if stored is None else {layer.name for layer in for_layers(stored, self._params_of()).layers}
        self._owners: list[tuple[int, int]] = []  # (layer, number) of the parameters that no earlier layer owns
        self._sharers: dict[tuple[int, int], tuple[int, int]] = {}  # every parameter -> its owner
        owner_of: dict[str, tuple[int, int]] = {}
        by_name: dict[str, int] = {}
        free: set[str] = set()
        for index, part in enumerate(self._parts):
            layer = layers.make(part.spec, phase)
            self.layers.append(layer)
            for name in part.bottoms:
                part.bottom_ids.append(by_name[name])
                free.discard(name)
            for k, name in enumerate(part.tops):
                if k < len(part.bottoms) and part.bottoms[k] == name:
                    part.top_ids.append(by_name[name])
                else:
                    part.top_ids.append(len(self._blobs))
                    self._blobs.append(Blob())
                    self._blob_names.append(name)
                    self._blob_loss_weights.append(0.0)
                    if part.spec.param.type == "Input":
                        self._input_ids.append(part.top_ids[-1])
                if name != AUTOMATIC:
                    by_name[name] = part.top_ids[-1]
                    free.add(name)
            part.bottom = [self._blobs[i] for i in part.bottom_ids]
            part.top = [self._blobs[i] for i in part.top_ids]
            if isinstance(layer, ModuleLayer):
                layer.preset = part.spec.name in preset
            with torch.no_grad():
                layer.setup(part.bottom, part.top)
                layer.reshape(part.bottom, part.top)
            for blob, i, weight in zip(part.top, part.top_ids, part.loss_weights, strict=True):
                self._blob_loss_weights[i] = weight
                if weight:
                    blob.gradient.view(tuple(blob.shape)).fill_(weight)
            self._own(index, owner_of)
        self._output_ids = [by_name[name] for name in sorted(free)]
        self._find_backward()
        self._reset()
        if stored is not None:
            self._copy(stored)

    def _own(self, index: int, owner_of: dict[str, tuple[int, int]]) -> None:
        """Parameters that ``param { name }`` names alike share data and diff; the first layer owns them."""
        part, blobs = self._parts[index], self.layers[index].blobs
        given = part.spec.param.param
        if len(given) > len(blobs):
            raise part.spec.error(f"has {len(given)} param entries, but {len(blobs)} blobs")
        for k, blob in enumerate(blobs):
            p = given[k] if k < len(given) else None
            first = owner_of.setdefault(p.name, (index, k)) if p is not None and p.name else (index, k)
            self._sharers[index, k] = first
            if first == (index, k):
                self._owners.append(first)
                continue
            owner = self.layers[first[0]].blobs[first[1]]
            permissive = p is not None and p.share_mode == "PERMISSIVE" and blob.count == owner.count
            if blob.shape != owner.shape and not permissive:
                raise part.spec.error(
                    f"shares blob {k} {tuple(blob.shape)} with layer '{self._layer_names[first[0]]}', whose blob has "
                    f"shape {tuple(owner.shape)}",
                    "Caffe's share_mode PERMISSIVE allows other shapes, of as many values.",
                )
            _share(self.layers[index], k, owner)
            blob.gradient = owner.gradient

    def _params_of(self) -> list[Message]:
        return [part.spec.param for part in self._parts]

    def _find_backward(self) -> None:
        """Which layers have a backward pass, and which of their bottoms get a gradient. Source: Net::Init."""
        needs = [False] * len(self._blobs)
        for part, layer in zip(self._parts, self.layers, strict=True):
            down = part.spec.param.propagate_down
            if down and len(down) != len(part.bottoms):
                raise part.spec.error(f"gives {len(down)} propagate_down for {len(part.bottoms)} bottoms")
            part.down = [bool(down[k]) if down else needs[i] for k, i in enumerate(part.bottom_ids)]
            part.learns = [_factor(part.spec.param, k, layer) != 0 for k in range(len(layer.blobs))]
            part.backward = any(needs[i] for i in part.bottom_ids) or any(part.learns)
            for i in part.top_ids if part.backward else ():
                needs[i] = True
        under_loss: set[str] = set()
        skipped: set[str] = set()
        for part in reversed(self._parts):
            contributes = any(
                weight or name in under_loss for name, weight in zip(part.tops, part.loss_weights, strict=True)
            )
            if part.backward and part.tops and all(name in skipped for name in part.tops):
                part.backward, part.down = False, [False] * len(part.down)
            part.backward = part.backward and contributes
            for k, name in enumerate(part.bottoms):
                if contributes:
                    under_loss.add(name)
                else:
                    part.down[k] = False
                if not part.down[k]:
                    skipped.add(name)
        for part, layer in zip(self._parts, self.layers, strict=True):
            if self._force:
                part.backward, part.learns = True, [True] * len(part.learns)
                part.down = [down or _can_force(part.spec, k) for k, down in enumerate(part.down)]
            if isinstance(layer, ModuleLayer):
                layer.wanted = part.down
                for (_, p), learns in zip(layer._parameters(), part.learns, strict=False):
                    p.requires_grad_(learns)

    def _reset(self) -> None:
        writers: dict[int, int] = {}
        for index, part in enumerate(self._parts):
            part.makers = [writers.get(i) for i in part.bottom_ids]
            writers.update(dict.fromkeys(part.top_ids, index))
        last = {i: index for index, part in enumerate(self._parts) for i in part.top_ids}
        for index, (part, layer) in enumerate(zip(self._parts, self.layers, strict=True)):
            if isinstance(layer, ModuleLayer):
                layer.passing = [last.get(i, -1) >= index for i in part.bottom_ids]
        self._made_by: dict[int, int] = {}  # blob -> the last layer that ran and wrote to it
        self._programs: dict[tuple[int, int], tuple[list[Operation], list[tuple[Blob, Any]], dict[int, int]]] = {}
        self._losses = [
            (index, blob, weight)
            for index, part in enumerate(self._parts)
            for blob, weight in zip(part.top, part.loss_weights, strict=True)
            if weight
        ]
        read = {i for part in self._parts for i in part.bottom_ids}
        self._plain = not any(
            _is_python(layer) or (isinstance(layer, ModuleLayer) and layer.counts and read.intersection(part.top_ids))
            for part, layer in zip(self._parts, self.layers, strict=True)
        )
        modules = [layer for layer in self.layers if isinstance(layer, ModuleLayer)]
        sources = {
            i
            for part, layer in zip(self._parts, self.layers, strict=True)
            for i in part.top_ids
            if not isinstance(layer, (ModuleLayer, SplitLayer))
        }
        spoilt = any(sources.intersection(p.top_ids) and p.bottom_ids for p in self._parts)
        self._always_record = any(layer.draws for layer in modules) or spoilt
        self._record, self._went_back = self._always_record, False
        self._records: set[int] = set()  # layers that hold one

    def _set_phase(self, phase: int) -> None:
        """Runs the layers as in another phase, which was possible in 2014. Which layers there are does not change."""
        self._phase = phase
        for part, layer in zip(self._parts, self.layers, strict=True):
            if not part.spec.param.has("phase"):
                layer.phase = Phase(phase)
                if isinstance(layer, ModuleLayer):
                    layer.module.train(phase == TRAIN)
        self._forget(0, len(self.layers))
        self._reset()

    def __getattr__(self, name: str) -> Any:
        if name not in _OF_2014:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return functools.partial(getattr(importlib.import_module("caffe_port.pycaffe.net_of_2014"), name), self)

    # -- what it consists of ------------------------------------------------------------------------------------------

    @functools.cached_property
    def blobs(self) -> OrderedDict[str, Blob]:
        """The blobs by name, in the order in which they are made."""
        return OrderedDict(zip(self._blob_names, self._blobs, strict=True))

    @functools.cached_property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """By blob name, the factor with which its numbers count as loss."""
        return OrderedDict(zip(self._blob_names, self._blob_loss_weights, strict=True))

    @functools.cached_property
    def params(self) -> OrderedDict[str, BlobVec]:
        """The parameters of the layers that have some, by layer name."""
        return OrderedDict(
            (name, layer.blobs) for name, layer in zip(self._layer_names, self.layers, strict=True) if layer.blobs
        )

    @functools.cached_property
    def layer_dict(self) -> OrderedDict[str, Layer]:
        """The layers by name."""
        return OrderedDict(zip(self._layer_names, self.layers, strict=True))

    @property
    def inputs(self) -> list[str]:
        """The names of the tops of Input layers."""
        return [self._blob_names[i] for i in self._input_ids]

    @property
    def outputs(self) -> list[str]:
        """The names of the blobs that no layer reads, in alphabetical order."""
        return [self._blob_names[i] for i in self._output_ids]

    @functools.cached_property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """The names of the tops, by layer name."""
        return OrderedDict((part.name, [self._blob_names[i] for i in part.top_ids]) for part in self._parts)

    @functools.cached_property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """The names of the bottoms, by layer name."""
        return OrderedDict((part.name, [self._blob_names[i] for i in part.bottom_ids]) for part in self._parts)

    @property
    def _inputs(self) -> list[int]:
        return list(self._input_ids)

    @property
    def _outputs(self) -> list[int]:
        return list(self._output_ids)

    def _top_ids(self, index: int) -> list[int]:
        return list(self._parts[index].top_ids)

    def _bottom_ids(self, index: int) -> list[int]:
        return list(self._parts[index].bottom_ids)

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(
        self, blobs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **kwargs: Any
    ) -> dict[str, Array]:
        """Runs the net.

        Args:
            blobs: names of blobs to return besides the outputs.
            start, end: names of the first and the last layer that run; all without them.
            kwargs: the inputs by name; all of them, or none: then the blobs hold them.

        Returns:
            The outputs (the tops of ``end``) by name: arrays that the next forward overwrites.
        """
        names = list(blobs or ())
        first = self._index(start) if start is not None else 0
        if end is not None:
            last = self._index(end)
            names = [*self.top_names[end], *names]
        else:
            last = len(self.layers) - 1
            names = [*self.outputs, *names]
        if kwargs:
            if set(kwargs) != set(self.inputs):
                raise Exception("Input blob arguments do not match net inputs.")
            for name, value in kwargs.items():
                if value.shape[0] != self.blobs[name].shape[0]:
                    raise Exception("Input is not batch sized")
                self.blobs[name].data[...] = value
        self._forward(first, last)
        return {name: self.blobs[name].data for name in dict.fromkeys(names)}

    def _index(self, layer: str) -> int:
        if layer not in self._layer_names:
            raise ValueError(f"the net has no layer {layer!r}.{did_you_mean(str(layer), self._layer_names)}")
        return self._layer_names.index(layer)

    def _forward(self, start: int, end: int) -> float:
        """Runs the layers from ``start`` to ``end``; returns their loss."""
        if not start >= 0 or not end < len(self.layers):
            raise IndexError(f"layers {start} to {end} of {len(self.layers)}")
        if self._device != settings.device:
            self._move()
        if not self._always_record:
            self._record, self._went_back = self._went_back, False
        with torch.no_grad():
            if self._plain and not (self._record or self._before_forward or self._after_forward):
                self._run(start, end)
            else:
                self._step_through(start, end)
        return self._loss(start, end)

    def _run(self, start: int, end: int) -> None:
        found = self._programs.get((start, end))
        if found is None or any(blob._shape != shape for blob, shape in found[1]):
            self._step_through(start, end)  # which fits the layers to the shapes
            found = self._programs[start, end] = self._program(start, end)
            return
        if self._records:
            self._forget(start, end)
        for operation in found[0]:
            operation()
        self._made_by.update(found[2])

    def _forget(self, start: int, end: int) -> None:
        """Drops the records of layers that run again."""
        for index in [index for index in self._records if start <= index <= end]:
            self._module(index).record = None
            self._records.discard(index)

    def _step_through(self, start: int, end: int) -> None:
        for index in range(start, end + 1):
            part, layer = self._parts[index], self.layers[index]
            for before in self._before_forward:
                before(index)
            if isinstance(layer, ModuleLayer):
                layer.recording = self._record
            elif _is_python(layer):
                layer.reshape(part.bottom, part.top)
            layer.forward(part.bottom, part.top)
            if self._record and isinstance(layer, ModuleLayer):
                self._records.add(index)
            self._made_by.update(dict.fromkeys(part.top_ids, index))
            for after in self._after_forward:
                after(index)

    def _loss(self, start: int, end: int) -> float:
        return sum(weight * float(blob.value().sum()) for index, blob, weight in self._losses if start <= index <= end)

    def _program(self, start: int, end: int) -> tuple[list[Operation], list[tuple[Blob, Any]], dict[int, int]]:
        """What a forward from ``start`` to ``end`` does; the shapes that it was made for; who writes to which blob."""
        made: dict[int, int] = {}
        outside: dict[int, None] = {}
        operations: list[Operation] = []
        merged: set[int] = set()
        for index in range(start, end + 1):
            part, layer = self._parts[index], self.layers[index]
            outside.update({i: None for i in part.bottom_ids if i not in made})
            if isinstance(layer, ModuleLayer) and index not in merged:
                layer.recording, layer.record = False, None
                scale = self._scale_after(index, end)
                maker = made.get(part.bottom_ids[0]) if part.bottom_ids else None
                if scale is not None:
                    merged.add(scale)
                    operations.append(_affine(layer, self._module(scale), part.bottom[0], self._parts[scale].top[0]))
                else:
                    operation = _operation(layer, part, None if maker is None else self.layers[maker])
                    operations += [] if operation is None else [operation]
            elif index not in merged and not isinstance(layer, layers.InputLayer):
                operations.append(_call(layer, part))
            made.update(dict.fromkeys(part.top_ids, index))
            outside.update({i: None for i in part.top_ids if not part.bottom_ids})
        shapes = [(self._blobs[i], self._blobs[i]._shape) for i in outside]
        return operations, shapes, made

    def _module(self, index: int) -> ModuleLayer:
        found = self.layers[index]
        assert isinstance(found, ModuleLayer)
        return found

    def _scale_after(self, index: int, end: int) -> int | None:
        """The Scale that overwrites what a BatchNorm made before anybody else reads it, so that both can run as one."""
        norm, part = self._module(index), self._parts[index]
        if len(part.top_ids) != 1 or self._phase != TEST:
            return None
        for later in range(index + 1, end + 1):
            other, place = self.layers[later], self._parts[later]
            if part.top_ids[0] in (*place.bottom_ids, *place.top_ids):
                in_place = place.bottom_ids == place.top_ids == part.top_ids
                fits = in_place and isinstance(other, ModuleLayer) and fusion.are_affine(norm.module, other.module)
                return later if fits and norm.module.global_stats[1] else None  # type: ignore[index]
        return None

    def reshape(self) -> None:
        """Gives all blobs the shapes that follow from those of the inputs."""
        with torch.no_grad():
            for part, layer in zip(self._parts, self.layers, strict=True):
                layer.reshape(part.bottom, part.top)

    # -- backward -----------------------------------------------------------------------------------------------------

    def backward(
        self, diffs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **kwargs: Any
    ) -> dict[str, Array]:
        """Runs the net backward. The diffs of parameters add up until :meth:`clear_param_diffs`.

        Args:
            diffs: names of blobs whose diff to return besides those of the inputs.
            start, end: names of the layers to begin with (the later one) and to end with.
            kwargs: the diffs of the outputs by name; all of them, or none: then the blobs hold them.

        Returns:
            The diffs of the inputs (the bottoms of ``end``) by name: arrays that the next backward overwrites.
        """
        names = list(diffs or ())
        first = self._index(start) if start is not None else len(self.layers) - 1
        if end is not None:
            last = self._index(end)
            names = [*self.bottom_names[end], *names]
        else:
            last = 0
            names = [*self.inputs, *names]
        if kwargs:
            if set(kwargs) != set(self.outputs):
                raise Exception("Top diff arguments do not match net outputs.")
            for name, value in kwargs.items():
                if value.shape[0] != self.blobs[name].shape[0]:
                    raise Exception("Diff is not batch sized")
                self.blobs[name].diff[...] = value
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in dict.fromkeys(names)}

    def _backward(self, start: int, end: int) -> None:
        """Runs the layers from ``start`` down to ``end`` backward."""
        if not end >= 0 or not start < len(self.layers):
            raise IndexError(f"layers {start} to {end} of {len(self.layers)}")
        self._went_back = True
        with torch.no_grad():
            for index in range(start, end - 1, -1):
                part, layer = self._parts[index], self.layers[index]
                for before in self._before_backward:
                    before(index)
                if part.backward:
                    if isinstance(layer, ModuleLayer):
                        self._keep_record(index)
                    if part.bottom_ids or layer.blobs:
                        layer.backward(part.top, part.down, part.bottom)
                for after in self._after_backward:
                    after(index)

    def _keep_record(self, index: int) -> None:
        """Computes a layer again, if its forward was not recorded."""
        layer, part = self._module(index), self._parts[index]
        if layer.record is None:
            layer.fit(part.bottom)
            layer.record_again([self._bottom(index, k) for k in range(len(part.bottoms))])
            self._records.add(index)

    def _bottom(self, index: int, k: int) -> Tensor:
        """What a layer read: what its bottom holds, or held until another layer overwrote it in place."""
        part = self._parts[index]
        maker, last = part.makers[k], self._made_by.get(part.bottom_ids[k])
        if maker is None or last is None or last <= maker or not isinstance(self.layers[maker], ModuleLayer):
            return part.bottom[k].value()
        self._keep_record(maker)
        record = self._module(maker).record
        assert record is not None
        return record[1][self._parts[maker].top_ids.index(part.bottom_ids[k])].detach()

    def clear_param_diffs(self) -> None:
        """Sets the diffs of all parameters to zero."""
        for blob in self._learnable():
            if blob.gradient.tensor is not None:
                blob.gradient.view(tuple(blob.shape)).zero_()
                blob.gradient.changed()

    def _learnable(self) -> list[Blob]:
        """The parameters, each once, in Caffe's order."""
        return [self.layers[i].blobs[k] for i, k in self._owners]

    def _learnable_with_factors(self) -> list[tuple[Blob, float, float]]:
        """The parameters, each once, with lr_mult and decay_mult: what any of the layers that share it says.

        Raises:
            SpecError: two layers that share a parameter set different factors.
        """
        found: dict[tuple[int, int], dict[str, float]] = {owner: {} for owner in self._owners}
        for (index, k), owner in self._sharers.items():
            part, layer = self._parts[index], self.layers[index]
            param = part.spec.param.param
            if k >= len(param) or not _learns(layer, k):
                continue
            for name in ("lr_mult", "decay_mult"):
                if param[k].has(name) and found[owner].setdefault(name, getattr(param[k], name)) != getattr(
                    param[k], name
                ):
                    first = self._layer_names[owner[0]]
                    raise part.spec.error(f"shares a blob with layer '{first}' but sets a different {name}")
        return [
            (
                self.layers[i].blobs[k],
                said.get("lr_mult", 1.0) if _learns(self.layers[i], k) else 0.0,
                said.get("decay_mult", 1.0),
            )
            for (i, k), said in found.items()
        ]

    # -- batches ------------------------------------------------------------------------------------------------------

    def forward_all(self, blobs: Sequence[str] | None = None, **kwargs: Array) -> dict[str, Array]:
        """Runs the net on any number of inputs, batch by batch.

        Returns:
            Copies of the outputs and of ``blobs``, by name, as long as the inputs.
        """
        if not kwargs:
            raise TypeError(f"forward_all takes the inputs by name: {', '.join(self.inputs)}")
        found: dict[str, list[Array]] = {name: [] for name in dict.fromkeys([*self.outputs, *(blobs or ())])}
        for batch in self._batch(kwargs):
            for name, value in self.forward(blobs=blobs, **batch).items():
                found[name].extend(value.copy())
        length = len(next(iter(kwargs.values())))
        return {name: np.asarray(values)[:length] for name, values in found.items()}

    def forward_backward_all(
        self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None, **kwargs: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Runs the net forward and backward on any number of inputs and of output diffs, batch by batch.

        Returns:
            Copies of the outputs and of ``blobs``, and of the input diffs and of ``diffs``, by name.
        """
        if not kwargs:
            raise TypeError(f"forward_backward_all takes the inputs by name: {', '.join(self.inputs)}")
        found: dict[str, list[Array]] = {name: [] for name in dict.fromkeys([*self.outputs, *(blobs or ())])}
        back: dict[str, list[Array]] = {name: [] for name in dict.fromkeys([*self.inputs, *(diffs or ())])}
        forward = self._batch({name: kwargs[name] for name in self.inputs if name in kwargs})
        backward = self._batch({name: kwargs[name] for name in self.outputs if name in kwargs})
        nothing: dict[str, Any] = {}
        for one, other in zip_longest(forward, backward, fillvalue=nothing):
            for name, value in self.forward(blobs=blobs, **one).items():
                found[name].extend(value.copy())
            for name, value in self.backward(diffs=diffs, **other).items():
                back[name].extend(value.copy())
        length = len(next(iter(kwargs.values())))
        return (
            {name: np.asarray(values)[:length] for name, values in found.items()},
            {name: np.asarray(values)[:length] for name, values in back.items()},
        )

    def _batch(self, blobs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """Batches of arrays of equal lengths; zeros follow the last ones."""
        if not blobs:
            return
        size, length = self._blobs[0].shape[0], len(next(iter(blobs.values())))
        for at in range(0, length, size):
            batch = {name: np.asarray(value[at : at + size]) for name, value in blobs.items()}
            missing = at + size - length
            if missing > 0:
                batch = {
                    name: np.concatenate([value, np.zeros((missing, *value.shape[1:]))])
                    for name, value in batch.items()
                }
            yield batch

    # -- parameters and data ------------------------------------------------------------------------------------------

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Writes a .caffemodel with the definition and all parameters."""
        named = [
            part.spec.param.copy(
                name=part.name,
                bottom=list(part.bottoms),
                top=[name for name in part.tops if name != AUTOMATIC],
                phase="TEST" if self._phase == TEST else "TRAIN",
                blobs=None,
            )
            for part in self._parts
        ]
        definition = meanings.for_caffe(Message("NetParameter", name=self._name, layer=named))
        blobs = {name: [blob.data for blob in vector] for name, vector in self.params.items()}
        caffemodel.write(os.fspath(filename), definition, blobs)

    def save_hdf5(self, filename: str | os.PathLike[str]) -> None:
        """Writes a .caffemodel.h5; a parameter that layers share is written with the first of them."""
        blobs: dict[str, dict[int, Array]] = {}
        for index, k in self._owners:
            blobs.setdefault(self._layer_names[index], {})[k] = self.layers[index].blobs[k].data
        caffemodel.write_hdf5(os.fspath(filename), self._layer_names, blobs)

    def copy_from(self, filename: str | os.PathLike[str]) -> None:
        """Copies parameters from a .caffemodel or .caffemodel.h5, by layer name. Layers of other names are ignored.

        Raises:
            WeightsError: a layer of the same name has other blobs.
        """
        _check_file(filename)
        self._copy(caffemodel.read(os.fspath(filename)))

    load_hdf5 = copy_from

    def _copy(self, stored: Weights) -> None:
        targets = self.params
        for one in for_layers(stored, self._params_of()).layers:
            blobs = targets.get(one.name, BlobVec())
            if one.name not in self._layer_names:
                log(f"Ignoring source layer {one.name}", "net.cpp:744")
                continue
            if len(blobs) != len(one.blobs):
                raise WeightsError(
                    f"layer '{one.name}' holds {len(one.blobs)} blobs, the net asks for {len(blobs)}", stored.path
                )
            for k, (blob, array) in enumerate(zip(blobs, one.blobs, strict=True)):
                if not shapes_agree(array.shape, tuple(blob.shape), row=True):
                    shapes = f"has shape {array.shape}, the net asks for {tuple(blob.shape)}"
                    hint = "Rename the layer to train it from scratch."
                    raise WeightsError(f"layer '{one.name}': blob {k} {shapes}", stored.path, hint)
                blob.data[...] = np.asarray(array, np.float32).reshape(blob.shape)

    def share_with(self, other: Net) -> None:
        """Uses the parameters of another net's layers of the same names, from now on.

        Raises:
            WeightsError: a layer has other blobs there.
        """
        targets = self.params
        self._programs.clear()  # they hold the old parameters
        for name, blobs in other.params.items():
            if name not in targets:
                continue
            shapes = [tuple(blob.shape) for blob in blobs]
            if [tuple(blob.shape) for blob in targets[name]] != shapes:
                raise WeightsError(f"layer '{name}' of the other net has blobs of shape {shapes}")
            layer = self.layer_dict[name]
            for k, (blob, source) in enumerate(zip(targets[name], blobs, strict=True)):
                if blob.memory is not source.memory:
                    _share(layer, k, source)

    def set_input_arrays(self, data: Array, labels: Array) -> None:
        """Sets what the MemoryData layer that a net begins with gives: (N, C, H, W), and a label each.

        Raises:
            RuntimeError: there is no such layer, or the arrays do not fit it.
        """
        first = self.layers[0]
        if not isinstance(first, layers.MemoryDataLayer):
            raise RuntimeError("set_input_arrays may only be called if the first layer is a MemoryDataLayer")
        if labels.ndim == 1:
            labels = np.ascontiguousarray(labels[:, np.newaxis, np.newaxis, np.newaxis])
        first.set_arrays(data, labels)

    def before_forward(self, run: Callback) -> None:
        """Calls ``run(index)`` before every layer of a forward."""
        self._before_forward.append(run)

    def after_forward(self, run: Callback) -> None:
        """Calls ``run(index)`` after every layer of a forward."""
        self._after_forward.append(run)

    def before_backward(self, run: Callback) -> None:
        """Calls ``run(index)`` before every layer of a backward."""
        self._before_backward.append(run)

    def after_backward(self, run: Callback) -> None:
        """Calls ``run(index)`` after every layer of a backward."""
        self._after_backward.append(run)

    def _move(self) -> None:
        """To the device that is set now."""
        self._device = settings.device
        self._forget(0, len(self.layers))
        self._programs.clear()
        for layer in self.layers:
            if isinstance(layer, ModuleLayer):
                layer.to(self._device)
        for blob in self._blobs:
            blob.memory.to(self._device)
            blob.gradient.to(self._device)


_OF_2014 = (
    *("set_phase_train", "set_phase_test", "set_mode_cpu", "set_mode_gpu", "set_device", "preprocess", "deprocess"),
    *("set_mean", "set_input_scale", "set_raw_scale", "set_channel_swap"),
)
"""Methods that :mod:`caffe_port.pycaffe.net_of_2014` has, imported on first use."""


def _check_file(path: str | os.PathLike[str]) -> None:
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError):
        raise RuntimeError(f"Could not open file {os.fspath(path)}") from None


def _is_python(layer: Layer) -> bool:
    return type(layer).__module__ != layers.__name__


def _share(layer: Layer, index: int, owner: Blob) -> None:
    """Makes a parameter of a layer use the numbers of another's; its diff stays its own."""
    if isinstance(layer, ModuleLayer):
        layer.share(index, owner)
    else:
        layer.blobs[index].memory = owner.memory


def _factor(param: Message, index: int, layer: Layer) -> float:
    """lr_mult of a parameter; 0 for what no solver learns (BatchNorm's statistics)."""
    if not _learns(layer, index):
        return 0.0
    return float(param.param[index].lr_mult) if index < len(param.param) else 1.0


def _learns(layer: Layer, index: int) -> bool:
    """Whether a blob of a layer is a parameter that a solver may learn."""
    if not isinstance(layer, ModuleLayer):
        return True
    return isinstance(getattr(layer.module, layer.module.blob_names()[index]), torch.nn.Parameter)


def _can_force(spec: LayerSpec, bottom: int) -> bool:
    """AllowForceBackward: not for labels, indices and the like."""
    return holds(spec.type, bottom) in (Holds.NUMBERS, Holds.STEPS)


# -- the operations of a program ------------------------------------------------------------------------------------


def _call(layer: Layer, part: Part) -> Operation:
    forward, bottom, top = layer.forward, part.bottom, part.top
    return lambda: forward(bottom, top)


def _operation(layer: ModuleLayer, part: Part, maker: Layer | None) -> Operation | None:
    """What runs a module in a program; None where nothing is to be done."""
    module, bottom, top = layer.module, part.bottom, part.top
    if len(bottom) == len(top) == 1 and bottom[0] is top[0]:
        blob = bottom[0]
        if type(module) is Dropout and module.scale_train and not (module.training or module.always):
            return None
        if type(module) is ReLU and isinstance(maker, ModuleLayer):
            made = maker.module
            return lambda: blob.put(fusion.overwrite(module, made, blob.value()))
    if len(bottom) != 1 or len(top) != 1:
        return _call(layer, part)
    source, target, owned, memories = bottom[0], top[0], layer.owned, [blob.memory for blob in layer.blobs]

    def run() -> None:
        for memory in memories:
            if memory.touched:
                memory.settle()
        made = module(source.value())
        target.put(owned(made, made, bottom, target))

    return run


def _affine(norm: ModuleLayer, scale: ModuleLayer, source: Blob, target: Blob) -> Operation:
    memories = [blob.memory for blob in (*norm.blobs, *scale.blobs)]
    first, second = norm.module, scale.module

    def run() -> None:
        for memory in memories:
            if memory.touched:
                memory.settle()
        target.put(fusion.affine(first, second, source.value()))

    return run


# -- the structure --------------------------------------------------------------------------------------------------

AUTOMATIC = "(automatic)"
"""Caffe's name of the top of a loss that names none."""


@dataclasses.dataclass
class Part:
    """A layer of a net as Caffe arranges it.

    Attributes:
        bottoms, tops: names of the blobs, with those of Splits.
        bottom_ids, top_ids, bottom, top: the blobs.
        loss_weights: of the tops.
        makers: for each bottom, the layer that wrote it last before this one.
        backward, down, learns: whether it has a backward pass; which bottoms and which parameters get a gradient.
    """

    name: str
    spec: LayerSpec
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    loss_weights: list[float]
    bottom_ids: list[int] = dataclasses.field(default_factory=list)
    top_ids: list[int] = dataclasses.field(default_factory=list)
    bottom: list[Blob] = dataclasses.field(default_factory=list)
    top: list[Blob] = dataclasses.field(default_factory=list)
    makers: list[int | None] = dataclasses.field(default_factory=list)
    backward: bool = False
    down: list[bool] = dataclasses.field(default_factory=list)
    learns: list[bool] = dataclasses.field(default_factory=list)


def arranged(spec: NetSpec) -> list[Part]:
    """The layers of a net, and the Splits that Caffe inserts. Source: insert_splits.cpp."""
    readers = collections.Counter(producer for layer in spec.layers for producer in layer.producers)
    weighted = {}
    for layer in spec.layers:
        for k, weight in enumerate(list(layer.param.loss_weight)[: len(layer.param.top)]):
            if weight:
                readers[layer.name, k] += 1
                weighted[layer.name, k] = float(np.float32(weight))
    used: collections.Counter[tuple[str, int]] = collections.Counter()
    parts = []
    for layer in spec.layers:
        bottoms = []
        for blob, producer in zip(layer.bottoms, layer.producers, strict=True):
            if readers[producer] > 1:
                bottoms.append(f"{blob}_{producer[0]}_{producer[1]}_split_{used[producer]}")
                used[producer] += 1
            else:
                bottoms.append(blob)
        tops = tuple(layer.tops) if layer.param.top else (AUTOMATIC,) * len(layer.tops)
        tops = tuple(bottoms[k] if k < len(bottoms) and layer.bottoms[k] == t else t for k, t in enumerate(tops))
        split = [k for k in range(len(layer.tops)) if readers[layer.name, k] > 1]
        given = [] if any((layer.name, k) in weighted for k in split) else list(layer.param.loss_weight)
        default = 1.0 if has(layer.type, Trait.LOSS) else 0.0
        weights = [float(np.float32(w)) for w in given] or [default if k == 0 else 0.0 for k in range(len(tops))]
        if len(weights) != len(tops):
            raise layer.error(f"{len(weights)} loss_weight values for {len(tops)} tops; give one per top")
        if default and not given and len(tops) > 1 and not has(layer.type, Trait.OTHERS):
            raise layer.error(f"a loss with {len(tops)} tops needs a loss_weight for each of them")
        parts.append(Part(layer.name, layer, tuple(bottoms), tops, weights))
        for k in split:
            blob, producer = layer.tops[k], (layer.name, k)
            name = f"{blob}_{layer.name}_{k}_split"
            copies = tuple(f"{name}_{n}" for n in range(readers[producer]))
            weight = weighted.get(producer, 0.0)
            used[producer] += 1 if weight else 0
            param = layers.split_message(name, blob, copies, weight)
            own = LayerSpec(name, "Split", (blob,), copies, (producer,), param, layer.where)
            parts.append(Part(name, own, (blob,), copies, [weight, *[0.0] * (len(copies) - 1)]))
    return parts
