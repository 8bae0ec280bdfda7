"""Copies layer classes into model.py: their source, without the parts that only caffe-port needs, and all dependencies.

Nothing is executed or imported: names are looked up in the syntax trees of the files, and their source text is copied
unchanged, so that comments and docstrings are kept.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from caffe_port.errors import CaffePortError
from caffe_port.layers.layer import Layer

_LAYER_MEMBERS = frozenset(vars(Layer)) | frozenset(Layer.__annotations__)
_BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True)
class Import:
    """``import module as name`` if ``symbol`` is None, otherwise ``from module import symbol as name``."""

    module: str
    symbol: str | None
    name: str


class _Module:
    """A source file: its lines, and the names bound at its top level."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        text = Path(path).read_text(encoding="utf-8")
        self.lines = text.splitlines()
        tree = ast.parse(text)
        self.bound: dict[str, ast.stmt | Import] = {}
        for node in _top_level(tree.body):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self.bound[node.name] = node
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                self.bound.update({i.name: i for i in self.imports(node)})
            else:
                self.bound.update(dict.fromkeys(_targets(node), node))

    def imports(self, node: ast.Import | ast.ImportFrom) -> Iterator[Import]:
        for alias in node.names:
            if isinstance(node, ast.Import):
                name = alias.asname or alias.name.partition(".")[0]
                yield Import(alias.name if alias.asname else name, None, name)
            else:
                package = self.name.split(".")[: -node.level] if node.level else []
                module = ".".join([*package, *([node.module] if node.module else [])])
                yield Import(module, alias.name, alias.asname or alias.name)

    def text(self, node: ast.stmt) -> list[str]:
        """The lines of a statement, with its decorators and the comments directly above it."""
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)]) - 1
        while first and self.lines[first - 1].lstrip().startswith("#") and not _is_ruler(self.lines[first - 1]):
            first -= 1
        return self.lines[first : node.end_lineno]


