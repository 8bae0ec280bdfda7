"""Whole commands broken off: a little of `make crashes`, without train, which test_crashes.py breaks off."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork, RLIMIT_FSIZE and capabilities")
def test_commands_broken_off() -> None:
    """Killed in a call that touches a file; a disk that is full, and folders that are gone or read-only."""
    script = Path(__file__).with_name("crashes_far.py")
    command = [sys.executable, str(script), "1", "--only", "verify", "dump"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["violations"] == []
    wanted = {f"{name}, {trouble}" for name in ("verify", "dump") for trouble in ("call", "full", "gone", "locked")}
    assert wanted <= set(found["done"])
