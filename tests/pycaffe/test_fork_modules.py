"""Modules that a fork has in its folder ``caffe``, which scripts put on the path."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_a_forks_own_modules_are_found(tmp_path: Path) -> None:
    """SSD's caffe.model_libs; but not its caffe.io, which is ours."""
    folder = tmp_path / "fork" / "python" / "caffe"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the package itself')\n")
    (folder / "io.py").write_text("raise AssertionError('a module that is ours')\n")
    (folder / "model_libs.py").write_text(
        "from caffe import layers as L\nfrom .proto import caffe_pb2\ndef body(net):\n    net.relu = L.ReLU(net.data)\n"
    )
    script = tmp_path / "s.py"
    script.write_text(
        "import sys, os\n"
        f"sys.path.insert(0, {str(folder.parent)!r})\n"
        "import caffe, caffe.io\n"
        "from caffe.model_libs import *\n"
        "net = caffe.NetSpec()\n"
        "net.data = L.Input(shape=dict(dim=[1, 3]))\n"
        "body(net)\n"
        "assert isinstance(net.to_proto(), caffe_pb2.NetParameter)\n"
        "print([layer.type for layer in net.to_proto().layer], caffe.io.__name__)\n"
        "try:\n"
        "    import caffe.nosuch\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-m", "caffe_port.pycaffe", str(script)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == ["['Input', 'ReLU'] caffe_port.pycaffe.io", "No module named 'caffe.nosuch'"], (
        done.stderr
    )
