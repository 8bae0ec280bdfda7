"""Hand-written ports, right and wrong: what ``verify --against port.py:Net`` says of them, in figures.

    python benchmarks/ports.py [MANIFEST ...] [--only WORD] [--all] [--write docs/verification.md]

A manifest is a list of ports, as ``shared/ports/manifest.json``: ``id``, ``net``, ``prototxt`` and ``weights``
(relative to the manifest, or to the folder above it), ``port`` (file:Class), ``state`` (or ""), ``shape``
(input=1,3,9,8), ``equal`` (must pass), ``layers`` (one of which must be the first that is broken) and ``cause`` (a
regular expression that the first cause must match).

A slip is *located* if the first broken row is one of its layers, and *named* if the cause is the planted one. It is
*named wrongly* if a cause is given that is not it. *Innocent* rows are broken rows of other layers than those.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from caffe_port.api import port
from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel
from caffe_port.verification.comparison import Report
from caffe_port.verification.user_module.verify_module import verify_port

sys.path.insert(0, str(Path(__file__).resolve().parent))
from port_cases import CASES, PortCase
from port_nets import NETS

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CAFFE_PORT_SHARED") or ROOT.parent / "shared")
MANIFESTS = (SHARED / "ports/manifest.json",)


@dataclass(frozen=True)
class Outcome:
    """What was said of one port; ``report`` is None if the port could not be compared."""

    entry: dict[str, Any]
    report: Report | None
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.report is not None and self.report.passed

    @property
    def broken(self) -> list[tuple[str, str]]:
        return [] if self.report is None else [(row.layer, row.cause) for row in self.report.broken]

    @property
    def layers(self) -> list[str]:
        return [name for name in str(self.entry["layers"]).split(",") if name]

    @property
    def located(self) -> bool:
        return bool(self.broken) and self.broken[0][0] in self.layers

    @property
    def named(self) -> bool:
        return self.located and re.search(self.entry["cause"], self.broken[0][1]) is not None

    @property
    def named_wrongly(self) -> bool:
        return bool(self.broken) and bool(self.broken[0][1]) and not re.search(self.entry["cause"], self.broken[0][1])

    @property
    def innocent(self) -> list[str]:
        return [layer for layer, _ in self.broken if layer not in self.layers and "*" not in self.layers]


def outcome(entry: dict[str, Any], folder: Path) -> Outcome:
    """Verifies one port of a manifest in ``folder``."""

    def path(name: str) -> Path:
        return next((p for p in (folder / name, folder.parent / name) if p.exists()), folder / name)

    blob, _, sizes = entry["shape"].partition("=")
    return _timed(
        entry,
        lambda: verify_port(
            str(folder / entry["port"]),
            path(entry["prototxt"]),
            path(entry["weights"]),
            state=folder / entry["state"] if entry["state"] else None,
            input_shapes={blob: tuple(map(int, sizes.split(",")))},
        ),
    )


def _timed(entry: dict[str, Any], verify: Callable[[], Report]) -> Outcome:
    start = time.perf_counter()
    report, error = None, ""
    try:
        report = verify()
    except CaffePortError as problem:
        error = f"refused: {problem}"
    except Exception as problem:  # noqa: BLE001  a traceback is a finding, too
        error = f"{type(problem).__name__}: {problem}"
    return Outcome(entry, report, error, time.perf_counter() - start)


def own(only: str) -> Iterator[Outcome]:
    """Verifies the ports of ``port_cases.py``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in CASES:
            if not re.search(only, f"{case.net}__{case.name}"):
                continue
            prototxt, weights = folder / f"{case.net}.prototxt", folder / f"{case.net}.caffemodel"
            if not weights.exists():
                _draw(NETS[case.net], prototxt, weights)
            entry = {
                "id": f"{case.net}__{case.name}",
                "net": case.net,
                "slip": case.name,
                "equal": not case.layers,
                "layers": case.layers,
                "cause": case.cause,
            }
            yield _timed(entry, lambda case=case, files=(prototxt, weights): _verified(case, *files))  # type: ignore[misc]


def _verified(case: PortCase, prototxt: Path, weights: Path) -> Report:
    torch.manual_seed(1)
    module = case.make()
    if case.keep:
        verify_port(module, prototxt, weights)  # copies Caffe's parameters into it
        if case.edit is not None:
            case.edit(module)
    return verify_port(module, prototxt, weights, keep_parameters=case.keep)


