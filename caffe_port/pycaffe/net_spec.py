"""Nets written in Python: ``layers as L``, ``params as P``, ``NetSpec`` and ``to_proto``.

``L.Convolution(bottom, kernel_size=3)`` makes a :class:`Function`, which is a layer, and returns its :class:`Top`;
nothing is checked before ``to_proto``. Source: python/caffe/net_spec.py of Caffe, whose names and automatic layer names
are kept, with ``keys``, ``vals`` and ``update`` of SSD's.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from caffe_port.pycaffe.proto import caffe_pb2


def param_name_dict() -> dict[str, str]:
    """The layer type of each field of LayerParameter that parametrizes one, without its ``_param``.

    ``{"Convolution": "convolution", "InnerProduct": "inner_product", ...}``: after the name of the field's message; of
    fields with the same message, the first one.
    """
    names: dict[str, str] = {}
    for field in caffe_pb2.LayerParameter.DESCRIPTOR.fields:
        if field.name.endswith("_param") and field.message_type is not None:
            names.setdefault(field.message_type.name.removesuffix("Parameter"), field.name.removesuffix("_param"))
    return names


def assign_proto(proto: Any, name: str, val: Any) -> None:
    """Sets a field of a message from a Python value.

    A dict becomes a message, a list a repeated field (a list of dicts: repeated messages), and a single value for a
    repeated field a list of one. A whole float serves as an integer: `(kernel - 1) / 2` is one in Python 2.

    Raises:
        AttributeError: the message has no such field.
        TypeError: the value is not of the field's type.
    """
    field = getattr(proto, name)
    if hasattr(field, "extend"):
        for one in val if isinstance(val, list) else [val]:
            if isinstance(one, dict):
                _assign_all(field.add(), one)
            else:
                _set(field.append, one)
    elif isinstance(val, dict):
        _assign_all(field, val)
    else:
        _set(functools.partial(setattr, proto, name), val)


def _set(setter: Callable[[Any], object], value: Any) -> None:
    try:
        setter(value)
    except TypeError:
        if not isinstance(value, float) or not value.is_integer():
            raise
        setter(int(value))


def _assign_all(proto: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        assign_proto(proto, name, value)


class Top:
    """A blob: the ``n``-th top of the layer ``fn``."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def to_proto(self) -> Any:
        """The NetParameter of all layers that this blob depends on, with automatic names."""
        return to_proto(self)

    def _to_proto(self, layers: dict[Function, Any], names: dict[Any, str], autonames: Counter[str]) -> None:
        self.fn._to_proto(layers, names, autonames)

    def _update(self, params: dict[str, Any]) -> None:
        self.fn.params.update(params)


class Function:
    """A layer: its type, its bottoms and its parameters.

    Args:
        type_name: Caffe's type string.
        inputs: the bottoms.
        params: fields of the type's own message, or of LayerParameter; ``ntop`` and ``in_place`` are taken out.

    Raises:
        TypeError: a bottom is not a :class:`Top`.
    """

    def __init__(self, type_name: str, inputs: Iterable[Top], params: dict[str, Any]) -> None:
        self.type_name = type_name
        self.inputs = inputs = tuple(inputs)
        for index, bottom in enumerate(inputs):
            if not isinstance(bottom, Top):
                raise TypeError(f"{type_name} input {index} is not a Top (type is {type(bottom)})")
        self.params = params
        self.ntop = params.pop("ntop", 1)
        self.in_place = params.pop("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    def _name(self, key: Any, names: dict[Any, str], autonames: Counter[str]) -> str:
        if key not in names:
            autonames[self.type_name] += 1
            names[key] = f"{self.type_name}{autonames[self.type_name]}"
        return names[key]

    def _to_proto(self, layers: dict[Function, Any], names: dict[Any, str], autonames: Counter[str]) -> None:
        """Adds the layer after those that it depends on. The order in which automatic names are given is Caffe's."""
        if self in layers:
            return
        bottoms = []
        for bottom in self.inputs:
            bottom._to_proto(layers, names, autonames)
            bottoms.append(layers[bottom.fn].top[bottom.n])
        layer = caffe_pb2.LayerParameter(type=self.type_name, bottom=bottoms)
        layer.top.extend(bottoms if self.in_place else [self._name(top, names, autonames) for top in self.tops])
        if self not in names and self.tops:
            names[self] = self._name(self.tops[0], names, autonames)
        layer.name = self._name(self, names, autonames)
        for name, value in self.params.items():
            self._assign(layer, name, value)
        layers[self] = layer

    def _assign(self, layer: Any, name: str, value: Any) -> None:
        """``convolution_param=dict(...)``, ``kernel_size=3`` of the type's own message, or ``loss_weight=1``."""
        own = _param_names.get(self.type_name)
        if own is not None and not name.endswith("param"):
            try:
                assign_proto(getattr(layer, f"{own}_param"), name, value)
            except AttributeError:
                assign_proto(layer, name, value)
        else:
            assign_proto(layer, name, value)


def to_proto(*tops: Any) -> Any:
    """The NetParameter of all layers that the blobs depend on, with automatic names."""
    return _net({}, tops)


def _net(names: dict[Any, str], tops: Iterable[Any]) -> Any:
    layers: dict[Function, Any] = {}
    autonames: Counter[str] = Counter()
    for top in tops:
        top._to_proto(layers, names, autonames)
    return caffe_pb2.NetParameter(layer=layers.values())


class NetSpec:
    """A net: blobs, which get the names of the attributes (or keys) that they are assigned to."""

    tops: dict[str, Any]

    def __init__(self) -> None:
        super().__setattr__("tops", {})

    def __setattr__(self, name: str, value: Any) -> None:
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        if name == "tops" or name.startswith("__"):  # copy and pickle ask for these
            raise AttributeError(name)
        if name in _OF_SSD and name not in self.tops:  # no methods, so that blobs may have these names
            return lambda *args: _OF_SSD[name](self.tops, *args)
        return self.tops[name]

    def __setitem__(self, key: str, value: Any) -> None:
        self.tops[key] = value

    def __getitem__(self, item: str) -> Any:
        return self.tops[item]

    def __delitem__(self, item: str) -> None:
        del self.tops[item]

    def to_proto(self) -> Any:
        """The NetParameter of all layers that the assigned blobs depend on, in the order of the assignments."""
        return _net({top: name for name, top in self.tops.items()}, self.tops.values())


_OF_SSD: dict[str, Callable[..., Any]] = {
    "keys": lambda tops: list(tops.keys()),
    "vals": lambda tops: list(tops.values()),
    "update": lambda tops, name, params: tops[name]._update(params),  # parameters of the layer of a blob
}


class Layers:
    """``L``: every attribute is a function that makes a layer of that type."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def layer_fn(*args: Any, **kwargs: Any) -> Any:
            """Returns the layer's Top; with ``ntop`` above 1 a tuple of them, with 0 the Function."""
            fn = Function(name, args, kwargs)
            if not fn.tops:
                return fn
            return fn.tops[0] if fn.ntop == 1 else fn.tops

        return layer_fn


class _Values:
    def __init__(self, name: str) -> None:
        self._message = f"{name}Parameter"

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(caffe_pb2, self._message), name)


class Parameters:
    """``P``: the values of enums, ``P.Pooling.MAX`` for ``PoolingParameter.MAX``."""

    def __getattr__(self, name: str) -> Any:
        return _Values(name)


_param_names = param_name_dict()
layers = Layers()
params = Parameters()
