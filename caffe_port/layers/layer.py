"""A Caffe layer type is one class: Caffe's parameters come in through ``from_caffe``, the rest is ordinary PyTorch.

Subclassing :class:`Layer` registers the class under its own name, which is Caffe's type string. The families are the
modules of this folder, and the inputs, outputs and blobs of their types are in :mod:`caffe_port.signatures`; a plugin
registers its types by being imported, and says what is to be known of them in its class.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.definition.structure import misfit
from caffe_port.errors import SpecError, WeightsError
from caffe_port.formats.caffemodel import shapes_agree
from caffe_port.formats.message import Message
from caffe_port.signatures import signature as records
from caffe_port.signatures.checks import canonical_axis, check_count
from caffe_port.signatures.signature import ANY, UNSUPPORTED, Signature, Trait
from caffe_port.terminal import count
from caffe_port.typing import Shape

__all__ = [
    "PYTHON_LAYERS",
    "REGISTRY",
    "UNSUPPORTED",
    "Layer",
    "canonical_axis",
    "check_count",
    "class_of",
    "constructor",
    "expect_bottoms",
    "lookup",
    "number",
    "scalar_if_equal",
    "shapes_agree",
]

REGISTRY: dict[str, type[Layer]] = {}
"""Type string, aliases included -> class."""

PYTHON_LAYERS: dict[str, type[Layer]] = {}
"""``"module.layer"`` of a Python layer of Caffe's -> the Layer that stands for it: layers.data.python_layer."""


_ARGUMENT = reprlib.Repr()
_ARGUMENT.maxtuple = _ARGUMENT.maxlist = 8
_ARGUMENT.maxstring = _ARGUMENT.maxother = 60


