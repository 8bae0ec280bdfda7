"""Measures where OpenCV's Caffe layers deviate from Caffe: every layer type that OpenCV and a formula both know.

Usage:
    python benchmarks/opencv_deviations.py [--each 200] [--seed 0] [--type PriorBox] [--write docs/verification.md]

Draws parameters and bottom shapes for every type, runs the layer in OpenCV, with the table of known deviations off, and
compares with the formula. Each case is one of four: OpenCV agrees, deviates, refuses, or ends its process. A deviation
that the table does not know is an error (exit code 1), and is printed; so is an entry of the table that agrees in every
case drawn, and a formula from which both OpenCV and caffe-port's layer differ. Runs in child processes, since OpenCV
may end its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import unittest.mock
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]

from signature_cases import CASES, Case  # noqa: E402

from caffe_port.api import port  # noqa: E402
from caffe_port.errors import CaffePortError  # noqa: E402
from caffe_port.formats import prototxt  # noqa: E402
from caffe_port.formats.message import Message  # noqa: E402
from caffe_port.signatures.plugins import find  # noqa: E402
from caffe_port.signatures.signature import Holds  # noqa: E402
from caffe_port.verification.comparison import difference  # noqa: E402
from caffe_port.verification.inputs import random_boxes  # noqa: E402
from caffe_port.verification.references import opencv  # noqa: E402
from caffe_port.verification.references.numpy_formulas import FORMULAS, compute  # noqa: E402
from caffe_port.verification.references.reference import computing  # noqa: E402
from caffe_port.verification.subject import case_of  # noqa: E402

BOXES = "prior_box_param { min_size: 5 max_size: 9 aspect_ratio: 2 variance: [0.1, 0.1, 0.2, 0.2] clip: "
MORE = (
    *(
        Case("PriorBox", f"{BOXES} {rest} }}", ((2, 6, 8, 12), (2, 3, 50, 60)))
        for rest in ("false", "true", "false offset: 0.3", "true step: 9", "false min_size: 7.5 max_size: 12.5")
    ),
    *(
        Case(
            "PriorBoxClustered",
            f"prior_box_param {{ width: [9, 4] height: [7, 2] clip: {clip} }}",
            ((2, 6, 8, 12), (2, 3, 50, 60)),
        )
        for clip in ("false", "true")
    ),
    Case("ConvolutionDepthwise", "convolution_param { num_output: 6 kernel_size: 3 }", ((2, 6, 8, 12),)),
)
"""Cases that OpenCV accepts, of types whose others it refuses."""

MARK = ("<!-- opencv -->", "<!-- /opencv -->")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=200, metavar="N", help="cases of each type (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--type", action="append", metavar="TYPE", help="only these types")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table between its marks on this page")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    types = sorted({case.type for case in CASES} & set(FORMULAS) & set(options.type or FORMULAS))
    if options.child:
        for record in measured(types, options.seed, options.each, *map(int, options.child)):
            print(json.dumps(record), flush=True)
        return 0
    return report(list(in_children(types, options)), options.write)


def in_children(types: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All cases, measured in child processes: a new one after each that OpenCV ends."""
    start = (0, 0)
    while start[0] < len(types):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", *map(str, start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None
            last = (start[0], start[1] - 1)
            for line in child.stdout:
                record = json.loads(line)
                yield record
                whole = record["verdict"] == "absent"
                last = (types.index(record["type"]), options.each - 1 if whole else record["number"])
        if child.returncode == 0:
            return
        index, number = (last[0], last[1] + 1) if last[1] + 1 < options.each else (last[0] + 1, 0)
        if child.returncode > 0:
            raise SystemExit(f"{types[index]}, case {number} ends with exit code {child.returncode}")
        yield {"type": types[index], "number": number, "verdict": "ends", "text": "", "known": ""}
        start = (index, number + 1)


def measured(types: list[str], seed: int, each: int, index: int, first: int) -> Iterator[dict[str, Any]]:
    """The cases from a number of a type on; a type that OpenCV does not know has one."""
    for type_ in types[index:]:
        for number in range(first, each):
            draws = (measure(type_, seed, number, attempt) for attempt in range(_ATTEMPTS))
            valid = (made for made in draws if made["verdict"] != "invalid")
            record = {"type": type_, "number": number, **next(valid, {"verdict": "invalid", "known": ""})}
            yield record
            if record["verdict"] == "absent":
                break
        first = 0


