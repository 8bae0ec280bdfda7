"""Counts the fields of proto/caffe.proto by what caffe-port does with them, and writes docs/fields.md.

python docs/make_fields.py          # writes the page
python docs/make_fields.py --check  # says whether it is up to date
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import field_reads  # noqa: E402  needs the path

from caffe_port.formats import unfollowed  # noqa: E402

PAGE = ROOT / "docs" / "fields.md"

MEANINGS = {
    "followed": "read by the code that computes the layer, reads the data or trains",
    "type": "read only by layers of types that caffe-port does not know, which are refused with their type",
    unfollowed.HARMLESS: "harmless: changes no number",
    unfollowed.TRAINING: "concerns initial values and updates only; a note, and `train` refuses it",
    unfollowed.FEED: "changes what a data layer hands to the net: a note, `verify` names it in its verdict, `train` "
    "follows or refuses it",
    unfollowed.PRECISION: "computes the same with fewer bits: a note, and `verify` names it in its verdict",
    unfollowed.CHANGES: "refused where it is set to anything but its default",
    "gap": "nothing accounts for it; a test fails",
}

HEAD = """# Which fields are followed

A net that `verify` passes is the net in the file. So every field of a layer is followed, or known to change no number,
or a reason to refuse the net, with the line and what the field does. `--ignore-field NAME` goes without a field that is
refused; `port.json` records it (`ignored_fields`), and the verdict becomes `PASSED without 'NAME'`.

## Fields of the schema

Fields of `proto/caffe.proto`, counted by `python docs/make_fields.py`. That the parameters of layers are followed is
evidence: the test cases of every type are built while each read is recorded, and the type must have read the field.

"""

UNKNOWN = """
## Fields outside the schema

A name that is close to a known one is taken for a typo, and suggested. Any other name, in a layer of a known type,
refuses the net, unless it is in the tables below. Exceptions: fields of data layers (what comes out of them is the
net's input), fields of fillers and of `param` (a net with its weights computes the same), layers of unknown types, and
plugins, whose parameters are their own. A field of a layer that is left out, a loss say, refuses nothing.

A binary file has numbers instead of names. This is the rule for a number that is not in the schema, or whose bytes do
not parse as the message of that number:

- Inside the parameters of a layer's own type, it refuses the net, as in text: another fork has a field there.
  `--ignore-field NUMBER` goes without it; so does a prototxt beside the weights, which is then the definition.
- In the layer itself, it is a stray field, and noted. Each type has its parameters under a number of its own, so that
  no other layer reads it; Caffe skips it, too.
- In the layer itself, if the type is a fork's and its parameters are missing, the number is probably where another fork
  has them. The net is refused: give the prototxt.
- In the net, outside of layers, it is noted.

"""


def text() -> str:
    """The page."""
    judged = list(field_reads.judged())
    counts = Counter(status for _, _, status, _ in judged)
    lines = [HEAD, "| fields | |", "| ---: | --- |"]
    lines += [f"| {counts[status]} | {words} |" for status, words in MEANINGS.items() if counts[status]]
    lines += [f"| **{len(judged)}** | |", UNKNOWN]
    titles = {
        unfollowed.CHANGES: "Refused",
        unfollowed.PRECISION: "Fewer bits",
        unfollowed.FEED: "Fields of data layers",
        unfollowed.TRAINING: "For training only",
        unfollowed.HARMLESS: "Harmless",
    }
    for effect, title in titles.items():
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for key, rule in unfollowed.listed().items():
            if rule.effect == effect:
                owner, _, name = key.replace(":", ".").partition(".")
                groups[owner, rule.words].append(name)
        lines += [f"## {title}", "", "| of | fields | |", "| --- | --- | --- |"]
        for (owner, words), names in sorted(groups.items()):
            of = "any message" if owner == "*" else owner
            lines.append(f"| {of} | {', '.join(f'`{name}`' for name in names)} | {words} |")
        lines.append("")
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def main() -> int:
    """Writes or checks the page; exit code 1 if it is out of date."""
    made = text()
    if "--check" in sys.argv[1:]:
        same = PAGE.is_file() and PAGE.read_text("utf-8") == made
        sys.stdout.write("up to date\n" if same else "docs/fields.md is out of date: python docs/make_fields.py\n")
        return 0 if same else 1
    PAGE.write_text(made, encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
