"""Every formula against our layer: two readings of a source, one in NumPy and one in PyTorch, must agree.

The cases are those of tests/helpers/signature_cases.py and fork_cases.py, in both phases.
"""

from __future__ import annotations

import zlib
from typing import Any

import fork_cases
import numpy as np
import pytest
import signature_cases
import torch
from signature_cases import Case

from caffe_port.layers import REGISTRY, class_of
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import SIGNATURES, Holds
from caffe_port.spec import LayerSpec
from caffe_port.verification import inputs
from caffe_port.verification.references.numpy_formulas import FORMULAS, compute, computes

FORK_CASES = {**fork_cases.CASES, **fork_cases.DETECTIONS}
CASES = [case for case in signature_cases.CASES if case.type in FORMULAS]
CASES += [
    Case(name.split()[0], text, tuple(tuple(b.shape) for b in bottoms)) for name, (text, *bottoms) in FORK_CASES.items()
]


def test_every_type_that_computes_has_a_formula() -> None:
    plugins = {type_ for type_, cls in REGISTRY.items() if not cls.__module__.startswith("caffe_port.")}
    assert not {type_ for type_ in SIGNATURES if computes(type_)} - set(FORMULAS) - plugins  # of other tests
    assert not [type_ for type_ in ("Data", "Silence", "CTCLoss", "Python") if computes(type_)]


@pytest.mark.parametrize("train", [False, True], ids=["test", "train"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_the_layer(case: Case, train: bool) -> None:
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    message = case.message
    cls, signature = class_of(message), find(message)
    assert cls is not None
    assert signature is not None
    module = cls.build(message, case.bottoms).double().train(train)
    names = list(module.blob_names())
    blobs = [rng.uniform(0.2, 2, tuple(module.get_blob(name).shape)) for name in names]
    if case.type == "DataAugmentation":
        blobs[0][:] = 5000  # iterations: the mean is complete
    for name, value in zip(names, blobs, strict=True):
        module.set_blob(name, torch.from_numpy(value))
    bottoms = [drawn(case, index, rng) for index in range(len(case.bottoms))]
    spec = LayerSpec("l", case.type, tuple(message.bottom), tuple(message.top), (), message, "")
    tops, note = compute(spec, bottoms, blobs, train)
    if tops is None:
        assert "fails" not in note
        pytest.skip(note)
    with torch.no_grad():
        given = [torch.from_numpy(bottom) for bottom in bottoms]
        one_by_one = module.per_bottom and len(given) > 1
        made = tuple(module(x) for x in given) if one_by_one else module(*given)
    ours = made if isinstance(made, tuple) else (made,)
    assert len(tops) == len(ours) == case.tops
    single = case.type in ("ImResize", "PriorBox", "PriorBoxClustered")  # places in single precision
    for top, own in zip(tops, ours, strict=True):
        assert top.shape == tuple(own.shape)
        np.testing.assert_allclose(own.detach().numpy(), top, rtol=1e-7, atol=1e-5 if single else 1e-9)


def drawn(case: Case, index: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Numbers of both signs, or what else the bottom holds."""
    shape, signature = case.bottoms[index], find(case.message)
    assert signature is not None
    what = signature.holds[index] if index < len(signature.holds) else Holds.NUMBERS
    if what in (Holds.LABELS, Holds.INDICES, Holds.FLAGS, Holds.CONTINUES):
        return rng.integers(0, 2, shape).astype(float)
    if what in (Holds.DETECTIONS, Holds.IMAGE_SIZES, Holds.OBJECTS, Holds.PRIORS):
        layer = LayerSpec("l", case.type, (), (), (), case.message, "")
        found = inputs._DRAWN[what](layer, case.bottoms, index, rng)
        if found.size == np.prod(shape):  # not with DetectionOutput's nbottom, whose third bottom is no PriorBox
            return found.reshape(shape)
    if what is Holds.BOXES:
        rows = rng.uniform(0, 60, shape[:2])
        rows[:, 0] = rng.integers(0, 2, shape[0])
        rows[:, 3:5] += rows[:, 1:3] - 5
        return rows.reshape(shape)
    if case.type == "RegionPooling" and index == 1:  # image, outer and inner rectangle
        rows = rng.uniform(0, 40, shape[:2])
        rows[:, 0] = rng.integers(0, 2, shape[0])
        rows[:, 3:5] += 12
        return rows.reshape(shape)
    numbers = rng.normal(0, 1, shape)
    if case.type in ("Upsample", "Unpooling") and index == 1:  # a mask: each place at most once
        planes = [rng.permutation(shape[2] * shape[3])[: shape[2] * shape[3]] for _ in range(shape[0] * shape[1])]
        return np.array(planes, float).reshape(shape)
    if case.type == "LabelSpecificMargin":
        return np.tanh(numbers)
    if case.type in ("Log", "MIL"):
        return rng.uniform(0.1, 0.9, shape)
    return numbers