def _draw(text: str, prototxt: Path, weights: Path) -> None:
    """Writes a net, and parameters of which every one matters."""
    prototxt.write_text(text)
    torch.manual_seed(0)
    ported = port(prototxt)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ported.net.named_parameters():
            if "scale" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2, generator=generator)
            elif "act" in name or name.startswith("norm"):
                parameter.mul_(torch.empty_like(parameter).uniform_(0.4, 1.6, generator=generator))
        ported.net.train()
        for _ in range(20):
            inputs = [
                torch.randn(ported.net.plan.shapes[p], generator=generator) for _, p in ported.net.plan.spec.inputs
            ]
            ported.net(*inputs)
    ported.net.eval()
    caffemodel.write(weights, ported.definition.net, ported.net.blobs())


def figures(outcomes: list[Outcome]) -> dict[str, tuple[int, int]]:
    """What is counted, each with the number that it is counted of."""
    right = [o for o in outcomes if o.entry["equal"]]
    slips = [o for o in outcomes if not o.entry["equal"]]
    return {
        "right or equal ports FAILED": (sum(not o.passed for o in right), len(right)),
        "slips passed unseen": (sum(o.passed for o in slips), len(slips)),
        "slips located": (sum(o.located for o in slips), len(slips)),
        "slips named": (sum(o.named for o in slips), len(slips)),
        "slips named wrongly": (sum(o.named_wrongly for o in slips), len(slips)),
        "innocent rows": (sum(len(o.innocent) for o in slips), sum(len(o.broken) for o in slips)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("manifest", nargs="*", type=Path, default=None)
    parser.add_argument("--write", type=Path, help="Markdown file: the table replaces what is between its marks")
    parser.add_argument("--no-own", action="store_true", help="only the manifests")
    parser.add_argument("--only", default="", help="only ports whose id matches this regular expression")
    parser.add_argument("--all", action="store_true", help="a line for every port, also for the right ones")
    arguments = parser.parse_args()
    manifests = [m for m in MANIFESTS if m.is_file()] if not arguments.manifest else arguments.manifest
    sources: list[tuple[str, Iterator[Outcome]]] = []
    if not arguments.no_own:
        sources.append(("the ports of benchmarks/port_nets.py", own(arguments.only)))
    for manifest in manifests:
        entries = [e for e in json.loads(manifest.read_text("utf-8")) if re.search(arguments.only, e["id"])]
        found = (outcome(e, folder) for folder, e in [(manifest.parent, e) for e in entries])
        sources.append((str(manifest), found))
    lines = ["| ports of | right | of them FAILED | wrong | unseen | located | named | named wrongly | innocent rows |"]
    lines.append("|---" * 9 + "|")
    everything: list[Outcome] = []
    for name, outcomes in sources:
        every = []
        for found_one in outcomes:
            every.append(found_one)
            _tell(found_one, arguments.all)
        print(f"\n{name}: {len(every)} ports in {sum(o.seconds for o in every):.0f} s")
        for what, (n, of) in figures(every).items():
            print(f"  {what}: {n} of {of}" + (f" ({100 * n / of:.0f} %)" if of else ""))
        for net in dict.fromkeys(o.entry["net"] for o in every):
            lines.append(
                _line(f"{net}, collected" if "manifest" in name else net, [o for o in every if o.entry["net"] == net])
            )
        everything += every
    lines.append(_line("**all**", everything, True))
    if arguments.write:
        text = arguments.write.read_text("utf-8")
        begin, end = "<!-- ports -->", "<!-- /ports -->"
        head, rest = text.split(begin, 1)
        arguments.write.write_text(f"{head}{begin}\n{chr(10).join(lines)}\n{end}{rest.split(end, 1)[1]}", "utf-8")


def _line(name: str, outcomes: list[Outcome], shares: bool = False) -> str:
    found = figures(outcomes)
    failed, unseen, located, named, wrongly, innocent = found.values()

    def told(pair: tuple[int, int]) -> str:
        return f"{pair[0]} ({100 * pair[0] / pair[1]:.0f} %)" if shares and pair[1] else str(pair[0])

    cells = [failed[1], failed[0], unseen[1], unseen[0], told(located), told(named), wrongly[0], innocent[0]]
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


def _tell(found: Outcome, everything: bool) -> None:
    entry = found.entry
    good = found.passed if entry["equal"] else found.named and not found.innocent
    if good and not everything:
        return
    print(f"{entry['id']} ({entry['slip']}), {found.seconds:.1f} s: {'' if good else 'NOT '}right")
    if found.error:
        print(f"    {found.error[:300]}")
    if found.report is not None:
        print(f"    {'PASSED' if found.passed else 'FAILED'}; wanted {found.layers} /{entry['cause']}/")
        print("".join(f"    note: {note}\n" for note in found.report.notes), end="")
    for layer, cause in found.broken[:6]:
        print(f"    {layer}: {cause}")


if __name__ == "__main__":
    main()
