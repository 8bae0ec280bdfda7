"""Types that every room uses. None imports NumPy before somebody needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"
"""An array of any type and shape."""

Shape = tuple[int, ...]
"""The lengths of a blob's axes, the first axis first."""

PathLike = str | Path
"""A file or folder."""
