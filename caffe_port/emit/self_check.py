"""Runs what convert wrote and compares it with the Net that it was written from."""

from __future__ import annotations

import itertools
import mmap
import operator
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from caffe_port.emit.beside import Beside
from caffe_port.errors import CaffePortError, first_line
from caffe_port.net.net import Net
from caffe_port.net.state_dict import LARGE, Mapped
from caffe_port.net.state_dict import write_safetensors as write_safetensors
from caffe_port.net.unfilled import unfilled
from caffe_port.storage.files import let_go
from caffe_port.storage.output_folder import Result as Result

MODEL = "model.py"


WEIGHTS = "weights.safetensors"


def read_model(
    source: str,
    class_name: str,
    weights: str | Path | Mapping[str, Tensor],
    known: Mapping[str, object] = types.MappingProxyType({}),
) -> nn.Module:
    """The module of a model.py with its weights, in eval().

    Args:
        source: the text of model.py.
        weights: weights.safetensors, or its tensors, which the module then shares; loaded strictly.
        known: names that the source uses and does not define.
    """
    from safetensors.torch import load_file

    if not isinstance(weights, Mapping):
        weights = {name: value.clone() for name, value in load_file(str(weights)).items()}  # load_file maps the file
    namespace = types.ModuleType("model")
    vars(namespace).update(known)
    exec(compile(source, MODEL, "exec"), namespace.__dict__)  # noqa: S102  caffe-port wrote it
    with unfilled():
        module: nn.Module = namespace.__dict__[class_name]()
    tied: dict[int, list[str]] = {}
    for name, value in (*module.named_parameters("", True, False), *module.named_buffers("", True, False)):
        tied.setdefault(id(value), []).append(name)
    own = module.state_dict()
    state = {name: _like(own[name], value) if name in own else value for name, value in weights.items()}
    _load(module, state)
    for first, *others in tied.values():
        value = operator.attrgetter(first)(module)
        if value.is_meta:  # not in the state_dict, and so without values, as in the Net
            value = torch.empty(value.shape, dtype=value.dtype)
            others = [first, *others]
        for name in others:  # assign=True has untied them
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, value)
    return module.eval()


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The module's load_state_dict, strictly, child by child: its own looks through all names again for each child."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in module._modules}
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        child, _, rest = name.partition(".")
        (parts.setdefault(child, {}) if rest else own)[rest or name] = value
    for name, values in parts.items():
        module.get_submodule(name).load_state_dict(values, strict=True, assign=True)
    missing = [name for name in module.load_state_dict(own, strict=False, assign=True).missing_keys if "." not in name]
    if missing or (unknown := [name for name in own if not hasattr(module, name)]):
        raise RuntimeError(f"{WEIGHTS} lacks {', '.join(missing)}" if missing else f"nothing holds {unknown[0]}")


def _like(own: Tensor, value: Tensor) -> Tensor:
    """Converts a value to the precision and the memory format of its parameter."""
    last = own.dim() == 4 and not own.is_contiguous() and own.is_contiguous(memory_format=torch.channels_last)
    return value.to(own.dtype, memory_format=torch.channels_last if last else torch.preserve_format)


