"""convert: writes a Net as a folder of ordinary PyTorch (model.py, weights.safetensors, port.json) and checks it.

Everything is built in a temporary folder next to the target and moved there at the end, so a failure leaves nothing.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.api import Ported
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.definition.definition import Definition
from caffe_port.emit import blobs, export, operators, preprocess_source
from caffe_port.emit.model_source import MARK, Model, model
from caffe_port.emit.self_check import MODEL, REPORT_IT, WEIGHTS, example_inputs, read_model, run_once, self_check
from caffe_port.errors import CaffePortError, first_line, suggests_keywords
from caffe_port.formats.caffemodel import Weights
from caffe_port.net.layout import prefers_channels_last
from caffe_port.net.net import Net
from caffe_port.net.state_dict import LARGE, Mapped, stored
from caffe_port.net.state_dict import write_safetensors as write_safetensors
from caffe_port.storage import output_folder, safetensors
from caffe_port.storage.output_folder import Result as Result
from caffe_port.version import __version__

FORMATS: dict[str, tuple[str, ...]] = {
    "torch": (MODEL, WEIGHTS),
    "onnx": (export.ONNX,),
    "pt2": (export.PT2,),
    "safetensors": (blobs.BLOBS,),
}
"""The files that a format writes, in addition to port.json."""


@suggests_keywords
def convert(
    ported: Ported,
    folder: str | Path,
    *,
    force: bool = False,
    fold: bool = False,
    channels_last: bool | None = None,
    formats: Sequence[str] = ("torch",),
    dynamic: str = "size",
    plain_pooling: bool = False,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
) -> Result:
    """Writes a net as PyTorch source and weights, and checks that they compute what the Net computes.

    Args:
        ported: the result of :func:`caffe_port.port`.
        folder: created if it does not exist; must be empty otherwise.
        force: replace the files of an earlier run in ``folder``; other files are kept.
        fold: for inference, fold BatchNorm and Scale into the weights of the Convolution or InnerProduct before them;
            outputs then agree up to rounding, not bit by bit.
        channels_last: compute in PyTorch's channels-last memory format, in which sums are in another order; parameters
            and outputs are contiguous as ever. None: if the net has convolutions of images and no plugin's layers.
        formats: names from FORMATS: "torch" (model.py, weights.safetensors), "onnx" (model.onnx), "pt2" (model.pt2),
            "safetensors" (blobs.safetensors; for that alone see :func:`caffe_port.emit.blobs.convert`).
        dynamic: for "onnx" and "pt2": "size" (batch, height and width may differ from the net's own, as far as it
            allows that), "batch", or "none".
        plain_pooling: for "onnx" and "pt2": write pooling and local response normalization as PyTorch's exporter does,
            not in the forms on which runtimes agree.
        seed: for the input of the check.
        preprocessing: how images become the net's input, if it is known; ``preprocess`` in model.py then does it.
        classes: names by label, for model.py and port.json.

    Raises:
        CaffePortError: the folder is not empty or cannot be written; a layer has no self-contained source; the
            written model does not compute what the Net computes. Nothing is left behind.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        what = f"unknown format '{unknown[0]}'" if unknown else "no format given"
        raise CaffePortError(what, "", f"Formats: {', '.join(FORMATS)}")
    if "safetensors" in formats and ported.weights is None:
        raise CaffePortError("format 'safetensors' writes the blobs of a weights file, but none was given")
    folder = Path(folder)
    output_folder.check(folder, force)
    if ported.shared and fold:  # folding computes with the weights
        _adopt(ported.net, {}, {})
    plan = ported.net.plans[False]
    fitted = None
    if preprocessing is not None and len(plan.spec.inputs) == 1:
        fitted = preprocess_source.fitted(preprocessing, plan.shapes[plan.spec.inputs[0][1]])
    last = prefers_channels_last(ported.net) if channels_last is None else channels_last
    source = model(ported.net, fold, last, fitted, classes)
    read: dict[str, Definition | Weights] = {ported.definition.path: ported.definition}
    if ported.weights is not None:  # a definition from inside it has its path
        read[ported.weights.path] = ported.weights
    mapping = ported.weights.mapping if ported.weights and ported.shared else None
    with output_folder.beside(folder) as temporary, ThreadPoolExecutor(2) as pool:  # checksums run in parallel
        origins = [pool.submit(_origin, file) for path, file in read.items() if Path(path).is_file()]
        (temporary / MODEL).write_text(source.source, encoding="utf-8")
        if fitted is not None and fitted.mean_image is not None:
            np.save(temporary / output_folder.MEAN, fitted.mean_image)
        wanted = {name: stored(tensor) for name, tensor in source.state.items()}
        safetensors.write(temporary / WEIGHTS, wanted, mapping)
        digest = pool.submit(output_folder.fingerprint, temporary / WEIGHTS)
        made = _mapped(temporary / WEIGHTS)
        difference = pool.submit(made.difference, wanted, mapping)
        if ported.shared:
            _adopt(ported.net, source.state, made.tensors)
        weights = made if ported.shared else temporary / WEIGHTS
        try:
            try:
                check = _check(ported.net, source, weights, fold, last, seed)
            except CaffePortError:
                if not last or channels_last:
                    raise
                check = ""
            if last and not channels_last and not check.startswith("outputs"):  # not asked for, and does not work
                last = False
                source = model(ported.net, fold, last, fitted, classes)
                (temporary / MODEL).write_text(source.source, encoding="utf-8")
                check = _check(ported.net, source, weights, fold, last, seed)
        finally:  # a random input does not reveal a weight that is slightly off; one that is far off explains the rest
            if wrong := difference.result():
                raise CaffePortError(f"does not hold '{wrong}' as it was written", WEIGHTS, REPORT_IT)
        files = [name for key in FORMATS if key in formats for name in FORMATS[key]]
        if (temporary / output_folder.MEAN).exists():
            files.append(output_folder.MEAN)
        if "onnx" in formats or "pt2" in formats:
            exported = _to_export(ported.net, temporary / WEIGHTS, fold)
            example = _fitting_inputs(ported.net, seed)
            for name, write, path in (("onnx", export.onnx, export.ONNX), ("pt2", export.pt2, export.PT2)):
                if name in formats:
                    check += "; " + write(exported, example, temporary / path, dynamic, plain_pooling)
        if "safetensors" in formats:
            assert ported.weights is not None
            blobs.write(temporary / blobs.BLOBS, ported.weights, ported.definition.net)
        unchecked = () if check.startswith("outputs") else (f"the written model could not be checked: {check}",)
        notes = (*ported.notes, *source.notes, *unchecked)
        report = _report(ported, source, check, notes)
        report["preprocessing"] = None if fitted is None else fitted.as_dict()
        report["classes"] = list(classes)
        report["channels_last"] = last
        report["from"] = [origin.result() for origin in origins]
        report["files"] = [
            digest.result() if name == WEIGHTS else output_folder.fingerprint(temporary / name) for name in files
        ]
        output_folder.write_report(temporary, report)
        files.append(output_folder.REPORT)
        output_folder.move_in(temporary, folder, files)
    return Result(folder, tuple(files), source.class_name, report["layers"], report["parameters"], check, notes, last)


