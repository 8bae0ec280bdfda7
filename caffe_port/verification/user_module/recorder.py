"""Records what a module computes: every function that it calls, in execution order, and every tensor it makes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.net import state_dict as state_files
from caffe_port.spec import Producer
from caffe_port.typing import Array

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_PARAMETERS = {
    "conv1d": _CONV,
    "conv2d": _CONV,
    "conv3d": _CONV,
    "conv_transpose1d": _CONV_TRANSPOSE,
    "conv_transpose2d": _CONV_TRANSPOSE,
    "conv_transpose3d": _CONV_TRANSPOSE,
    "linear": ("input", "weight", "bias"),
    "matmul": ("input", "weight"),
    "mm": ("input", "weight"),
    "__matmul__": ("input", "weight"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "prelu": ("input", "weight"),
    "dropout": ("input", "p", "training"),
    "addcmul": ("bias", "input", "weight"),
}
KINDS = {
    "conv1d": "Convolution",
    "conv2d": "Convolution",
    "conv3d": "Convolution3D",
    "conv_transpose1d": "Deconvolution",
    "conv_transpose2d": "Deconvolution",
    "conv_transpose3d": "Deconvolution3D",
    "linear": "InnerProduct",
    "batch_norm": "BatchNorm",
    "max_pool2d": "Pooling",
    "max_pool2d_with_indices": "Pooling",
    "avg_pool2d": "Pooling",
    "lp_pool2d": "Pooling",
    "adaptive_avg_pool2d": "Pooling",
    "adaptive_max_pool2d": "Pooling",
    "max_pool3d": "Pooling3D",
    "max_pool3d_with_indices": "Pooling3D",
    "avg_pool3d": "Pooling3D",
    "adaptive_avg_pool3d": "Pooling3D",
    "adaptive_max_pool3d": "Pooling3D",
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
    "lstm": "LSTM",
    "rnn_tanh": "RNN",
}
"""Function of torch -> the corresponding Caffe type."""
_ATEN_BATCH_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
"""The arguments of ``torch.batch_norm``, which has another order than ``torch.nn.functional.batch_norm``."""
HINTS = {
    "matmul": ("InnerProduct",),
    "__matmul__": ("InnerProduct",),
    "mm": ("InnerProduct",),
    "addmm": ("InnerProduct",),
    "add": ("Eltwise", "Power", "Bias"),
    "sub": ("Eltwise", "Power", "Bias"),
    "mul": ("Eltwise", "Power", "Scale"),
    "div": ("Eltwise", "Power", "Scale"),
    "maximum": ("Eltwise", "ReLU"),
    "minimum": ("Eltwise",),
    "max": ("Eltwise",),
    "pow": ("Power",),
    "neg": ("Power",),
    "square": ("Power",),
    "exp": ("Exp",),
    "log": ("Log",),
    "abs": ("AbsVal",),
    "clamp": ("ReLU", "ReLU6", "Clip"),
    "clamp_min": ("ReLU",),
    "clip": ("ReLU", "ReLU6", "Clip"),
    "threshold": ("ReLU", "Threshold"),
    "where": ("ReLU", "PReLU"),
    "permute": ("Permute",),
    "transpose": ("Permute",),
    "movedim": ("Permute",),
    "swapaxes": ("Permute",),
    "__getitem__": ("Crop", "Slice"),
    "narrow": ("Crop", "Slice"),
    "index_select": ("Slice",),
    "chunk": ("Slice",),
    "split": ("Slice",),
    "pad": ("Crop",),
    "stack": ("Concat",),
    "mean": ("Pooling", "Reduction"),
    "sum": ("Reduction", "Eltwise"),
    "amax": ("Pooling",),
    "interpolate": ("Deconvolution", "Interp", "Upsample"),
    "upsample": ("Deconvolution", "Interp", "Upsample"),
    "pixel_shuffle": ("PixelShuffle", "Deconvolution"),
    "normalize": ("Normalize",),
    "layer_norm": ("MVN",),
    "instance_norm": ("MVN",),
    "flatten": ("Flatten", "Reshape"),
    "reshape": ("Reshape", "Flatten"),
    "view": ("Reshape", "Flatten"),
}
"""Function of torch -> Caffe types that it may well compute, or the last step of."""


Ask = Callable[[nn.Module, Sequence[Tensor]], Any]
"""Calls a module with the net's inputs, in the net's order."""


@dataclass(eq=False)
class Value:
    """A tensor at one moment of a run.

    Attributes:
        array: what the module went on with.
        call: what made it; None for an input of the module, a parameter or a constant.
        place: which output of the call, or which input of the module; negative for a tensor that no recorded call made.
        data: whether it was computed from the module's inputs.
        parameters: the parameters that it was computed from, if from nothing else.
        raw: what the call made, before it was replaced by a reference's top.
        carries: the reference's tops that it is equal to.
        made: those that it was equal to before it was replaced.
    """

    array: Tensor
    call: Call | None = None
    place: int = 0
    data: bool = True
    parameters: tuple[str, ...] = ()
    raw: Tensor | None = None
    carries: frozenset[Producer] = frozenset()
    made: frozenset[Producer] = frozenset()

    @property
    def key(self) -> tuple[int, int]:
        """Identifies it in every run of the module."""
        return (-1 if self.call is None else self.call.index, self.place)

    @property
    def own(self) -> Tensor:
        """What the call itself made."""
        return self.array if self.raw is None else self.raw


@dataclass(eq=False)
class Call:
    """A call of a function of torch.

    Attributes:
        name: the dotted name of the module it ran in, and the function: ``features.0 (conv2d)``.
        function, args, kwargs: for calling it again.
        kind: Caffe's type, if the function corresponds to one; else empty.
        named: arguments by name, if the function is known.
        index: its position in execution order.
        inputs: the tensors it read that were computed from the module's inputs.
        outputs: the tensors it made.
        changed: other tensors that it changed, by writing into a view of them.
        in_place: whether it overwrote its first argument.
        uses: the parameters that it reads, or that something it reads was computed from.
        view: whether its output shares the memory of an input.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    kind: str = ""
    named: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    changed: list[Value] = field(default_factory=list)
    in_place: bool = False
    view: bool = False
    is_data: tuple[bool, ...] = ()
    uses: tuple[str, ...] = ()
    leaves: dict[str, str] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """The function's name, without underscores and the like."""
        return _word(_name(self.function))

    @property
    def hints(self) -> tuple[str, ...]:
        """Caffe's types that it may stand for, the first most likely."""
        return (self.kind,) if self.kind else HINTS.get(self.word, ())

    @property
    def weight(self) -> Tensor | None:
        """Its first parameter."""
        weight = self.named.get("weight")
        return weight if isinstance(weight, Tensor) else None

    def again(self, *inputs: Tensor, **changes: Any) -> Tensor:
        """The same call on other inputs, with some arguments changed."""
        args, kwargs = _replaced(self.args, self.kwargs, self.is_data, [x.clone() for x in inputs])
        names = _arguments(self.function)
        for name, value in changes.items():
            if name in names[: len(args)]:
                args[names.index(name)] = value
            else:
                kwargs[name] = value
        made = self.function(*args, **kwargs)
        found = args[0] if made is None else made
        return next(_tensors(found))


