"""Compares caffe-port with Caffe on random small nets: `make differential SECONDS=60`, or

    python benchmarks/differential [--seconds 60] [--seed 0] [--out FOLDER] [--only TYPE,TYPE] [--corpus FOLDER]

Both sides get the same prototxt, parameters, inputs and gradients of the outputs. Compared are whether they refuse
the net, every top in the net's order, parameters that the forward pass changed, the loss, and the gradients of all
inputs and parameters; in TEST also what the Net's own forward makes of it, where layers are fused.

What differs is made smaller, and the first of its kind is written to tests/corpus/differential, where the suite replays
it without Caffe. OUT/results.jsonl has a line per finding and one of figures per minute: a run goes on where the last
one of its seed stopped.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "helpers"), str(ROOT)]

import torch  # noqa: E402
from case import Case  # noqa: E402
from corpus import write  # noqa: E402
from deliberate import reason  # noqa: E402
from generate import Nets  # noqa: E402
from judge import judge  # noqa: E402
from plants import PLANTS, planted  # noqa: E402
from shrink import shrink  # noqa: E402
from sides import Caffe, Ours, Outcome  # noqa: E402
from verdict import Verdict, plain  # noqa: E402

from caffe_port.errors import CaffePortError  # noqa: E402
from caffe_port.typing import Shape  # noqa: E402

AHEAD = 3
"""How many nets Caffe has before the first is answered: it computes while caffe-port does."""


class Run:
    """A run of one seed."""

    def __init__(
        self,
        caffe: Caffe,
        seed: int,
        folder: Path,
        corpus: Path | None,
        only: Sequence[str],
        without: Sequence[str] = (),
    ) -> None:
        self.caffe, self.ours, self.seed, self.corpus = caffe, Ours(), seed, corpus
        self.nets = Nets(caffe.knows, only, without)
        self.words: collections.Counter[str] = collections.Counter()
        self.phases: collections.Counter[str] = collections.Counter()
        self.types: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.seen: set[tuple[object, ...]] = set()
        self.next, self.gradients, self.seconds = 0, 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"seed{seed}{'-' + '-'.join(only) if only else ''}.jsonl"
        if self.file.exists():
            self._resume()

    def _resume(self) -> None:
        for line in self.file.read_text("utf-8").splitlines():
            entry = json.loads(line)
            if "next" in entry:
                self.next, self.gradients, self.seconds = entry["next"], entry["gradients"], entry["seconds"]
                for name in ("words", "phases", "types", "kinds"):
                    setattr(self, name, collections.Counter(entry[name]))
            else:
                self.seen.add(tuple(entry["before"]))

    def go(self, seconds: float) -> None:
        """Draws and compares nets for so long."""
        began, saved, asked = time.monotonic(), time.monotonic(), self.next
        before = self.seconds
        while time.monotonic() < began + seconds:
            while asked < self.next + AHEAD:
                self.caffe.ask(self.nets.draw(self.seed, asked))
                asked += 1
            case, outcome = self.caffe.answer()
            verdict = judge(case, outcome, self.ours)
            if verdict.word not in ("agree", "both refuse"):
                waiting = [self.caffe.answer() for _ in range(asked - self.next - 1)]
                verdict = self.look(case, outcome, verdict)
                asked = self.next + 1  # they are asked again: the seed makes them
                del waiting
            self.count(case, verdict)
            self.next += 1
            self.seconds = before + time.monotonic() - began
            if time.monotonic() > saved + 60:
                saved = time.monotonic()
                self.save()
        while asked > self.next:
            self.caffe.answer()
            asked -= 1
        self.save()

    def count(self, case: Case, verdict: Verdict) -> None:
        self.words[verdict.word] += 1
        self.gradients += verdict.gradients
        if verdict.word == "agree":
            self.phases[case.phase] += 1
            self.types.update({layer.type for layer in case.computing})

    def look(self, case: Case, outcome: Outcome, verdict: Verdict) -> Verdict:
        """Whether something is a finding; if so, which kind, from a net that is as small as can be."""
        verdict = judge(case, outcome, self.ours, self.caffe.run)
        if not verdict.finding:
            self.kinds[f"not compared: {verdict.word}" + (f": {verdict.what}" if "fell" in verdict.word else "")] += 1
            return verdict
        if why := reason(case, verdict, self.agrees):
            self.kinds[f"deliberate: {why}"] += 1
            return Verdict("deliberate", why)
        before = (*verdict.key, *_suspects(case, verdict))
        if before in self.seen:
            self.kinds["seen before"] += 1
            return verdict
        small = shrink(case, lambda smaller: self.shows(smaller, verdict), self.shapes)
        outcome = self.caffe.run(small)
        found = judge(small, outcome, self.ours)
        if why := reason(small, found, self.agrees):
            self.kinds[f"deliberate: {why}"] += 1
            return Verdict("deliberate", why)
        kind = f"{found.word}: {plain(found.what)}: {', '.join(sorted({layer.type for layer in small.computing}))}"
        self.kinds[kind] += 1
        self.seen.add(before)
        entry = {"before": before, "kind": kind, "what": found.what, "at": found.at, "detail": found.detail}
        self.append({"number": self.next, **entry, "case": small.dump()})
        if self.kinds[kind] == 1:
            print(f"\n{kind}\n  {found.at} {found.what} {found.detail}\n  {small.phase}")
            print("\n".join("    " + line for line in small.text.splitlines()[2:]), flush=True)
            if self.corpus is not None:
                write(self.corpus, kind, small, outcome)
        return found

    def shows(self, case: Case, verdict: Verdict) -> bool:
        return judge(case, self.caffe.run(case), self.ours, self.caffe.run).key == verdict.key

    def agrees(self, case: Case) -> bool:
        return judge(case, self.caffe.run(case), self.ours).word == "agree"

    def shapes(self, case: Case) -> dict[tuple[str, int], Shape]:
        made = self.caffe.run(case).arrays or self.ours.run(case).arrays
        keys = [key.split(":") for key in made if key.startswith("top:")]
        return {(name, int(k)): made[f"top:{name}:{k}"].shape for _, name, k in keys}

    def save(self) -> None:
        self.append(
            {
                "next": self.next,
                "gradients": self.gradients,
                "seconds": round(self.seconds),
                "words": self.words,
                "phases": self.phases,
                "types": self.types,
                "kinds": self.kinds,
            }
        )

    def append(self, entry: object) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def summary(self) -> str:
        """Figures, as lines."""
        lines = [f"{self.next} nets in {self.seconds:.0f} s, {self.next / max(1.0, self.seconds):.1f}/s"]
        lines += [f"  {count:7} {word}" for word, count in self.words.most_common()]
        lines.append(
            f"agreed: {self.phases['TRAIN']} in TRAIN, {self.phases['TEST']} in TEST, {self.gradients} with gradients"
        )
        lines += [f"  {count:7} {kind}" for kind, count in self.kinds.most_common()]
        silent = [name for name in self.nets.types if not self.types[name]]
        lines.append(f"agreed at least once: {len(self.nets.types) - len(silent)} of {len(self.nets.types)} types")
        if silent:
            lines.append(f"never: {', '.join(sorted(silent))}")
        return "\n".join(lines)


def _suspects(case: Case, verdict: Verdict) -> list[str]:
    """The types that a verdict may be about."""
    types = sorted({layer.type for layer in case.computing})
    if verdict.word != "differs":
        return [] if verdict.word == "only Caffe refuses" and "blob.hpp" not in verdict.what else types
    named = [name for name in types if verdict.at.endswith(f"({name})")]
    return named if named and not verdict.what.startswith("gradient") else types


def find_plants(caffe: Caffe, seed: int, seconds: float, wanted: str) -> int:
    """Plants faults in caffe-port, and says after how many nets each is found; exit code 1 if one is not."""
    nets, ours, missed = Nets(caffe.knows), Ours(), 0
    for name in PLANTS if wanted == "all" else [wanted]:
        began, number, found = time.monotonic(), 0, ""
        while not found and time.monotonic() < began + seconds:
            case = nets.draw(seed, number)
            outcome = caffe.run(case)
            with planted(name):
                verdict = judge(case, outcome, ours, caffe.run)
            if verdict.finding and not judge(case, outcome, ours, caffe.run).finding:
                found = f"{verdict.word}: {verdict.what} {verdict.at}"
            number += 1
        missed += not found
        words = f"found by net {number}, after {time.monotonic() - began:.1f} s: {found}" if found else "NOT FOUND"
        print(f"{name}: {words}", flush=True)
    return int(missed > 0)


def adopt(caffe: Caffe, files: Sequence[Path], corpus: Path) -> None:
    """Judges the findings of earlier runs again; the first of each kind that is mended goes into the corpus."""
    seen: set[str] = set()
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            entry = json.loads(line)
            if "case" not in entry or entry["kind"] in seen:
                continue
            seen.add(entry["kind"])
            case = Case.load(entry["case"])
            outcome = caffe.run(case)
            verdict = judge(case, outcome, Ours(), caffe.run)
            if verdict.word in ("agree", "both refuse"):
                write(corpus, entry["kind"], case, outcome)
            print(f"{verdict.word}: {entry['kind']}")


def main() -> int:
    """Exit code 1 if something was found that is not deliberate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "differential")
    parser.add_argument("--corpus", type=Path, help="where findings are written; default: OUT/corpus")
    parser.add_argument("--only", default="", help="types, joined by commas")
    parser.add_argument("--without", default="", help="types that no net has")
    parser.add_argument("--plant", default="", metavar="NAME|all", help="faults of plants.py, each for SECONDS at most")
    parser.add_argument("--adopt", action="store_true", help="judge OUT's findings again; mended ones to the corpus")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        caffe = Caffe()
    except CaffePortError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.plant:
        return find_plants(caffe, arguments.seed, arguments.seconds, arguments.plant)
    if arguments.adopt:
        corpus = arguments.corpus or ROOT / "tests" / "corpus" / "differential"
        adopt(caffe, sorted(arguments.out.glob("*.jsonl")), corpus)
        return 0
    only = [name for name in arguments.only.split(",") if name]
    without = arguments.without.split(",")
    run = Run(caffe, arguments.seed, arguments.out, arguments.corpus or arguments.out / "corpus", only, without)
    try:
        run.go(arguments.seconds)
    finally:
        print(run.summary())
        caffe.close()
    return int(any(not kind.startswith(("deliberate", "not compared")) for kind in run.kinds))


if __name__ == "__main__":
    sys.exit(main())
