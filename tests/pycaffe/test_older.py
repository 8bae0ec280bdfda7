"""What scripts of Caffe's years use of NumPy, SciPy, PyYAML and Pillow; and notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from caffe_port.errors import CaffePortError
from caffe_port.pycaffe import notebook, older
from caffe_port.pycaffe.script import newer
from caffe_port.pycaffe.script import run as run_script


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "caffe_port.pycaffe", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def printed(folder: Path, text: str) -> str:
    (folder / "script.py").write_text(text)
    done = run(folder, "script.py")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_of_numpy_and_python(tmp_path: Path) -> None:
    said = printed(
        tmp_path,
        "import collections, fractions, time\nimport numpy as np\nfrom PIL import Image\n"
        "print(np.float is float, np.float_ is np.float64, np.Inf, np.product([2, 3]), np.asscalar(np.ones(1)))\n"
        "print(np.fromstring(b'\\x01\\x02', dtype=np.uint8), np.fromstring('1 2', sep=' '), np.in1d([1], [1, 2]))\n"
        "a = np.fromstring(b'\\x01', np.uint8); a[0] = 5\n"
        "print(time.clock() >= 0, fractions.gcd(6, 4), issubclass(dict, collections.Mapping))\n"
        "print(Image.new('L', (4, 4)).resize((2, 2), Image.ANTIALIAS).size)\n",
    )
    assert said.splitlines() == ["True True inf 6 1.0", "[1 2] [1. 2.] [ True]", "True 2 True", "(2, 2)"]


def test_yaml_needs_no_loader(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    text = "import yaml\nprint(yaml.load(\"{'a': [1, 2]}\"), yaml.load('b: 1', Loader=yaml.SafeLoader))\n"
    assert printed(tmp_path, text) == "{'a': [1, 2]} {'b': 1}\n"


def test_scipy_misc_has_the_functions_for_images(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "a.png")
    said = printed(
        tmp_path,
        "import scipy.misc\nimport numpy as np\nfrom scipy.misc import comb, imread, imresize as resize\n"
        "a = imread('a.png')\nprint(a.shape, a.dtype, a[1, 2])\n"
        "print(resize(a, (2, 3)).shape, resize(a, 50).shape, resize(a, 2.0).shape)\n"
        "scipy.misc.imsave('b.png', a)\nprint((imread('b.png') == a).all(), comb(4, 2))\n"
        "print(scipy.misc.imread('a.png', True)[0, 1])\n",
    )
    assert said.splitlines() == ["(4, 4, 3) uint8 [18 19 20]", "(2, 3, 3) (2, 2, 3) (8, 8, 3)", "True 6.0", "3.815"]


def test_numbers_are_scaled_to_bytes() -> None:
    """As SciPy 1.0: the least number becomes 0, the greatest 255; bytes stay."""
    assert older.bytescale(np.array([[-1.0, 0, 3]])).tolist() == [[0, 64, 255]]
    assert older.bytescale(np.array([[1.0, 2]]), cmin=0, cmax=255).tolist() == [[1, 2]]
    assert older.bytescale(np.array([[7, 9]], np.uint8)).tolist() == [[7, 9]]
    assert older.bytescale(np.array([[3.0, 3]])).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="cmax"):
        older.bytescale(np.ones((1, 1)), cmin=2)


def test_an_array_becomes_an_image_whichever_axis_has_the_channels() -> None:
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for axis in range(3):
        np.testing.assert_array_equal(older.toimage(np.moveaxis(image, 2, axis)), image)
    assert older.toimage(np.zeros((4, 5))).mode == "L"
    assert older.toimage(np.full((4, 5), 0.5), mode="F").getpixel((0, 0)) == 0.5
    with pytest.raises(ValueError, match="suitable array shape"):
        older.toimage(np.zeros((5, 5, 5)))
    with pytest.raises(ValueError, match="suitable array shape"):
        older.toimage(np.zeros(3))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AttributeError("'numpy.ndarray' object has no attribute 'tostring'"), "write `.tobytes()`"),
        (ValueError("Object arrays cannot be loaded when allow_pickle=False"), "needs allow_pickle=True"),
        (TypeError("read() got an unexpected keyword argument 'as_grey'"), "`as_gray`"),
        (AttributeError("module 'cv2' has no attribute 'cv'"), "OpenCV 3 removed"),
        (ModuleNotFoundError("No module named 'imp'"), "use importlib"),
        (ValueError("math domain error"), ""),
    ],
)
def test_what_cannot_be_put_back_gets_a_hint(error: Exception, told: str) -> None:
    assert told in newer(error)
    assert bool(told) == bool(newer(error))


NOTEBOOK = """{"nbformat": 4, "metadata": {"kernel": null}, "cells": [
 {"cell_type": "markdown", "source": ["# a title"]},
 {"cell_type": "code", "source": ["%matplotlib inline\\n", "import caffe, sys\\n", "!ls", "\\n", "if 1:\\n  %time"]},
 {"cell_type": "code", "source": "x = 3\\nx + 1"},
 {"cell_type": "code", "source": "%%bash\\nrm nothing"},
 {"cell_type": "code", "source": "files = !ls\\nx;"},
 {"cell_type": "code", "source": "print(__name__, sys.argv[1], x)\\nNone"},
 {"cell_type": "code", "source": "1 / 0"}]}"""


def test_a_notebook_runs_cell_by_cell(tmp_path: Path) -> None:
    (tmp_path / "n.ipynb").write_text(NOTEBOOK)
    done = run(tmp_path, "n.ipynb", "word")
    assert done.returncode == 1
    assert done.stdout == "4\n__main__ word 3\n"
    for line in ("%matplotlib inline", "!ls", "%time", "files = !ls"):
        assert f"note: left out a line for IPython: {line}\n" in done.stderr
    assert "note: left out a cell for IPython: %%bash\n" in done.stderr
    trace = done.stderr[done.stderr.index("Traceback") :].splitlines()
    assert trace[1] == '  File "n.ipynb, cell 6", line 1, in <module>'
    assert trace[-1] == "ZeroDivisionError: division by zero"


def test_a_notebook_of_format_3() -> None:
    data = b'{"worksheets": [{"cells": [{"cell_type": "code", "input": ["1 +", " 1"]}, {"cell_type": "markdown"}]}]}'
    assert notebook.code_cells(data, "n.ipynb") == ["1 + 1"]


@pytest.mark.parametrize("text", ['{"cells": 3}', "import caffe", "[]", '{"cells": [{}]}', "3"])
def test_what_is_not_a_notebook(text: str) -> None:
    with pytest.raises(CaffePortError, match="is not a Jupyter notebook") as caught:
        notebook.code_cells(text.encode(), "n.ipynb")
    assert caught.value.where == "n.ipynb"


def test_a_notebook_in_python_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "n.ipynb").write_text(NOTEBOOK.replace("x = 3", "%time\\nprint 3").replace("cell 2:2", ""))
    with pytest.raises(CaffePortError, match="is not Python 3") as caught:
        run_script(tmp_path / "n.ipynb")
    assert caught.value.where == f"{tmp_path / 'n.ipynb'}, cell 2:2"
    assert capsys.readouterr().err == ""
    assert "the print statement" in caught.value.hint


def test_pylab_is_imported() -> None:
    kept, left = notebook.without_ipython("  %pylab inline\n")
    assert kept.startswith("  from pylab import *; import numpy as np")
    assert left == []


def test_a_line_for_ipython_that_goes_on() -> None:
    kept, left = notebook.without_ipython("!python x.py \\\n    --all \\\n    --more\ny = 1\n%%time\n")
    assert kept == "pass\n\n\ny = 1\npass\n"
    assert left == ["!python x.py \\", "%%time"]


def test_an_exported_notebook_runs(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(
        "get_ipython().magic(u'matplotlib inline')\nget_ipython().system('ls')\n"
        "get_ipython().run_cell_magic('time', '', 'y = 5')\nprint(y)\n"
    )
    done = run(tmp_path, "s.py")
    assert (done.stdout, done.stderr) == (
        "5\n",
        "note: left out a line for IPython: matplotlib inline\nnote: left out a line for IPython: ls\n",
    )


def test_lines_for_ipython_in_a_script(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("%matplotlib inline\nprint(6)\n")
    assert run(tmp_path, "m.py").stdout == "6\n"