class Layer(nn.Module):
    """Base of every layer type.

    A subclass says how Caffe's message becomes constructor arguments (:meth:`from_caffe`), and, in ``__init__`` and
    ``forward``, what it computes. Constants belong into plain Python attributes: modules are built on the meta device
    first, where a tensor holds no numbers.

    A plugin says the attributes from ``param`` on, and gets a signature made from them. Those of caffe-port's own types
    come from their signatures, which also refuse what the layer refuses before ``from_caffe`` sees it.

    Attributes:
        signature: the record of the type.
        param: field of LayerParameter that ``from_caffe`` receives; None: it receives the LayerParameter itself.
        blobs: attribute names of Caffe's parameter blobs, in Caffe's order. One that is None (``bias``) is absent.
        aliases: further type strings of forks that mean the same layer.
        loss: the first top has loss_weight 1 unless the net says otherwise.
        labels: the layer exists for labels only (losses, Accuracy): the deploy view drops it.
        source: the tops come from outside (Data, Input): they are inputs of the Net, and no module is built.
        per_bottom: several bottoms are treated one by one, each giving its own top.
        args: the constructor arguments it was built with.
    """

    signature: ClassVar[Signature] = Signature("", None, bottoms=(0, ANY))
    param: ClassVar[str | None] = None
    blobs: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[tuple[str, ...]] = ()
    loss: ClassVar[bool] = False
    labels: ClassVar[bool] = False
    source: ClassVar[bool] = False
    per_bottom: ClassVar[bool] = False
    args: dict[str, Any]

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared = records.signature_of(cls.__name__) if register and cls.__name__ not in REGISTRY else None
        if declared is not None:
            cls._follow(declared)
        else:
            cls.signature = cls._said()
        if register:
            records.register(cls.signature)
            REGISTRY.update(dict.fromkeys((cls.signature.type, *cls.signature.aliases), cls))
            PYTHON_LAYERS.update(dict.fromkeys(cls.signature.python, cls))

    @classmethod
    def _follow(cls, signature: Signature) -> None:
        """Takes over what the record says."""
        whole = signature.has(Trait.WHOLE_LAYER) or not signature.messages
        cls.signature, cls.param = signature, None if whole else signature.messages[0]
        cls.blobs, cls.aliases = signature.blobs, signature.aliases
        cls.loss, cls.labels = signature.has(Trait.LOSS), signature.has(Trait.LABELS)
        cls.source, cls.per_bottom = signature.has(Trait.SOURCE), signature.has(Trait.PER_BOTTOM)

    @classmethod
    def _said(cls) -> Signature:
        """The record that the class's own attributes make, and those of its bases."""
        said = {
            Trait.LOSS: cls.loss,
            Trait.LABELS: cls.labels,
            Trait.SOURCE: cls.source,
            Trait.PER_BOTTOM: cls.per_bottom,
        }
        traits, messages = cls.signature.traits & Trait.WHOLE_LAYER, cls.signature.messages
        if "param" in cls.__dict__:
            traits, messages = Trait.NONE, (cls.param,) if cls.param is not None else ()
        for trait, holds in said.items():
            traits |= trait if holds else Trait.NONE
        return Signature(
            cls.__name__,
            None,
            aliases=tuple(cls.__dict__.get("aliases", ())),
            messages=messages,
            bottoms=(0, ANY),
            blobs=tuple(cls.blobs),
            statistics=cls.signature.statistics & frozenset(cls.blobs),
            traits=traits,
        )

    @classmethod
    def stand_in(cls, layer: Message) -> type[Layer]:
        """The class that builds this very layer: itself, but for Python layers."""
        return cls

    # -- from Caffe ---------------------------------------------------------------------------------------------

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        """Constructor arguments for Caffe's message ``p`` and the shapes of the bottoms.

        Raises:
            SpecError: the parameters make no sense (``where`` and the layer's name are added by the net).
        """
        return {}

    @classmethod
    def build(cls, layer: Message, bottoms: Sequence[Shape]) -> Layer:
        """The layer for a LayerParameter and bottom shapes.

        Raises:
            SpecError: the signature's rule, or :meth:`from_caffe`, refuses it.
        """
        bottoms = [tuple(shape) for shape in bottoms]
        translator = next(base for base in cls.__mro__ if issubclass(base, Layer) and "from_caffe" in vars(base))
        record = cls.signature if cls.signature.tops is not None else translator.signature
        if record.tops is not None:  # from_caffe relies on what it refuses
            for shape in record.top_shapes(layer, bottoms):
                check_count("the top", shape)
        return cls.make(cls.from_caffe(cls.own_message(layer), bottoms))

    @classmethod
    def make(cls, args: dict[str, Any]) -> Layer:
        """The layer for constructor arguments, which it remembers (they are what model.py shows)."""
        module = cls(**args)
        module.args = args
        return module

    @classmethod
    def own_message(cls, layer: Message) -> Message:
        """The part of a LayerParameter that ``from_caffe`` is given."""
        return layer if cls.param is None else cls.signature.parameters(layer)

    @classmethod
    def merge_phases(cls, train: dict[str, Any], test: dict[str, Any]) -> dict[str, Any] | None:
        """One set of arguments for a layer that the two phases define differently; None: it takes two modules."""
        return None

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        """Blob name -> FillerParameter, for the blobs that no weights file fills. Absent: zeros."""
        known = p.schema.fields if p.schema else dict(p.items())
        return {b: getattr(p, f"{b}_filler") for b in cls.blobs if f"{b}_filler" in known}

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The tops on the meta device; a layer whose top shapes depend on values says here what Caffe allocates."""
        return self(*bottoms)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """What torch.nn's class shows, where the layer is one; then the arguments of its own constructor."""
        bases = (kind for kind in type(self).__mro__ if issubclass(kind, nn.Module) and not issubclass(kind, Layer))
        known, own = (inspect.signature(kind).parameters for kind in (next(bases), type(self)))
        shown = super().extra_repr()
        rest = [
            f"{name}={_ARGUMENT.repr(value)}"
            for name, value in getattr(self, "args", {}).items()
            if name not in known and not (shown and name in own and value == own[name].default)
        ]
        return ", ".join([shown, *rest] if shown else rest)

    # -- blobs --------------------------------------------------------------------------------------------------

    def blob_names(self) -> list[str]:
        """The blobs that this instance has, in Caffe's order."""
        return [name for name in self.blobs if getattr(self, name) is not None]

    def get_blob(self, name: str) -> Tensor:
        """A blob in Caffe's layout."""
        return getattr(self, name)  # type: ignore[no-any-return]

    def set_blob(self, name: str, value: Tensor) -> None:
        """Copies a value in Caffe's layout and shape into the blob."""
        with torch.no_grad():
            getattr(self, name).copy_(value)

    def mismatch(self, arrays: Sequence[np.ndarray[Any, Any]]) -> str:
        """Why these blobs cannot be loaded, or an empty string; see :func:`shapes_agree` for what a shape may be."""
        shapes = {name: tuple(self.get_blob(name).shape) for name in self.blob_names()}
        return misfit(shapes, arrays, self.signature.has(Trait.ROWS))

    def load_blobs(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        """Copies Caffe's blobs in.

        Raises:
            WeightsError: another number of blobs, or another shape.
        """
        self._load(arrays, None)

    def share_blobs(self, arrays: Sequence[np.ndarray[Any, Any]], least: int) -> None:
        """Like :meth:`load_blobs`, but blobs of ``least`` bytes or more become views of the arrays, where that works.

        The arrays must be writable. Those of a mapped file need not be aligned: a parameter on one can be stored, but
        nothing may compute with it.
        """
        own_way = type(self).load_blobs is not Layer.load_blobs or type(self).torch_state is not Layer.torch_state
        if own_way:
            self.load_blobs(arrays)
        else:
            self._load(arrays, least)

    def _load(self, arrays: Sequence[np.ndarray[Any, Any]], least: int | None) -> None:
        if wrong := self.mismatch(arrays):
            raise WeightsError(wrong)
        with np.errstate(over="ignore", invalid="ignore"):  # a double beyond float32 becomes infinity, as in Caffe
            for name, array in zip(self.blob_names(), arrays, strict=True):
                own, blob = getattr(self, name), self.get_blob(name)
                if blob is not own or not own.is_cpu or own.dtype != torch.float32:
                    self.set_blob(name, torch.tensor(np.asarray(array, np.float32)).reshape(blob.shape))
                    continue
                value = np.reshape(array, tuple(own.shape))  # the file's layout is the parameter's
                if least is not None and own.nbytes >= least and value.dtype == "<f4" and value.flags.c_contiguous:
                    own.data = torch.from_numpy(value)
                else:  # NumPy also reads what is not aligned, and needs no tensor in between
                    np.copyto(own.detach().numpy(), value, casting="same_kind")
                torch.autograd.graph.increment_version(own)  # which NumPy does not

    # -- to model.py --------------------------------------------------------------------------------------------

    def torch_source(self) -> str | None:
        """``"nn.Conv2d(3, 64, 3)"`` where a module of torch.nn does the same; None: the class itself is copied."""
        return None

    def call_source(self, *bottoms: str) -> str | None:
        """``"torch.cat((a, b), dim=1)"`` where an expression does it and nobody would write a module; else None."""
        return None

    def bottom_source(self, bottom: str) -> str:
        """What a module of ``torch_source`` is called with: ``"x.flatten(1)"`` for a Linear after a convolution."""
        return bottom

    def torch_state(self) -> dict[str, Tensor]:
        """The state_dict of what ``torch_source`` constructs."""
        return dict(self.state_dict())


def constructor(name: str, positional: Sequence[Any], options: Mapping[str, tuple[Any, Any]]) -> str:
    """Source of a constructor call; ``options`` maps keyword -> (value, default), and defaults are left out.

    >>> constructor("nn.Conv2d", [3, 64, 5], {"padding": (2, 0), "bias": (True, True)})
    'nn.Conv2d(3, 64, 5, padding=2)'
    """
    shown = [repr(v) for v in positional]
    shown += [f"{k}={value!r}" for k, (value, default) in options.items() if value != default]
    return f"{name}({', '.join(shown)})"


def scalar_if_equal(values: Sequence[int]) -> int | tuple[int, ...]:
    """``3`` for (3, 3), the tuple otherwise: how one writes a kernel size."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def expect_bottoms(bottoms: Sequence[Shape], least: int, most: int | None = None) -> None:
    """Raises SpecError unless there are ``least`` to ``most`` bottoms (``most`` None: exactly ``least``)."""
    most = least if most is None else most
    if not least <= len(bottoms) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise SpecError(f"{count(len(bottoms), 'bottom')}; the layer takes {wanted}")


def number(value: float) -> str:
    """Source of a factor or summand: 2 for 2.0."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e6 else repr(value)


def lookup(type_name: str) -> type[Layer] | None:
    """The class of a Caffe type string, or None."""
    return REGISTRY.get(type_name)


def class_of(layer: Message) -> type[Layer] | None:
    """The class of a LayerParameter, or None; for a Python layer the one that a plugin registered.

    Raises:
        SpecError: a Python layer that no plugin stands in for.
    """
    found = lookup(layer.type)
    return found.stand_in(layer) if found is not None else None
