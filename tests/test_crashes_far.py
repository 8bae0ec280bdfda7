"""Whole commands broken off: a little of `make crashes`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(os, "fork"), reason="needs fork and capabilities"
)
def test_commands_broken_off() -> None:
    """train, killed at random and in its snapshots; a disk that is full, and folders that are gone or read-only."""
    script = Path(__file__).with_name("crashes_far.py")
    command = [sys.executable, str(script), "2", "--only", "train", "verify", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["violations"] == []
    assert {
        f"{name}, {trouble}" for name in ("train", "verify") for trouble in ("call", "full", "gone", "locked")
    } <= set(found["done"])
