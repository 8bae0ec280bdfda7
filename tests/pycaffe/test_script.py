"""caffe-port run: `import caffe` means caffe_port.pycaffe in a script; Python 2 is named."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from caffe_port.errors import CaffePortError
from caffe_port.pycaffe.script import python2, report
from caffe_port.pycaffe.script import run as run_script

NET = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'


def run(folder: Path, *arguments: str, module: str = "caffe_port.cli run") -> subprocess.CompletedProcess[str]:
    name, *command = module.split()
    code = f"import sys; from {name} import main; sys.argv[1:1] = {command!r}; main()"
    start = ["-c", code] if command else ["-m", name]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("module", ["caffe_port.cli run", "caffe_port.pycaffe"])
def test_a_script_runs_as_if_by_python(tmp_path: Path, module: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "beside.py").write_text("import caffe\nname = caffe.Net.__module__\n")
    (tmp_path / "n.prototxt").write_text(NET)
    (tmp_path / "sub" / "s.py").write_text(
        "from __future__ import print_function\n"
        "import sys, os, numpy as np, caffe, beside\n"
        "import caffe.pycaffe, caffe._caffe\n"
        "from caffe import Net\n"
        "assert np.float is float and np.int is int\n"
        "print(sys.argv, os.path.basename(sys.path[0]), __name__, os.path.basename(__file__))\n"
        "print(caffe.__version__, beside.name, caffe.pycaffe.Net is Net)\n"
        "print(sys.modules['__main__'].np is np, list(Net('n.prototxt', caffe.TEST).blobs))\n"
        "sys.exit(7)\n"
    )
    done = run(tmp_path, "sub/s.py", "--option", "-x", "value", module=module)
    assert done.returncode == 7, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == "['sub/s.py', '--option', '-x', 'value'] sub __main__ s.py"
    assert second.startswith("1.0.0 (caffe-port ")
    assert second.endswith(") caffe_port.pycaffe.net True")
    assert third == "True ['x']"


def test_nothing_is_shadowed_without_being_asked(tmp_path: Path) -> None:
    (tmp_path / "caffe.py").write_text("here = 'another caffe'\n")
    code = "import caffe_port.pycaffe as ours, caffe; print(caffe.here, ours.__version__[:5])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "another caffe 1.0.0\n", done.stderr


def test_errors_say_where_the_script_stood(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(NET.replace("Input", "Inptu").replace("input_param", "inptu_param"))
    (tmp_path / "bad.py").write_text("import caffe\n\ncaffe.Net('n.prototxt', caffe.TEST)\n")
    done = run(tmp_path, "bad.py")
    assert done.returncode == 2
    assert done.stderr.startswith("bad.py:3: the script stops here\nerror: n.prototxt:1: ")
    (tmp_path / "own.py").write_text("def f():\n    return 1 / 0\nf()\n")
    done = run(tmp_path, "own.py")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Traceback (most recent call last):",
        '  File "own.py", line 3, in <module>',
        *done.stderr.splitlines()[2:-1],
        "ZeroDivisionError: division by zero",
    ]
    assert "caffe_port" not in done.stderr
    with pytest.raises(CaffePortError, match="cannot be read: No such file or directory"):
        run_script("nothing.py")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import caffe\nprint 'loss', 3\n", "the print statement"),
        ("try:\n    pass\nexcept ValueError, e:\n    pass\n", "`except Error, name`"),
        ("raise ValueError, 'x'\n", "`raise Error, text`"),
        ("import os\nos.chmod('x', 0755)\n", "octal numbers"),
        ("if 1 <> 2:\n    pass\n", "`<>`"),
        ("x = ur'a'\n", "ur'' strings"),
        ("if 1:\n        a = 1\n\tb = 2\n", "tabs and spaces that are mixed"),
    ],
)
def test_python_2_is_named_before_anything_runs(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "old.py").write_text(text)
    with pytest.raises(CaffePortError, match="is not Python 3") as caught:
        run_script(tmp_path / "old.py")
    assert caught.value.where.startswith(f"{tmp_path / 'old.py'}:")
    assert f"this is Python 2 ({told}" in caught.value.hint
    assert "caffe" not in sys.modules


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("for i in xrange(3): pass", "`xrange`"),
        ("{}.has_key(1)", "`.has_key()`"),
        ("{}.iteritems()", "`.iteritems()`"),
        ("import cPickle", "the module cPickle"),
        ("range(4 / 2)", "numbers, lists or strings"),
        ("{}.keys()[0]", "numbers, lists or strings"),
        ("len(map(int, []))", "numbers, lists or strings"),
        ("from collections import OrderedDict as d; d().keys()[0]", "numbers, lists or strings"),
        ("{}.keys().sort()", "numbers, lists or strings"),
        ("range(3) + [1]", "numbers, lists or strings"),
        ("[1] + range(3)", "numbers, lists or strings"),
        ("sorted([1, 'a'])", "numbers, lists or strings"),
        ("a = [1, 2]; a[4 / 2]", "numbers, lists or strings"),
        ("import numpy as np; np.zeros(3)[2.0]", "numbers, lists or strings"),
        ("import numpy as np; np.zeros((4 / 2, 3))", "numbers, lists or strings"),
        ("import numpy as np; range(np.float32(2))", "numbers, lists or strings"),
        ("from itertools import izip", "`izip`"),
        ("import itertools; itertools.imap", "`imap`"),
        ("import sys; sys.maxint", "`maxint`"),
        ("import string; string.letters", "`letters`"),
        ("import urllib; urllib.urlopen", "`urlopen`"),
        ("'a'.decode('utf8')", "`.decode()`"),
        ("b'\\xa2'.decode('utf-8')", "open(..., 'rb')"),
    ],
)
def test_python_2_is_named_when_it_fails(text: str, told: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each raises its own
        exec(text, {})
    assert told in python2(caught.value)


def test_errors_that_are_not_python_2_get_no_hint() -> None:
    for text in (
        "import sys; sys.nothing",
        "from itertools import nothing",
        "int([])",
        "undefined_name",
        "[].nothing",
        "import nothing_there",
        "1 + 'a'",
        "{}['a']",
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            exec(text, {})
        assert python2(caught.value) == ""
    with pytest.raises(SyntaxError) as wrong:
        compile("print('a'\nx = (1,\n", "x", "exec")
    assert python2(wrong.value, "print('a'\nx = (1,\n") == ""
    with pytest.raises(SyntaxError) as indented:
        compile("x = 1  # as `x`\n  y = 2\n", "x", "exec")
    assert python2(indented.value, "x = 1  # as `x`\n  y = 2\n") == ""


def test_an_import_of_a_file_beside_gets_the_hint(tmp_path: Path) -> None:
    package = tmp_path / "package_of_python_2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("import beside_of_python_2\n")
    (package / "beside_of_python_2.py").write_text("")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ModuleNotFoundError) as caught:
            importlib.import_module("package_of_python_2.one")
    finally:
        sys.path.remove(str(tmp_path))
    assert "`from . import beside_of_python_2` in Python 3" in python2(caught.value)


def test_a_script_may_say_which_fork_its_nets_are_of(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        "import sys\nfrom caffe_port.formats.dialects import assumed\nprint(assumed(), sys.argv)\n"
    )
    assert run(tmp_path, "--dialect", "textboxes", "s.py", "--dialect", "x").stdout == (
        "textboxes ['s.py', '--dialect', 'x']\n"
    )
    done = run(tmp_path, "--dialect", "nothing", "s.py")
    assert done.returncode == 2
    assert "nothing" in done.stderr


def test_an_import_in_python_2_gets_the_hint(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("print 'a'\n")
    with pytest.raises(SyntaxError) as caught:
        exec(compile((tmp_path / "helper.py").read_text(), str(tmp_path / "helper.py"), "exec"))
    assert "hint: this is Python 2 (the print statement)" in report(caught.value, "new.py")