def example_inputs(net: Net, seed: int = 0, batch: int | None = None, uniform: bool = False) -> tuple[Tensor, ...]:
    """Random inputs in the shapes that the net was built for.

    Args:
        batch: another batch size, for all inputs whose first axis is that of the first input.
        uniform: uniform values in [0, 1), which are also valid labels and indices (0); otherwise standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    plan = net.plans[False]
    shapes = [list(plan.shapes[source]) for _, source in plan.spec.inputs]
    if batch is not None and shapes and shapes[0]:
        first = shapes[0][0]
        shapes = [[batch, *shape[1:]] if shape and shape[0] == first else shape for shape in shapes]
    draw = torch.rand if uniform else torch.randn
    return tuple(draw(shape, generator=generator) for shape in shapes)


def self_check(
    net: Net,
    source: str,
    class_name: str,
    weights: str | Path | Mapped,
    *,
    exact: bool = True,
    training: bool = False,
    per_item: bool = False,
    channels_last: bool = False,
    seed: int = 0,
) -> str:
    """Runs a written model and the Net on the same random input and compares the outputs.

    Args:
        source: the text of model.py.
        weights: weights.safetensors; if mapped, its pages are freed after each layer that has large parameters.
        exact: outputs must be equal bit by bit; otherwise within 1e-4 of the largest output.
        training: run in train(), both with the same random state, instead of eval().
        per_item: the Net takes its own batch size only, the model any: in eval(), two batches at once must give what
            they give one by one.
        channels_last: the Net, too, gets its images in that memory format; sums of other order would differ.

    Returns:
        A sentence that begins with "outputs" if they were compared; otherwise the reason why they could not be.

    Raises:
        CaffePortError: the model does not run, or its outputs differ.
    """
    where = MODEL
    try:
        module = read_model(source, class_name, weights.tensors if isinstance(weights, Mapped) else weights)
        module.train(training)
    except Exception as error:  # noqa: BLE001  any error here is caffe-port's, and no folder may appear
        raise CaffePortError(f"could not be read back: {first_line(error)}", where, REPORT_IT) from None

    def image(x: Tensor) -> Tensor:
        last = channels_last and x.dim() == 4 and x.shape[2:].numel() > 1
        return x.to(memory_format=torch.channels_last) if last else x

    was_training = net.training
    net.train(training)
    hooks = _letting_go((net, module), weights.mapping) if isinstance(weights, Mapped) else []
    state = {name: value.clone() for name, value in net.named_buffers()} if training else {}
    try:
        batches = (None,) if per_item else (2, None)
        halves = (True, False) if exact and not training and not per_item else (False,)
        wanted = reason = None
        for uniform, batch, half in itertools.product((False, True), batches, halves):
            inputs, got, failed = example_inputs(net, seed, batch, uniform), {}, None
            beside = Beside(net, tuple(map(image, inputs)), seed, half)
            try:
                with beside:
                    got = run_once(module, inputs, seed)
            except Exception as error:  # noqa: BLE001  as above, unless the Net raised it
                failed = error
            try:
                made = beside.outputs()
            except (RuntimeError, IndexError, ValueError) as error:
                reason = first_line(error)
                continue
            if not half or (not beside.missed and _equal(made, got)):
                wanted = made
                break
        if wanted is None:
            return f"the Net does not run on random inputs ({reason})"
        try:
            if failed is not None:
                raise failed
            if per_item and not training:
                again = run_once(net, map(image, turned := tuple(x.flip(-1) for x in inputs)), seed)
                both = run_once(module, tuple(map(torch.cat, zip(inputs, turned, strict=True))), seed)
                _compare({name: _joined(net, name, value, again[name]) for name, value in wanted.items()}, both, False)
        except CaffePortError:
            raise
        except Exception as error:  # noqa: BLE001  as above
            raise CaffePortError(f"does not run: {first_line(error)}", where, REPORT_IT) from None
    finally:
        for hook in hooks:
            hook.remove()
        for name, value in net.named_buffers():
            if name in state:
                value.copy_(state[name])
        net.train(was_training)
    return _compare(wanted, got, exact)


def _joined(net: Net, name: str, one: Tensor, other: Tensor) -> Tensor:
    """The output for two batches at once: their items in a row; or the detections of both, with the image of each."""
    spec = net.plans[False].spec
    types = {blob: spec.by_name[layer].type for blob, (layer, _) in spec.outputs}
    if types.get(name or next(iter(types)), "") != "DetectionOutput":
        return torch.cat([one, other])
    rows = torch.cat([one, torch.cat([other[..., :1] + 1, other[..., 1:]], -1)], 2)
    found = rows[0, 0, :, 1] >= 0  # a batch without detections has a row that says so
    return rows[:, :, found] if found.any() else rows


def _letting_go(modules: Sequence[nn.Module], mapping: mmap.mmap) -> list[RemovableHandle]:
    """Hooks that free a mapping's pages after every layer with large parameters: only one layer's are in memory."""
    return [
        module.register_forward_hook(lambda *_: let_go(mapping))
        for top in modules
        for module in top.modules()
        if any(p.nbytes >= LARGE for p in module.parameters(recurse=False))
    ]


REPORT_IT = "This is a bug in caffe-port, not in the net; please report it."


def run_once(module: nn.Module, inputs: Iterable[Tensor], seed: int) -> dict[str, Tensor]:
    """What a module makes of inputs, which stay as they are, by blob name; one output alone by an empty name."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = module(*(x.clone() for x in inputs))
    return dict(made) if isinstance(made, dict) else {"": made}


def _equal(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> bool:
    try:
        return bool(_compare(wanted, got, exact=True))
    except CaffePortError:
        return False


def _compare(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], exact: bool) -> str:
    if list(wanted) != list(got):
        raise CaffePortError(f"returns outputs {list(got)}, the Net returns {list(wanted)}", MODEL, REPORT_IT)
    worst = 0.0
    for name, value in wanted.items():
        other = got[name]
        what = f"output '{name}'" if name else "the output"
        if value.shape != other.shape or value.dtype != other.dtype:
            raise CaffePortError(f"{what} is {tuple(other.shape)}, the Net's {tuple(value.shape)}", MODEL, REPORT_IT)
        greatest = float(value.nan_to_num().abs().max()) if value.numel() else 0.0
        difference = float((value - other).nan_to_num().abs().max()) if value.numel() else 0.0
        worst = max(worst, difference)
        tolerance = 0.0 if exact else 1e-4 * max(greatest, 1e-3)
        if not torch.allclose(value, other, rtol=0, atol=tolerance, equal_nan=True):
            raise CaffePortError(f"{what} differs from the Net's by {difference:.3g}", MODEL, REPORT_IT)
    return "outputs are bit-equal to the Net's" if exact else f"outputs differ from the Net's by {worst:.3g} at most"
