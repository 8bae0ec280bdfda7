"""Trace: the inputs of a net and the tops of every layer, for comparing two implementations.

A top is identified by (layer, top index), never by its blob's name: with in-place layers, a blob's last value hides the
layers before it. The file is an .npz of plain arrays, which any version of NumPy can write:

=============================  ===================================================================================
``in:<blob>``                  an input
``out:<i>:<layer>:<k>``        top k of the i-th layer
``topdiff:<blob>``             the gradient fed to an output blob before backward (losses feed themselves)
``grad:<blob>``                the gradient of an input
``gradparam:<layer>:<j>``      the gradient of parameter blob j
``after:<layer>:<j>``          a parameter blob that the forward pass changed
``phase``                      ``TEST`` or ``TRAIN``
``meta``                       JSON: ``{"provenance": {...}}``; may be absent
=============================  ===================================================================================
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caffe_port.errors import ParseError
from caffe_port.spec import Producer
from caffe_port.storage import npz
from caffe_port.storage.files import atomic_write
from caffe_port.typing import Array

AUTOMATIC_SPLIT = re.compile(r".+_\d+_split", re.DOTALL)
"""The names that insert_splits.cpp generates: <blob>_<layer>_<index>_split."""


@dataclass(frozen=True)
class Trace:
    """What one implementation computed.

    Attributes:
        tops: (layer name, top index) -> array, in execution order.
        inputs: input blob -> array.
        phase: ``"TEST"`` or ``"TRAIN"``.
        provenance: a description of its origin: producer, versions, checksums, file.
        top_gradients: output blob -> the gradient that was fed to it.
        input_gradients: input blob -> its gradient.
        parameter_gradients: (layer name, blob index) -> gradient.
        changed_parameters: (layer name, blob index) -> its value after the forward pass, if that changed it.
    """

    tops: Mapping[Producer, Array]
    inputs: Mapping[str, Array]
    phase: str = "TEST"
    provenance: Mapping[str, str] = field(default_factory=dict)
    top_gradients: Mapping[str, Array] = field(default_factory=dict)
    input_gradients: Mapping[str, Array] = field(default_factory=dict)
    parameter_gradients: Mapping[Producer, Array] = field(default_factory=dict)
    changed_parameters: Mapping[Producer, Array] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Writes the trace as .npz, uncompressed.

        Raises:
            CaffePortError: the file cannot be written.
        """
        number = {layer: i for i, layer in enumerate(dict.fromkeys(layer for layer, _ in self.tops))}
        arrays: dict[str, Array] = {f"in:{blob}": array for blob, array in self.inputs.items()}
        arrays |= {f"out:{number[layer]}:{layer}:{k}": array for (layer, k), array in self.tops.items()}
        for prefix, by_blob in (("topdiff", self.top_gradients), ("grad", self.input_gradients)):
            arrays |= {f"{prefix}:{blob}": array for blob, array in by_blob.items()}
        for prefix, by_source in (("gradparam", self.parameter_gradients), ("after", self.changed_parameters)):
            arrays |= {f"{prefix}:{layer}:{j}": array for (layer, j), array in by_source.items()}
        arrays["phase"] = np.array(self.phase)
        arrays["meta"] = np.array(json.dumps({"provenance": dict(self.provenance)}))
        with atomic_write(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Reads a trace written by :meth:`save`, by ``caffe-port dump``, or by ``numpy.savez`` with the keys above.

        Caffe's automatic Split layers are dropped; the second layer with the same name gets the suffix ``#2``, as in
        :class:`~caffe_port.spec.NetSpec`.

        Raises:
            ParseError: the file is not a trace, or is damaged.
            CaffePortError: the file cannot be read.
        """
        arrays = npz.read(path, "a trace")
        return _from_arrays(arrays, str(path))


def read_golden(path: str | Path) -> Trace:
    """Reads what Caffe 1.0 computed, see golden/README.md; the format is that of :meth:`Trace.load`."""
    trace = Trace.load(path)
    return dataclasses.replace(trace, provenance={"producer": "Caffe 1.0", **trace.provenance})


def _from_arrays(arrays: Mapping[str, Array], where: str) -> Trace:
    tops: dict[Producer, Array] = {}
    by_blob: dict[str, dict[str, Array]] = {"in": {}, "topdiff": {}, "grad": {}}
    by_source: dict[str, dict[Producer, Array]] = {"gradparam": {}, "after": {}}
    outs: list[tuple[int, str, int, Array]] = []
    for key, array in arrays.items():
        kind, _, rest = key.partition(":")
        if kind in by_blob and rest:
            by_blob[kind][rest] = array
        elif kind in by_source and (match := re.fullmatch(r"(.+):(\d{1,6})", rest, re.DOTALL)):
            by_source[kind][match[1], int(match[2])] = array
        elif kind == "out" and (match := re.fullmatch(r"(\d{1,9}):(.*):(\d{1,6})", rest, re.DOTALL)):
            outs.append((int(match[1]), match[2], int(match[3]), array))
        elif key not in ("phase", "meta"):
            raise ParseError(f"contains an array with the unknown name '{key[:60]}'", where, _KEYS_HINT)
    if not outs:
        raise ParseError("contains no output of a layer", where, _KEYS_HINT)
    unique = _unique_names({i: name for i, name, _, _ in outs})
    for i, name, k, array in sorted(outs, key=lambda out: (out[0], out[2])):
        if not AUTOMATIC_SPLIT.fullmatch(name):
            tops[unique[i], k] = array
    phase = str(arrays["phase"]) if "phase" in arrays else "TEST"
    if phase not in ("TEST", "TRAIN"):
        raise ParseError(f"the phase must be TEST or TRAIN, got '{phase[:40]}'", where)
    return Trace(
        tops,
        by_blob["in"],
        phase,
        _provenance(arrays.get("meta"), where),
        by_blob["topdiff"],
        by_blob["grad"],
        by_source["gradparam"],
        by_source["after"],
    )


_KEYS_HINT = "The arrays of a trace are named in:<blob> and out:<i>:<layer>:<k>; `caffe-port dump` writes one."


def _unique_names(names: Mapping[int, str]) -> dict[int, str]:
    """Layer number -> name; the second of two equal names gets ``#2``."""
    count: dict[str, int] = {}
    result = {}
    for i, name in sorted(names.items()):
        count[name] = count.get(name, 0) + 1
        result[i] = name if count[name] == 1 else f"{name}#{count[name]}"
    return result


def _provenance(meta: Array | None, where: str) -> dict[str, str]:
    provenance = {"file": where}
    if meta is None:
        return provenance
    try:
        stored = json.loads(str(meta))["provenance"]
        return {str(k): str(v) for k, v in stored.items()} | provenance
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ParseError("'meta' is not the JSON object of a trace", where) from None
