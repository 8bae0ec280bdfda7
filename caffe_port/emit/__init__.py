"""convert: a Net as a folder of ordinary PyTorch, model.py, weights.safetensors and port.json, checked beforehand.

Everything is built in a folder beside the wanted one and moved in when all is well, so that a failure leaves nothing.
"""

from __future__ import annotations

import importlib.metadata
import mmap
import operator
import types
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import caffe_port
from caffe_port.api import Ported
from caffe_port.emit import blobs, export
from caffe_port.emit.model_source import Model, model
from caffe_port.errors import CaffePortError
from caffe_port.net.net import Net
from caffe_port.net.state_dict import LARGE, Mapped
from caffe_port.net.state_dict import write_safetensors as write_safetensors
from caffe_port.storage import output_folder
from caffe_port.storage.files import MappedFile, let_go
from caffe_port.storage.output_folder import Result as Result

MODEL, WEIGHTS = "model.py", "weights.safetensors"
FORMATS: dict[str, tuple[str, ...]] = {
    "torch": (MODEL, WEIGHTS),
    "onnx": (export.ONNX,),
    "pt2": (export.PT2,),
    "safetensors": (blobs.BLOBS,),
}
"""What a format writes, beside port.json."""


def convert(
    ported: Ported,
    folder: str | Path,
    *,
    force: bool = False,
    fold: bool = False,
    channels_last: bool = False,
    formats: Sequence[str] = ("torch",),
    seed: int = 0,
) -> Result:
    """Writes a net as PyTorch source and weights, and makes sure that they give what the Net gives.

    Args:
        ported: from :func:`caffe_port.port`.
        folder: is made; an existing one must be empty.
        force: replaces the files of an earlier run in ``folder``; other files stay.
        fold: for inference, puts BatchNorm and Scale into the weights of the Convolution or InnerProduct before them;
            outputs then agree to rounding, not bit by bit.
        channels_last: convolutions compute in PyTorch's channels-last memory format; as above, to rounding.
        formats: of FORMATS: "torch" (model.py, weights.safetensors), "onnx" (model.onnx), "pt2" (model.pt2),
            "safetensors" (blobs.safetensors; for that alone see :func:`caffe_port.emit.blobs.convert`).
        seed: of the input that the check uses.

    Raises:
        CaffePortError: the folder is not empty or cannot be written; a layer has no source that can stand alone; the
            written model does not give what the Net gives. Nothing is left behind.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        what = f"format '{unknown[0]}' is not known" if unknown else "no format is given"
        raise CaffePortError(what, "", f"Formats: {', '.join(FORMATS)}")
    if "safetensors" in formats and ported.weights is None:
        raise CaffePortError("format 'safetensors' is the blobs of a weights file, and none was given")
    folder = Path(folder)
    output_folder.check(folder, force)
    if ported.shared and fold:  # which computes with the weights
        _adopt(ported.net, {}, {})
    source = model(ported.net, fold, channels_last)
    read = dict.fromkeys([ported.definition.path, *([ported.weights.path] if ported.weights else [])])
    mapping = ported.weights.mapping if ported.weights and ported.shared else None
    with output_folder.beside(folder) as temporary, ThreadPoolExecutor(2) as pool:  # checksums are made beside the rest
        origins = [pool.submit(output_folder.fingerprint, Path(path)) for path in read if Path(path).is_file()]
        (temporary / MODEL).write_text(source.source, encoding="utf-8")
        write_safetensors(temporary / WEIGHTS, source.state, mapping)
        digest = pool.submit(output_folder.fingerprint, temporary / WEIGHTS)
        stored = _read_back(temporary / WEIGHTS, source.state, mapping)
        if ported.shared:
            _adopt(ported.net, source.state, stored.tensors)
        check = self_check(
            ported.net,
            source.source,
            source.class_name,
            stored if ported.shared else temporary / WEIGHTS,
            exact=not (fold or channels_last),
            seed=seed,
        )
        files = [name for key in FORMATS if key in formats for name in FORMATS[key]]
        if "onnx" in formats or "pt2" in formats:
            module = read_model(source.source, source.class_name, temporary / WEIGHTS)
            example = _fitting_inputs(ported.net, seed)
            for name, write, path in (("onnx", export.onnx, export.ONNX), ("pt2", export.pt2, export.PT2)):
                if name in formats:
                    check += "; " + write(module, example, ported.net.plans[False], temporary / path)
        if "safetensors" in formats:
            assert ported.weights is not None
            blobs.write(temporary / blobs.BLOBS, ported.weights, ported.definition.net)
        unchecked = () if check.startswith("outputs") else (f"the written model could not be checked: {check}",)
        notes = (*ported.notes, *source.notes, *unchecked)
        report = _report(ported, source, check, notes)
        report["from"] = [origin.result() for origin in origins]
        made = {
            name: digest.result() if name == WEIGHTS else output_folder.fingerprint(temporary / name) for name in files
        }
        report["files"] = list(made.values())
        output_folder.write_report(temporary, report)
        files.append(output_folder.REPORT)
        output_folder.move_in(temporary, folder, files)
    return Result(folder, tuple(files), source.class_name, report["layers"], report["parameters"], check, notes)


# -- the check ----------------------------------------------------------------------------------------------------


def read_model(source: str, class_name: str, weights: str | Path | Mapping[str, Tensor]) -> nn.Module:
    """The module of a model.py, with its weights, in eval().

    Args:
        source: the text of model.py.
        weights: weights.safetensors, or what it holds, which the module then shares; loaded strictly.
    """
    from safetensors.torch import load_file

    if not isinstance(weights, Mapping):
        weights = {name: value.clone() for name, value in load_file(str(weights)).items()}  # it maps the file
    namespace = types.ModuleType("model")
    exec(compile(source, MODEL, "exec"), namespace.__dict__)  # noqa: S102  we wrote it
    with torch.device("meta"):  # spares drawing parameters that are replaced at once
        module: nn.Module = namespace.__dict__[class_name]()
    tied: dict[int, list[str]] = {}
    for name, value in (*module.named_parameters("", True, False), *module.named_buffers("", True, False)):
        tied.setdefault(id(value), []).append(name)
    own = module.state_dict()
    state = {name: _like(own[name], value) if name in own else value for name, value in weights.items()}
    module.load_state_dict(state, strict=True, assign=True)
    for first, *others in tied.values():
        value = operator.attrgetter(first)(module)
        if value.is_meta:  # in no state_dict, and so without numbers, as in the Net
            value = torch.empty(value.shape, dtype=value.dtype)
            others = [first, *others]
        for name in others:  # which assigning has parted
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, value)
    return module.eval()


def _like(own: Tensor, value: Tensor) -> Tensor:
    """A value in the precision and the memory format of the parameter that it is for."""
    last = own.dim() == 4 and not own.is_contiguous() and own.is_contiguous(memory_format=torch.channels_last)
    return value.to(own.dtype, memory_format=torch.channels_last if last else torch.preserve_format)


def example_inputs(net: Net, seed: int = 0, batch: int | None = None, uniform: bool = False) -> tuple[Tensor, ...]:
    """Random inputs in the shapes that the net was built for.

    Args:
        batch: another first axis, for all inputs that have the first one's.
        uniform: numbers of [0, 1), which serve as labels and indices too (0); else of the normal distribution.
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
    seed: int = 0,
) -> str:
    """Runs a written model beside the Net, on a random input.

    Args:
        source: the text of model.py.
        weights: weights.safetensors; mapped, its pages are let go of after each layer that has large parameters.
        exact: outputs must be equal bit by bit; else within 1e-4 of the greatest output.
        training: in train(), both with the same random state, instead of eval().

    Returns:
        A sentence that begins with "outputs" where they were compared; otherwise why they could not be.

    Raises:
        CaffePortError: the model does not run or does not give the same.
    """
    where = MODEL
    try:
        module = read_model(source, class_name, weights.tensors if isinstance(weights, Mapped) else weights)
        module.train(training)
    except Exception as error:  # noqa: BLE001  whatever it is, it is our doing and no folder may appear
        raise CaffePortError(f"could not be read back: {_first_line(error)}", where, _REPORT_IT) from None
    was_training = net.training
    net.train(training)
    hooks = _letting_go((net, module), weights.mapping) if isinstance(weights, Mapped) else []
    state = {name: value.clone() for name, value in net.named_buffers()} if training else {}
    try:
        tried = [(seed, batch, uniform) for uniform in (False, True) for batch in (2, None)]
        wanted = reason = None
        for inputs in (example_inputs(net, *how) for how in tried):
            try:
                wanted = _run(net, inputs, seed)
                break
            except (RuntimeError, IndexError, ValueError) as error:
                reason = _first_line(error)
        if wanted is None:
            return f"the Net does not run on random inputs ({reason})"
        try:
            got = _run(module, inputs, seed)
        except Exception as error:  # noqa: BLE001  as above
            raise CaffePortError(f"does not run: {_first_line(error)}", where, _REPORT_IT) from None
    finally:
        for hook in hooks:
            hook.remove()
        for name, value in net.named_buffers():
            if name in state:
                value.copy_(state[name])
        net.train(was_training)
    return _compare(wanted, got, exact)


