"""The documentation is true: docs/layers.md is fresh, and every block of every page does what the page shows."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import doc_pages
import pytest
import registries
import torch
from conftest import CAFFE, ROOT, SHARED
from safetensors.torch import load_file

from caffe_port.cli import main
from caffe_port.emit.self_check import read_model
from caffe_port.layers import REGISTRY
from caffe_port.signatures import plugins

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def make_layers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_layers", DOCS / "make_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_layers"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """What a page's plugins register is forgotten."""
    with registries.forgotten():
        yield


# -- docs/layers.md -----------------------------------------------------------------------------------------------


def test_layers_md_is_fresh(make_layers: ModuleType) -> None:
    made, kept = make_layers.page(), (DOCS / "layers.md").read_text(encoding="utf-8")
    assert made == kept, "docs/layers.md is stale: run python docs/make_layers.py"


def test_every_type_says_what_verifies_it(make_layers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = make_layers.entries()
    told = {name: entry.verified() for name, entry in entries.items()}
    assert "not verified by a formula" not in " ".join(told.values())
    assert told["Nms"] == "a formula"
    assert told["Convolution"].startswith("Caffe 1.0 (")
    assert "OpenCV" in told["FlowWarp"]
    assert "brocolli-caffe (" in told["Proposal"]
    assert told["ForkLoss"] == told["Python"] == "not verified: caffe-port does not compute it"
    assert (told["Data"], told["HDF5Output"]) == ("an input", "no top")
    monkeypatch.delitem(make_layers.FORMULAS, "Nms")
    assert entries["Nms"].verified() == "not verified by a formula"


def test_every_type_has_its_place(make_layers: ModuleType) -> None:
    text = (DOCS / "layers.md").read_text(encoding="utf-8")
    assert len(make_layers.CAFFE_1_0) == 61
    named = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    also = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"Also called (.*)", text))))
    ours = {name for name, cls in REGISTRY.items() if cls.__module__.startswith("caffe_port.layers.")}
    assert ours == named | also
    assert set(make_layers.CAFFE_1_0) <= named
    standard, _, forks = text.partition("\n## Forks\n")
    assert re.findall(r"^\| \[(\w+)\]", standard, re.MULTILINE) == sorted(make_layers.CAFFE_1_0, key=str.lower)
    assert not set(re.findall(r"^\| \[(\w+)\]", forks, re.MULTILINE)) & set(make_layers.CAFFE_1_0)


def test_every_case_was_measured(make_layers: ModuleType) -> None:
    stored = json.loads((DOCS / "layers_support.json").read_text(encoding="utf-8"))["cases"]
    wanted = {*make_layers.golden_names(), *make_layers.EXTRA} - {"HDF5Output"}  # which has no top
    assert wanted == set(stored), "run python docs/make_layers.py --measure"


# -- the commands of a page ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A line after ``$``, and what the page shows below it. ``word`` is what stands behind ```console."""

    line: str
    shown: tuple[str, ...]
    word: str

    def says(self, printed: str) -> None:
        """Every line shown was printed, in this order; ``...`` stands for anything."""
        got, at = " ".join(printed.split()), 0
        for line in self.shown:
            wanted = " ".join(re.sub(r"\.\.\.$", "", line).split())
            found = got.find(wanted, at)
            assert found >= 0, f"{self.line}\nshown:   {line}\nprinted: {printed}"
            at = found + len(wanted)


