"""Pages of the site that are not files of docs/: the API reference, and two files of the repository's root."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import caffe_port

ROOT = Path(__file__).parents[2]
API = """# API

The public names of the package. `import caffe_port` does not import torch; a name that needs it does, on first use.
"""
MEMBERS = {"layers": ["Layer"], "errors": ["DependencyError"]}
"""Of a public module, the names that a user needs."""


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the API reference, CONTRIBUTING.md and CHANGELOG.md."""
    files.append(File.generated(config, "api.md", content=api()))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=re.sub(r"\]\(docs/", "](", text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to a file beside docs/ lead to the page of that file."""
    return re.sub(r"\]\(((?:\.\./)*)\.\./(CONTRIBUTING|CHANGELOG)\.md", r"](\1\2.md", markdown)


def api() -> str:
    """A page of one mkdocstrings directive per public name."""
    found = [API]
    for name in caffe_port.__all__:
        if name in MEMBERS:
            found += [f"::: caffe_port.{name}.{member}" for member in MEMBERS[name]]
        elif not name.startswith("_"):
            module = caffe_port._MODULES[name]
            found.append(f"::: caffe_port.{module}.{name}")
    return "\n\n".join(found) + "\n"
