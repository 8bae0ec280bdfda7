"""Records what a module computes, call by call, layers and functions alike, in execution order."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.net import state_dict as state_files

_PARAMETERS = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose2d": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "linear": ("input", "weight", "bias"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "prelu": ("input", "weight"),
    "dropout": ("input", "p", "training"),
    "addcmul": ("bias", "input", "weight"),
}
KINDS = {
    "conv2d": "Convolution",
    "conv_transpose2d": "Deconvolution",
    "linear": "InnerProduct",
    "batch_norm": "BatchNorm",
    "max_pool2d": "Pooling",
    "max_pool2d_with_indices": "Pooling",
    "avg_pool2d": "Pooling",
    "lp_pool2d": "Pooling",
    "adaptive_avg_pool2d": "Pooling",
    "adaptive_max_pool2d": "Pooling",
    "relu": "ReLU",
    "relu6": "ReLU6",
    "hardtanh": "ReLU6",
    "leaky_relu": "ReLU",
    "prelu": "PReLU",
    "elu": "ELU",
    "sigmoid": "Sigmoid",
    "tanh": "TanH",
    "silu": "Swish",
    "softplus": "BNLL",
    "hardswish": "HSwish",
    "hardsigmoid": "HSigmoid",
    "selu": "SELU",
    "mish": "Mish",
    "softmax": "Softmax",
    "log_softmax": "Softmax",
    "dropout": "Dropout",
    "dropout2d": "Dropout",
    "feature_dropout": "Dropout",
    "local_response_norm": "LRN",
    "cat": "Concat",
    "concat": "Concat",
    "concatenate": "Concat",
    "addcmul": "Scale",
}
"""Function of torch -> the corresponding Caffe type. ``add`` of two tensors is Eltwise."""


@dataclass
class Call:
    """A call that computes what a Caffe layer would.

    Attributes:
        name: the dotted name of the module it ran in, and the function: ``features.0 (conv2d)``.
        kind: Caffe's type.
        function, args, kwargs: for calling it again.
        inputs: the tensors it read.
        output: the tensor it returned.
        named: arguments by name, if the function is known.
        index: its position in execution order.
        sources: for each input, the indices of the last calls that it was computed from; empty for the module's inputs.
    """

    name: str
    kind: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Tensor, ...]
    output: Tensor
    named: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    sources: tuple[tuple[int, ...], ...] = ()

    def again(self, *inputs: Tensor, **changes: Any) -> Tensor:
        """The same call on other inputs, with some arguments changed."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if self.kind == "Concat":
            args[:1] = [list(inputs)]
        elif self.kind == "Eltwise":
            args[:2] = inputs
        elif self.kind == "Scale":
            args[1] = inputs[0]
        elif args:
            args[0] = inputs[0]
        else:
            kwargs["input"] = inputs[0]
        names = _PARAMETERS.get(_name(self.function), ())
        for name, value in changes.items():
            if name in names[: len(args)]:
                args[names.index(name)] = value
            else:
                kwargs[name] = value
        made = self.function(*args, **kwargs)
        return made[0] if isinstance(made, tuple) else made  # type: ignore[no-any-return]


