"""Caffe's names as Python's: safe, readable, unique."""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Collection, Iterable


def identifiers(names: Iterable[str], taken: Collection[str] = (), prefix: str = "layer_") -> dict[str, str]:
    """Name -> identifier, one each.

    ``conv1/7x7_s2`` becomes ``conv1_7x7_s2``; a name that begins with a digit, is a keyword or is ``taken`` gets the
    prefix or a number; ``a.b`` and ``a_b`` do not collide.

    >>> identifiers(["a.b", "a_b", "1x1"])
    {'a.b': 'a_b_2', 'a_b': 'a_b', '1x1': 'layer_1x1'}
    """
    names = list(dict.fromkeys(names))
    used = set(taken)
    result: dict[str, str] = {}
    for exact in (True, False):  # names that are identifiers already keep theirs
        for name in names:
            if name in result:
                continue
            safe = _safe(name, prefix)
            if exact and (safe != name or safe in used):
                continue
            candidate, count = safe, 2
            while candidate in used:
                candidate, count = f"{safe}_{count}", count + 1
            used.add(candidate)
            result[name] = candidate
    return {name: result[name] for name in names}


def _safe(name: str, prefix: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^0-9A-Za-z_]", "_", ascii_name).rstrip("_") or "unnamed"
    safe = safe if safe == name else safe.strip("_") or "unnamed"
    if safe[0].isdigit() or keyword.iskeyword(safe) or keyword.issoftkeyword(safe):
        safe = prefix + safe
    return f"{prefix}{safe.lstrip('_')}" if safe.startswith("_") else safe
