"""No name in a file becomes code, markup, a terminal's orders or a path: every channel with the same hostile names."""

from __future__ import annotations

import ast
import html.parser
import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import click.testing
import hostile_names
import pytest

import caffe_port
from caffe_port import api
from caffe_port.cli import cli
from caffe_port.emit import model_source
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import registry
from caffe_port.formats import prototxt, solverstate
from caffe_port.storage.files import atomic_write, stays_inside

PACKAGE = Path(caffe_port.__file__).parent
NAMES = {
    **hostile_names.NAMES,
    "an OSC title": "a\x1b]0;owned\x07b",
    "a C1 control": "a\x9b31mb",
    "markup of rich": "[bold red]a[/bold red][link=x]",
    "a line separator": "a\u2028b",
    "an isolate": "a\u2066b\u2069",
    "a tag character": "a\U000e0041b",
    "CDATA": "]]><x/><![CDATA[",
    "an attribute": "a' onmouseover='alert(1)",
    "an entity": "&lt;&#0;",
    "a device": "CON",
    "a drive": "C:\\x",
    "an absolute path": "/etc/passwd",
    "a comment": "*/ # \\",
    "backslash": "x\\",
    "f-string": "{__import__('os').system('x')}",
    "a number": "1",
    "Python": "import os; os.system('x')",
    "a docstring's end": 'a""" + 1 + """',
    "a template": "{{7*7}}${7*7}",
    "a soft hyphen": "a\u00adb",
}
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u2028-\u202e\u2066-\u2069\U000e0000-\U000e0fff]")
"""What may steer a terminal; a line feed is our own."""


def net_text() -> str:
    """A net in which every hostile name is a layer's and a blob's."""
    lines, bottom = ['name: "<script>alert(1)</script>\\033[31m"'], "x\u202e"
    lines.append(
        f'layer {{ name: "in" type: "Input" top: {prototxt.quoted(bottom)} '
        "input_param { shape { dim: [2, 3, 5, 7] } } }"
    )
    for index, name in enumerate(NAMES.values()):
        quoted, of = prototxt.quoted(name), prototxt.quoted(bottom)
        kind = (
            'type: "Convolution" convolution_param { num_output: 2 kernel_size: 1 }'
            if index % 9 == 0
            else 'type: "ReLU"'
        )
        lines.append(f"layer {{ name: {quoted} {kind} bottom: {of} top: {quoted} }}  # {name!r}")
        bottom = name
    return "\n".join(lines)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "net.prototxt").write_text(net_text())
    ported = api.port(folder / "net.prototxt")
    from caffe_port.formats import caffemodel

    caffemodel.write(folder / "w.caffemodel", ported.definition.net, ported.net.blobs())
    (folder / "bad.prototxt").write_text(net_text().replace('"ReLU"', '"Re\\033]0;x\\007\\342\\200\\256"'))
    (folder / "solver.prototxt").write_text(
        'net: "\\033[31m\\342\\200\\256" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 snapshot_prefix: "../../x"'
    )
    return folder


