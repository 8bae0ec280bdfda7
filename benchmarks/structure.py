"""The structure of the library in figures, for this checkout or any commit, by the same measure.

    python benchmarks/structure.py [--rev COMMIT] [--no-flow] [--json] [-v]

Computed from the source of ``caffe_port/**.py`` only (nothing is imported, so any commit can be measured):

modules         files, and those in the root of ``caffe_port/``
imports         a module names another in an import statement, at the top level or inside a function; those under
                ``if TYPE_CHECKING`` are not counted. ``from package import module`` imports the module.
circles         import cycles: groups of modules each of which reaches every other by imports
floors          the number of modules in the longest chain of imports; a cycle counts as one floor
arrows up       a room is a folder of ``caffe_port/``, or a module in its root. Rooms are put in the order in which the
                fewest imports go upward, and those are counted: 0 if some order has none.
                (``make lint`` checks that it is the intended order.)
files naming    files whose code (names and strings, not comments and docstrings) contains a type's name as a word
lists by hand   literal tuples, lists, sets and dicts that contain three or more type names (those of docs/layers.md),
                outside the rooms that are about types: layers/, signatures/ and verification/

Determined by a run, which requires torch (``--no-flow`` skips it):

weights         ``caffe-port convert net.prototxt net.caffemodel`` on a small net. Counted are the calls that carry
                the weights: an argument is the path of the caffemodel or of weights.safetensors, the Weights that
                were read, or an array, tensor or buffer whose bytes are in the caffemodel; or a tuple, list, dict or
                dataclass that contains one of them. (A Net is not followed, because it computes.) Files: those that
                such calls enter. Back up: the places where such a call is in a file on a higher floor than the call
                before it, so that a reader who follows the weights must go up again. A place in a loop counts once.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "caffe_port"
TYPES = ("BatchNorm", "Pooling", "LSTM", "PriorBox", "Proposal")
ABOUT_TYPES = {"layers", "signatures", "verification"}
EXACT = 16
"""Up to this many rooms of one cycle are tried in every order; more are ordered step by step."""


class Import(NamedTuple):
    """``importer`` names ``imported`` in its line ``line``."""

    importer: str
    imported: str
    line: int


class Tree:
    """The modules of a source tree, and what they import.

    Args:
        root: the folder that holds ``caffe_port/``.
    """

    def __init__(self, root: Path) -> None:
        self.files = {_module(path.relative_to(root)): path for path in sorted((root / PACKAGE).rglob("*.py"))}
        self.parsed = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}
        self.imports = sorted({i for name, tree in self.parsed.items() for i in self._imports(name, tree)})

    def _imports(self, name: str, tree: ast.Module) -> Iterator[Import]:
        for node in _running(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = name.split(".") if self.files[name].name == "__init__.py" else name.split(".")[:-1]
                    base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
                targets = [f"{base}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in targets:
                known = target
                while known and known not in self.files:
                    known = known.rpartition(".")[0]
                if known and known != name:
                    yield Import(name, known, node.lineno)

    @property
    def arrows(self) -> dict[str, set[str]]:
        """Module -> modules that it imports."""
        found: dict[str, set[str]] = {name: set() for name in self.files}
        for one in self.imports:
            found[one.importer].add(one.imported)
        return found


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _running(ast.Module(child.orelse, []))
            continue
        yield child
        yield from _running(child)


# -- what imports what ---------------------------------------------------------------------------------------------


def groups(arrows: Mapping[str, AbstractSet[str]]) -> list[set[str]]:
    """Strongly connected components (Tarjan), starting with those that import nothing."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(set(stack[at:]))
            del stack[at:]

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def floors(arrows: Mapping[str, AbstractSet[str]]) -> dict[str, int]:
    """Module -> its floor, from 1: one above the highest of what it imports."""
    found: dict[str, int] = {}
    for group in groups(arrows):
        below = {other for node in group for other in arrows[node]} - group
        found |= dict.fromkeys(group, 1 + max((found[other] for other in below), default=0))
    return found


def room(module: str) -> str:
    """The folder of ``caffe_port/`` that contains a module, or the module itself if it is in the root."""
    return module.split(".")[1] if "." in module else "__init__"


