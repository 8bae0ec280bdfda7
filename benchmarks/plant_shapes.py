"""Plants wrong records, one in each place of each type's, and shows that the tests of the records catch every one.

    python benchmarks/plant_shapes.py [TYPE ...]

Planted are: a top with one axis off by one, each axis of each top in turn; a top too many, an axis less; a blob with
one axis off by one, each in turn; a blob missing, or two in each other's place; another least or greatest number of
bottoms; a blob more or less among those that no solver learns; a multiply-accumulate too many. Caught is what makes one
of the checks of tests/signatures/test_signatures.py fail.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

import signature_cases as checks

from caffe_port.formats.message import Message
from caffe_port.signatures.signature import ANY, Signature
from caffe_port.typing import Shape

ONE: Shape = (1,)


def plants(signature: Signature, cases: Sequence[checks.Case]) -> Iterator[tuple[str, Signature]]:
    """Wrong records of a type, and in words what is wrong."""
    rule, blob_rule, macs = signature.tops, signature.blob_shapes, signature.macs
    assert rule is not None
    tops = max((rule(case.message, case.bottoms) for case in cases), key=lambda made: sum(len(top) + 1 for top in made))
    for index, top in enumerate(tops):
        for axis in range(len(top)):
            yield f"top {index}: axis {axis} off by one", replace(signature, tops=_tops(rule, _longer(index, axis)))
        change = _less if top else _more
        yield f"top {index}: another number of axes", replace(signature, tops=_tops(rule, change(index)))
    yield "a top too many", replace(signature, tops=_tops(rule, lambda made: [*made, ONE]))
    if blob_rule is not None:
        found = [dict(blob_rule(case.message, case.bottoms)) for case in cases]
        blobs = max(found, key=lambda one: sum(len(shape) + 1 for shape in one.values()))
        for name, shape in blobs.items():
            for axis in range(len(shape)):
                wrong = _blobs(blob_rule, _longer_blob(name, axis))
                yield f"{name}: axis {axis} off by one", replace(signature, blob_shapes=wrong)
            yield f"{name} is missing", replace(signature, blob_shapes=_blobs(blob_rule, _without(name)))
            other = signature.statistics ^ {name}
            yield f"whether a solver learns {name}", replace(signature, statistics=other)
        if len(blobs) > 1:
            yield "blobs in another order", replace(signature, blob_shapes=_blobs(blob_rule, _turned))
    least, most = signature.bottoms
    yield "a bottom more is the least", replace(signature, bottoms=(least + 1, max(most, least + 1)))
    if least:
        yield "a bottom less is the least", replace(signature, bottoms=(least - 1, most))
    if most < ANY:
        yield "a bottom more is the most", replace(signature, bottoms=(least, most + 1))
    if most > least:
        yield "the least is the most", replace(signature, bottoms=(least, least))
    if macs is not None:
        yield "a multiply-accumulate too many", replace(signature, macs=lambda *args: macs(*args) + 1)


# -- changes ------------------------------------------------------------------------------------------------------

Tops = Sequence[Shape]
Blobs = Mapping[str, Shape]


def _tops(
    rule: Callable[[Message, Sequence[Shape]], Tops], change: Callable[[Tops], Tops]
) -> Callable[[Message, Sequence[Shape]], Tops]:
    return lambda layer, bottoms: change([tuple(top) for top in rule(layer, bottoms)])


def _blobs(
    rule: Callable[[Message, Sequence[Shape]], Blobs], change: Callable[[Blobs], Blobs]
) -> Callable[[Message, Sequence[Shape]], Blobs]:
    return lambda layer, bottoms: change(rule(layer, bottoms))


def _plus_one(shape: Shape, axis: int) -> Shape:
    return tuple(n + (k == axis) for k, n in enumerate(shape))


def _longer(index: int, axis: int) -> Callable[[Tops], Tops]:
    return lambda made: [_plus_one(top, axis) if k == index else top for k, top in enumerate(made)]


def _less(index: int) -> Callable[[Tops], Tops]:
    return lambda made: [top[1:] if k == index else top for k, top in enumerate(made)]


def _more(index: int) -> Callable[[Tops], Tops]:
    return lambda made: [(*top, 1) if k == index else top for k, top in enumerate(made)]


def _longer_blob(name: str, axis: int) -> Callable[[Blobs], Blobs]:
    return lambda held: {key: _plus_one(shape, axis) if key == name else shape for key, shape in held.items()}


def _without(name: str) -> Callable[[Blobs], Blobs]:
    return lambda held: {key: shape for key, shape in held.items() if key != name}


def _turned(held: Blobs) -> Blobs:
    return dict(reversed(list(held.items())))


# -- catching -----------------------------------------------------------------------------------------------------


def caught(type_: str, wrong: Signature) -> bool:
    """Whether any check of the type fails with a wrong record."""
    with checks.planted(type_, wrong):
        try:
            checks.check_bottoms(type_)
            for case in checks.cases_of(type_):
                checks.check_tops(case)
                checks.check_blobs(case)
                if case.type != "Python":
                    checks.check_macs(case)
        except Exception:  # noqa: BLE001  a check fails by whatever it raises
            return True
    return False


def main(only: Sequence[str]) -> int:
    planted, missed = 0, []
    for type_, signature in sorted(checks.records().items()):
        if only and type_ not in only:
            continue
        assert not caught(type_, signature), f"{type_}: the checks fail as it is"
        for what, wrong in plants(signature, checks.cases_of(type_)):
            planted += 1
            if not caught(type_, wrong):
                missed.append(f"{type_}: {what}")
    print(*missed, sep="\n")
    types = len(only or checks.records())
    print(f"{types} types: planted {planted}, caught {planted - len(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
