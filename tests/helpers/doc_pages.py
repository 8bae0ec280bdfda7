"""Runs a page of the documentation as its reader would: every fenced block, in order, in one folder.

A page runs in a folder that looks like a clean checkout: what lies untracked in this one is not there. What else it
promises it names in a comment, which no reader sees:

    <!-- files: lenet.prototxt=docs/examples/lenet.prototxt data=shared:data -->

``NAME=SOURCE``: a copy of a file of the repository, or, after ``shared:``, of the shared folder; a folder is linked.
Before a block, comments may stand that say how it is treated; without one it is run, and must give what it shows:

    <!-- slow: REASON -->            `make docs-slow` runs it, before a release; the suite does not
    <!-- needs: COMMAND -->          the block is left out where this fails, and that is told
    <!-- before: COMMAND -->         is run first; NAME=VALUE, alone, is set for all that follows in the page
    <!-- with: OLD => NEW -->        a stand-in: the block says OLD, NEW is run
    <!-- part of: FILE -->           it is quoted; FILE, which may have been written by a block before, must hold it
    <!-- write: FILE -->             the reader writes it into FILE
    <!-- exit: 1 -->                 the last command's exit code, where what is shown does not tell it

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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT

KINDS = {"console", "sh", "bash", "python"}
"""Of blocks that are run."""

_FENCE = re.compile(r"^(?P<mark>`{3,})(?P<kind>[^\n`]*)\n(?P<text>.*?)^(?P=mark)[ \t]*$", re.MULTILINE | re.DOTALL)
_COMMENTS = re.compile(r"(?:<!--(?:(?!-->).)*-->\s*)+\Z", re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_ORDER = re.compile(r"(files|slow|needs|before|with|part of|write|exit):?\s+(.+)", re.DOTALL)
TOP = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "caffe_port",
    "cli.py",
    "docs",
    "findings",
    "model_defs",
    "proto",
    "pyproject.toml",
    "tests",
)
"""What a checkout holds, for where no git tells: an sdist."""
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
    """A fenced block: its page and line, its kind, and what the comments before it say."""

    page: Path
    line: int
    kind: str
    text: str
    orders: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    def said(self, order: str) -> list[str]:
        """What the comments say after this word."""
        return [detail for word, detail in self.orders if word == order]


def tracked() -> list[Path]:
    """The files of the checkout, relative to it, hidden ones left out; of an sdist all that it brought."""
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
        if not done.returncode:
            names = [Path(name) for name in done.stdout.split("\0") if name and not name.startswith(".")]
            return [name for name in names if (ROOT / name).is_file()]
    found = [path for top in TOP for path in ((ROOT / top).rglob("*") if (ROOT / top).is_dir() else [ROOT / top])]
    return [path.relative_to(ROOT) for path in found if path.is_file() and "__pycache__" not in path.parts]


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md and everything below docs/, as far as it is tracked."""
    found = sorted(name for name in tracked() if name.suffix == ".md" and name.parts[0] == "docs")
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / name for name in found)]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text, found, end = page.read_text(encoding="utf-8"), [], 0
    for match in _FENCE.finditer(text):
        comments = _COMMENTS.search(text[end : match.start()])
        line, orders = text.count("\n", 0, match.start()) + 1, []
        for comment in _COMMENT.findall(comments[0]) if comments else ():
            order = _ORDER.fullmatch(comment)
            assert order, f"{page.name}:{line}: '{comment}' is no order"
            orders.append((order[1], order[2]))
        found.append(Block(page, line, match["kind"].strip(), match["text"], tuple(orders)))
        end = match.end()
    return found


def files(page: Path) -> dict[str, str]:
    """Name in the page's folder -> where it comes from."""
    said = re.findall(r"<!--\s*files:\s*(.*?)\s*-->", page.read_text(encoding="utf-8"), re.DOTALL)
    return dict(word.split("=", 1) for text in said for word in text.split())


