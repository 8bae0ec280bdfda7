"""What a user sees of the library: names and where they are, what an editor and a type checker know of them."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT

import caffe_port

PUBLIC = (
    "caffe_port.CaffePortError",
    "caffe_port.Net",
    "caffe_port.Ported",
    "caffe_port.Report",
    "caffe_port.assert_parity",
    "caffe_port.convert",
    "caffe_port.errors.CaffePortError",
    "caffe_port.layers.Layer",
    "caffe_port.load",
    "caffe_port.port",
    "caffe_port.train",
    "caffe_port.verify",
)
"""Reachable after `import caffe_port` alone."""

IMPORTABLE = {
    "caffe_port": ("CaffePortError", "Net", "Ported", "Report", "assert_parity", "convert", "load", "verify"),
    "caffe_port.errors": ("CaffePortError", "DependencyError", "ParseError", "SpecError", "WeightsError"),
    "caffe_port.layers": ("REGISTRY", "UNSUPPORTED", "Layer", "Shape", "canonical_axis", "number", "scalar_if_equal"),
    "caffe_port.training.optimizers": ("OPTIMIZERS",),
}
"""Module -> names that the documentation imports from it, or that people import who write layers and solvers."""


def python(code: str) -> str:
    """What a program prints that runs in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", PUBLIC)
def test_a_name_is_reachable_from_the_package_alone(path: str) -> None:
    root, *names = path.split(".")
    found: object = sys.modules[root]
    for name in names:
        found = getattr(found, name)
    assert found is not None


def test_submodules_are_reachable_before_anything_else_was_asked_for() -> None:
    assert python("import caffe_port; print(caffe_port.layers.Layer.__name__, caffe_port.errors.__name__)") == (
        "Layer caffe_port.errors\n"
    )


@pytest.mark.parametrize("module", IMPORTABLE)
def test_a_name_can_be_imported(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in IMPORTABLE[module] if not hasattr(found, name)] == []


def test_the_names_are_listed_without_importing_torch() -> None:
    code = "import sys, caffe_port; print(*dir(caffe_port)); assert 'torch' not in sys.modules"
    names = python(code).split()
    assert names == sorted(caffe_port.__all__) == caffe_port.__all__
    assert {path.split(".")[1] for path in PUBLIC} == set(names) - {"__version__"}


def test_a_type_checker_sees_what_is_imported_when_it_is_asked_for() -> None:
    """The imports under TYPE_CHECKING, and those that happen: the same names of the same modules."""
    tree = ast.parse(Path(str(caffe_port.__file__)).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: str(node.module).removeprefix("caffe_port").removeprefix(".")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == caffe_port._MODULES
    assert {*seen, "__version__"} == set(caffe_port.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'caffe_port' has no attribute 'lod'"):
        _ = caffe_port.lod
    assert not hasattr(caffe_port, "__wrapped__")


@pytest.mark.parametrize("name", ["assert_parity", "convert", "load", "port", "verify"])
def test_every_option_has_a_name(name: str) -> None:
    parameters = inspect.signature(getattr(caffe_port, name)).parameters.values()
    assert [p.name for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)] == []


def test_the_options_are_the_same_everywhere() -> None:
    """load takes what port takes but for share, whose Net cannot be run; assert_parity what verify takes."""
    load, port, verify, parity = (
        inspect.signature(getattr(caffe_port, name)).parameters for name in ("load", "port", "verify", "assert_parity")
    )
    assert {**load, "share": port["share"]} == dict(port)
    shared = set(parity) & set(verify)
    assert shared >= {"prototxt", "weights", "input", "seed", "input_shapes", "keep_loss", "level", "stages", "atol"}
    assert all(parity[name].default == verify[name].default for name in shared)


# -- a user's script under mypy -------------------------------------------------------------------------------------

RIGHT = """
import caffe_port
from caffe_port import CaffePortError, Report
from caffe_port.layers import Layer

net: caffe_port.Net = caffe_port.load("net.prototxt", "w.caffemodel", input_shapes={"data": (1, 3, 32, 32)})
ported: caffe_port.Ported = caffe_port.port(None, "w.caffemodel", keep_loss=True)
report: Report = caffe_port.verify(ported, atol=1e-6)
count: int = report.compared + len(ported.notes)
caffe_port.assert_parity(net, "net.prototxt", rtol=1e-3)
caffe_port.convert(ported, "out", fold=True)
kinds: type[Layer] = caffe_port.layers.Layer
errors: type[CaffePortError] = caffe_port.errors.WeightsError
"""

WRONG = {
    'caffe_port.load("net.prototxt", keep_los=True)': 'Unexpected keyword argument "keep_los" for "load"',
    'caffe_port.load("net.prototxt", seed="1")': 'Argument "seed" to "load" has incompatible type "str"',
    "caffe_port.load(3)": 'Argument 1 to "load" has incompatible type "int"',
    'caffe_port.verify("n", "w", aganst="numpy")': 'Unexpected keyword argument "aganst" for "verify"',
    'caffe_port.assert_parity(net, "n", toleranz=1)': 'Unexpected keyword argument "toleranz" for "assert_parity"',
    "caffe_port.verfy": 'Module has no attribute "verfy"; maybe "verify"?',
    "report.pased": '"Report" has no attribute "pased"',
    "ported.wieghts": '"Ported" has no attribute "wieghts"; maybe "weights"?',
    "caffe_port.errors.WeightError": 'Module has no attribute "WeightError"',
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which the package is installed, beside everything that is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv" if sys.version_info >= (3, 11) else None, vars=paths))
    shutil.copytree(ROOT / "caffe_port", packages / "caffe_port", ignore=shutil.ignore_patterns("__pycache__"))
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def test_mypy_on_a_users_script(installed: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """What is right passes under --strict, and each wrong line is found: nothing is Any."""
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(RIGHT + "\n".join(WRONG) + "\n")
    first = RIGHT.count("\n") + 1
    cache = pytestconfig.cache.mkdir("mypy") if pytestconfig.cache is not None else tmp_path / "cache"
    options = ["--strict", "--no-error-summary", f"--config-file={os.devnull}", f"--cache-dir={cache}"]
    command = [sys.executable, "-m", "mypy", *options, f"--python-executable={installed}", str(script)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    found = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if ": error: " in line}
    assert list(found) == list(range(first, first + len(WRONG))), done.stdout
    for line, said in zip(found.values(), WRONG.values(), strict=True):
        assert said in line
