"""run."""

from __future__ import annotations

import click

from caffe_port.commands.command import command
from caffe_port.commands.net_files import dialect_option


@command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@dialect_option
@click.argument("script", type=click.Path())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="ARGUMENTS")
def run(dialect: str | None, script: str, arguments: tuple[str, ...]) -> int:
    """Run a Python script that begins with `import caffe`, on PyTorch.

    In the script, and in all that it imports, caffe means caffe_port.pycaffe. Layers in Python are found as modules
    next to the script, in the current folder or on PYTHONPATH. This runs the script: run only what you trust.

    \b
    Arguments:
      SCRIPT     the script, for Python 3, or a Jupyter notebook
      ARGUMENTS  what follows is the script's own

    \b
    Examples:
      caffe-port run classify.py cat.jpg out.npy
      caffe-port run train.py --solver solver.prototxt
      caffe-port run --dialect textboxes demo.py

    \b
    Exit codes:
      0  the script ended
      1  the script raised an exception
      2  bad usage, a file that is wrong, or a script for Python 2
      N  what the script gave to sys.exit
    """
    from caffe_port.formats.dialects import assuming
    from caffe_port.pycaffe.script import main

    with assuming(dialect):
        return main(script, arguments)
