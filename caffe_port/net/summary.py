"""A Net as a table, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

from torch import nn

from caffe_port.net.plan import Plan

HEADS = ("layer", "type", "module", "top shapes", "parameters")


def table(net: nn.Module, plan: Plan) -> str:
    """HTML with a row for each layer of a phase; every name is escaped.

    Shapes are those that the net was built for. Parameters are the trainable ones; the total counts what layers share
    once.
    """
    rows = [
        (
            step.layer.name,
            step.layer.type,
            f"{step.attribute}: {net.get_submodule(step.attribute)}".replace("\n", " "),
            ", ".join(str(plan.shapes[step.layer.name, k]) for k in range(len(step.tops))),
            f"{sum(p.numel() for p in net.get_submodule(step.attribute).parameters()):,}",
        )
        for step in plan.steps
    ]
    flow = f"{', '.join(plan.inputs)} → {', '.join(blob for blob, _ in plan.outputs)}"
    caption = f"{plan.spec.name}, phase {plan.spec.phase}: {flow}"
    foot = ("", "", "", "", f"{sum(p.numel() for p in net.parameters()):,}")
    lines = [_row(row, "td") for row in rows]
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead>{_row(HEADS, 'th')}</thead>"
        f"<tbody>{''.join(lines)}</tbody><tfoot>{_row(foot, 'th')}</tfoot></table>"
    )


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