def lay_out(page: Path, folder: Path, shared: Callable[[], Path], copied: bool = False) -> None:
    """Makes the page's folder: a clean checkout's entries, and the files that the page names.

    Args:
        copied: copies in the place of links, for what installs the checkout.
    """
    for name in tracked():
        linked = Path(name.parts[0]) if name.parts[0] == "caffe_port" and not copied else name  # with its __pycache__
        target = folder / linked
        target.parent.mkdir(parents=True, exist_ok=True)
        if copied:
            shutil.copy2(ROOT / name, target)
        elif not target.is_symlink():
            target.symlink_to(ROOT / linked)
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
        slow: slow blocks too.
        tell: hears of each command of a slow block: block, command, exit code, seconds, what it printed.
    """

    def __init__(
        self,
        run_here: Callable[[list[str]], tuple[int, str]],
        slow: bool = False,
        tell: Callable[[Block, str, int, float, str], None] = lambda *_: None,
    ) -> None:
        self.run_here = run_here
        self.slow = slow
        self.tell = tell
        self.names: dict[str, Any] = {"__name__": "page"}
        self.set: dict[str, str] = {}

    def read(self, block: Block) -> None:
        """One block. Raises AssertionError, with page and line, for what is not as the page says."""
        if block.said("slow") and not self.slow:
            return
        for command in block.said("needs"):
            code, printed = self.run(command)
            if code:
                self.tell(block, f"left out: it needs {command}", code, 0.0, printed)
                return
        for command in block.said("before"):
            code, printed = self.run(command)
            assert not code, f"{block}: {command}\nexit code {code}\n{printed}"
        text = block.text
        for pair in block.said("with"):
            old, _, new = pair.partition(" => ")
            assert old in text, f"{block}: does not hold {old}"
            text = text.replace(old, new)
        if quoted := block.said("part of"):
            held = Path(quoted[0]).read_text(encoding="utf-8")
            assert text.strip("\n") in held, f"{block}: is not in {quoted[0]}"
        elif written := block.said("write"):
            Path(written[0]).write_text(text, encoding="utf-8")
        elif block.kind == "python":
            exec(compile("\n" * block.line + text, str(block.page), "exec"), self.names)
        elif block.kind in KINDS:
            self._commands(block, list(commands(block.kind, text)))

    def _commands(self, block: Block, steps: list[tuple[str, list[str]]]) -> None:
        assert steps, f"{block}: holds no command"
        for number, (command, shown) in enumerate(steps):
            last = number == len(steps) - 1
            expected = int(block.said("exit")[0]) if last and block.said("exit") else expected_code(shown)
            began = time.monotonic()
            code, printed = self.run(command)
            if block.said("slow"):
                self.tell(block, command, code, time.monotonic() - began, printed)
            assert code == expected, f"{block}: {command}\nexit code {code}, not {expected}\n{printed}"
            if block.kind == "console":
                check(shown, printed, f"{block}: {command}")

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and what is printed, errors first."""
        env = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        env = os.environ | env | self.set | {"PWD": str(Path.cwd())}
        if assignment := re.fullmatch(r"(\w+)=(.*)", command):
            self.set[assignment[1]] = re.sub(r"\$(\w+)", lambda match: env.get(match[1], ""), assignment[2])
            return 0, ""
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quote that goes on in the next line
            words = []
        plain = not re.search(r"[|<>;&$`*]", command.partition(" #")[0])
        if words[:1] == ["cd"] and plain:
            os.chdir(words[1])
            return 0, ""
        if words[:1] == ["caffe-port"] and plain and not self.set:
            return self.run_here(words)
        done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
        return done.returncode, done.stderr + done.stdout


def commands(kind: str, text: str) -> Iterator[tuple[str, list[str]]]:
    """Command and the lines shown below it."""
    if kind != "console":
        text = text.replace("\\\n", " ")
        yield from ((line.strip(), []) for line in text.splitlines() if line.strip() and not line.startswith("#"))
        return
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
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