def arrows_up(imports: Iterable[Import]) -> list[Import]:
    """The imports between rooms that go upward, in the order of the rooms with the fewest of them."""
    between: dict[tuple[str, str], list[Import]] = defaultdict(list)
    for one in imports:
        if room(one.importer) != room(one.imported):
            between[room(one.importer), room(one.imported)].append(one)
    arrows: dict[str, set[str]] = defaultdict(set)
    for upper, lower in between:
        arrows[upper].add(lower)
        arrows.setdefault(lower, set())
    weight = {pair: len(found) for pair, found in between.items()}
    up: list[Import] = []
    for group in groups(arrows):
        order = _order(sorted(group), weight)
        for place, lower in enumerate(order):
            for upper in order[place + 1 :]:
                up += between.get((lower, upper), [])
    return sorted(up)


def _order(rooms: list[str], weight: Mapping[tuple[str, str], int]) -> list[str]:
    """Rooms from the lowest to the highest, with the fewest imports upward."""
    if len(rooms) > EXACT:
        order = rooms
        while True:  # move one room at a time as long as that helps
            tries = []
            for one in order:
                rest = [other for other in order if other != one]
                tries += [[*rest[:k], one, *rest[k:]] for k in range(len(order))]
            better = min(tries, key=lambda tried: _cost(tried, weight))
            if _cost(better, weight) >= _cost(order, weight):
                return order
            order = better

    @cache
    def best(above: int) -> tuple[int, tuple[int, ...]]:
        """Cost and order of the rooms in the set ``above``, put on top of all others."""
        if not above:
            return 0, ()
        tries = []
        for k in range(len(rooms)):
            if above >> k & 1:
                rest = above & ~(1 << k)
                cost = sum(weight.get((rooms[k], rooms[j]), 0) for j in range(len(rooms)) if rest >> j & 1)
                tries.append((cost + best(rest)[0], (k, *best(rest)[1])))
        return min(tries)

    return [rooms[k] for k in best((1 << len(rooms)) - 1)[1]]


def _cost(order: list[str], weight: Mapping[tuple[str, str], int]) -> int:
    return sum(weight.get((one, upper), 0) for k, one in enumerate(order) for upper in order[k + 1 :])


# -- what names a type ---------------------------------------------------------------------------------------------


def words(tree: ast.AST) -> set[str]:
    """Names, and words in strings, in the code of a module without its docstrings."""
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    prose |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # the text below a constant
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found |= set(re.findall(r"\w+", node.value))
        for field in ("id", "attr", "name", "asname", "arg"):
            if isinstance(value := getattr(node, field, None), str):
                found |= set(value.split("."))
    return found


def lists_by_hand(tree: Tree, types: Collection[str]) -> list[str]:
    """``file:line (how many types)`` of the collections that name three types or more."""
    found = []
    for module, parsed in tree.parsed.items():
        if room(module) in ABOUT_TYPES:
            continue
        for node in ast.walk(parsed):
            if isinstance(node, ast.Dict):
                sides = ([key for key in node.keys if key], node.values)
            elif isinstance(node, ast.Tuple | ast.List | ast.Set):
                sides = (node.elts, [])
            else:
                continue
            named = max(
                len({e.value for e in side if isinstance(e, ast.Constant) and e.value in types}) for side in sides
            )
            if named >= 3:
                found.append(f"{module}:{node.lineno} ({named})")
    return sorted(found)


def registered(root: Path) -> set[str]:
    """The type names that docs/layers.md has an entry for; a test holds them to what is registered."""
    text = (root / "docs" / "layers.md").read_text(encoding="utf-8")
    also = re.findall(r"Also called (.*)", text)
    return set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) | set(re.findall(r"`(\w+)`", " ".join(also)))


# -- the path of the weights ---------------------------------------------------------------------------------------

