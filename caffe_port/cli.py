"""The command line: parses arguments, calls the library and prints.

Exit codes: 0 success; 1 verification failed or accuracy not reached; 2 bad usage or bad input.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import click

from caffe_port.commands import dialects, guard, health, models, nets, proof, scripts, survey, training
from caffe_port.commands.command import TRACEBACK, TRACEBACK_HELP
from caffe_port.errors import CaffePortError, printable
from caffe_port.version import __version__


def main() -> NoReturn:
    """Entry point: one clear line and exit code 2 for every error that the user can fix."""
    try:
        code = cli.main(prog_name="caffe-port", standalone_mode=False)
    except CaffePortError as error:
        code = _complain(str(error))
    except click.exceptions.Abort:
        code = _complain("interrupted", 130)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "caffe-port"
        code = _complain(f"{' '.join(error.format_message().split())}\n  See {command} --help")
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code)
    except BrokenPipeError:  # `caffe-port inspect ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's last flush
        code = 0
    except Exception as error:  # noqa: BLE001 - the last resort: no file may cause a traceback
        if TRACEBACK in sys.argv:
            traceback.print_exc()
        if isinstance(error, OSError) and error.strerror:
            code = _complain(f"{error.filename or guard.stream(error)}: {error.strerror}")
        else:
            code = _complain(guard.sentence(error))
    sys.exit(code or 0)


def _complain(text: str, code: int = 2) -> int:
    lines = "\n".join(map(printable, text.split("\n")))
    click.echo(f"{click.style('error:', fg='red')} {lines}", err=True)
    return code


def _tell_versions(context: click.Context, _: click.Parameter, asked: bool) -> None:
    """Prints the versions that a bug report should contain, without importing the packages."""
    if not asked or context.resilient_parsing:
        return
    from caffe_port.inspection.doctor import versions

    click.echo(f"caffe-port {__version__}")
    for name, version in versions().items():
        click.echo(f"{name} {version}")
    context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog="Every command has --help with examples. Exit codes: 0 success; 1 verification failed or accuracy not "
    "reached; 2 bad usage or bad input.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_versions,
    help="Show the versions of caffe-port and of the packages that it uses.",
)
@click.option(TRACEBACK, is_flag=True, expose_value=False, help=TRACEBACK_HELP)
@click.pass_context
def cli(context: click.Context) -> int | None:
    """Convert Caffe models to PyTorch, verify them layer by layer, and train them with Caffe's solvers."""
    if context.invoked_subcommand is not None:
        return None
    click.echo(context.get_help(), err=True)
    return 2


for _command in (
    nets.convert,
    nets.inspect,
    survey.survey,
    nets.demo,
    proof.verify,
    proof.compare,
    proof.dump,
    training.train,
    nets.predict,
    training.evaluate,
    training.log,
    training.reproduce,
    scripts.run,
    models.list_models,
    dialects.list_dialects,
    health.doctor,
    health.build_caffe,
    health.completion,
):
    cli.add_command(_command)