def commands(page: Path) -> list[Command]:
    found: list[Command] = []
    for word, block in re.findall(r"^```console *(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *shown = part.splitlines()
            found.append(Command(line, tuple(s for s in shown if s.strip()), word))
    return found


def run(command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code, and stderr before stdout, as the pages show them: errors and notes come first."""
    words = shlex.split(command)
    assert words[0] == "caffe-port"
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", words)
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capfd.readouterr()
    return int(caught.value.code or 0), captured.err + captured.out


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pip install ./package`` leaves: the module on the path, and the entry points that pyproject.toml says."""
    text = (DOCS / "examples" / "package" / "pyproject.toml").read_text(encoding="utf-8")
    group = re.search(r'^\[project\.entry-points\."(.*)"\]\n(\w+) = "(\w+)"$', text, re.MULTILINE)
    assert group is not None
    assert group[1] == plugins.ENTRY_POINTS
    source = re.search(r'^"(.*)" = "my_layers.py"$', text, re.MULTILINE)
    assert source is not None
    info = folder / "my_layers-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-layers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\n{group[2]} = {group[3]}\n")
    shutil.copy(DOCS / "examples" / "package" / source[1], folder / "my_layers.py")
    monkeypatch.syspath_prepend(str(folder))
    plugins.load_entry_points.cache_clear()


def forget() -> None:
    """A new process knows no plugin of the one before."""
    registries.forget("ScaledTanh", "tools.layers.ShiftLayer")


def test_custom_layers_md(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    examples = tmp_path / "examples"
    shutil.copytree(DOCS / "examples", examples)
    monkeypatch.chdir(examples)
    steps = commands(DOCS / "custom-layers.md")
    assert len(steps) == 8
    for step in steps:
        with monkeypatch.context() as patch:
            forget()
            if step.word == "installed":
                install(tmp_path / "site", patch)
            code, printed = run(step.line, capfd, patch)
            assert code == (2 if step.shown[0].startswith("error:") else 0), printed
            step.says(printed)
        plugins.load_entry_points.cache_clear()
        sys.modules.pop("my_layers", None)
    _finish_the_stub(examples)


def _finish_the_stub(folder: Path) -> None:
    page = (DOCS / "custom-layers.md").read_text(encoding="utf-8")
    line = re.search(r"^```python finished\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert line is not None
    stubbed = (folder / "stubbed" / "model.py").read_text()
    finished = re.sub(r"^ +raise NotImplementedError\(.*\)\n", lambda _: line[1], stubbed, flags=re.MULTILINE)
    assert finished != stubbed
    x = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    made = [
        read_model(source, "Example", folder / name / "weights.safetensors")(x)
        for source, name in ((finished, "stubbed"), ((folder / "model" / "model.py").read_text(), "model"))
    ]
    assert torch.equal(*made)
    assert made[0].abs().max() > 0.1
    assert torch.equal(load_file(folder / "stubbed" / "weights.safetensors")["squash.blob0"], torch.full((3,), 2.0))


def test_what_custom_layers_md_quotes() -> None:
    """The files are quoted as they are."""
    page = (DOCS / "custom-layers.md").read_text(encoding="utf-8")
    files = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "examples").rglob("*.*") if path.is_file())
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    quoted = [text for kind, text in blocks if kind in ("", "python", "toml")]
    assert len(quoted) == 6
    for block in quoted:
        assert block in files or "Stub(" in block, block


# -- the pages ------------------------------------------------------------------------------------------------------

OWN_TEST = {"docs/custom-layers.md"}
"""Pages whose commands need more than a folder: a test above runs them."""
PAGES = {str(page.relative_to(ROOT)): page for page in doc_pages.pages() if doc_pages.blocks(page)}
SLOW = os.environ.get("CAFFE_PORT_DOCS") == "slow"
"""Of `make docs-slow`: the pages that hold slow blocks, with these."""
RUN = {n for n, page in PAGES.items() if not SLOW or any(block.said("slow") for block in doc_pages.blocks(page))}


@pytest.mark.parametrize("name", sorted(RUN - OWN_TEST))
def test_a_page_does_what_it_says(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every block, in order, in a folder like the reader's; see doc_pages for the comments that steer it."""
    folder = tmp_path / "caffe-port"
    doc_pages.lay_out(PAGES[name], folder, lambda: request.getfixturevalue("shared"), copied=SLOW)
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CAFFE_PORT_PYCAFFE", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PET_MASTER_PORT", free_port())  # where the processes of torchrun meet
    monkeypatch.setenv("DOCS_VENV", str(tmp_path_factory.getbasetemp() / "venv"))  # one for all that make installs
    monkeypatch.setenv("DOCS_CAFFE", str(CAFFE or ""))
    if CAFFE:
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / CAFFE.name).symlink_to(CAFFE)
    if SHARED.is_dir():
        monkeypatch.setenv("CAFFE_PORT_SHARED", str(SHARED.resolve()))

    def tell(block: doc_pages.Block, command: str, code: int, seconds: float, printed: str) -> None:
        with capfd.disabled():
            end = "\n".join(f"    {line[:150]}" for line in printed.rstrip().splitlines()[-6:])
            print(f"\n{block}: exit code {code} after {seconds:.0f} s: {command}\n{end}")

    reader = doc_pages.Reader(lambda words: run(shlex.join(words), capfd, monkeypatch), SLOW, tell)
    with doc_pages.inside(folder):
        for block in doc_pages.blocks(PAGES[name]):
            reader.read(block)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