def _read_back(weights: Path, state: Mapping[str, Tensor], source: MappedFile | None) -> Mapped:
    """What was written, bit-equal to ``state``: a random input does not tell a weight that is off by a little."""
    try:
        stored = Mapped(weights)
        wrong = stored.difference(state, source)
    except Exception as error:  # noqa: BLE001  whatever it is, it is our doing and no folder may appear
        raise CaffePortError(f"could not be read back: {_first_line(error)}", WEIGHTS, _REPORT_IT) from None
    if wrong:
        raise CaffePortError(f"does not hold '{wrong}' as it was written", WEIGHTS, _REPORT_IT)
    return stored


def _adopt(net: Net, state: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Moves a Net's large parameters from the caffemodel's pages to the same numbers in weights.safetensors.

    There they are aligned, as computing with them asks; and the two nets of the check share one set of pages, so that
    their products agree bit by bit (a BLAS may sum in another order at another alignment).
    """
    written: dict[tuple[object, ...], str] = {}
    for name, value in state.items():
        written.setdefault((value.data_ptr(), value.shape, value.dtype), name)
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.nbytes < LARGE:
            continue
        found = written.get((tensor.data_ptr(), tensor.shape, tensor.dtype))
        if found is not None and isinstance(tensor, nn.Parameter):
            tensor.data = stored[found]
        else:  # what model.py has not, or in another form; and buffers, which a forward pass may write to
            copy = torch.empty_like(tensor, requires_grad=False)
            np.copyto(copy.numpy(), tensor.detach().numpy())
            tensor.data = copy


def _letting_go(modules: Sequence[nn.Module], mapping: mmap.mmap) -> list[RemovableHandle]:
    """Hooks that let go of a mapping behind every layer with large parameters: one layer's are in memory at a time."""
    return [
        module.register_forward_hook(lambda *_: let_go(mapping))
        for top in modules
        for module in top.modules()
        if any(p.nbytes >= LARGE for p in module.parameters(recurse=False))
    ]


_REPORT_IT = "This is a fault of caffe-port, not of the net; please report it."


def _fitting_inputs(net: Net, seed: int) -> tuple[Tensor, ...]:
    """Example inputs in the net's own shapes that it runs on."""
    try:
        inputs = example_inputs(net, seed)
        _run(net, inputs, seed)
    except (RuntimeError, IndexError, ValueError):
        inputs = example_inputs(net, seed, uniform=True)
    return inputs


def _run(module: nn.Module, inputs: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = module(*(x.clone() for x in inputs))
    return dict(made) if isinstance(made, dict) else {"": made}


def _compare(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], exact: bool) -> str:
    if list(wanted) != list(got):
        raise CaffePortError(f"gives outputs {list(got)}, the Net {list(wanted)}", MODEL, _REPORT_IT)
    worst = 0.0
    for name, value in wanted.items():
        other = got[name]
        what = f"output '{name}'" if name else "the output"
        if value.shape != other.shape or value.dtype != other.dtype:
            raise CaffePortError(f"{what} is {tuple(other.shape)}, the Net's {tuple(value.shape)}", MODEL, _REPORT_IT)
        greatest = float(value.nan_to_num().abs().max()) if value.numel() else 0.0
        difference = float((value - other).nan_to_num().abs().max()) if value.numel() else 0.0
        worst = max(worst, difference)
        tolerance = 0.0 if exact else 1e-4 * max(greatest, 1e-3)
        if not torch.allclose(value, other, rtol=0, atol=tolerance, equal_nan=True):
            raise CaffePortError(f"{what} differs from the Net's by {difference:.3g}", MODEL, _REPORT_IT)
    return "outputs are bit-equal to the Net's" if exact else f"outputs differ from the Net's by {worst:.3g} at most"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


# -- the files ----------------------------------------------------------------------------------------------------


def _report(ported: Ported, source: Model, check: str, notes: Sequence[str]) -> dict[str, Any]:
    plan = ported.net.plans[False]
    loaded = ported.report
    return {
        "net": plan.spec.name,
        "class": source.class_name,
        "inputs": {blob: list(plan.shapes[s]) for blob, s in plan.spec.inputs},
        "outputs": {blob: list(plan.shapes[s]) for blob, s in plan.spec.outputs},
        "arguments": source.inputs,
        "layers": len(plan.steps),
        "parameters": sum(p.numel() for p in ported.net.parameters()),
        "attributes": source.attributes,
        "load": None
        if loaded is None
        else {"loaded": list(loaded.loaded), "initialised": list(loaded.initialised), "unused": list(loaded.unused)},
        "notes": list(notes),
        "check": check,
        "from": [],
        "files": [],
        "versions": {"caffe-port": caffe_port.__version__, "torch": importlib.metadata.version("torch")},
        "time": output_folder.now(),
    }