COMMANDS = {
    "inspect": ["inspect", "net.prototxt", "w.caffemodel"],
    "inspect numbers": ["inspect", "--numbers", "w.caffemodel"],
    "inspect solver": ["inspect", "solver.prototxt"],
    "diff": ["inspect", "--diff", "net.prototxt", "w.caffemodel"],
    "convert": ["convert", "net.prototxt", "w.caffemodel", "-o", "out"],
    "convert bad": ["convert", "bad.prototxt", "-o", "bad"],
    "stub": ["convert", "bad.prototxt", "--stub", "-o", "stub"],
    "verify": ["verify", "w.caffemodel", "--against", "numpy", "--all", "--html", "r.html", "--junit", "r.xml"],
    "verify failing": ["verify", "w.caffemodel", "--against", "numpy", "--atol", "0", "--rtol", "0"],
    "dump": ["dump", "w.caffemodel", "--by", "numpy", "-o", "t.npz"],
    "against a trace": ["verify", "w.caffemodel", "--against", "t.npz"],
    "evaluate": ["evaluate", "w.caffemodel", "--data", "\x1b[31m\u202e"],
    "train": ["train", "solver.prototxt", "-o", "run"],
    "log": ["log", "net.prototxt"],
    "input": ["verify", "w.caffemodel", "--input", "\x1b[31m=x"],
    "missing": ["inspect", "a\x1b[31m\u202e"],
    "reproduce": ["reproduce", "a\x1b[31m"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_terminals(command: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints, to stdout and stderr, holds no order to a terminal."""
    monkeypatch.chdir(files)
    before = set(os.listdir(files.parent))
    result = click.testing.CliRunner().invoke(cli, COMMANDS[command], prog_name="caffe-port")
    said = result.output + (str(result.exception) if isinstance(result.exception, CaffePortError) else "")
    assert result.exit_code in (0, 1, 2), result
    assert said.strip()
    assert isinstance(result.exception, (CaffePortError, SystemExit, type(None))), repr(result.exception)
    assert not (found := UNSAFE.search(said)), said[max(found.start() - 40, 0) : found.end() + 40].encode()
    assert set(os.listdir(files.parent)) == before, "nothing outside"
    assert not (files / "etc").exists()


def test_json(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    result = click.testing.CliRunner().invoke(cli, ["inspect", "--json", "w.caffemodel"])
    assert [layer["name"] for layer in json.loads(result.output)["layers"]][1:] == list(NAMES.values())
    assert result.output.isascii()


class _Page(html.parser.HTMLParser):
    """Collects tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        assert all("javascript" not in (value or "") for _, value in attrs)


def test_pages_and_junit(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    click.testing.CliRunner().invoke(cli, COMMANDS["verify"])
    text = (files / "r.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert "circle" in page.tags
    assert not page.tags & {"x", "iframe", "object", "link", "base"}
    assert text.count("<script") == 1, "the page's own"
    assert not {name for name in page.attributes if name.startswith("on")} | page.attributes & {"href", "srcdoc"}
    assert "&lt;script&gt;" in text
    assert not UNSAFE.search(text.replace("\n", ""))
    suite = ET.parse(files / "r.xml").getroot()
    assert {child.tag for child in suite.iter()} <= {
        "testsuite",
        "properties",
        "property",
        "testcase",
        "failure",
        "skipped",
    }
    cases = {case.get("name") for case in suite.iter("testcase")}
    assert {NAMES["CDATA"], NAMES["HTML"], NAMES["an entity"]} <= cases


def test_model_py(files: Path) -> None:
    """Names appear in model.py inside strings and comments only; none of its identifiers comes from outside."""
    written = model_source.model(api.port(files / "net.prototxt").net).source
    assert not UNSAFE.findall(written)
    tree = ast.parse(written)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {"torch", "__future__", "collections", "math", "typing"}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"exec", "eval", "compile", "open", "__import__", "os.system", "getattr"}
    assert all(
        isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Expr)) for node in tree.body
    )
    assert all(isinstance(node.value, ast.Constant) for node in tree.body if isinstance(node, ast.Expr))


@pytest.mark.parametrize("kind", NAMES)
def test_errors(kind: str) -> None:
    """What a file says is escaped in every part of an error."""
    error = CaffePortError(f"layer '{NAMES[kind]}'", f"{NAMES[kind]}:3", f"see {NAMES[kind]}")
    assert not UNSAFE.search(str(error))
    assert str(error).count("\n") == 1


# -- paths ----------------------------------------------------------------------------------------------------------

OUTSIDE = ("../x", "a/../../x", "/x", "C:/x", "C:x", "\\\\host\\x", "..\\x", "a\0b", "..")


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_lead_outside(path: str, tmp_path: Path) -> None:
    assert not stays_inside(path)
    text = """[net]
dataset = "mnist"
classes = 10
parameters = 7
reported = []
%s
[net.preprocessing]
[net.weights]
file = %s
sha256 = "%s"
size = 7
"""
    file = tmp_path / "registry.toml"
    for model, weights in ((path, "w"), ("m", path)):
        file.write_text(text % (f"model = {json.dumps(model)}", json.dumps(weights), "0" * 64))
        with pytest.raises(CaffePortError, match="expected a path below the folder"):
            registry.read(file)
    file.write_text(text % ('model = "m"', '"w"', "0" * 64))
    assert registry.read(file)["net"].model == "m"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("[net", '["../net"', "name may contain letters"),
        ("0" * 64, "../../x", "64 hexadecimal digits"),
        ("size = 7", "size = -1", "at least 1"),
        ("size = 7", 'size = 7\nurl = "http://x"', "https"),
        ("size = 7", 'size = 7\nurl = "file:///etc/passwd"', "https"),
    ],
)
def test_registry_entries_that_lead_outside(old: str, new: str, what: str, tmp_path: Path) -> None:
    text = f"""[net]
dataset = "mnist"
classes = 10
parameters = 7
reported = []
[net.preprocessing]
[net.weights]
file = "w"
sha256 = "{"0" * 64}"
size = 7
"""
    (tmp_path / "r.toml").write_text(text.replace(old, new))
    with pytest.raises(CaffePortError, match=what):
        registry.read(tmp_path / "r.toml")


def test_a_states_weights_are_named_not_run(tmp_path: Path) -> None:
    """learned_net is where Caffe looks for the weights; another kind of file there is refused when it is read."""
    for name in ("/dev/zero", "\0", "x" * 5000, "../" * 50 + "dev/zero"):
        state = solverstate.SolverState(1, name, (), 0, str(tmp_path / "s.solverstate"))
        with pytest.raises(CaffePortError, match="are neither at that path nor next to the state"):
            solverstate.weights_beside(state)


