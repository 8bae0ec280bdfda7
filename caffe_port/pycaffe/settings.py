"""What pycaffe keeps for the whole process: the device, the random numbers and the log.

Sources: common.cpp, _caffe.cpp.
"""

from __future__ import annotations

import datetime
import os
import sys
import weakref
from typing import Any

import numpy as np
import torch

from caffe_port.errors import CaffePortError, printable

TRAIN, TEST = 0, 1
"""caffe.Phase."""


class _Settings:
    """Attributes:
    device: where nets compute.
    ordinal: the GPU that :func:`set_device` chose.
    rng: draws the fillers and the seeds of data layers.
    phase: of a net whose constructor is not given one, as in 2014.
    level: the least severity that is logged: 0 all, 1 warnings, 2 errors; None: what GLOG_minloglevel says.
    said: the notes so far.
    without_phase: nets that were built without a phase.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.ordinal = 0
        self.rng = np.random.default_rng()
        self.phase = TRAIN
        self.level: int | None = None
        self.said: set[str] = set()
        self.without_phase: weakref.WeakSet[Any] = weakref.WeakSet()


settings = _Settings()


def note(text: str) -> None:
    """Prints a note to stderr, each once in a process."""
    if text not in settings.said:
        settings.said.add(text)
        sys.stderr.write(f"note: {printable(text)}\n")


def set_mode_cpu() -> None:
    """Nets compute on the CPU."""
    settings.device = torch.device("cpu")


def set_mode_gpu() -> None:
    """Nets compute on the GPU that :func:`set_device` chose; on the CPU where there is none, which is said once."""
    if torch.cuda.is_available():
        settings.device = torch.device("cuda", settings.ordinal)
    else:
        note("set_mode_gpu: there is no GPU that PyTorch can use; nets run on the CPU")


def set_device(device: int) -> None:
    """Chooses a GPU by its number, for :func:`set_mode_gpu`.

    Raises:
        CaffePortError: there are GPUs, but none of this number.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count and not 0 <= device < count:
        raise CaffePortError(f"set_device({device}): there are {count} GPUs, numbered from 0")
    settings.ordinal = int(device)
    if settings.device.type == "cuda":
        settings.device = torch.device("cuda", settings.ordinal)


def set_phase_train() -> None:
    """Nets that are built without a phase, as in 2014, have the phase TRAIN, which is the default."""
    settings.phase = TRAIN
    for net in settings.without_phase:
        net._set_phase(TRAIN)


def set_phase_test() -> None:
    """Nets that are built without a phase, as in 2014, have the phase TEST; those that exist, too."""
    settings.phase = TEST
    for net in settings.without_phase:
        net._set_phase(TEST)


def set_random_seed(seed: int) -> None:
    """Seeds the fillers, Dropout and the data layers. The numbers are not those that Caffe draws."""
    settings.rng = np.random.default_rng(seed)
    torch.manual_seed(seed)


# -- the log --------------------------------------------------------------------------------------------------------


def init_log(level: int = 0, stderr: bool = False) -> None:  # noqa: ARG001 - it goes to stderr anyway
    """Sets the least severity that is logged: 0 all, 1 warnings, 2 errors."""
    settings.level = level


def set_logging_disabled() -> None:
    """Logs errors only, as in the forks of FlowNet."""
    settings.level = 2


def log(text: str, where: str = "_caffe.cpp:1", severity: int = 0) -> None:
    """A line on stderr in the form of glog, which Caffe uses, unless GLOG_minloglevel or :func:`init_log` hides it."""
    least = settings.level if settings.level is not None else _least()
    if severity >= least:
        now = datetime.datetime.now()
        letter = "IWEF"[severity]
        sys.stderr.write(f"{letter}{now:%m%d %H:%M:%S.%f} {os.getpid():>5} {where}] {text}\n")


def _least() -> int:
    said = os.environ.get("GLOG_minloglevel", "")  # noqa: SIM112 - glog's name
    return int(said) if said.isdigit() else 0


# -- several GPUs, which are not offered -----------------------------------------------------------------------------


class NCCL:
    """Not offered: several GPUs through pycaffe."""

    def __init__(self, *_: object) -> None:
        raise CaffePortError("caffe.NCCL is not offered", hint="Use `torchrun ... caffe-port train` for several GPUs.")

    @classmethod
    def new_uid(cls) -> str:
        """Refuses, as the constructor does."""
        cls()
        return ""


def has_nccl() -> bool:
    """False: caffe.NCCL is not offered."""
    return False


def solver_count() -> int:
    """1: one solver in one process."""
    return 1


def set_solver_count(count: int) -> None:
    """Refuses more than one solver."""
    if count != 1:
        NCCL()


def solver_rank() -> int:
    """0: one solver in one process."""
    return 0


def set_solver_rank(rank: int) -> None:
    """Refuses any rank but that of a single solver."""
    if rank:
        NCCL()


def set_multiprocess(multiprocess: bool) -> None:
    """Does nothing: there is one process."""


class Timer:
    """Measures the time between :meth:`start` and :meth:`stop` in milliseconds (``ms``)."""

    def __init__(self) -> None:
        self._began: datetime.datetime | None = None
        self._ended: datetime.datetime | None = None

    def start(self) -> None:
        """Starts the clock."""
        self._began, self._ended = datetime.datetime.now(datetime.timezone.utc), None

    def stop(self) -> None:
        """Stops it."""
        self._ended = datetime.datetime.now(datetime.timezone.utc)

    @property
    def ms(self) -> float:
        """Milliseconds from start to stop, or until now."""
        if self._began is None:
            return 0.0
        ended = self._ended or datetime.datetime.now(datetime.timezone.utc)
        return (ended - self._began).total_seconds() * 1000
