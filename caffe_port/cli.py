"""The command line: it parses, calls and prints, and decides nothing.

Exit codes: 0 done; 1 parity or accuracy not reached; 2 bad usage or bad input.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

import caffe_port
from caffe_port.commands import nets, proof, training
from caffe_port.errors import CaffePortError
from caffe_port.table import printable


def main() -> NoReturn:
    """Entry point: one clear line and code 2 for whatever the user can put right."""
    try:
        code = cli.main(prog_name="caffe-port", standalone_mode=False)
    except CaffePortError as error:
        code = _complain(str(error))
    except click.exceptions.Abort:
        code = _complain("interrupted", 130)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:  # `caffe-port inspect ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter's last flush goes there
        code = 0
    except OSError as error:
        code = _complain(f"{error.filename or 'file'}: {error.strerror or error}")
    sys.exit(code or 0)


def _complain(text: str, code: int = 2) -> int:
    lines = "\n".join(map(printable, text.split("\n")))
    click.echo(f"{click.style('error:', fg='red')} {lines}", err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(caffe_port.__version__, prog_name="caffe-port")
def cli() -> None:
    """Moves Caffe models to PyTorch, proves layer by layer that nothing changed, and retrains them as Caffe would."""


for _command in (
    nets.convert,
    nets.inspect,
    nets.demo,
    proof.verify,
    proof.dump,
    training.train,
    training.evaluate,
    training.log,
    training.reproduce,
):
    cli.add_command(_command)