_ATTEMPTS = 30
"""How often a case is drawn until the layer accepts it."""


def measure(type_: str, seed: int, number: int, attempt: int) -> dict[str, Any]:
    """One case: what OpenCV does, and what the table says."""
    text, rng = draw(type_, seed, number, attempt)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        path.write_text(text)
        try:
            ported = port(path, keep_loss=True)
        except CaffePortError as error:
            return {"verdict": "invalid", "text": text, "known": "", "why": str(error)[-200:]}
    for parameter in (*ported.net.parameters(), *ported.net.buffers()):
        parameter.data.copy_(parameter.new_tensor(rng.uniform(0.1, 1, tuple(parameter.shape))))
    plan = ported.net.plan
    layer = next(computing(plan.spec))
    inputs = {blob: values(plan, layer, source, k, rng) for k, (blob, source) in enumerate(plan.spec.inputs)}
    case = case_of(ported, inputs)
    if opencv.beyond_its_schema(layer):  # OpenCV skips any field of which it does not know
        return {"verdict": "invalid", "text": text, "known": "", "why": "a field outside its schema"}
    known = opencv.deviation(layer) or opencv.outside_its_arrays(layer, case)
    right, _ = compute(layer, [inputs[b] for b in layer.bottoms], case.blobs.get(layer.name, ()))
    if right is None:
        return {"verdict": "invalid", "text": text, "known": known}
    with np.errstate(over="ignore"):
        right = tuple(np.asarray(top, np.float32) for top in right)
    if not all(np.isfinite(top).all() for top in right):
        return {"verdict": "invalid", "text": text, "known": known}
    if "beyond" in known:  # measured once: it ends the process
        return {"verdict": "ends", "text": text, "known": known}
    with unittest.mock.patch.object(opencv, "DEVIATIONS", {}):
        made = next(opencv.OpenCVReference().run(case))
    if made.tops is None:
        absent = made.note.startswith("OpenCV has no layer")
        return {"verdict": "absent" if absent else "refuses", "text": text, "known": known, "why": made.note}
    off = [difference(e, a) for e, a in zip(right, made.tops, strict=True)]
    agrees = all(d.passed for d in off)
    why = "" if agrees else f"{[d.reason or d.greatest for d in off]}"
    verdict = "agrees" if agrees else "deviates"
    if not agrees:
        with torch.no_grad():
            ours = ported.net.eval()(*(torch.from_numpy(inputs[blob]) for blob, _ in plan.spec.inputs))
        tops = list(ours.values()) if isinstance(ours, dict) else [ours]
        if len(tops) == len(made.tops) and all(
            difference(e, a.numpy()).passed for e, a in zip(made.tops, tops, strict=True)
        ):
            verdict, known = "is what the layer computes, not the formula", ""
    return {"verdict": verdict, "text": text, "known": known, "why": why}


# -- drawing ------------------------------------------------------------------------------------------------------

NUMBERS = {
    "float": (0, 0.5, 1, 2, 3, 0.25, 1.5, -0.7, 1e-3, 10, 20.7, 0.1),
    "double": (0, 0.5, 1, 2, -0.7),
    "int": (0, 1, 2, 3, 4, 5, -1, -2),
}
QUIET = ("filler", "engine", "force", "name", "source", "file", "debug", "expand", "cudnn", "save_output", "visualize")
"""Fields, by a part of their names, that change no value of a top or need files."""


def draw(type_: str, seed: int, number: int, attempt: int) -> tuple[str, np.random.Generator]:
    """The prototxt of a case, and the generator of its values."""
    dice = random.Random(f"{type_} {seed} {number} {attempt}")
    case = dice.choice([case for case in (*CASES, *MORE) if case.type == type_])
    layer = case.message
    signature = find(layer)
    own = [name for name, value in layer.items() if isinstance(value, Message)]
    if not own and signature is not None:
        own = list(signature.messages[:1])
    own = [name for name in own if name in layer.schema.fields]
    for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3))):
        for name in own:
            param = getattr(layer, name)
            layer = layer.copy(**{name: changed(param, dice)})
    shapes = drawn_shapes(case, dice)
    inputs = "".join(
        f'input: "{blob}" input_shape {{ {" ".join(f"dim: {d}" for d in shape)} }}\n'
        for blob, shape in zip(layer.bottom, shapes, strict=True)
    )
    text = inputs + "layer {\n" + prototxt.dump(layer) + "}\n"
    return text, np.random.Generator(np.random.PCG64([seed, number, attempt]))


