"""The command models."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from typing import TYPE_CHECKING

import click

from caffe_port.commands.command import command
from caffe_port.errors import printable
from caffe_port.terminal import human_bytes, table

if TYPE_CHECKING:
    from caffe_port.evaluation.registry import Entry


@command("models")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(name: str | None, as_json: bool) -> None:
    """List the published models that caffe-port knows: size, reported accuracy, verification, preprocessing.

    \b
    Arguments:
      NAME  an entry of model_defs/registry.toml: shows all that is known of it

    \b
    Examples:
      caffe-port models
      caffe-port models mnist-slim-310k

    \b
    Exit codes:
      0  success
      2  bad usage, or there is no such entry
    """
    from caffe_port.evaluation import registry

    found = list(registry.entries().values()) if name is None else [registry.entry(name)]
    if as_json:
        shown = [dataclasses.asdict(entry) for entry in found]
        click.echo(json.dumps(shown if name is None else shown[0], indent=2))
    elif name is not None:
        click.echo("\n".join(_details(found[0])))
    else:
        head = ["name", "data", "parameters", "weights", "reported", "by", "verified", "preprocessing"]
        rows = [
            [
                entry.name,
                entry.dataset,
                f"{entry.parameters:,}",
                human_bytes(entry.weights.size) if entry.weights else "",
                f"{max(r.accuracy for r in entry.reported):.2f} %" if entry.reported else "",
                entry.reported[0].by if entry.reported else "",
                f"{entry.verified.tops} tops" if entry.verified else "",
                str(entry.preprocessing),
            ]
            for entry in found
        ]
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
        click.echo("\n".join(table(head, rows, right=(2, 3, 4), shrink=[(7, 20)], width=width)))
        click.echo("\n'caffe-port models NAME' shows all that is known of one.")


def _details(entry: Entry) -> list[str]:
    rows = [
        ["data", f"{entry.dataset}, {entry.classes} classes"],
        ["parameters", f"{entry.parameters:,}"],
        ["definition", str(entry.model_path or "inside the weights")],
        ["solver", str(entry.solver_path or "")],
        ["preprocessing", str(entry.preprocessing)],
    ]
    for r in entry.reported:
        by = ", ".join(text for text in (r.by, r.date, r.source) if text)
        mirrored = {None: "", False: ", not mirrored", True: ", mirrored"}[r.mirror_test]
        rows.append(["reported", f"{r.accuracy:.2f} %{mirrored} ({by}){f': {r.note}' if r.note else ''}"])
    if entry.weights is not None:
        rows += [
            ["weights", f"{entry.weights.file}, {human_bytes(entry.weights.size)}"],
            ["SHA-256", entry.weights.sha256],
            ["published", entry.weights.url],
            ["reproduce", f"caffe-port reproduce {entry.name}"],
        ]
    if entry.verified is not None:
        references = {"OpenCV": entry.verified.opencv, "Caffe": entry.verified.caffe}
        agree = " and ".join(f"{name} {version}" for name, version in references.items() if version)
        rows.append(["verified", f"{entry.verified.tops} tops agree with {agree}"])
    rows.append(["note", " ".join(entry.note.split())])
    return [entry.name, *(f"  {label:13}  {printable(value)}" for label, value in rows if value)]
