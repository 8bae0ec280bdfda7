"""What a run's folder contains. Without torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffePortError
from caffe_port.storage.files import read_bytes


def used(path: str | Path) -> bool:
    """Whether a folder already contains a run."""
    return (Path(path) / "config.json").exists() or (Path(path) / "metrics.jsonl").exists()


def check_unused(path: str | Path, resume: object = False) -> None:
    """Raises CaffePortError if a folder contains a run that is not to be resumed."""
    if used(path) and not resume:
        raise CaffePortError("already contains a run", str(path), "Give another folder, or --resume to continue it.")


def read_metrics(run: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none if there is no such file.

    Raises:
        CaffePortError: the file cannot be read.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        return
    for text in read_bytes(path).decode("utf-8", "replace").split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("iter"), int) and isinstance(line.get("kind"), str):
                yield line
