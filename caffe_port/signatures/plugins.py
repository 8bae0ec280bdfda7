"""Layer types of other people: files named by the user, and installed packages.

A plugin defines subclasses of :class:`caffe_port.layers.Layer`; importing it registers them. Nothing is run that the
user did not name or install.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from caffe_port.errors import CaffePortError
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import PYTHON, SIGNATURES, Signature

ENTRY_POINTS = "caffe_port.layers"


def find(layer: Message) -> Signature | None:
    """The record of a layer: of its type, which an installed package may bring; of a Python layer, what stands for it.

    Returns:
        None where nothing is known that can build it.
    """
    if layer.type == "Python":
        return PYTHON.get(f"{layer.python_param.module}.{layer.python_param.layer}")
    return find_type(layer.type)


def find_type(type_: str) -> Signature | None:
    """The record of a type string, which an installed package may bring; None where it is not known."""
    if type_ not in SIGNATURES:
        load_entry_points()
    return SIGNATURES.get(type_)


def run(paths: Sequence[str | Path]) -> None:
    """Runs Python files that define layer types.

    Raises:
        CaffePortError: a file does not exist, or raises.
    """
    for path in paths:
        if not Path(path).is_file():
            raise CaffePortError("does not exist; --plugin takes a Python file", str(path))
        name = f"caffe_port_plugin_{Path(path).stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise CaffePortError("is not a Python file", str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # so that inspect finds the source of its classes
        _guard(functools.partial(spec.loader.exec_module, module), str(path))


@functools.cache
def load_entry_points() -> None:
    """Imports the installed packages that declare the entry-point group ``caffe_port.layers``."""
    import importlib.metadata  # here: few commands need it

    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _guard(entry.load, f"plugin {entry.name} ({entry.value})")
        sys.modules[f"caffe_port_plugin_{entry.name}"] = sys.modules[entry.module]  # a user's code, too


def _guard(action: Callable[[], object], where: str) -> None:
    try:
        action()
    except CaffePortError:
        raise
    except Exception as error:
        raise CaffePortError(f"raised {type(error).__name__}: {error}", where) from error