def changed(param: Message, dice: random.Random, depth: int = 0) -> Message:
    """The message with one field changed, added or removed."""
    assert param.schema is not None
    fields = [f for f in param.schema.fields.values() if not any(word in f.name for word in QUIET)]
    if not fields:
        return param
    field = dice.choice(fields)
    if field.kind == "message":
        if field.repeated or depth:
            return param
        return param.copy(**{field.name: changed(getattr(param, field.name), dice, depth + 1)})
    if param.has(field.name) and not dice.randrange(4):
        return param.copy(**{field.name: None})

    def value() -> Any:
        if field.kind == "bool":
            return dice.random() < 0.5
        if field.kind == "enum":
            return dice.choice(list(field.values or ()))
        if field.kind in ("float", "double"):
            return dice.choice(NUMBERS[field.kind])
        if field.kind in ("string", "bytes"):
            return dice.choice(("L1", "L2", "bilinear"))
        number = dice.choice(NUMBERS["int"])
        return abs(number) if field.kind.startswith("u") else number

    if field.name in ("alpha", "eps") and field.kind == "float":
        return param.copy(**{field.name: abs(value())})
    some = [value() for _ in range(dice.choice((1, 1, 2, 4)))]
    return param.copy(**{field.name: some if field.repeated else some[0]})


def drawn_shapes(case: Case, dice: random.Random) -> list[tuple[int, ...]]:
    """The bottom shapes of the case, sometimes with other sides."""
    signature = find(case.message)
    if dice.random() < 0.5 or (signature is not None and Holds.PRIORS in signature.holds):
        return list(case.bottoms)
    sides = {side for shape in case.bottoms for side in shape[2:]}
    other = {side: dice.choice((side, side + 1, side + 2, 2 * side, 4, 5, 9)) for side in sorted(sides)}
    return [(*shape[:2], *(other[side] for side in shape[2:])) for shape in case.bottoms]


def values(plan: Any, layer: Any, source: Any, index: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """What a bottom of the layer holds."""
    signature, shape = find(layer.param), plan.shapes[source]
    held = signature.holds if signature is not None else ()
    what = held[index] if index < len(held) else Holds.NUMBERS
    if what in (Holds.LABELS, Holds.INDICES, Holds.FLAGS, Holds.CONTINUES):
        return rng.integers(0, 2, shape).astype(np.float32)
    boxes = random_boxes(plan.spec, plan.shapes, source, rng)
    if boxes is not None:
        return boxes[0]
    found = rng.standard_normal(shape).astype(np.float32)
    if layer.type == "DetectionOutput":
        return rng.uniform(0, 1, shape).astype(np.float32) if index % 2 else found * np.float32(0.3)
    return found


# -- the table ----------------------------------------------------------------------------------------------------


def report(records: list[dict[str, Any]], page: Path | None) -> int:
    """Prints the counts of each type and what the table does not explain; 1 if there is such a case."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[record["type"]].append(record)
    lines = ["| type | cases | agrees | deviates | refuses | where it deviates |", "|---|---|---|---|---|---|"]
    errors = []
    for type_, cases in found.items():
        valid = [case for case in cases if case["verdict"] != "invalid"]
        if not valid or any(case["verdict"] == "absent" for case in valid):
            continue
        counts = Counter("known" if case["known"] else case["verdict"] for case in valid)
        reasons = list(dict.fromkeys(case["known"] for case in valid if case["known"]))
        cells = (type_, len(valid), counts["agrees"], counts["known"], counts["refuses"], "; ".join(reasons))
        lines.append(f"| {' | '.join(map(str, cells))} |")
        for why in reasons:
            verdicts = {case["verdict"] for case in valid if case["known"] == why}
            if verdicts == {"agrees"}:
                errors.append(f"{type_} agrees in all cases of which the table says: {why}")
        errors += [
            f"{type_} {case['number']} {case['verdict']} {case.get('why', '')[:90]}: {' '.join(case['text'].split())}"
            for case in valid
            if not case["known"] and case["verdict"] not in ("agrees", "refuses")
        ]
    print("\n".join([*lines, *errors]))
    if page is not None and not errors:
        text = page.read_text("utf-8")
        before, after = text.split(MARK[0])[0], text.split(MARK[1])[1]
        page.write_text(f"{before}{MARK[0]}\n" + "\n".join(lines) + f"\n{MARK[1]}{after}", "utf-8")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