def owner_of(module: nn.Module, call: Call) -> nn.Module | None:
    """The submodule that a call belongs to; None if a function made it."""
    path, found, _ = call.name.rpartition(" (")
    try:
        return module.get_submodule(path) if found else None
    except AttributeError:
        return None


def _replaced(
    args: Sequence[Any], kwargs: dict[str, Any], which: Sequence[bool], by: Sequence[Tensor | None]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with some tensors replaced: the n-th of those that ``which`` marks by the n-th of ``by``."""
    marks, values = iter(which), iter(by)

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            other = next(values, None) if next(marks, False) else None
            return value if other is None else other
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            parts = [visit(part) for part in value]
            return parts if isinstance(value, list) else tuple(parts)
        return value

    return [visit(a) for a in args], {k: visit(v) for k, v in kwargs.items()}


class Recorder(TorchFunctionMode):
    """A context manager that records what a module calls."""

    def __init__(self, module: nn.Module, constants: Sequence[Tensor] | None = None) -> None:
        """``constants``: the tensors that no recorded call made in an earlier run; None in the first. Those of this run
        that are not among them were computed out of sight: by TorchScript, NumPy, an extension."""
        super().__init__()
        self.constants = constants
        self.strangers: list[tuple[Tensor, Value]] = []
        self.calls: list[Call] = []
        self.inputs: list[Value] = []
        self.returned: list[Value] = []
        self.names: dict[str, Value] = {}
        self.error = ""
        self.stack: list[str] = []
        self.handles: list[Any] = []
        self.known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor -> (Value, version)
        self.changer: Call | None = None
        for name, child in module.named_modules():
            if isinstance(child, torch.jit.ScriptModule):
                continue  # takes no hooks
            self.handles.append(child.register_forward_pre_hook(self._entering(name)))
            self.handles.append(child.register_forward_hook(self._leaving))
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self.known[tensor] = (Value(tensor, data=False, parameters=(name,)), None)

    def _entering(self, name: str) -> Callable[..., None]:
        return lambda *_: self.stack.append(name)

    def _leaving(self, *_: Any) -> None:
        self.stack.pop()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def begin(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs as the module gets them: copies, for it may write into them."""
        given = []
        for place, tensor in enumerate(inputs):
            tensor = tensor.clone()
            value = Value(tensor.clone(), place=place)
            tensor = self.enter(value, tensor)
            self.inputs.append(value)
            self.known[tensor] = (value, _version(tensor))
            given.append(tensor)
        return given

    def finish(self, returned: Sequence[Tensor]) -> None:
        """Takes the tensors that the module returns."""
        self.returned = [self.value(tensor) for tensor in returned]
        for value in self.returned:
            value.data |= value.place < 0  # a tensor that no recorded call made is not a constant if it is returned

    def value(self, tensor: Tensor) -> Value:
        """What is known of a tensor; a new Value if it was changed through a view of it."""
        known: tuple[Value, int | None] | None = self.known.get(tensor)  # type: ignore[no-untyped-call]
        found, version = (None, None) if known is None else known
        if found is None:
            met = self.constants is not None and not any(tensor is constant for constant in self.constants)
            found = self.meet(Value(tensor.detach(), place=-1 - len(self.strangers), data=met))
            self.strangers.append((tensor, found))
            self.known[tensor] = (found, None)
            return found
        if self.changer is not None and _is_changed(tensor, found, version):
            place = len(self.changer.outputs) + len(self.changer.changed)
            found = self.change(Value(tensor.detach().clone(), self.changer, place, found.data))
            self.changer.changed.append(found)
            self.known[tensor] = (found, _version(tensor))
        return found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        given = list(_tensors((tuple(args), kwargs)))
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, given)):
            return func(*args, **kwargs)  # within torch.func.vmap and the like, tensors have no numbers
        values = [self.value(tensor) for tensor in given]
        call = self._call(name, func, tuple(args), kwargs, values)
        args, kwargs = self.before(call)
        made = func(*args, **kwargs)
        changed = name == "__setitem__"
        outputs = [args[0]] if changed else list(_tensors(made))
        if not outputs:
            return made
        data = any(value.data for value in values)
        call.in_place = changed or any(output is tensor for output in outputs for tensor in given)
        if not data:
            leaves = tuple(dict.fromkeys(n for value in values for n in value.parameters))
            for output in outputs:
                if not any(output is tensor for tensor in given):
                    self.known[output] = (Value(output, data=False, parameters=leaves), None)
            return made
        call.view = not call.in_place and any(_same_memory(outputs[0], tensor) for tensor in given)
        call.index = len(self.calls)
        self.calls.append(call)
        if call.in_place:
            self.changer = call
        replaced: dict[int, Tensor] = {}
        kept = []
        for place, output in enumerate(outputs):
            value = Value(output.detach().clone(), call, place)
            other = self.after(call, value, output)
            replaced[id(output)] = other
            self.known[other] = (value, _version(other))
            kept.append(value)
        call.outputs = tuple(kept)
        return made if changed else _exchanged(made, replaced)

    def _call(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], values: list[Value]
    ) -> Call:
        named = {**dict(zip(_arguments(func), args, strict=False)), **kwargs}
        where = self.stack[-1] if self.stack else ""
        told = f"{where} ({name.rstrip('_') if not name.startswith('__') else name})" if where else name
        call = Call(told, func, args, kwargs, KINDS.get(_word(name), ""), named)
        call.inputs = tuple(value for value in values if value.data)
        call.is_data = tuple(value.data for value in values)
        call.uses = tuple(dict.fromkeys(name for value in values if not value.data for name in value.parameters))
        if call.word == "add" and len(call.inputs) == 2 and all(v.array.ndim > 1 for v in call.inputs):
            call.kind = "Eltwise"
        for key, argument in named.items():
            if isinstance(argument, Tensor):
                value = self.value(argument)
                if not value.data and len(value.parameters) == 1:
                    call.leaves[key] = value.parameters[0]
        call.leaves |= {
            f"{n}": value.parameters[0]
            for n, value in enumerate(values)
            if not value.data and len(value.parameters) == 1 and value.parameters[0] not in call.leaves.values()
        }
        return call

    def enter(self, value: Value, tensor: Tensor) -> Tensor:
        """What the module gets for one of its inputs."""
        return tensor

    def meet(self, value: Value) -> Value:
        """What is said of a tensor that no recorded call made: a constant, or the result of NumPy."""
        return value

    def change(self, value: Value) -> Value:
        """What is said of a tensor that was changed through a view of it."""
        return value

    def before(self, call: Call) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments that a call gets; its inputs and named arguments are known, its outputs are not."""
        return call.args, call.kwargs

    def after(self, call: Call, value: Value, tensor: Tensor) -> Tensor:
        """The tensor that the module gets for an output of its call."""
        return tensor


def _exchanged(made: Any, by: dict[int, Tensor]) -> Any:
    if isinstance(made, Tensor):
        return by.get(id(made), made)
    if isinstance(made, tuple) and hasattr(made, "_fields"):
        return type(made)(*(_exchanged(part, by) for part in made))
    if isinstance(made, (list, tuple)) and not isinstance(made, torch.Size):
        parts = [_exchanged(part, by) for part in made]
        if all(new is old for new, old in zip(parts, made, strict=True)):
            return made
        return parts if isinstance(made, list) else tuple(parts)
    return made


def _version(tensor: Tensor) -> int | None:
    """How often it was changed in place; None for a tensor of inference_mode, which does not count that."""
    return None if tensor.is_inference() else tensor._version


def _is_changed(tensor: Tensor, value: Value, version: int | None) -> bool:
    """Whether a tensor was changed in place, through a view of it, since its value was taken."""
    if version is not None:
        return _version(tensor) != version
    if not tensor.is_inference() or value.call is None or tensor.shape != value.array.shape:
        return False
    return not torch.equal(tensor.nan_to_num(), value.array.nan_to_num())


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.numel() > 0 and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, torch.Size):
        return
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's first arguments, if it is known."""
    name = _name(function)
    if name == "batch_norm" and function is not torch.nn.functional.batch_norm:
        return _ATEN_BATCH_NORM
    return _PARAMETERS.get(name, ())


