"""Runs a page of the documentation as its reader would: every fenced block, in order, in one folder.

A page runs in a folder that looks like a checkout. What else it promises it names in a comment, which no reader sees:

    <!-- files: lenet.prototxt=docs/examples/lenet.prototxt data=shared:data -->

``NAME=SOURCE``: a copy of a file of the repository, or, after ``shared:``, of the shared folder; a folder is linked.
Before a block, a comment may stand that says how it is treated; without one it is run, and must give what it shows:

    <!-- not run: REASON -->         it needs what a test has not: a GPU, a download, an hour
    <!-- part of: FILE -->           it is quoted; FILE, which may have been written by a block before, must hold it
    <!-- write: FILE -->             the reader writes it into FILE
    <!-- needs: caffe -->            it is run only where Caffe itself is built (make caffe)
    <!-- exit 1 -->                  the last command's exit code, where what is shown does not tell it

``console``: commands after ``$`` (continued by a backslash) and what they print; ``sh`` and ``bash``: commands;
``python``: run, the blocks of a page sharing their names. Other kinds (``text``, ``prototxt``) are not run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT

KINDS = {"console", "sh", "bash", "python"}
"""Of blocks that are run."""

_FENCE = re.compile(r"^(?P<mark>`{3,})(?P<kind>[^\n`]*)\n(?P<text>.*?)^(?P=mark)[ \t]*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(not run|part of|write|needs|exit)\b:?\s*(.*?)\s*-->\s*\Z", re.DOTALL)
_VARIES = (
    (r"\d\.\d+e[-+]\d+|(?<![\w.])0e\+00", r"(?:\d(?:\.\d+)?e[-+]\d+)"),  # rounding errors
    (r"\d[\d,]*(?:\.\d+)? (?:B|KiB|MiB|GiB|s|ms|seconds|images/s)\b", r"[\d,.]+ \w+(?:/s)?"),
    (
        r"(?:OpenCV|NumPy|torch|opencv-python-headless|python|Python) \d+\.\d+\.\d+\S*?(?=[,:;]? |[,:;]?$)",
        r"\w[\w-]* [\w.+]+",
    ),
    (r"[─━]+", r"[─━]+"),
)
"""What differs from machine to machine, and what is accepted in its place."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page and line, its kind, and what the comment before it says."""

    page: Path
    line: int
    kind: str
    text: str
    order: str
    detail: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md and everything below docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text, found, end = page.read_text(encoding="utf-8"), [], 0
    for match in _FENCE.finditer(text):
        comment = _COMMENT.search(text[end : match.start()])
        order, detail = comment.groups() if comment else ("", "")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["kind"].strip(), match["text"], order, detail))
        end = match.end()
    return found


def files(page: Path) -> dict[str, str]:
    """Name in the page's folder -> where it comes from."""
    said = re.findall(r"<!--\s*files:\s*(.*?)\s*-->", page.read_text(encoding="utf-8"), re.DOTALL)
    return dict(word.split("=", 1) for text in said for word in text.split())


def lay_out(page: Path, folder: Path, shared: Callable[[], Path]) -> None:
    """Makes the page's folder: a checkout's entries, and the files that the page names."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    for name, source in files(page).items():
        path = shared() / source.removeprefix("shared:") if source.startswith("shared:") else ROOT / source
        assert path.exists(), f"{page.name} promises {name}, but there is no {path}"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            target.symlink_to(path)
        else:
            shutil.copyfile(path, target)


class Reader:
    """Does what a page says, in the current folder.

    Args:
        run_here: runs ``caffe-port``'s arguments in this process: exit code, and stderr before stdout.
        has: what there is of that which a block may need.
    """

    def __init__(self, run_here: Callable[[list[str]], tuple[int, str]], has: Collection[str] = ()) -> None:
        self.run_here, self.has = run_here, has
        self.skipped = False
        self.names: dict[str, Any] = {"__name__": "page"}

    def read(self, block: Block) -> None:
        """One block. Raises AssertionError, with page and line, for what is not as the page says."""
        if block.order == "not run":
            assert block.detail, f"{block}: says no reason"
        elif block.order == "needs" and block.detail not in self.has:
            assert block.detail == "caffe", f"{block}: needs {block.detail}"
            self.skipped = True
        elif block.order == "part of":
            held = Path(block.detail).read_text(encoding="utf-8")
            assert block.text.strip("\n") in held, f"{block}: is not in {block.detail}"
        elif block.order == "write":
            Path(block.detail).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            exec(compile("\n" * block.line + block.text, str(block.page), "exec"), self.names)
        elif block.kind in KINDS:
            steps = list(commands(block))
            assert steps, f"{block}: holds no command"
            for number, (command, shown) in enumerate(steps):
                last = number == len(steps) - 1
                expected = int(block.detail) if block.order == "exit" and last else expected_code(shown)
                code, printed = self.run(command)
                assert code == expected, f"{block}: {command}\nexit code {code}, not {expected}\n{printed}"
                if block.kind == "console":
                    check(shown, printed, f"{block}: {command}")

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and what is printed, errors first."""
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quote that goes on in the next line
            words = []
        plain = not re.search(r"[|<>;&$`*]", command.partition(" #")[0])
        if words[:1] == ["cd"] and plain:
            os.chdir(words[1])
            return 0, ""
        if words[:1] == ["caffe-port"] and plain:
            return self.run_here(words)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
        return done.returncode, done.stderr + done.stdout


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Command and the lines shown below it."""
    if block.kind != "console":
        text = block.text.replace("\\\n", " ")
        yield from ((line.strip(), []) for line in text.splitlines() if line.strip() and not line.startswith("#"))
        return
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, *shown = part.replace("\\\n", " ").splitlines()
        yield line, [one for one in shown if one.strip()]


def expected_code(shown: list[str]) -> int:
    """2 where an error is shown first, 1 where a verdict is FAILED or worse, else 0."""
    if shown and shown[0].startswith("error:"):
        return 2
    return 1 if any(re.match(r"FAILED\b|reported .*: worse", line) for line in shown) else 0


def check(shown: list[str], printed: str, where: str) -> None:
    """Every line shown was printed, in this order; ``...`` stands for anything, within a line or for lines."""
    got, at = " ".join(printed.split()), 0
    for line in shown:
        words = " ".join(line.split())
        if words == "...":
            continue
        found = re.compile(_pattern(words)).search(got, at)
        assert found, f"{where}\nshown:   {line}\nprinted: {printed}"
        at = found.end()


def _pattern(words: str) -> str:
    """A regular expression for a line: what varies may, ``...`` is anything."""
    pieces, at = [], 0
    varying = "|".join(f"(?P<v{k}>{what})" for k, (what, _) in enumerate(_VARIES))
    for match in re.finditer(rf"(?P<any>\.\.\.)|{varying}", words):
        pieces.append(re.escape(words[at : match.start()]))
        name = match.lastgroup or ""
        pieces.append(".*?" if name == "any" else _VARIES[int(name[1:])][1])
        at = match.end()
    return "".join([*pieces, re.escape(words[at:])])


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With ``folder`` as the current one, as a Python that is started there has it; what is imported is forgotten."""
    before, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    os.chdir(folder)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
