"""Caffe's .solverstate (and .solverstate.h5): the iteration, the name of the weights, the solver's arrays.

Sources: solver.cpp (SnapshotSolverState, Restore), sgd_solver.cpp (SnapshotSolverStateToBinaryProto, ...ToHDF5).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import caffemodel, wire
from caffe_port.formats.message import Message
from caffe_port.storage import hdf5
from caffe_port.storage.files import atomic_write, map_file
from caffe_port.typing import Array

NO_LOSS = float(np.finfo(np.float32).max)
"""The minimum before any loss."""


@dataclass(frozen=True)
class SolverState:
    """The contents of a .solverstate.

    Attributes:
        iter: the number of updates done.
        learned_net: the file of the weights that belong to it, as Caffe recorded it.
        history: the solver's first array for every blob of the net, then its second (AdaDelta, Adam).
        current_step: the steps taken so far by lr_policy step, multistep or plateau.
        minimum_loss, iter_last_event: what lr_policy plateau remembers; only in SSD's binary files.
    """

    iter: int
    learned_net: str
    history: tuple[Array, ...] = field(repr=False)
    current_step: int = 0
    minimum_loss: float = NO_LOSS
    iter_last_event: int = 0
    path: str = "<state>"


def read(path: str | Path) -> SolverState:
    """Reads a .solverstate or .solverstate.h5.

    Raises:
        ParseError: the file is damaged or of another kind.
        CaffePortError: the file cannot be read.
    """
    where = str(path)
    data = map_file(path)
    if data[: len(caffemodel.HDF5_MAGIC)] == caffemodel.HDF5_MAGIC:
        return _read_hdf5(where)
    state = wire.parse(data, "SolverState", where)
    if not state.has("iter") or state.unknown:
        raise ParseError("is not a .solverstate: it has no iteration, or has fields of another format", where)
    history = []
    for index, blob in enumerate(state.history):
        try:
            history.append(np.asarray(caffemodel.blob_array(blob), np.float32))
        except ParseError as error:
            raise ParseError(f"history {index}: {error.what}", where) from None
    least = state.minimum_loss if state.has("minimum_loss") else NO_LOSS
    numbers = state.current_step, least, state.iter_last_event
    return SolverState(state.iter, state.learned_net, tuple(history), *numbers, where)


def _read_hdf5(where: str) -> SolverState:
    h5py = hdf5.library(where)
    try:
        with h5py.File(where, "r") as file:
            group = hdf5.member(file, "history", where)
            history = [np.asarray(hdf5.values(group, str(k), where), np.float32) for k in range(len(group))]
            name = file["learned_net"][()]
            name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
            numbers = [int(hdf5.values(file, key, where).reshape(-1)[0]) for key in ("iter", "current_step")]
            return SolverState(numbers[0], name, tuple(history), numbers[1], path=where)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ParseError(f"is damaged or not a .solverstate.h5: {str(error)[:200]}", where) from None


def write(path: str | Path, state: SolverState) -> None:
    """Writes a state for Caffe; as HDF5 if the name ends in ``.h5``.

    Raises:
        CaffePortError: the file cannot be written.
    """
    if str(path).endswith(".h5"):
        return _write_hdf5(path, state)
    message = Message("SolverState", iter=state.iter, learned_net=state.learned_net, current_step=state.current_step)
    if state.minimum_loss != NO_LOSS:
        message.set("minimum_loss", state.minimum_loss)
        message.set("iter_last_event", state.iter_last_event)
    message.set("history", [caffemodel.blob_message(array) for array in state.history])
    with atomic_write(path) as file:
        for chunk in wire.serialize(message):
            file.write(chunk)


def _write_hdf5(path: str | Path, state: SolverState) -> None:
    h5py = hdf5.library(str(path))
    with atomic_write(path) as out, h5py.File(out, "w") as file:
        file["iter"], file["current_step"] = np.array([state.iter], np.int32), np.array([state.current_step], np.int32)
        name = state.learned_net.encode() + b"\0"  # without it, Caffe reads on (hdf5_load_string)
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(len(name))
        file.create_dataset("learned_net", (), h5py.Datatype(kind), np.array(name, f"S{len(name)}"))
        for index, array in enumerate(state.history):
            file[f"history/{index}"] = np.asarray(array, np.float32)


def weights_beside(state: SolverState) -> Path:
    """The weights file of a state: at the recorded path, or under that name next to the state.

    Raises:
        CaffePortError: it is in neither place.
    """
    named = Path(state.learned_net)
    for path in (Path(state.path).parent / named.name, named):
        if named.name and os.path.isfile(path):  # False for an impossible file name
            return path
    raise CaffePortError(
        f"its weights '{state.learned_net}' are neither at that path nor next to the state", state.path
    )
