"""How the library is built: imports run downward, every folder says its sentence, and the measures of it are right."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

PACKAGE = ROOT / "caffe_port"
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "benchmarks" / "structure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the contract in pyproject.toml --------------------------------------------------------------------------------


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and output of lint-imports on the tree in ``folder``."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(cache_dir=None))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The library's source and its contract, to be spoilt."""
    pytest.importorskip("importlinter")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path in PACKAGE.rglob("*.py"):
        to = tmp_path / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    return tmp_path


def test_the_contract_is_kept(copy: Path) -> None:
    code, printed = lint(copy)
    assert code == 0, printed
    assert "0 broken" in printed


@pytest.mark.parametrize(
    ("module", "text", "told"),
    [
        ("formats/wire.py", "from caffe_port.net import plan", "caffe_port.formats.wire -> caffe_port.net.plan"),
        ("storage/npz.py", "def f() -> None:\n    import caffe_port.spec", "caffe_port.storage.npz -> caffe_port.spec"),
        ("net/plan.py", "def f() -> None:\n    from caffe_port import api", "caffe_port.net.plan -> caffe_port.api"),
        ("signatures/caffe.py", "def f() -> None:\n    import torch", "caffe_port.signatures.caffe -> torch"),
        ("spec.py", "from caffe_port import devices", "caffe_port.devices -> torch"),
        ("storage/files.py", "from caffe_port.storage import npz", "No cycles are allowed in caffe_port.storage."),
        ("attic/__init__.py", "", "caffe_port.attic"),
    ],
)
def test_the_contract_can_fail(copy: Path, module: str, text: str, told: str) -> None:
    path = copy / "caffe_port" / module
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n\n{text}\n")
    code, printed = lint(copy)
    assert code == 1, printed
    assert told in printed, printed


