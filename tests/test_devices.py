"""Memory that is freed in one batch serves the next."""

from __future__ import annotations

import platform
import sys

import pytest
import torch

from caffe_port import devices

CPU = torch.device("cpu")
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")


def page_faults(times: int) -> int:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(16 << 20)  # 64 MB, 16384 pages of 4 KB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_pages_are_not_cleared_again() -> None:
    with devices.memory_kept(CPU) as changed:
        assert changed
        page_faults(12)  # up to glibc 2.37, aligned blocks reuse a freed one only after several of them
        again = page_faults(4)
    assert page_faults(4) > 4 * 16384 // 512 > again, "512: huge pages"


def test_other_devices_and_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with devices.memory_kept(torch.device("cuda")) as changed:
        assert not changed
    monkeypatch.setattr(sys, "platform", "darwin")
    with devices.memory_kept(CPU) as changed:
        assert not changed


@glibc
def test_the_outermost_decides() -> None:
    with devices.memory_kept(CPU):
        page_faults(12)
        with devices.memory_kept(CPU) as changed:
            assert not changed
        assert page_faults(4) < 4 * 16384 // 512
    with devices.memory_kept(CPU) as changed:
        assert changed
