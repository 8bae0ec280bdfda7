"""Layers as nets of pycaffe run them: caffe-port's modules, data, and layers that are written in Python.

All have Caffe's four steps: ``setup``, ``reshape``, ``forward``, ``backward``. Source: layer.hpp, python_layer.hpp.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port import layers
from caffe_port.data.batches import Feed
from caffe_port.data.records import from_layer
from caffe_port.errors import CaffePortError, SpecError, first_line
from caffe_port.formats.message import Message
from caffe_port.layers import fillers
from caffe_port.layers.data import DummyData
from caffe_port.layers.layer import class_of
from caffe_port.layers.linear import InnerProduct
from caffe_port.net.net import infer_by_running
from caffe_port.pycaffe.blob import Blob, BlobVec, Memory, as_tensor, contiguous
from caffe_port.pycaffe.settings import note, settings
from caffe_port.signatures import shapes
from caffe_port.signatures.data import dummy_draws, dummy_shapes
from caffe_port.signatures.normalization import row_shape
from caffe_port.signatures.signature import PYTHON, Trait
from caffe_port.spec import LayerSpec
from caffe_port.storage import hdf5
from caffe_port.storage.files import atomic_write, opened
from caffe_port.typing import Array, Shape

Blobs = Sequence[Blob]


class Phase(int):
    """``self.phase`` of a layer in Python: 0 (TRAIN) or 1 (TEST), printed as its name, which some layers look up."""

    def __str__(self) -> str:
        return "TEST" if self else "TRAIN"


class Layer:
    """Base of layers in Python: ``class X(caffe.Layer)`` with ``setup``, ``reshape``, ``forward``, ``backward``.

    Attributes:
        blobs: its parameters; ``self.blobs.add_blob(64, 3)`` in ``setup`` adds one.
        type: Caffe's type string.
        param_str: of ``python_param``.
        phase: 0 (TRAIN) or 1 (TEST).
    """

    type: str = "Python"
    blobs: BlobVec
    param_str: str
    phase: int

    def __new__(cls, *_: Any, **__: Any) -> Any:
        self = super().__new__(cls)
        self.blobs = BlobVec()
        return self

    def __init__(self, *_: Any) -> None:
        pass

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        """Called once, when the net is built."""

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        """Gives the tops their shapes; called before every forward."""

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        """Computes the data of the tops."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        """Computes the diff of the bottoms, and adds to that of the parameters."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")


def python_layer(spec: LayerSpec, phase: int) -> Layer:
    """The layer that ``python_param`` names. Its module is imported, as any module of the running script.

    Where the module cannot be found, a layer of caffe-port's stands for it, if there is one (``rpn.proposal_layer``).

    Raises:
        SpecError: there is no such module or class, or the class is another caffe's.
    """
    p = spec.param.python_param
    try:
        module = importlib.import_module(p.module)
    except ModuleNotFoundError as error:
        if f"{p.module}.{p.layer}" in PYTHON:
            note(f"layer '{spec.name}': {error}; caffe-port's own layer stands for {p.module}.{p.layer}")
            return ModuleLayer(spec, phase)
        hint = "Python looks in the folder of the script, the current folder and PYTHONPATH."
        if error.name == "caffe":
            hint = "Run the script with `caffe-port run`, which makes `import caffe` mean caffe_port.pycaffe."
        raise spec.error(f"the module {p.module} cannot be imported: {error}", hint) from error
    cls = getattr(module, p.layer, None)
    if cls is None:
        raise spec.error(f"the module {p.module} ({module.__file__}) has no class '{p.layer}'")
    if not (isinstance(cls, type) and issubclass(cls, Layer)):
        raise spec.error(
            f"{p.module}.{p.layer} is not a subclass of caffe_port.pycaffe.Layer, but of another caffe's",
            "Run the script with `caffe-port run`, which makes `import caffe` mean caffe_port.pycaffe.",
        )
    layer = cls(spec.param)
    layer.param_str = layer.param_str_ = p.param_str  # type: ignore[attr-defined]  # the second until 2015
    layer.phase = Phase(phase)
    return layer