def test_the_contract_ignores_nothing() -> None:
    assert not re.search(r"ignore_imports|exhaustive_ignores", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_module_imports_the_root(structure: ModuleType) -> None:
    """Its names are made of all the others when they are asked for: a circle that no linter sees."""
    above = {"caffe_port.__main__"}
    found = [one for one in structure.Tree(ROOT).imports if one.imported == "caffe_port" and one.importer not in above]
    assert not found


# -- the folders ---------------------------------------------------------------------------------------------------


def test_modules_in_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def sentence(package: Path) -> str:
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    return " ".join((ast.get_docstring(tree) or "").split())


@pytest.mark.parametrize("package", PACKAGES[1:], ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_folder_says_one_sentence(package: Path) -> None:
    said = sentence(package)
    assert re.fullmatch(r"[A-Z].*[^.]\.", said), said
    assert not re.search(r"[.?!] ", said), f"more than one sentence: {said}"


def test_design_tells_the_folders_sentences() -> None:
    """docs/design.md's table has every folder, in its words."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w/]+)/` \| (.*) \|$", text, re.MULTILINE))
    assert told == {package.relative_to(PACKAGE).as_posix(): sentence(package) for package in PACKAGES[1:]}


def test_glossary_links_lead_to_an_entry() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    entries = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    linked = {
        anchor
        for page in pages
        for file, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if (page.parent / file).name == "glossary.md" or (page.name == "glossary.md" and not file)
    }
    assert len(linked) > 8
    assert linked <= entries


# -- the habits ----------------------------------------------------------------------------------------------------


def test_habits_name_what_exists() -> None:
    """CI and the hooks run targets that the Makefile has, and programs that the extra ``test`` installs."""
    workflow, hooks = ROOT / ".github" / "workflows" / "ci.yml", ROOT / ".pre-commit-config.yaml"
    if not workflow.exists():
        pytest.skip("not in a checkout")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    steps = re.findall(r"run: make (\w+)", workflow.read_text(encoding="utf-8"))
    assert sorted(steps) == ["demo", "lint", "test"]
    assert all(re.search(rf"^{step}:", makefile, re.MULTILINE) for step in steps)
    assert steps.index("demo") < steps.index("test")
    oldest = re.search(r'requires-python = ">=(.*)"', project)
    pythons = re.findall(r'"(3\.\d+)"', (re.search(r"python: \[(.*)\]", workflow.read_text("utf-8")) or [""])[0])
    assert oldest is not None
    assert pythons == [f"3.{minor}" for minor in range(int(oldest[1].split(".")[1]), 15)]
    commands = [line.split("$(BIN)/")[1] for line in makefile.split("\nlint:")[1].split("\n\n")[0].splitlines()[1:]]
    hooked = re.findall(r"entry: \.venv/bin/(\S+(?: check| format)?)", hooks.read_text(encoding="utf-8"))
    assert [re.match(r"\S+(?: check| format)?", command)[0] for command in commands] == hooked  # type: ignore[index]


# -- benchmarks/structure.py ---------------------------------------------------------------------------------------


@pytest.fixture
def plant(tmp_path: Path, structure: ModuleType) -> Callable[..., Any]:
    """A tree of the modules that are given, by path and text."""

    def tree(**modules: str) -> Any:
        for name, text in {"__init__": "", **modules}.items():
            path = tmp_path / "caffe_port" / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return structure.Tree(tmp_path)

    return tree


def test_imports_are_found_wherever_they_stand(plant: Callable[..., Any], structure: ModuleType) -> None:
    tree = plant(
        a="import os, caffe_port.b\n",
        b="from caffe_port import c\ndef f():\n    from caffe_port.low.x import name\n",
        c="from . import d as e\n",
        d="import typing\nif typing.TYPE_CHECKING:\n    from caffe_port import a\nelse:\n    from . import e\n",
        e="",
        low__in____init__="",
        low__in__x="from ..e import name\nfrom .y import name\n",
        low__in__y="",
    )
    shown = {(i.importer.removeprefix("caffe_port."), i.imported.removeprefix("caffe_port.")) for i in tree.imports}
    assert shown == {("a", "b"), ("b", "c"), ("b", "low.x"), ("c", "d"), ("d", "e"), ("low.x", "e"), ("low.x", "low.y")}
    floors = structure.floors(tree.arrows)
    assert floors["caffe_port.e"] == 1
    assert floors["caffe_port.low.x"] == 2
    assert floors["caffe_port.a"] == 5


def test_circles_and_arrows_up(plant: Callable[..., Any], structure: ModuleType) -> None:
    tree = plant(
        up__in____init__="",
        up__in__a="from caffe_port.low import b, c\n",
        up__in__d="from caffe_port.low import c\n",
        low__in____init__="",
        low__in__b="from caffe_port.low import c\n",
        low__in__c="def f():\n    from caffe_port.up import a\n",
    )
    circles = [group for group in structure.groups(tree.arrows) if len(group) > 1]
    assert circles == [{"caffe_port.up.a", "caffe_port.low.b", "caffe_port.low.c"}]
    up = structure.arrows_up(tree.imports)
    assert up == [("caffe_port.low.c", "caffe_port.up.a", 2)]  # three run the other way


@pytest.mark.parametrize("exact", [0, 16])
def test_the_best_order_of_rooms(structure: ModuleType, monkeypatch: pytest.MonkeyPatch, exact: int) -> None:
    monkeypatch.setattr(structure, "EXACT", exact)
    pairs = ["ab", "ab", "bc", "bc", "cd", "ad", "ca"]
    imports = [structure.Import(f"caffe_port.{a}", f"caffe_port.{b}", k) for k, (a, b) in enumerate(pairs)]
    assert structure.arrows_up(imports) == [("caffe_port.c", "caffe_port.a", 6)]


def test_what_names_a_type(structure: ModuleType) -> None:
    parsed = ast.parse(
        '"""About Pooling."""\nclass Flatten:\n    """Of LSTM."""\nx = "a BatchNorm", nn.PReLU, Bias  # Crop\n'
    )
    assert structure.words(parsed) == {"Flatten", "x", "a", "BatchNorm", "nn", "PReLU", "Bias"}


def test_lists_by_hand(plant: Callable[..., Any], structure: ModuleType) -> None:
    tree = plant(
        a='X = ("BatchNorm", "Scale", "Bias")\nY = {"LRN", "MVN", "other"}\n',
        b='Z = {"LRN": 1, "MVN": 2, "Power": 3}\n',
        layers__in____init__='X = ("BatchNorm", "Scale", "Bias")\n',
    )
    types = structure.registered(ROOT)
    assert structure.lists_by_hand(tree, types) == ["caffe_port.a:1 (3)", "caffe_port.b:1 (3)"]


def test_the_way_of_the_weights(structure: ModuleType) -> None:
    """From the command line to the file, and nothing that only computes."""
    calls = structure.follow(ROOT)
    files = [module.removeprefix("caffe_port.") for module, _ in calls]
    assert files[0].startswith("commands.")
    order = [files.index(name) for name in ("formats.caffemodel", "net.net", "emit.convert", "storage.safetensors")]
    assert order == sorted(order)
    assert not [name for name in files if name.startswith(("layers.normalization", "verification"))]


def test_the_command(structure: ModuleType) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "structure.py"), "--no-flow", "-v"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = dict(re.findall(r"^([a-z].*?) {2,}(\d+)$", done.stdout, re.MULTILINE))
    assert int(figures["modules"]) == len(list(PACKAGE.rglob("*.py")))
    assert (figures["circles"], figures["arrows up"]) == ("0", "0")