_FOLLOW = """
import dataclasses, os, sys, threading
from collections.abc import Mapping
from pathlib import Path

root, prototxt, weights, folder = sys.argv[1:5]
sys.path.insert(0, root)
package = os.path.join(root, "caffe_port") + os.sep
calls = []
raw = Path(weights).read_bytes()

def carries(value, depth=2):
    if isinstance(value, (str, Path)):
        return str(value).endswith("weights.safetensors") or str(value) == weights
    kind = type(value).__name__
    if kind == "Weights" and type(value).__module__.startswith("caffe_port."):
        return True
    if kind in ("Tensor", "Parameter"):
        value = value.detach().numpy() if value.device.type == "cpu" else b""
        kind = type(value).__name__
    if kind in ("ndarray", "bytes", "memoryview"):
        data = bytes(value) if kind in ("bytes", "memoryview") else value.tobytes()
        return len(data) >= 16 and data in raw
    if depth and isinstance(value, Mapping) and len(value) < 100:
        return any(carries(v, depth - 1) for v in list(value.values()))
    if depth and isinstance(value, (tuple, list)) and len(value) < 100:
        return any(carries(v, depth - 1) for v in value)
    if depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(carries(getattr(value, f.name, None), depth - 1) for f in dataclasses.fields(value))
    return False

def listen(frame, event, argument):
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(package) or code.co_name.startswith("<"):
        return
    n = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    sys.setprofile(None)
    try:
        if any(carries(frame.f_locals.get(name)) for name in code.co_varnames[:n]):
            calls.append((code.co_filename[len(root) + 1:], code.co_name))
    finally:
        sys.setprofile(listen)

from caffe_port.cli import main
sys.argv = ["caffe-port", "convert", prototxt, weights, "-o", folder]
out, sys.stdout = sys.stdout, sys.stderr
sys.setprofile(listen)
try:
    main()
except SystemExit as end:
    code = end.code
finally:
    sys.setprofile(None)
if code:
    sys.exit(code)
import json
json.dump(calls, out)
"""


def follow(root: Path) -> list[tuple[str, str]]:
    """Module and function of every call that carries the weights through ``convert``, in order."""
    golden = ROOT / "tests" / "golden" / "layers" / "batchnorm_scale_inplace"
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(root), f"{golden}.prototxt", f"{golden}.caffemodel", str(Path(folder) / "net")]
        done = subprocess.run([sys.executable, "-c", _FOLLOW, *arguments], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        sys.exit(f"convert failed, in {root}:\n{done.stderr}")
    return [(_module(Path(file)), function) for file, function in json.loads(done.stdout)]


# -- the table -----------------------------------------------------------------------------------------------------


def measure(root: Path, flow: bool = True) -> dict[str, Any]:
    """All figures of the tree in ``root``, and the places that they count."""
    tree = Tree(root)
    arrows = tree.arrows
    floor = floors(arrows)
    circles = [sorted(group) for group in groups(arrows) if len(group) > 1]
    up = arrows_up(tree.imports)
    named = {name: words(parsed) for name, parsed in tree.parsed.items()}
    types = registered(ROOT)
    by_hand = lists_by_hand(tree, types)
    figures: dict[str, Any] = {
        "modules": len(tree.files),
        "modules in the root": sum(path.parent.name == PACKAGE for path in tree.files.values()),
        "imports": sum(map(len, arrows.values())),
        "circles": len(circles),
        "floors": max(floor.values()),
        "arrows up": len(up),
        **{f"files naming {name}": sum(name in found for found in named.values()) for name in TYPES},
        "lists by hand": len(by_hand),
    }
    places: dict[str, list[str]] = {
        "circles": [", ".join(circle) for circle in circles],
        "arrows up": [f"{one.importer}:{one.line} -> {one.imported}" for one in up],
        **{f"files naming {name}": [module for module, found in named.items() if name in found] for name in TYPES},
        "lists by hand": by_hand,
    }
    if flow:
        calls = follow(root)
        climbs = list(dict.fromkeys((a, b) for a, b in pairwise(calls) if floor[b[0]] > floor[a[0]]))
        files = list(dict.fromkeys(module for module, _ in calls))
        figures |= {"files the weights enter": len(files), "times they go back up": len(climbs)}
        places["files the weights enter"] = files
        places["times they go back up"] = [f"{a[0]}.{a[1]} .. {b[0]}.{b[1]}" for a, b in climbs]
    return {"figures": figures, "places": places}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rev", help="commit to compare with this checkout")
    parser.add_argument("--no-flow", action="store_true", help="do not run anything: omit the path of the weights")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true", help="list the places that are counted")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    if options.rev:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "-C", str(ROOT), "archive", options.rev], stdout=subprocess.PIPE)
            if archive.returncode:
                sys.exit(f"unknown commit '{options.rev}'")
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            found[options.rev] = measure(Path(folder).resolve(), not options.no_flow)
    found["here"] = measure(ROOT, not options.no_flow)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'':24}" + "".join(f"{name[:12]:>14}" for name in found))
    for row in found["here"]["figures"]:
        print(f"{row:24}" + "".join(f"{one['figures'][row]:>14}" for one in found.values()))
    if options.verbose:
        for name, one in found.items():
            for row, places in one["places"].items():
                print(f"\n{row}, {name}:", *places, sep="\n  ")


if __name__ == "__main__":
    main()
