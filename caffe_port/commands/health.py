"""doctor, completion."""

from __future__ import annotations

import json

import click

from caffe_port.commands.command import command
from caffe_port.errors import printable


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