class Recorder(TorchFunctionMode):
    """A context manager that records what a module calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.stack: list[str] = []
        self.handles: list[Any] = []
        self.made_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor -> indices of calls
        for name, child in module.named_modules():
            self.handles.append(child.register_forward_pre_hook(self._entering(name)))
            self.handles.append(child.register_forward_hook(self._leaving))

    def _entering(self, name: str) -> Callable[..., None]:
        return lambda *_: self.stack.append(name)

    def _leaving(self, *_: Any) -> None:
        self.stack.pop()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        kind = KINDS.get(name)
        if kind is None and name in ("add", "__add__", "__iadd__") and len(args) > 1 and _images(args[:2]):
            kind = "Eltwise"
        if kind is None:
            made = func(*args, **kwargs)
            given = list(_tensors((args, kwargs)))
            changed = given[:1] if name in _IN_PLACE else _tensors(made)
            self._remember(changed, self._made_of(given))
            return made
        flat: Sequence[Any]
        if args and isinstance(args[0], (list, tuple)):
            flat = args[0]
        else:
            flat = {"Eltwise": args[:2], "Scale": args[1:2]}.get(kind, args[:1])
        inputs = tuple(t.detach().clone() for t in flat if isinstance(t, Tensor))
        sources = tuple(self._made_of([t]) for t in flat if isinstance(t, Tensor))
        made = func(*args, **kwargs)
        output = made[0] if isinstance(made, tuple) else made
        named = {**dict(zip(_PARAMETERS.get(name, ()), args, strict=False)), **kwargs}
        where = self.stack[-1] if self.stack else ""
        told = f"{where} ({name})" if where else name
        index = len(self.calls)
        call = Call(told, kind, func, tuple(args), kwargs, inputs, output.detach().clone(), named, index, sources)
        self.calls.append(call)
        answer = self.answer(call, made)
        self._remember(_tensors(answer), (index,))
        return answer

    def _made_of(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        known = (self.made_of[tensor] for tensor in tensors if tensor in self.made_of)
        return tuple(dict.fromkeys(index for indices in known for index in indices))

    def _remember(self, tensors: Iterable[Tensor], indices: tuple[int, ...]) -> None:
        for tensor in tensors:
            self.made_of[tensor] = indices

    def answer(self, call: Call, made: Any) -> Any:
        """The result that the module gets for its call."""
        return made


_IN_PLACE = frozenset(("__setitem__", "copy"))
"""Functions that change their first argument."""


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _images(tensors: Sequence[Any]) -> bool:
    return all(isinstance(t, Tensor) and t.ndim > 1 for t in tensors)


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "")
    return name if name.startswith("__") else name.rstrip("_")


def record_calls(module: nn.Module, *inputs: Tensor) -> list[Call]:
    """Runs a module once, in eval(), and returns its calls.

    Raises:
        CaffePortError: it cannot run on these inputs.
    """
    return run_recorded(Recorder(module), module, *inputs)


def run_recorded(recorder: Recorder, module: nn.Module, *inputs: Tensor) -> list[Call]:
    """Runs a module once under a recorder; as :func:`record_calls`."""
    module.eval()
    try:
        with torch.no_grad(), recorder:
            module(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        last = f", after {recorder.calls[-1].name}" if recorder.calls else ""
        reason = (str(error).splitlines() or [""])[0][:160]
        raise CaffePortError(
            f"{type(module).__name__} cannot run on inputs of shape {shapes}{last}: {type(error).__name__}: {reason}"
        ) from error
    if not recorder.calls:
        raise CaffePortError(f"{type(module).__name__} ran, but calls no function that corresponds to a Caffe layer")
    return recorder.calls


def load_module(where: str, state: str | Path | None = None) -> nn.Module:
    """Creates the module named by ``path/to/file.py:Class``, without arguments. Runs that file.

    Args:
        where: the file and the class, or a function that returns the module.
        state: a state_dict (.pth, .pt, loaded with weights_only; .safetensors) to load into it.

    Raises:
        CaffePortError: the file cannot be run, does not define the name, or the state does not fit.
    """
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise CaffePortError("is not a file", file, "Name your port as path/to/file.py:Class.")
    module_name = f"_caffe_port_candidate_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look there
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
        maker = getattr(module, name, None)
        if maker is None:
            known = [n for n, v in vars(module).items() if callable(v)]
            raise CaffePortError(f"defines no class or function '{name}'.{did_you_mean(name, known)}", file)
        made = maker()
    except CaffePortError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        hint = "The class is called without arguments; you can also name a function that returns the module."
        raise CaffePortError(f"{name}() fails: {type(error).__name__}: {reason}", file, hint) from error
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(made, nn.Module):
        raise CaffePortError(f"{name}() returns a {type(made).__name__}, not a torch.nn.Module", file)
    if state is not None:
        _load_state(made, state)
    return made


def _load_state(module: nn.Module, path: str | Path) -> None:
    state = state_files.read(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CaffePortError(f"does not fit {type(module).__name__}: {' '.join(lines)[:300]}", str(path)) from None