def returned_tensors(returned: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors, arrays and lists of numbers in what a module returns, in order: of tuples, mappings, dataclasses,
    generators and objects with attributes."""
    if isinstance(returned, Tensor):
        yield returned
    elif isinstance(returned, np.ndarray):
        if returned.dtype.kind in "fiub":
            yield torch.from_numpy(np.array(returned))
    elif returned is None or isinstance(returned, (str, bytes, int, float, torch.Size, nn.Module)) or depth > 8:
        return
    elif isinstance(returned, Mapping):
        yield from returned_tensors(list(returned.values()), depth + 1)
    elif isinstance(returned, (list, tuple)) and (numbers := _numbers(returned)) is not None:
        yield torch.from_numpy(numbers)
    elif isinstance(returned, Iterable):
        for part in returned:
            yield from returned_tensors(part, depth + 1)
    else:
        slots = [name for kind in type(returned).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = {**{name: getattr(returned, name, None) for name in slots}, **getattr(returned, "__dict__", {})}
        yield from returned_tensors(list(parts.values()), depth + 1)


def _by_name(returned: Any) -> dict[str, Any]:
    """What a module returns under names: in a mapping, a named tuple or a dataclass."""
    if isinstance(returned, tuple) and hasattr(returned, "_asdict"):
        returned = returned._asdict()
    elif dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        returned = vars(returned) if hasattr(returned, "__dict__") else {}
    return {str(name): part for name, part in returned.items()} if isinstance(returned, Mapping) else {}


def _numbers(values: Sequence[Any]) -> Array | None:
    """Nested lists of floats as an array; None if they are something else."""
    first: Any = values
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if not isinstance(first, float):
        return None
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        return None


def _name(function: Callable[..., Any]) -> str:
    """``conv2d``, also for ``aten.conv2d.default``, which exported programs call."""
    name = str(getattr(function, "__name__", "")).partition(".")[0]
    return name if name.startswith("__") else name.rstrip("_")


def _word(name: str) -> str:
    """``add`` for ``__iadd__``, ``__radd__`` and ``add_``."""
    bare = name.strip("_")
    if name.startswith("__") and bare not in ("getitem", "setitem", "get", "matmul"):
        bare = bare.removeprefix("r") if bare[:1] == "r" and bare[1:] in HINTS else bare
        bare = bare.removeprefix("i") if bare[:1] == "i" and bare[1:] in HINTS else bare
        return {"truediv": "div", "rsub": "sub", "rtruediv": "div", "itruediv": "div", "rpow": "pow"}.get(bare, bare)
    return {"true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub", "rsub": "sub"}.get(name, name)


def record_calls(module: nn.Module, *inputs: Tensor) -> list[Call]:
    """Runs a module once, in eval(), and returns its calls.

    Raises:
        CaffePortError: it cannot run on these inputs.
    """
    recorder = run_recorded(Recorder(module), module, *inputs)
    if recorder.error:
        raise CaffePortError(recorder.error)
    return recorder.calls


def run_recorded(recorder: Recorder, module: nn.Module, *inputs: Tensor, ask: Ask | None = None) -> Recorder:
    """Runs a module once, in eval(), under a recorder, which then holds what ran and, if it failed, the error.

    Args:
        ask: calls the module with its inputs; None: one after the other.

    Raises:
        CaffePortError: it calls nothing that a Caffe layer would compute.
    """
    with contextlib.suppress(NotImplementedError):  # an exported program has no eval(): its mode is fixed
        module.eval()
    given = recorder.begin(inputs)
    try:
        with torch.no_grad(), _uncompiled(), contextlib.redirect_stdout(sys.stderr), recorder:
            made = module(*given) if ask is None else ask(module, given)
            returned = list(returned_tensors(made))
        recorder.finish(returned)
        recorder.names = {
            name: recorder.value(part) for name, part in _by_name(made).items() if isinstance(part, Tensor)
        }
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a user's code raises
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        ran = [call for call in recorder.calls if call.kind]
        last = f", after {ran[-1].name}" if ran else ""
        reason = (str(error).splitlines() or [""])[0][:160]
        words = (
            f"{type(module).__name__} cannot run on inputs of shape {shapes}{last}: {type(error).__name__}: {reason}"
        )
        recorder.error = words
        recorder.stack.clear()
    unsure = recorder.constants is None and recorder.strangers  # they may have been computed from the inputs
    if not recorder.error and not recorder.calls and not unsure:
        hint = "What torch.func transforms, or an extension computes, cannot be seen."
        if any(isinstance(child, torch.jit.ScriptModule) for child in module.modules()):
            hint = "The calls of a TorchScript module cannot be seen: name the class that it was made from."
        raise CaffePortError(
            f"{type(module).__name__} ran, but calls no function that corresponds to a Caffe layer", hint=hint
        )
    return recorder


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Runs what torch.compile made as it was written."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def _unscripted() -> Iterator[None]:
    """Makes torch.jit.script and torch.jit.trace return what they are given, as PYTORCH_JIT=0 does: the calls of
    TorchScript cannot be seen."""
    switch = torch.jit._state
    was = bool(switch._enabled)
    switch.disable()
    try:
        yield
    finally:
        if was:
            switch.enable()


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
        with _unscripted(), contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
        maker = getattr(module, name, None)
        if maker is None:
            known = [n for n, v in vars(module).items() if callable(v)]
            raise CaffePortError(f"defines no class or function '{name}'.{did_you_mean(name, known)}", file)
        with _unscripted(), contextlib.redirect_stdout(sys.stderr):
            made = maker()
    except CaffePortError:
        raise
    except (Exception, SystemExit) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        hint = "The class is called without arguments; you can also name a function that returns the module."
        raise CaffePortError(f"{name}() fails: {type(error).__name__}: {reason}", file, hint) from error
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(made, nn.Module):
        raise CaffePortError(f"{name}() returns a {type(made).__name__}, not a torch.nn.Module", file)
    if state is not None:
        load_state(made, state)
    return made


def load_state(module: nn.Module, path: str | Path) -> None:
    """Loads a state_dict (.pth, .pt, with weights_only; .safetensors).

    Raises:
        CaffePortError: it cannot be read, or does not fit.
    """
    state = state_files.read(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CaffePortError(f"does not fit {type(module).__name__}: {' '.join(lines)[:300]}", str(path)) from None