def _origin(file: Definition | Weights) -> dict[str, Any]:
    return output_folder.fingerprint(Path(file.path), file.sha256)


# -- the check ----------------------------------------------------------------------------------------------------


def _check(net: Net, source: Model, weights: Path | Mapped, fold: bool, last: bool, seed: int) -> str:
    named = source.source, source.class_name
    return self_check(net, *named, weights, exact=not fold, per_item=source.per_item, channels_last=last, seed=seed)


def _mapped(weights: Path) -> Mapped:
    try:
        return Mapped(weights)
    except Exception as error:  # noqa: BLE001  any error here is caffe-port's, and no folder may appear
        raise CaffePortError(f"could not be read back: {first_line(error)}", WEIGHTS, REPORT_IT) from None


def _adopt(net: Net, state: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Repoints a Net's large parameters from the caffemodel's pages to the same values in weights.safetensors.

    There they are aligned for computation. The two nets of the check also share one set of pages, so that their
    products agree bit by bit (a BLAS may sum in another order if the alignment differs).
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
        else:  # not in model.py, or in another form there; or a buffer, which a forward pass may write to
            copy = torch.empty_like(tensor, requires_grad=False)
            np.copyto(copy.numpy(), tensor.detach().numpy())
            tensor.data = copy


def _to_export(net: Net, weights: Path, fold: bool) -> export.Source:
    """The written model without a memory format, and the same marked with the layers' names."""
    sources = model(net, fold), model(net, fold, marked=True)
    module, traced = (read_model(one.source, one.class_name, weights, {MARK: operators.named}) for one in sources)
    for part in (*module.modules(), *traced.modules()):
        if isinstance(part, nn.LocalResponseNorm) and not part.within_channel:
            part.__class__ = nn.LocalResponseNorm  # which has a node of its own in ONNX
    return export.Source(module, traced, net.plans[False])


def to_export(net: Net) -> export.Source:
    """A net for :mod:`caffe_port.emit.export`, without a folder."""
    with tempfile.TemporaryDirectory() as folder:
        source = model(net)
        write_safetensors(Path(folder) / WEIGHTS, source.state)
        return _to_export(net, Path(folder) / WEIGHTS, False)


def _fitting_inputs(net: Net, seed: int) -> tuple[Tensor, ...]:
    """Example inputs in the net's own shapes, with values on which it runs."""
    try:
        inputs = example_inputs(net, seed)
        run_once(net, inputs, seed)
    except (RuntimeError, IndexError, ValueError):
        inputs = example_inputs(net, seed, uniform=True)
    return inputs


# -- the files ----------------------------------------------------------------------------------------------------


def _report(ported: Ported, source: Model, check: str, notes: Sequence[str]) -> dict[str, Any]:
    plan = ported.net.plans[False]
    loaded = ported.report
    return {
        "net": plan.spec.name,
        "class": source.class_name,
        "inputs": {blob: list(plan.shapes[s]) for blob, s in plan.spec.inputs},
        "outputs": {blob: list(plan.shapes[s]) for blob, s in plan.spec.outputs},
        "output_types": {blob: plan.spec.by_name[layer].type for blob, (layer, _) in plan.spec.outputs},
        "arguments": source.inputs,
        "layers": len(plan.steps),
        "parameters": sum(p.numel() for p in ported.net.parameters()),
        "attributes": source.attributes,
        "load": None
        if loaded is None
        else {"loaded": list(loaded.loaded), "initialised": list(loaded.initialised), "unused": list(loaded.unused)},
        "notes": list(notes),
        "ignored_fields": list(plan.spec.ignored),
        "check": check,
        "preprocessing": None,
        "classes": [],
        "channels_last": False,
        "from": [],
        "files": [],
        "versions": {"caffe-port": __version__, "torch": importlib.metadata.version("torch")},
        "time": output_folder.now(),
    }