class ModuleLayer(Layer):
    """A layer that one of caffe-port's modules computes.

    Attributes:
        module: the module, in the phase of the net.
        recording: whether a forward keeps what ``backward`` needs. Otherwise, that is computed again from the bottoms.
        record: the bottoms and the tops of the last forward, as autograd knows them.
        wanted: the bottoms that need a gradient.
        passing: the bottoms that this layer or a later one overwrites in place.
        counts: the shapes of the tops may depend on what the bottoms hold (DetectionOutput).
        preset: the parameters come from a file, so that nothing needs to be drawn for them.
    """

    def __init__(self, spec: LayerSpec, phase: int) -> None:
        self.spec, self.type = spec, spec.param.type
        own = spec.param.phase if spec.param.has("phase") else ("TRAIN", "TEST")[phase]
        self.phase = Phase(own == "TEST")
        try:
            found = class_of(spec.param)
        except SpecError as error:
            raise spec.error(error.what, error.hint) from None
        if found is None:
            raise spec.error(f"type {spec.type} is not known")
        self.kind: type[layers.Layer] = found
        self.recording = False
        self.record: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None = None
        self.wanted: list[bool] = []
        self.passing: list[bool] = []
        self.preset = False
        signature = found.signature
        self._shares = signature.has(Trait.SHARES_MEMORY) or signature.has(Trait.SHARES_ALONE)
        self._per_bottom = found.per_bottom and len(spec.bottoms) > 1
        self._first_top_only = signature.has(Trait.LOSS)
        self.counts = found.infer is not layers.Layer.infer and not signature.has(Trait.LOSS)
        self._shapes: tuple[Shape, ...] | None = None

    @property
    def draws(self) -> bool:
        """Whether a second forward might make something else of the same bottoms."""
        p = self.spec.param
        stateful = hasattr(self.module, "stateful")
        return bool(self.module.training or stateful or p.dropout_param.sample_weights_test)

    # -- building ---------------------------------------------------------------------------------------------------

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        self._shapes = tuple(blob._shape for blob in bottom)
        self.module = self._build(self._shapes)
        for name in self.module.blob_names():
            tensor = getattr(self.module, name)
            shape = tuple(self.module.get_blob(name).shape)
            if len(shape) == 1 and self.module.signature.has(Trait.ROWS):
                shape = row_shape(self.spec.param, shape[0])
            self.blobs.append(Blob(shape, Memory(tensor)))
        if not self.preset:
            self._fill()
        if hasattr(self.module, "stateful"):
            self.module.stateful = True  # type: ignore[assignment]  # as in Caffe, a sequence goes on in the next forward

    def _build(self, bottoms: Sequence[Shape]) -> layers.Layer:
        try:
            with self.spec.checked(), torch.device("meta"):
                module = self.kind.build(self.spec.param, bottoms)
                if isinstance(module, InnerProduct) and module.transpose:
                    if module.normalize:
                        raise SpecError("normalize together with transpose is not offered here")
                    module.keep_caffe_layout()
        except RuntimeError as error:
            raise self.spec.error(first_line(error)) from None
        module._apply(  # type: ignore[no-untyped-call]
            lambda t: torch.empty(t.shape, dtype=t.dtype, device=settings.device)
        )
        return module.train(not self.phase)

    def _fill(self) -> None:
        if not self.blobs:
            return
        by_blob = self.module.fillers(self.module.own_message(self.spec.param))
        for name in self.module.blob_names():
            shape = tuple(self.module.get_blob(name).shape)
            with self.spec.checked():
                value = (
                    fillers.fill(by_blob[name], shape, settings.rng) if name in by_blob else np.zeros(shape, np.float32)
                )
            self.module.set_blob(name, torch.from_numpy(value))

    def fit(self, bottom: Blobs) -> None:
        """Adapts the module to new shapes of the bottoms.

        Raises:
            SpecError: the layer does not fit them, or would need other parameters.
        """
        shapes_now = tuple(blob._shape for blob in bottom)
        if shapes_now == self._shapes:
            return
        with self.spec.checked():
            args = self.kind.from_caffe(self.kind.own_message(self.spec.param), [tuple(s) for s in shapes_now])
        if any(self.module.args.get(name, _ABSENT) != value for name, value in args.items()):
            old, new = self.module, self._build(shapes_now)
            for name in new.blob_names():
                if getattr(new, name).shape != getattr(old, name).shape:
                    needed, there = tuple(new.get_blob(name).shape), tuple(old.get_blob(name).shape)
                    raise self.spec.error(
                        f"bottoms of shape {_shown(shapes_now)} need a {name} of shape {needed}; it has {there}",
                        "A net with InnerProduct layers takes images of one size.",
                    )
                setattr(new, name, getattr(old, name))
            for name in ("stateful", "state"):
                if hasattr(old, name):
                    setattr(new, name, getattr(old, name))
            self.module = new
        self._shapes = shapes_now

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        self.fit(bottom)
        bottoms = [tuple(blob._shape) for blob in bottom]
        if shapes.rule_of(self.spec) is not None:
            found = shapes.top_shapes(self.spec, bottoms)
        else:
            with torch.device("meta"):
                found = infer_by_running(self.spec, self.kind.build(self.spec.param, bottoms), bottoms)
        if len(found) != len(top):
            raise self.spec.error(f"has {len(top)} tops, but this type produces {len(found)}")
        for blob, shape in zip(top, found, strict=True):
            blob.reshape(*shape)

    # -- running ----------------------------------------------------------------------------------------------------

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        self.fit(bottom)
        for blob in self.blobs:
            blob.memory.settle()
        if self.recording:
            values = [blob.value() for blob in bottom]
            pairs = zip(values, bottom, self.passing, strict=True)
            made = self.record_of([v.clone() if passing and b.memory.held() else v for v, b, passing in pairs])
            for blob, value in zip(top, made, strict=True):
                blob.put(self.owned(value.data, value, bottom, blob))
        else:
            self.record = None
            values = [blob.value() for blob in bottom]
            for blob, value in zip(top, self.compute(values), strict=True):
                blob.put(self.owned(value, value, bottom, blob))
        if self.module.training:
            for blob in self.blobs:
                blob.memory.changed()

    def compute(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tops for bottoms."""
        made: Any = tuple(map(self.module, values)) if self._per_bottom else self.module(*values)
        return made if isinstance(made, tuple) else () if made is None else (made,)

    def owned(self, value: Tensor, made: Tensor, bottom: Blobs, top: Blob) -> Tensor:
        """A top as its blob may hold it: in memory of its own, unless Caffe shares that of the bottom.

        Args:
            value: the numbers.
            made: the same as the module returned it.
        """
        whole = contiguous(value)
        if whole is not value or self._shares:
            return whole
        if made._is_view() or any(made is blob.memory.tensor for blob in bottom if blob is not top):
            return value.clone()
        return whole

    def record_of(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Computes the tops with a graph for :meth:`backward`."""
        leaves = tuple(
            value.data for value in values
        )  # not detach: what is written to a blob later counts, as in Caffe
        for leaf, wanted in zip(leaves, self.wanted, strict=True):
            leaf.requires_grad_(wanted)
        with torch.enable_grad():
            made = tuple(
                value.clone() if any(value is leaf for leaf in leaves) else value for value in self.compute(leaves)
            )
        self.record = leaves, made
        return made

    def record_again(self, values: Sequence[Tensor]) -> None:
        """:meth:`record_of` a forward that was not recorded; it changes no parameter."""
        kept = [buffer.clone() for buffer in self.module.buffers()] if self.module.training else []
        self.record_of(values)
        with torch.no_grad():
            for buffer, before in zip(self.module.buffers(), kept, strict=False):
                buffer.copy_(before)

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        assert self.record is not None
        leaves, tops = self.record
        outputs = [
            (made, blob.gradient.view(tuple(made.shape)))
            for made, blob in list(zip(tops, top, strict=True))[: 1 if self._first_top_only else None]
            if made.requires_grad
        ]
        wanted = [k for k, leaf in enumerate(leaves) if leaf.requires_grad and propagate_down[k]]
        own = [(blob, p) for blob, p in self._parameters() if p.requires_grad]
        inputs = [leaves[k] for k in wanted] + [p for _, p in own]
        if not inputs:
            return
        found: Sequence[Tensor | None] = [None] * len(inputs)
        if outputs:
            values, gradients = zip(*outputs, strict=True)
            found = torch.autograd.grad(values, inputs, gradients, retain_graph=True, allow_unused=True)
        seen = {gradient.untyped_storage().data_ptr() for _, gradient in outputs}
        for k, gradient in zip(wanted, found, strict=False):
            if gradient is None:
                gradient = torch.zeros(bottom[k]._shape, device=settings.device)
            gradient = contiguous(gradient)
            if gradient.untyped_storage().data_ptr() in seen:
                gradient = gradient.clone()
            seen.add(gradient.untyped_storage().data_ptr())
            bottom[k].put_gradient(gradient)
        for (blob, p), gradient in zip(own, found[len(wanted) :], strict=True):
            if gradient is not None:
                total = blob.gradient.view(tuple(p.shape))
                total.add_(gradient)
                blob.gradient.changed()

    def _parameters(self) -> list[tuple[Blob, nn.Parameter]]:
        pairs = zip(self.blobs, self.module.blob_names(), strict=True)
        found = [(blob, getattr(self.module, name)) for blob, name in pairs]
        return [(blob, p) for blob, p in found if isinstance(p, nn.Parameter)]

    def to(self, device: torch.device) -> None:
        """Moves the module and its parameters."""
        for blob in self.blobs:
            blob.memory.leave()
        self.module.to(device)
        for blob, name in zip(self.blobs, self.module.blob_names(), strict=True):
            tensor = getattr(self.module, name)
            if not isinstance(tensor, nn.Parameter):  # buffers are replaced
                blob.memory.tensor = tensor
            blob.gradient.to(device)

    def share(self, index: int, owner: Blob) -> None:
        """Makes a parameter that of another layer."""
        blob, name = self.blobs[index], self.module.blob_names()[index]
        own, theirs = getattr(self.module, name), owner.memory.tensor
        assert theirs is not None
        if own.shape == theirs.shape:
            setattr(self.module, name, theirs)
        else:  # share_mode PERMISSIVE: the same numbers in another shape
            own.data = theirs.detach().view(own.shape)
        blob.memory = owner.memory
        blob.memory.touched = True


_ABSENT = object()


def _shown(shapes_: Sequence[Shape]) -> str:
    return ", ".join(str(tuple(s)) for s in shapes_)


class SplitLayer(Layer):
    """What Caffe inserts for a blob with several readers: tops that share the bottom's data; their diffs add up."""

    type = "Split"

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        for blob in top:
            blob._shape = bottom[0]._shape

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        shape, memory = bottom[0]._shape, bottom[0].memory
        for blob in top:
            blob._shape, blob.memory = shape, memory

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        if propagate_down[0]:
            total = top[0].gradient.view(top[0]._shape).clone()
            for blob in top[1:]:
                total += blob.gradient.view(blob._shape)
            bottom[0].put_gradient(total)


# -- data ------------------------------------------------------------------------------------------------------------


class InputLayer(Layer):
    """Tops that the script fills."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec, self.type = spec, spec.param.type

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        given = self.spec.param.input_param.shape
        if len(given) not in (1, len(top)):
            raise self.spec.error(
                f"gives {len(given)} shapes for {len(top)} tops", "Caffe needs input_param { shape }."
            )
        for k, blob in enumerate(top):
            blob.reshape(*given[k if len(given) > 1 else 0].dim)

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        pass


class DummyDataLayer(Layer):
    """Tops of given shapes: constants are filled in once, so that a script may change them; others at every forward."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec, self.type = spec, spec.param.type

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        with self.spec.checked():
            self.draws = dummy_draws(self.spec.param)
            found = dummy_shapes(self.spec.param)
        for blob, shape, (kind, value, _) in zip(top, found, self.draws, strict=True):
            blob.reshape(*shape)
            if kind == "constant":
                blob.memory.view(shape).fill_(value)

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        for blob, draw in zip(top, self.draws, strict=True):
            if draw[0] != "constant":
                blob.put(DummyData.fill(torch.empty(blob._shape, device=settings.device), *draw))


class FeedLayer(Layer):
    """Data, ImageData, HDF5Data and the like: batches of what their files hold, one after the other."""

    def __init__(self, spec: LayerSpec, phase: int) -> None:
        self.spec, self.type, self.phase = spec, spec.param.type, Phase(phase)

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        seed = int(settings.rng.integers(1 << 31))
        try:
            self.feed: Feed = from_layer(self.spec, str(self.phase), seed=seed)
        except SpecError as error:  # --data is an option of other commands
            hint = "" if "--data" in error.hint else error.hint
            raise SpecError(error.what.removesuffix("; give the data with --data"), error.where, hint) from None
        self.number = 0
        for blob, shape in zip(top, self.feed.shapes, strict=True):
            blob.reshape(*shape)

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        for blob, value in zip(top, self.feed.batch(self.number), strict=True):
            blob.put(contiguous(value).to(settings.device))
        self.number += 1


class MemoryDataLayer(Layer):
    """Batches of the arrays that ``net.set_input_arrays`` gave."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec, self.type = spec, spec.param.type
        self.data: Array | None = None
        self.labels: Array | None = None
        self.position = 0

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        p = self.spec.param.memory_data_param
        self.shape = (p.batch_size, p.channels, p.height, p.width)
        if min(self.shape) < 1 or len(top) != 2:
            raise self.spec.error(
                f"has shape {self.shape} and {len(top)} tops; expected positive sizes, data and label"
            )
        top[0].reshape(*self.shape)
        top[1].reshape(p.batch_size)

    def set_arrays(self, data: Array, labels: Array) -> None:
        """Takes (N, C, H, W) and (N, 1, 1, 1), which are not copied.

        Raises:
            RuntimeError: their type or shape is wrong, in Caffe's words.
        """
        for array, name, shape in ((data, "data array", self.shape[1:]), (labels, "labels array", (1, 1, 1))):
            if not array.flags.c_contiguous:
                raise RuntimeError(f"{name} must be C contiguous")
            if array.ndim != 4:
                raise RuntimeError(f"{name} must be 4-d")
            if array.dtype != np.float32:
                raise RuntimeError(f"{name} must be float32")
            for have, want, what in zip(array.shape[1:], shape, ("number of channels", "height", "width"), strict=True):
                if have != want:
                    raise RuntimeError(f"{name} has wrong {what}")
        if len(data) != len(labels):
            raise RuntimeError("data and labels must have the same first dimension")
        if len(data) % self.shape[0]:
            raise RuntimeError("first dimensions of input arrays must be a multiple of batch size")
        self.data, self.labels, self.position = data, labels.reshape(-1), 0

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        if self.data is None or self.labels is None:
            raise RuntimeError(f"layer '{self.spec.name}' (MemoryData) has no data: call net.set_input_arrays first")
        rows = slice(self.position, self.position + self.shape[0])
        top[0].put(as_tensor(self.data[rows], settings.device))
        top[1].put(as_tensor(self.labels[rows], settings.device))
        self.position = (self.position + self.shape[0]) % len(self.data)


class HDF5OutputLayer(Layer):
    """Writes its two bottoms, with four axes, as ``data`` and ``label`` of an HDF5 file. Source: hdf5_output_layer.cpp.

    Differs from Caffe: the file appears, complete, in the first forward, and not empty with the net; a file that is not
    HDF5 is not replaced.
    """

    def __init__(self, spec: LayerSpec) -> None:
        self.spec, self.type = spec, spec.param.type
        self.path = Path(spec.param.hdf5_output_param.file_name)
        self.written = False

    def setup(self, bottom: Blobs, top: Blobs) -> None:
        if len(bottom) != 2 or top:
            raise self.spec.error(
                f"has {len(bottom)} bottoms and {len(top)} tops; it writes two bottoms and has no top"
            )
        if not self.path.name:
            raise self.spec.error("needs hdf5_output_param { file_name }, where its bottoms are written")
        hdf5.library(str(self.path))
        if not self.path.parent.is_dir():
            raise self.spec.error(f"cannot write {self.path}: there is no such folder")
        if self.path.exists() and not _is_hdf5(self.path):
            raise self.spec.error(f"would replace {self.path}, which is not an HDF5 file", "Give it another file_name.")

    def reshape(self, bottom: Blobs, top: Blobs) -> None:
        data, label = (blob._shape for blob in bottom)
        if max(len(data), len(label)) > 4 or data[:1] != label[:1]:
            raise self.spec.error(f"has bottoms of shape {_shown((data, label))}; expected as many rows, and four axes")

    def forward(self, bottom: Blobs, top: Blobs) -> None:
        if self.written:
            raise self.spec.error(
                f"has written {self.path} in an earlier forward, and writes once, as in Caffe",
                "Run the layers before it with net.forward(end=...), or build the net again with another file_name.",
            )
        with atomic_write(self.path) as out, hdf5.library(str(self.path)).File(out, "w") as file:
            for name, blob in zip(("data", "label"), bottom, strict=True):
                file[name] = blob.value().detach().cpu().numpy().reshape((*blob._shape, *[1] * (4 - len(blob._shape))))
        self.written = True

    def backward(self, top: Blobs, propagate_down: Sequence[bool], bottom: Blobs) -> None:
        pass


def _is_hdf5(path: Path) -> bool:
    try:
        with opened(path) as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except CaffePortError:
        return False


def make(spec: LayerSpec, phase: int) -> Layer:
    """The layer for a LayerSpec.

    Raises:
        SpecError: the type is not known, or is one of data that nothing here reads.
    """
    type_ = spec.param.type
    if spec.param.python_param.module:
        return python_layer(spec, phase)
    if type_ == "Split":
        return SplitLayer()
    if type_ == "Input":
        return InputLayer(spec)
    if type_ == "DummyData":
        return DummyDataLayer(spec)
    if type_ == "MemoryData":
        return MemoryDataLayer(spec)
    if type_ == "HDF5Output":
        return HDF5OutputLayer(spec)
    if spec.is_input:
        return FeedLayer(spec, phase)
    return ModuleLayer(spec, phase)


def layer_type_list() -> list[str]:
    """The names of all layer types."""
    return sorted(set(layers.REGISTRY) | {"Python"})


def split_message(name: str, bottom: str, tops: Sequence[str], loss_weight: float) -> Message:
    """The LayerParameter of a Split that Caffe inserts. Source: insert_splits.cpp."""
    message = Message("LayerParameter", name=name, type="Split", bottom=[bottom], top=list(tops))
    if loss_weight:
        message.set("loss_weight", [loss_weight, *[0.0] * (len(tops) - 1)])
    return message