def _is_ruler(line: str) -> bool:
    return line.lstrip().startswith("# --")


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):
            yield from _top_level([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _top_level([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse])
        else:
            yield node


def _targets(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [n.id for target in targets if target is not None for n in ast.walk(target) if isinstance(n, ast.Name)]


@functools.cache
def _module(name: str) -> _Module:
    loaded = sys.modules.get(name)
    path = getattr(loaded, "__file__", None)
    if path is None:
        spec = importlib.util.find_spec(name)
        path = spec.origin if spec else None
    if path is None or not path.endswith(".py"):
        raise CaffePortError(
            f"the source of module {name} cannot be read, so its layers cannot be copied into model.py"
        )
    return _Module(name, path)


@dataclass
class Copied:
    """Source code for model.py, in an order in which it can run.

    Attributes:
        imports: the imports that it needs.
        names: the top-level names that it defines, each with its origin (module, name).
        blocks: the source code; consecutive assignments form one block.
    """

    imports: set[Import] = field(default_factory=set)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    blocks: list[tuple[str, list[str]]] = field(default_factory=list)
    _layers: dict[tuple[str, str], type[Layer]] = field(default_factory=dict)

    def add_layer(self, cls: type[Layer]) -> str:
        """Copies a layer class with all its dependencies; returns its name in model.py.

        Raises:
            CaffePortError: its source cannot be read, or is not self-contained.
        """
        for base in cls.__mro__:
            if issubclass(base, Layer) and base is not Layer:
                self._layers[base.__module__, base.__qualname__] = base
        if "." in cls.__qualname__:
            raise CaffePortError(
                f"layer class {cls.__qualname__} is defined inside a function or class",
                hint="Move it to the top level of its file, so that it can be copied into model.py.",
            )
        self._take(cls.__module__, cls.__qualname__)
        return cls.__qualname__

    def add(self, thing: type[nn.Module]) -> None:
        """Copies a class of this package that is not a layer."""
        self._take(thing.__module__, thing.__name__)

    def need(self, source: str, known: Collection[str]) -> None:
        """Adds the imports for an expression of ``torch_source`` or ``call_source``.

        Raises:
            CaffePortError: it refers to a name that is neither known nor a common module.
        """
        usual = {
            "F": Import("torch.nn.functional", None, "F"),
            "math": Import("math", None, "math"),
            "nn": Import("torch", "nn", "nn"),
            "torch": Import("torch", None, "torch"),
            "torchvision": Import("torchvision", None, "torchvision"),
        }
        for name in sorted(_names([ast.parse(source, mode="eval").body])):
            if name in usual:
                self.imports.add(usual[name])
            elif name not in known and name not in _BUILTINS and name not in self.names:
                raise CaffePortError(f"model.py would refer to '{name}', which it does not define: {source[:80]}")

    def import_lines(self) -> list[str]:
        """Import statements, sorted: the standard library, a blank line, then the rest."""
        plain = {i for i in self.imports if i.symbol is None}
        froms: dict[str, list[str]] = {}
        for i in sorted(self.imports - plain, key=lambda i: (i.module, str(i.symbol))):
            froms.setdefault(i.module, []).append(_as(str(i.symbol), i.name))
        lines = {f"import {_as(i.module, i.name)}": i.module for i in plain}
        lines.update({f"from {module} import {', '.join(names)}": module for module, names in froms.items()})
        groups: list[list[str]] = [[], []]
        for line, module in sorted(lines.items(), key=lambda item: (item[0].startswith("from"), item[1])):
            groups[module.partition(".")[0] not in sys.stdlib_module_names].append(line)
        return [*groups[0], *([""] if all(groups) else []), *groups[1]]

    # -- one name ---------------------------------------------------------------------------------------------------

    def _take(self, module_name: str, name: str) -> None:
        """Copies or imports what ``name`` is bound to in a module, and all its dependencies."""
        module = _module(module_name)
        node = module.bound.get(name)
        if node is None:
            if name in _BUILTINS or name in ("__name__", "__file__"):
                return
            raise CaffePortError(f"'{name}' of module {module_name} cannot be found; it cannot be copied into model.py")
        if isinstance(node, Import):
            self._take_import(node, f"module {module_name}")
            return
        if self._claim(name, (module_name, name)):
            return
        if isinstance(node, ast.ClassDef):
            kept, lines = self._class(module, node)
        else:
            kept, lines = [node], clean(module.text(node))
        for used in sorted(_names(kept)):
            if used != name:
                self._take(module_name, used)
        for imported in _inner_imports(module, kept):
            if _is_ours(imported.module):
                raise CaffePortError(
                    f"{name} imports {imported.module} when it runs, so model.py would not be self-contained"
                )
        kind = "assignment" if isinstance(node, (ast.Assign, ast.AnnAssign)) else "definition"
        self.blocks.append((kind, lines))

    def _take_import(self, found: Import, where: str) -> None:
        if not _is_ours(found.module):
            self._claim(found.name, (found.module, found.symbol or ""))
            self.imports.add(found)
        elif found.symbol is None or found.symbol != found.name:
            raise CaffePortError(
                f"{where} renames what it imports from {found.module}, which cannot be copied into model.py"
            )
        elif found.symbol in _module(found.module).bound:
            self._take(found.module, found.symbol)
        else:
            raise CaffePortError(f"{where} uses {found.module}.{found.symbol}, so model.py would not be self-contained")

    def _claim(self, name: str, origin: tuple[str, str]) -> bool:
        """Whether the name is already defined. Raises CaffePortError if it is taken by something else."""
        known = name in self.names
        taken = self.names.setdefault(name, origin)
        if taken != origin:
            raise CaffePortError(
                f"model.py would need two definitions of {name}: from {taken[0]} and from {origin[0]}",
                "",
                "Rename one of them.",
            )
        return known

    # -- one class --------------------------------------------------------------------------------------------------

    def _class(self, module: _Module, node: ast.ClassDef) -> tuple[list[ast.AST], list[str]]:
        """The nodes and the text of a class; a layer class is reduced to an ordinary nn.Module."""
        cls = self._layers.get((module.name, node.name))
        if cls is None:
            return [node], clean(module.text(node))
        members = _kept_members(cls)
        bases = [base for base in node.bases if not (isinstance(base, ast.Name) and base.id == "Layer")]
        shown = ", ".join(ast.unparse(base) for base in bases) or "nn.Module"
        if not bases:
            self.imports.add(Import("torch", "nn", "nn"))
        kept: list[ast.AST] = list(bases)
        lines = [f"class {node.name}({shown}):"]
        previous = ""
        for member in node.body:
            is_docstring = isinstance(member, ast.Expr) and member is node.body[0]
            is_function = isinstance(member, ast.FunctionDef)
            names = {member.name} if isinstance(member, ast.FunctionDef) else set(_targets(member))
            if not is_docstring and not names & members:
                continue
            kind = "function" if is_function else "docstring" if is_docstring else "attribute"
            if previous and (kind == "function" or previous != kind):
                lines.append("")
            lines += module.text(member)
            kept.append(member)
            previous = kind
        if not previous:
            lines.append("    pass")
        return kept, clean(lines)


def _as(what: str, name: str) -> str:
    return what if what == name else f"{what} as {name}"


def _kept_members(cls: type[Layer]) -> set[str]:
    """The members that an nn.Module needs: ``__init__``, ``forward``, and what these refer to through self."""
    bodies: dict[str, list[ast.stmt]] = {}
    for base in cls.__mro__:
        if not (issubclass(base, Layer) and base is not Layer):
            continue
        node = _module(base.__module__).bound.get(base.__qualname__)
        if not isinstance(node, ast.ClassDef):
            raise CaffePortError(f"the source of layer class {base.__qualname__} cannot be found")
        for member in node.body:
            names = [member.name] if isinstance(member, (ast.FunctionDef, ast.ClassDef)) else _targets(member)
            for name in names:
                bodies.setdefault(name, []).append(member)
    protocol = {name for base in cls.__mro__ if not issubclass(base, Layer) for name in vars(base)}
    waiting = [n for n in bodies if n == "forward" or (n in protocol | {"__init__"} and n not in _LAYER_MEMBERS)]
    waiting += [n for n, nodes in bodies.items() if isinstance(nodes[0], ast.AnnAssign) and n not in _LAYER_MEMBERS]
    kept: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in kept:
            continue
        kept.add(name)
        used = {
            n.attr
            for body in bodies[name]
            for n in ast.walk(body)
            if isinstance(n, ast.Attribute) and _is_self(n.value, cls.__name__)
        }
        waiting += [n for n in used if n in bodies]
    return kept


def _is_self(node: ast.expr, class_name: str) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls", class_name)


def _names(nodes: list[ast.AST]) -> set[str]:
    """The global names that code refers to: names it reads but does not bind itself."""
    used: set[str] = set()
    for node in nodes:
        used |= _free(node, set())
    return used


def _free(node: ast.AST, bound: set[str]) -> set[str]:
    if isinstance(node, ast.Name):
        return {node.id} - bound if isinstance(node.ctx, ast.Load) else set()
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        arguments = node.args
        parameters = {a.arg for a in ast.walk(arguments) if isinstance(a, ast.arg)}
        outside: list[ast.AST] = [*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)]
        body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
        if not isinstance(node, ast.Lambda):
            outside += [
                *node.decorator_list,
                *(a.annotation for a in ast.walk(arguments) if isinstance(a, ast.arg) and a.annotation is not None),
            ]
            outside += [node.returns] if node.returns is not None else []
        stored = {n.id for b in body for n in ast.walk(b) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {n.name for b in body for n in ast.walk(b) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        stored |= {
            a.asname or a.name.partition(".")[0]
            for b in body
            for n in ast.walk(b)
            if isinstance(n, (ast.Import, ast.ImportFrom))
            for a in n.names
        }
        inside = bound | parameters | stored
        return set().union(*(_free(n, bound) for n in outside), *(_free(n, inside) for n in body))
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        stored = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        return set().union(*(_free(n, bound | stored) for n in ast.iter_child_nodes(node)))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return set()
    return set().union(*(_free(n, bound) for n in ast.iter_child_nodes(node)))


def _inner_imports(module: _Module, nodes: list[ast.AST]) -> Iterator[Import]:
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, (ast.Import, ast.ImportFrom)):
                yield from module.imports(inner)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "caffe_port"


_TOOL_COMMENT = re.compile(r"#\s*(type: ignore|fmt: |noqa)")


def clean(lines: list[str]) -> list[str]:
    """Removes comments for this project's tools (``type: ignore``, ``fmt: skip``, ``noqa``)."""
    result = list(lines)
    indent = len(lines[0]) - len(lines[0].lstrip())
    text = "".join(f"{line[indent:] if not line[:indent].strip() else line}\n" for line in lines)
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, IndentationError):
        return result
    for token in tokens:
        if token.type == tokenize.COMMENT and _TOOL_COMMENT.match(token.string):
            row = token.start[0] - 1
            result[row] = result[row][: token.start[1] + indent].rstrip()
    return result


def constructor_call(cls: type[nn.Module], args: dict[str, object]) -> tuple[str, list[str]]:
    """Name and arguments of the call that builds a copied class: required arguments first, defaults left out."""
    parts = []
    positional = True
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in args:
            positional = False
            continue
        value, default = args[name], parameter.default
        if default is not inspect.Parameter.empty and type(value) is type(default) and value == default:
            positional = False
            continue
        positional = positional and default is inspect.Parameter.empty
        parts.append(literal(value) if positional else f"{name}={literal(value)}")
    return cls.__name__, parts


def literal(value: object) -> str:
    """Source of an argument that a layer is built with: numbers, strings, None, and tuples, lists and dicts of them.

    Raises:
        CaffePortError: the value is of another kind and cannot be written as source.
    """
    if isinstance(value, float) and value != value:
        return 'float("nan")'
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return 'float("inf")' if value > 0 else 'float("-inf")'
    if isinstance(value, str):
        return quoted(value)
    if value is None or type(value) in (bool, int, float, bytes):
        return repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(k)}: {literal(v)}' for k, v in value.items())}}}"
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return literal(value.item())
    raise CaffePortError(f"a layer was built with a {type(value).__name__}, which cannot be written in model.py")


def quoted(text: str) -> str:
    """``repr`` in double quotes, unless that needs more escapes."""
    shown = repr(text)
    return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in shown else shown
