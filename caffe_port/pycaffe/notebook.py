"""Notebooks of Jupyter as scripts: their code cells, without the lines that only IPython understands."""

from __future__ import annotations

import ast
import json
import re
import types
from typing import Any

from caffe_port.errors import CaffePortError
from caffe_port.pycaffe.settings import note

_LINE = re.compile(r"(?P<indent>\s*)(?:\w[\w.]*\s*=\s*)?[%!?](?P<rest>.*)|(?P<space>\s*)[\w.]+\?{1,2}\s*")
_BODY_RUNS = ("time", "timeit", "prun", "capture")
"""Magics of whole cells that run the cell; others give it to another language."""
_PYLAB = "from pylab import *; import numpy as np, matplotlib.pyplot as plt"


def code_cells(data: bytes, where: str) -> list[str]:
    """The source of the code cells of a notebook of format 3 or 4.

    Raises:
        CaffePortError: it is not a notebook.
    """
    try:
        found = json.loads(data)
        sheets = found.get("worksheets", [found])
        cells = [cell for sheet in sheets for cell in sheet["cells"] if cell["cell_type"] == "code"]
        sources = [cell.get("source", cell.get("input", "")) for cell in cells]
        return ["".join(source) for source in sources]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CaffePortError("is not a Jupyter notebook of format 3 or 4", where) from None


def without_ipython(source: str) -> tuple[str, list[str]]:
    """A cell without the lines for IPython (``%matplotlib inline``, ``!ls``), each replaced by ``pass``; these lines.

    ``%pylab`` becomes the imports that it stands for.
    """
    lines = source.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("%%") and first[2:].split(" ")[0] not in _BODY_RUNS:
        return "", [first]
    kept, left, continues = [], [], False
    for line in lines:
        match = None if continues else _LINE.fullmatch(line)
        if continues:
            kept.append("")
        elif match is None:
            kept.append(line)
        elif (match["rest"] or "").startswith("pylab"):
            kept.append((match["indent"] or "") + _PYLAB)
        else:
            kept.append((match["indent"] or match["space"] or "") + "pass")
            left.append(line.strip())
        continues = (continues or kept[-1].strip() == "pass") and line.endswith("\\")
    return "\n".join(kept) + "\n", left


def say(left: list[str]) -> None:
    """Notes what :func:`without_ipython` left out."""
    for line in left:
        note(f"left out a {'cell' if line.startswith('%%') else 'line'} for IPython: {line}")


def compiled(source: str, name: str) -> tuple[list[types.CodeType], list[str]]:
    """The code of a cell, and the lines that are left out of it. An expression at its end prints its value.

    Raises:
        SyntaxError: it is not Python 3.
    """
    left: list[str] = []
    try:
        tree = ast.parse(source, name)
    except SyntaxError:
        kept, left = without_ipython(source)
        tree = ast.parse(kept, name)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        return [compile(tree, name, "exec", dont_inherit=True)], left
    before = compile(ast.Module(tree.body[:-1], []), name, "exec", dont_inherit=True)
    return [before, compile(ast.Interactive([last]), name, "single", dont_inherit=True)], left


class IPython:
    """What ``get_ipython()`` returns in scripts that were exported from a notebook: its magics do nothing.

    Args:
        space: the names of the script, in which ``%%time`` and the like run their cell.
    """

    def __init__(self, space: dict[str, Any]) -> None:
        self._space = space

    def run_cell_magic(self, name: str, line: str, cell: str) -> None:
        """Runs a cell whose magic measures or captures only."""
        if name in _BODY_RUNS:
            exec(compile(cell, "<cell>", "exec", dont_inherit=True), self._space)  # noqa: S102 - a part of the script
        else:
            say([f"%%{name} {line}"])

    def __getattr__(self, name: str) -> Any:
        def nothing(*args: Any, **_: Any) -> None:
            words = " ".join(str(arg) for arg in args)
            if words.startswith("pylab"):
                exec(compile(_PYLAB, "<pylab>", "exec", dont_inherit=True), self._space)  # noqa: S102 - as above
            else:
                say([words])

        return nothing
