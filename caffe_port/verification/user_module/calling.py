"""How a port takes its inputs: one after the other, by name, or together in a dict or a list."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from caffe_port.verification.references.reference import Case
from caffe_port.verification.user_module.recorder import Ask


def by_name(module: nn.Module, blobs: Sequence[str]) -> tuple[Ask, str] | None:
    """Calls a port by keyword whose arguments bear the names of the net's inputs, in another order or keyword-only;
    None if the order says the same, or the names are others. With it a sentence for the report."""
    parameters = _parameters(module)
    names = [_identifier(blob) for blob in blobs]
    known = {_identifier(p.name): p for p in parameters}
    if not names or len(set(names)) < len(names) or not all(name in known for name in names):
        return None
    order = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY][: len(names)]
    wanted = [known[name].name for name in names]
    if order == wanted or any(known[name].kind is inspect.Parameter.POSITIONAL_ONLY for name in names):
        return None

    def ask(module: nn.Module, given: Sequence[Tensor]) -> Any:
        return module(**dict(zip(wanted, given, strict=True)))

    return ask, f"the port is called with the net's inputs by name: {', '.join(wanted)}"


def ways(module: nn.Module, blobs: Sequence[str]) -> Iterator[tuple[Ask, str]]:
    """Other ways to call a port that cannot be called with one tensor after the other."""
    names = list(blobs)
    yield (
        lambda module, given: module(dict(zip(names, given, strict=True))),
        f"the port is called with a dict of the net's inputs: {', '.join(names)}",
    )
    yield lambda module, given: module(list(given)), "the port is called with a list of the net's inputs"
    keywords = [p.name for p in _parameters(module) if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(keywords) == len(names):
        yield (
            lambda module, given: module(**dict(zip(keywords, given, strict=True))),
            f"the port is called with the net's inputs by name: {', '.join(keywords)}",
        )


def hint(case: Case) -> str:
    """What forward() gets."""
    shapes = ", ".join(f"{blob} {tuple(case.inputs[blob].shape)}" for blob, _ in case.spec.inputs)
    return f"forward() is called with a tensor for each input of the net, in this order: {shapes}."


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return []


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name).lower()
