"""The command dialects."""

from __future__ import annotations

import click

from caffe_port.commands.command import command
from caffe_port.errors import printable
from caffe_port.terminal import table


@command("dialects")
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="List those without a short name, too.")
@click.option("--number", type=int, metavar="N", help="Show who uses a number of LayerParameter.")
def list_dialects(name: str | None, everything: bool, number: int | None) -> None:
    """List the dialects of Caffe: the forks and versions whose numbers caffe-port knows.

    A dialect is recognized from the weights; --dialect NAME of convert, verify and inspect decides.

    \b
    Arguments:
      NAME  a dialect: shows its numbers of LayerParameter that differ from BVLC's

    \b
    Examples:
      caffe-port dialects
      caffe-port dialects ssd
      caffe-port dialects --number 147

    \b
    Exit codes:
      0  success
      2  bad usage, or there is no such dialect
    """
    from caffe_port.formats import dialects

    if number is not None:
        users = sorted(dialects.users("LayerParameter", number).items(), key=lambda item: -len(item[1]))
        rows = [[field, ", ".join(dict.fromkeys(d.label for d in found))] for field, found in users]
        rows += [[field, who] for n, field, who in dialects.unsourced() if n == number]
        rows += [[f, f"{project}, {a} to {b}"] for n, f, project, a, b in dialects.earlier() if n == number]
        click.echo(_shown(["field", "dialects"], rows) if rows else f"no dialect uses {number}")
    elif name is not None:
        one, base = dialects.find(name), dialects.dialects()[0].layout("LayerParameter")
        click.echo(printable(str(one)))
        for other in one.also:
            click.echo(f"  the same: {printable(other)}")
        own = sorted(one.layout("LayerParameter").items())
        rows = [[str(n), f.name, f.message or f.kind] for n, f in own if base.get(n) is None or base[n].name != f.name]
        if rows:
            click.echo(_shown(["number", "field", "type"], rows))
    else:
        found = [d for d in dialects.dialects() if d.short or everything]
        click.echo(_shown(["name", "source", "date"], [[d.short, d.name, d.date] for d in found]))


def _shown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(table(head, rows))
