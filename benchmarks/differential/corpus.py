"""Findings as files: a net and what Caffe made of it, so that the suite can replay it without Caffe."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
from case import Case
from sides import Outcome


def write(folder: Path, kind: str, case: Case, outcome: Outcome) -> Path:
    """Writes NAME.json with the net, and NAME.npz with Caffe's numbers where it ran."""
    folder.mkdir(parents=True, exist_ok=True)
    words = re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")[:60]
    path = folder / f"{words}_{hashlib.sha256(case.dump().encode()).hexdigest()[:6]}.json"
    entry = {"kind": kind, "case": json.loads(case.dump()), "outputs": list(outcome.outputs)}
    refused = outcome.refused and re.sub(r"0x[0-9a-f]+", "0x", outcome.refused)
    entry |= {"refused": refused, "stage": outcome.stage}
    path.write_text(json.dumps(entry, indent=1) + "\n", "utf-8")
    if outcome.arrays:
        inputs = {f"in:{blob}": array for blob, array in case.arrays().items()}
        np.savez_compressed(path.with_suffix(".npz"), **inputs, **outcome.arrays)  # type: ignore[arg-type]
    return path


def read(path: Path) -> tuple[str, Case, Outcome]:
    """The inverse: kind, net, what Caffe made of it."""
    entry = json.loads(path.read_text("utf-8"))
    numbers = path.with_suffix(".npz")
    arrays = dict(np.load(numbers)) if numbers.exists() else {}
    outcome = Outcome(arrays, entry["refused"], entry["stage"], outputs=entry["outputs"])
    return entry["kind"], Case.load(json.dumps(entry["case"])), outcome
