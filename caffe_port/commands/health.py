"""doctor, build-caffe, completion."""

from __future__ import annotations

import json

import click

from caffe_port.commands.command import command
from caffe_port.commands.progress import progress_bar
from caffe_port.errors import CaffePortError, printable


@command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Check the installation and report what works.

    \b
    Examples:
      caffe-port doctor
      caffe-port doctor --json

    \b
    Exit codes:
      0  converting and verifying work
      1  converting or verifying does not work
      2  bad usage
    """
    from caffe_port.inspection.doctor import examine

    found = examine()
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return 0 if found.healthy else 1
    part = ""
    for finding in found.findings:
        if finding.part != part:
            part = finding.part
            click.secho(part, bold=True)
        mark = click.style("ok", fg="green") if finding.ok else click.style("--", fg="yellow")
        click.echo(f"  {mark}  {finding.name:<22}  {printable(finding.text)}")
        if finding.hint:
            click.echo(f"{'':30}{printable(finding.hint)}")
    verdict = "converting and verifying work" if found.healthy else "converting or verifying does not work"
    click.secho(f"{verdict} ({found.seconds:.1f} s)", bold=True, fg="green" if found.healthy else "red")
    return 0 if found.healthy else 1


@command()
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Compilers at a time; default: one a processor.")
@click.option("--where", is_flag=True, help="Print the folder of the finished build; build nothing.")
def build_caffe(jobs: int | None, where: bool) -> None:
    """Build Caffe itself, for verify --against caffe and for its own tools.

    The sources come from PyPI (brocolli-caffe 9.0.2: a Caffe 1.0 fork with SSD's layers) and are built for the CPU in
    the cache folder, where bin/python imports caffe and bin/caffe trains. Linux only; takes minutes, and 400 MB.

    \b
    Examples:
      caffe-port build-caffe
      caffe-port build-caffe --jobs 2
      caffe-port build-caffe --where

    \b
    Exit codes:
      0  built, or there already
      2  the system lacks packages (all are named), or the build failed;
         with --where: nothing is built
    """
    from caffe_port.verification.references import build_caffe as recipe

    if where:
        if recipe.stamp(recipe.folder()) is None:
            raise CaffePortError("is not there, or was built by another version", str(recipe.folder()), _BUILD)
        click.echo(str(recipe.folder()))
        return
    with progress_bar("compiling", quiet=False, noun="file") as progress:
        recipe.build(lambda text: click.echo(printable(text)), progress, jobs)


_BUILD = "Build it: caffe-port build-caffe"


@command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell completion script for bash, zsh or fish.

    \b
    Arguments:
      SHELL  bash (4.4 or newer), zsh or fish

    \b
    Examples:
      caffe-port completion bash >> ~/.bashrc
      caffe-port completion zsh >> ~/.zshrc
      caffe-port completion fish > ~/.config/fish/completions/caffe-port.fish

    \b
    Exit codes:
      0  success
      2  bad usage
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "caffe-port", "_CAFFE_PORT_COMPLETE").source())
