"""The verdict on a net: what each side made of it, compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from case import Arrays, Case
from deliberate import without_gradients
from sides import Ours, Outcome
from verdict import AGREED, REFUSED, Verdict

from caffe_port.typing import Array
from caffe_port.verification.comparison import Tolerance, difference

TOLERANCE = Tolerance(1e-4, 1e-3)
TIMES = 8
"""How often a net that differs is asked again: a few random numbers may be drawn the same by chance."""
STEADY = Tolerance(2e-5, 2e-4)


def judge(case: Case, caffe: Outcome, ours: Ours, again: Callable[[Case], Outcome] | None = None) -> Verdict:
    """Runs caffe-port and compares.

    Args:
        caffe: what Caffe made of the net.
        again: asks Caffe once more, before it is called a finding.
    """
    if caffe.crashed and not caffe.ran:
        return Verdict("Caffe fell", caffe.refused or "", caffe.stage)
    if not caffe.ran:
        mine = ours.run(case)
        if mine.crashed:
            return Verdict("traceback", mine.refused or "", mine.stage, f"Caffe refuses: {caffe.refused}")
        if mine.refused is not None:
            return Verdict(REFUSED, caffe.refused or "", caffe.stage, mine.refused)
        return Verdict("only Caffe refuses", caffe.refused or "", caffe.stage)
    mine = ours.run(case, caffe)
    if mine.refused is not None:
        if mine.stage == "backward" and caffe.refused is not None:
            return Verdict(AGREED)
        word = "traceback" if mine.crashed else "only caffe-port refuses"
        return Verdict(word, mine.refused, mine.stage)
    backward = caffe.refused is None and not without_gradients(case)
    found = compare(case, caffe, mine, backward)
    if found is None:
        return Verdict(AGREED, gradients=backward)
    return _doubted(case, caffe, mine, found, ours, again)


def _doubted(
    case: Case, caffe: Outcome, mine: Outcome, found: Verdict, ours: Ours, again: Callable[[Case], Outcome] | None
) -> Verdict:
    """A difference, unless it says nothing."""
    if again is not None:
        other = again(case)
        if any(not _same(array, other.arrays.get(key)) for key, array in caffe.arrays.items()):
            return Verdict("random", "Caffe's numbers change", found.at)
    for _ in range(TIMES):
        second = ours.run(case, caffe)
        if any(not _same(array, second.arrays.get(key)) for key, array in mine.arrays.items()):
            return Verdict("random", "caffe-port's numbers change", found.at)
    if found.what.startswith("top"):
        before = [key for key in caffe.arrays if key.startswith("top:")]
        before = before[: next(k for k, key in enumerate(before) if key.split(":")[1] == found.at.split(" ")[0])]
        if not all(np.isfinite(caffe.arrays[key]).all() for key in before):
            return Verdict("not finite", found.what, found.at)
    finite = all(np.isfinite(array).all() for array in (*caffe.arrays.values(), *mine.arrays.values()))
    if not finite and not found.what.startswith("top"):
        return Verdict("not finite", found.what, found.at)
    exact = ours.run(case, caffe, torch.float64)
    for key, array in exact.arrays.items():
        if key in mine.arrays and not difference(array, mine.arrays[key], STEADY).passed:
            return Verdict("unsteady", found.what, found.at)
    return found


def _same(one: Array, other: Array | None) -> bool:
    return other is not None and np.array_equal(one, other, equal_nan=True)


def compare(case: Case, caffe: Outcome, mine: Outcome, backward: bool = True) -> Verdict | None:
    """The first difference: tops in the net's order, changed parameters, loss, outputs, then gradients."""
    types = {layer.name: layer.type for layer in case.layers}
    outputs = [blob for blob in caffe.outputs if "_split_" not in blob]  # a loss that is read, too
    if sorted(outputs) != sorted(mine.outputs):
        return Verdict("differs", "outputs", "", f"{mine.outputs}, expected {outputs}")
    a, b = caffe.arrays, dict(mine.arrays)
    for key in [key for key in a if key.startswith("after:")]:  # what a forward pass here leaves as it was
        b.setdefault(key, a[key.replace("after:", "blob:")])
    gradients = (("grad:", "gradparam:") if case.forced else ("gradparam:",)) if backward else ()
    for kind in ("top:", "after:", "loss", *gradients):
        for key in [key for key in a if key.startswith(kind)]:
            if verdict := _differs(key, a[key], b, types):
                return verdict
        for key in [key for key in b if key.startswith(kind) and key not in a]:
            if kind != "after:" or not _same(a.get(key.replace("after:", "blob:")), b[key]):
                return Verdict("differs", f"{WORDS[kind[:-1]]} that Caffe does not have", _of(key, types))
    for key in [key for key in b if key.startswith("fused:")]:
        blob = key.removeprefix("fused:")
        makers = [f"top:{layer.name}:{k}" for layer in case.layers for k, top in enumerate(layer.top) if top == blob]
        if makers and makers[-1] in a and (verdict := _differs(key, a[makers[-1]], b, types)):
            return verdict
    return None


WORDS = {
    "top": "top",
    "after": "changed parameter",
    "loss": "loss",
    "grad": "gradient of an input",
    "gradparam": "gradient of a parameter",
    "fused": "output of forward",
}


def _of(key: str, types: dict[str, str]) -> str:
    name = key.split(":")[1] if ":" in key else ""
    return f"{name} ({types[name]})" if name in types else name


def _differs(key: str, expected: Array, arrays: Arrays, types: dict[str, str]) -> Verdict | None:
    actual = arrays.get(key)
    kind, _, rest = key.partition(":")
    words = WORDS[kind]
    if actual is None:
        return Verdict("differs", f"{words} is missing", _of(key, types))
    if actual.shape != expected.shape:
        if kind == "gradparam" and actual.size == expected.size:
            actual = actual.reshape(expected.shape)
        else:
            return Verdict("differs", f"{words}: shape", _of(key, types), f"{actual.shape}, expected {expected.shape}")
    found = difference(expected, actual, TOLERANCE)
    if found.passed:
        return None
    detail = (
        f"{rest}: {found.actual:.6g}, expected {found.expected:.6g} at {found.at}; {found.outside} of {found.count}"
    )
    return Verdict("differs", words + (": NaN or infinity" if found.reason else ""), _of(key, types), detail)