PLAIN = {"__main__.py: the module", "pooling.py: max_pool", "set_up.py: set_up"}
"""Helpers of a family that say by their name and a line what they do; nothing is to be added here."""


def test_every_public_name_has_a_docstring() -> None:
    """Modules, and the public classes and functions at their top level; a hypothesis says its own in its decorator."""
    bare = []
    for path in sorted((ROOT / "caffe_port").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        for node in (tree, *(node for node in nodes if not node.name.startswith("_"))):
            if ast.get_docstring(node) is None and "slips" not in str(path):
                bare.append(f"{path.name}: {getattr(node, 'name', 'the module')}")
    assert set(bare) <= PLAIN


def test_links_lead_somewhere() -> None:
    for page in doc_pages.pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) + re.findall(r'<img src="([^"]+)"', text):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#\s]+\.md)", index)}
    assert {page for page in doc_pages.pages() if page.is_relative_to(DOCS)} - {DOCS / "README.md"} <= linked


def test_the_site_shows_every_page() -> None:
    shown = set(re.findall(r"([\w/-]+\.md)$", (DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {page.relative_to(DOCS).as_posix() for page in doc_pages.pages() if page.is_relative_to(DOCS)}
    assert shown == pages | {"api.md", "CONTRIBUTING.md", "CHANGELOG.md"}


def test_the_workflow_verifies_a_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("prototxt", "caffemodel"):
        shutil.copy(ROOT / f"tests/golden/layers/net_residual.{kind}", tmp_path / f"net.{kind}")
    workflow = (DOCS / "examples" / "verify-model.yml").read_text(encoding="utf-8")
    lines = re.findall(r"^ +(caffe-port .*)$", workflow, re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["convert", "verify"]
    monkeypatch.chdir(tmp_path)
    for line in lines:
        code, printed = run(line, capfd, monkeypatch)
        assert code == 0, printed
    assert all((tmp_path / name).exists() for name in ("port", "junit.xml", "report.html"))


def test_the_image_copies_what_the_package_is_built_from() -> None:
    image = (DOCS / "examples" / "Dockerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", image, re.MULTILINE) for word in line.split()}
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    included = re.search(r"force-include\]\n(.*?)\n\n", settings, re.DOTALL)
    assert included is not None
    sources = {Path(source).parts[0] for source in re.findall(r"^\"?([\w/.]+)\"? =", included[1], re.MULTILINE)}
    assert copied == {"caffe_port", "pyproject.toml", "README.md", "LICENSE"} | sources


def test_troubleshooting_quotes_real_messages() -> None:
    """Every heading is a message: its fixed parts stand in a source of caffe_port."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "caffe_port").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # a text in two lines
    headings = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) > 35
    for heading in headings:
        parts = [part.strip(" '") for part in heading.split("...")]
        fixed = [part for part in parts if len(part) > 3]
        assert fixed, heading
        for part in fixed:
            assert part in sources, f"{heading}\nno message has: {part}"


# -- the mechanism itself -------------------------------------------------------------------------------------------


def page_of(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


def read_all(page: Path, code: int = 0, printed: str = "") -> None:
    reader = doc_pages.Reader(lambda words: (code, printed))
    with doc_pages.inside(page.parent):
        for block in doc_pages.blocks(page):
            reader.read(block)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```console\n$ caffe-port demo\nPASSED: 3 of 3\n```\n", "shown:   PASSED: 3 of 3"),
        ("```sh\ncaffe-port demo\n```\n<!-- exit 1 -->\n```sh\ncaffe-port demo\n```\n", "exit code 0, not 1"),
        ("```console\n$ caffe-port demo\nerror: it is not so\n```\n", "exit code 0, not 2"),
        ("```sh\nfalse\n```\n", "exit code 1, not 0"),
        ("<!-- slow: -->\n```sh\nmake\n```\n", "is no order"),
        ("<!-- not run: it takes an hour -->\n```sh\nmake\n```\n", "'not run: it takes an hour' is no order"),
        ("<!-- with: 9 => 2 -->\n```sh\nexit 0\n```\n", "does not hold 9"),
        ("<!-- before: false -->\n```sh\nexit 0\n```\n", "false\nexit code 1"),
        ("<!-- exit: 3 -->\n<!-- with: 3 => 4 -->\n```sh\nexit 3\n```\n", "exit code 4, not 3"),
        ("```python\nassert 1 + 1 == 3\n```\n", ""),
        (
            "<!-- part of: page.md -->\n```python\nx = 1\n```\nbut not\n<!-- part of: here.txt -->\n```text\nx\n```\n",
            "",
        ),
        ("```console\ncaffe-port demo\n```\n", "holds no command"),
    ],
)
def test_a_page_that_lies_is_found(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError), match=re.escape(says) or None):
        read_all(page_of(tmp_path, text), printed="PASSED: 2 of 3 in 1.2e-07")


def test_a_page_that_is_true_passes(tmp_path: Path) -> None:
    read_all(
        page_of(
            tmp_path,
            """
<!-- write: mine.py -->
```python
x = 2
```
<!-- slow: it takes
an hour -->
```sh
false
```
```console
$ python -c "import mine; print(mine.x)"
2
$ caffe-port verify \\
    net
... 2 ... in 3.4e-06, ──── 5 MiB by torch 2.6.0
```
```python
import mine
```
""",
        ),
        printed="PASSED: 2 of 3 in 1.2e-07, ─────── 7.1 KiB by torch 2.14.1+cpu",
    )


def test_slow_blocks_are_run_when_asked(tmp_path: Path) -> None:
    page = page_of(tmp_path, "<!-- slow: it takes an hour -->\n```sh\necho said\n```\n")
    told: list[tuple[str, int, str]] = []
    for slow in (False, True):
        reader = doc_pages.Reader(
            lambda words: (0, ""),
            slow,
            lambda _, command, code, seconds, printed: told.append((command, code, printed)),
        )
        with doc_pages.inside(tmp_path):
            reader.read(*doc_pages.blocks(page))
    assert told == [("echo said", 0, "said\n")]


@pytest.mark.parametrize("git", [True, False], ids=["checkout", "sdist"])
@pytest.mark.parametrize("copied", [True, False])
def test_what_lies_untracked_is_not_seen(
    tmp_path: Path, git: bool, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make demo` leaves demo/, and the quickstart, which makes it, must not find it."""
    checkout, folder = tmp_path / "checkout", tmp_path / "page"
    names = {"README.md", "docs/guide.md", "docs/examples/net.prototxt", "caffe_port/__init__.py"}
    for name in names:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    if git:
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all of it"]):
            subprocess.run(["git", *words], cwd=checkout, check=True)
        for name in ("docs/draft.md", "docs/examples/out/model.py"):
            (checkout / name).parent.mkdir(exist_ok=True)
            (checkout / name).write_text("x")
    for name in ("demo/model.py", "slim/weights.safetensors", "run.json", ".venv/bin/python"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    monkeypatch.setattr(doc_pages, "ROOT", checkout)
    doc_pages.lay_out(checkout / "README.md", folder, lambda: tmp_path, copied)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found | {"caffe_port/__init__.py"} == names
    assert (folder / "caffe_port" / "__init__.py").is_file()
    assert {path.name for path in doc_pages.pages()} == {"README.md", "CONTRIBUTING.md", "guide.md"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout of git")
def test_an_sdist_is_known_by_its_names() -> None:
    assert sorted({name.parts[0] for name in doc_pages.tracked()}) == list(doc_pages.TOP)


def test_stand_ins(tmp_path: Path) -> None:
    read_all(
        page_of(
            tmp_path,
            """
<!-- before: COUNT=3 -->
<!-- before: FILE=$PWD/$COUNT -->
<!-- with: 1000 => $COUNT -->
```sh
test 1000 = 3
```
```console
$ basename "$FILE"
3
```
""",
        )
    )


def test_a_block_that_lacks_something_is_left_out(tmp_path: Path) -> None:
    page = page_of(tmp_path, "<!-- slow: why -->\n<!-- needs: python0 -V -->\n```sh\nfalse\n```\n")
    told: list[str] = []
    reader = doc_pages.Reader(lambda words: (0, ""), True, lambda _, command, *rest: told.append(command))
    reader.read(*doc_pages.blocks(page))
    assert told == ["left out: it needs python0 -V"]