def test_a_snapshot_prefix_cannot_lead_out_of_the_run(tmp_path: Path) -> None:
    from caffe_port.training.run_folder import RunFolder

    run = RunFolder(tmp_path / "run", Path("../../x").name)
    assert (run.snapshots / f"{run.name}_iter_1.json").resolve().is_relative_to(tmp_path / "run")


def test_files_are_replaced_not_followed(tmp_path: Path) -> None:
    """A symbolic link in the place of an output is replaced; what it led to stays as it was."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").symlink_to(victim)
    with atomic_write(tmp_path / "out", "w") as file:
        file.write("new")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "out").is_symlink()


# -- no code from data ----------------------------------------------------------------------------------------------

RISKY = re.compile(
    r"(eval|exec|compile|__import__)|(pickle|marshal|shelve|runpy|os|subprocess|importlib|spec\.loader|np|torch)\."
    r"(\w+\.)*(load|loads|Unpickler|system|popen|spawn\w*|exec\w*|run\w*|Popen|call|check_\w+|import_module|read_array)"
)
"""Calls that may run what they read."""
SCRIPTS = {"script.py", "notebook.py"}
"""Modules of pycaffe that compile and run the script that `caffe-port run` names."""
ALLOWED: dict[str, Callable[[str], bool]] = {
    "torch.load": lambda call: "weights_only=True" in call,
    "np.load": lambda call: "allow_pickle=False" in call,
    "np.lib.format.read_array": lambda call: "allow_pickle=False" in call,
    # what emit wrote, to be tried before it is kept
    "compile": lambda call: call == "compile(source, MODEL, 'exec')",
    "exec": lambda call: call == "exec(compile(source, MODEL, 'exec'), namespace.__dict__)",
    "torch.export.load": lambda call: call == "torch.export.load(str(path))",  # what was saved a line before
    "subprocess.run": lambda call: "shell" not in call,
    "subprocess.Popen": lambda call: "shell" not in call,
    "importlib.import_module": lambda call: "param" not in call,  # modules of ours, and onnxruntime
    "spec.loader.exec_module": lambda call: True,  # plugins.run and recorder.load_module: files that the user names
}


def test_no_pickle_and_no_code_is_reachable() -> None:
    """Every call in the package that could run what it reads is one of those above, and called as it must be."""
    seen: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {"pickle", "marshal", "shelve", "dill", "joblib", "yaml", "runpy"} & set(modules), path
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if RISKY.fullmatch(name):
                seen.setdefault(name, set()).add(path.name)
                if name in ("compile", "exec") and path.parent.name == "pycaffe" and path.name in SCRIPTS:
                    continue
                assert name in ALLOWED, f"{path}:{node.lineno}: {name}"
                assert ALLOWED[name](ast.unparse(node)), f"{path}:{node.lineno}: {ast.unparse(node)}"
    assert seen["torch.load"] == {"state_dict.py"}
    assert seen["exec"] == {"self_check.py", *SCRIPTS}
    assert seen["compile"] == {"self_check.py", *SCRIPTS}
    assert seen["spec.loader.exec_module"] == {"recorder.py"}


def test_scripts_and_layers_in_python_run_by_one_command_only() -> None:
    """What runs a user's script, or the modules that a prototxt names, is imported by `caffe-port run` alone."""
    named, users = set(), set()
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "import_module(p.module)" in text:
            named.add(path.relative_to(PACKAGE).as_posix())
        if "caffe_port.pycaffe" in text and "pycaffe" not in path.relative_to(PACKAGE).parts:
            users |= {
                path.relative_to(PACKAGE).as_posix()
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("caffe_port.pycaffe")
            }
    assert named == {"pycaffe/layer.py"}
    assert users == {"commands/scripts.py"}


def test_code_runs_only_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python files beside the net, and modules that a Python layer names, stay unread."""
    ran = tmp_path / "ran"
    for name in ("net.py", "my_layers.py", "model.py", "conftest.py", "torch.py", "sitecustomize.py"):
        (tmp_path / name).write_text(f"open({str(ran)!r}, 'w')")
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3] } } }\n'
        'layer { name: "p" type: "Python" bottom: "x" top: "y" python_param { module: "my_layers" layer: "Mine" '
        'param_str: "__import__(\\"os\\").system(\\"touch ran\\")" } }\n'
        'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }'
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaffePortError, match="Python"):
        api.port("net.prototxt")
    assert not ran.exists()
    for option in ("--plugin", "--against"):
        command = "verify" if option == "--against" else "convert"
        said = click.testing.CliRunner().invoke(cli, [command, "--help"]).output
        after = " ".join(said.partition(option)[2].split()[:40])
        assert "run" in after, f"{option} says that it runs code"
