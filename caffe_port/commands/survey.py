"""The command survey."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from caffe_port.commands import checks
from caffe_port.commands.command import OUTPUT, command
from caffe_port.commands.progress import Progress
from caffe_port.storage.files import atomic_write
from caffe_port.terminal import count, table


@command()
@click.argument("tree", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Folder of the results.",
)
@click.option(
    "--job",
    type=click.Choice(["convert", "verify", "inspect"]),
    default="convert",
    show_default=True,
    help="What is done for each net; inspect needs no torch.",
)
@click.option(
    "-j", "--jobs", "workers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Processes."
)
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up a net that takes longer.",
)
@click.option("--html", "page", type=OUTPUT, metavar="FILE", help="Write the table as a page.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def survey(tree: Path, out: Path, page: Path | None, as_json: bool, **options: Any) -> int:
    """Convert or verify every net in a folder and the folders below it.

    \b
    Arguments:
      TREE  a folder; weights go with the prototxt of their folder that fits

    An interrupted survey goes on where it stopped; a net whose files changed is done again.

    \b
    Examples:
      caffe-port survey zoo -o converted -j 4
      caffe-port survey zoo -o results --job verify --html results.html

    \b
    Exit codes:
      0  every net was done, and what was verified agrees
      1  a net was refused, differs or failed
      2  bad usage or bad input
    """
    from caffe_port.inspection import collection

    checks.writable(page)
    with Progress() as progress:
        noun = {"convert": "converted", "verify": "verified", "inspect": "inspected"}[options["job"]]
        results = collection.survey(
            tree,
            out,
            found=None if as_json else lambda one, done, total: progress.update(noun, done, total, "net", one.name),
            **options,
        )
    if page is not None:
        with atomic_write(page, "w") as file:
            file.write(collection.to_html(results, f"{options['job']} {tree}"))
    if as_json:
        click.echo(json.dumps(collection.as_dict(results), indent=2))
    else:
        told = ", ".join(f"{n:,} {status}" for status, n in collection.counts(results).items())
        click.echo(f"{count(len(results), 'net')}: {told}")
        rows = [[status, f"{n:,}", reason, first] for status, reason, n, first in collection.reasons(results)]
        if rows:
            click.echo("\n".join(table(["status", "nets", "reason", "for example"], rows, right=(1,), width=1000)))
    return int(any(one.status != "done" for one in results))
