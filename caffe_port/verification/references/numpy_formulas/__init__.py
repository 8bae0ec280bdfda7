"""Plain NumPy as the reference, in float64: one short function per type, following the formulas in Caffe's sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caffe_port.signatures.signature import SIGNATURES, Trait
from caffe_port.spec import LayerSpec
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import (
    crf,
    detection,
    elementwise,
    faces,
    flow,
    forks,
    linear,
    losses,
    quantized,
    recurrent,
    regions,
    resample,
    shape,
    sizes,
    spatial,
    tensors,
)
from caffe_port.verification.references.numpy_formulas.formulas import FORMULAS, Layer
from caffe_port.verification.references.reference import Case, Made, Run, Tops, computing

__all__ = ["FORMULAS", "Layer", "NumPyReference", "compute", "computes"]

# imported because that registers the formulas
_FAMILIES = (
    crf,
    detection,
    elementwise,
    faces,
    flow,
    forks,
    linear,
    losses,
    quantized,
    recurrent,
    regions,
    resample,
    shape,
    sizes,
    spatial,
    tensors,
)

# A record's aliases mean the same layer.
for _type, _signature in SIGNATURES.items():
    if _signature.type in FORMULAS:
        FORMULAS.setdefault(_type, FORMULAS[_signature.type])


@dataclass(frozen=True)
class NumPyReference:
    """The formulas, run layer by layer in float64.

    They share no code with :mod:`caffe_port.layers`, need nothing but NumPy, and are the exact values against which
    rounding errors are measured. They are slow.
    """

    @property
    def name(self) -> str:
        return f"NumPy {np.__version__}, float64"

    def run(self, case: Case) -> Run:
        """Runs the net; a type without a formula has no tops."""
        values: dict[tuple[str, int], Array] = {
            s: np.asarray(x, np.float64) for s, x in case.inputs_by_producer().items()
        }
        last_read = {s: layer.name for layer in case.spec.layers for s in layer.producers}
        for layer in computing(case.spec):
            bottoms = [values[s] for s in layer.producers]
            tops, note = compute(layer, bottoms, case.blobs.get(layer.name, ()), case.spec.phase == "TRAIN")
            instead = yield Made(layer, tops, self.name, note)
            for k, top in enumerate(tops if tops is not None else instead or ()):
                values[layer.name, k] = np.asarray(top, np.float64)
            for producer in layer.producers:
                if last_read[producer] == layer.name:
                    values.pop(producer, None)


def compute(
    layer: LayerSpec, bottoms: Sequence[Array], blobs: Sequence[Array], train: bool = False
) -> tuple[Tops | None, str]:
    """One layer's tops in float64, or None and the reason."""
    formula = FORMULAS.get(layer.param.python_param.layer if layer.type == "Python" else layer.type)
    if formula is None:
        return None, f"no formula for {layer.type}"
    question = Layer(
        layer.param,
        [np.asarray(x, np.float64) for x in bottoms],
        [np.asarray(b, np.float64) for b in blobs],
        train,
        len(layer.tops),
    )
    try:
        with np.errstate(all="ignore"):
            made = formula(question)
    except NotImplementedError as error:
        return None, f"no formula for {error}"
    except (ValueError, IndexError, ZeroDivisionError, MemoryError) as error:
        return None, f"the formula fails: {str(error)[:120]}"
    one = isinstance(made, (np.ndarray, np.generic))  # NumPy makes a number of an array without axes
    tops = (made,) if one else tuple(made)
    return tuple(np.asarray(top, np.float64) for top in tops), ""


def computes(type_: str) -> bool:
    """Whether a formula is needed to verify a registered type: no source of inputs, no sink, and not one that stands
    for code that is not known (losses of forks, Python).
    """
    exempt = Trait.SOURCE, Trait.SINK, Trait.OTHERS, Trait.FOREIGN
    return not any(map(SIGNATURES[type_].has, exempt))
