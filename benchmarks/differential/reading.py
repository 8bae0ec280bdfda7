"""Reads random prototxt with protobuf's C++ parser, as it comes with Caffe, and with caffe-port's: `make reading`, or

    python benchmarks/differential/reading.py [--seconds 60] [--seed 0]

The texts are those of the goldens, with tokens replaced, added, repeated and left out. Both must refuse a text, or read
the same values. Where they differ on purpose, `reason` says why; everything else is made smaller and printed, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from caffe_port.errors import ParseError  # noqa: E402
from caffe_port.formats import dialects, prototxt, wire  # noqa: E402
from caffe_port.formats.message import Message  # noqa: E402
from caffe_port.verification.references.caffe import find  # noqa: E402

TOKEN = re.compile(rb"""#[^\n]*|"[^"\n]*"|'[^'\n]*'|[A-Za-z_][A-Za-z0-9_]*|[-+.0-9][A-Za-z0-9.+-]*|\s+|.""", re.DOTALL)
_NUMBERS = """0 1 -1 - +1 007 00 09 08 0x1 0X1F 0x 0xG -0x1 00.5 0.5 .5 5. . 1f 1F 1.f 1.5f 1e5 1e 1e+ 1e-2 1E5f 1e999
  -1e999 1e-999 2147483647 2147483648 -2147483648 -2147483649 4294967295 4294967296 9223372036854775807
  9223372036854775808 18446744073709551615 18446744073709551616 99999999999999999999999 3.4028235e38
  3.4028235678e38 3.5e38 1e39 1e-46 inf -inf nan -nan Inf INF NaN infinity -infinity Infinity 1_000 1L 0b1 1.2.3
  --1 -0 -0.0 16777217 0.1 1e400 0000000000000000000000000000000000000000000000000000000000000000000000001 1.0
  1d 0f 0e0 00f 0x1f 0x1.8p3"""
_WORDS = "true false True False TRUE t f T MAX AVE STOCHASTIC TRAIN TEST max bogus yes"
STRINGS = [
    rb'"a"',
    rb"'a'",
    rb'"a" "b"',
    rb"'a' # x" + b"\n" + rb'"b"',
    rb'""',
    rb'"\x41"',
    rb'"\x"',
    rb'"\x4"',
    rb'"\x414"',
    rb'"\101"',
    rb'"\1"',
    rb'"\400"',
    rb'"\777"',
    rb'"\8"',
    rb'"\u00e9"',
    rb'"\u00e"',
    rb'"\ud800"',
    rb'"\udc00"',
    rb'"\ud83d\ude00"',
    rb'"\ud83d\u0041"',
    rb'"\ud83d x"',
    rb'"\U0001F600"',
    rb'"\U0010FFFF"',
    rb'"\U00110000"',
    rb'"\U001FFFFF"',
    rb'"\U00200000"',
    rb'"\U0001F60"',
    rb'"\q"',
    rb'"\n\t\r\a\b\f\v\\\?\'\""',
    rb'"\xff"',
    rb'"\377\376"',
    b'"\xff"',
    b'"\xc3\xa9"',
    b'"a\0b"',
    rb'"a\0b"',
    b'"a\nb"',
    b'"a\tb"',
    b'"a\x7fb"',
    b'"a\x01b"',
    rb'"unclosed',
    rb"'it" + b"\"s'",
]
MARKS = [bytes([c]) for c in b"{}<>[]:;,-+./#\"'\\ \n\t\r\f\v\0\xff@$%"] + [
    b"::",
    b"{}",
    b"<>",
    b"[]",
    b"[1, 2]",
    b"[1 2]",
    b"[1,]",
    b"[, 1]",
    b";;",
    b",,",
    b"# x\n",
    b"//x\n",
    b"/* x */",
    b"[a.b]: 1",
    b"[a.b/c.d] { }",
    b"[ ]",
    b"\xef\xbb\xbf",
]
FIELDS = b"""name: "x"; | type: "y", | top: "t" | bottom: ["a", 'b'] | top <> | phase: TEST | phase: 1 |
  loss_weight: 1 |
  include { phase: TRAIN } | include <phase: 0> | param { lr_mult: 1 } | param: { decay_mult: .5 } | param [] |
  blobs { data: [1, 2] } | blobs { shape { dim: 1 } double_data: 1e-300 } | input_dim: 3 | force_backward: 1 |
  debug_info: t | layer { } | layers { } | layer: { } | layer [{}, {}] | layer: [<name: "a">, { type: "b" },] |
  convolution_param { kernel_size: [3, 5] pad: 1 bias_term: 0 engine: CAFFE } | pooling_param { pool: 2 } |
  convolution_param { kernel_size: 3 kernel_size: 5 kernel_size: [] } | convolution_param: <pad: 0x10> |
  momentum: 0.5 | test_iter: [1, 2] | solver_mode: GPU | random_seed: -1 | stepvalue: 5 | snapshot_format: HDF5 |
  base_lr: 1e-3 base_lr: 2 | test_state { stage: "a" } | loss_weight: [-inf, nan, 1e-40, 3.4028235678e38]""".split(b"|")


SEVERAL = "a pooling window may be a list, as in forks"


class Caffe:
    """The C++ parser, in a process of Caffe's Python."""

    def __init__(self) -> None:
        command = [part for part in find().command if part != "-I"]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        worker = [*command, str(Path(__file__).with_name("text_worker.py"))]
        self._process = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)

    def read(self, text: bytes, kind: str) -> Message | None:
        """The message; None: refused."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack("<II", len(kind), len(text)) + kind.encode() + text)
        self._process.stdin.flush()
        (length,) = struct.unpack("<i", self._process.stdout.read(4))
        return None if length < 0 else wire.parse(self._process.stdout.read(length), kind)


def ours(text: bytes, kind: str) -> tuple[Message | None, str]:
    """The message, or why it is refused."""
    try:
        return prototxt.parse(prototxt.decode(text), kind), ""
    except ParseError as error:
        return None, error.what


def judge(text: bytes, kind: str, theirs: Message | None) -> tuple[str, str]:
    """What differs and why it may; ("", "") where nothing does."""
    mine, refusal = ours(text, kind)
    if theirs is None and mine is None:
        return "", ""
    if mine is None:
        kind = re.sub(r"'[^']*'|[0-9]+", "#", refusal)[:70]
        return f"only caffe-port refuses: {kind}", ""
    if theirs is None:
        mark = text.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"))
        if not mark and b"pooling_param" in text and re.search(rb"\[\s*\]", text):
            return "only Caffe refuses", SEVERAL  # an empty list leaves nothing in the message
        return "only Caffe refuses", "a byte order mark is skipped" if mark else reason(mine)
    return ("other values", "") if prototxt.dump(mine) != prototxt.dump(theirs) else ("", "")


def reason(message: Any) -> str:
    """Why only Caffe refuses what caffe-port reads as this message, where that is on purpose; empty if it is not."""
    if not isinstance(message, Message):
        return next(filter(None, map(reason, message)), "") if isinstance(message, list) else ""
    if message.unknown:
        return "a field that Caffe's schema lacks is kept, and refused later if nothing follows it"
    assert message.schema is not None
    caffes = dialects.view(dialects.find("caffe"), message.schema.name, message.schema.name).by_number
    for name, value in message.items():
        field = caffes.get(message.schema.fields[name].number)
        if field is None:
            return "a field of a fork is followed"
        if field.values is not None and not set(value if isinstance(value, list) else [value]) <= set(field.values):
            return "a value that a fork gives an enum is followed"
        if message.schema.name == "PoolingParameter" and isinstance(value, list) and len(value) > 1:
            return SEVERAL
        if inner := reason(value):
            return inner
    return ""


def changed(seeds: list[tuple[str, list[bytes]]], rng: random.Random) -> tuple[str, bytes]:
    """A text that is nearly one of the seeds."""
    kind, tokens = rng.choice(seeds)
    tokens = list(tokens)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, what = rng.randrange(len(tokens)), rng.random()
        if what < 0.55:  # a value of the kind that is there, or nearly
            names = rng.random() < 0.1  # of fields, too
            places = [k for k, t in enumerate(tokens) if re.match(rb"[\w\"'.-]" if names else rb"[\d\"'.-]", t)]
            at = rng.choice(places or [at])
            odd = [_NUMBERS.encode().split(), _WORDS.encode().split(), STRINGS]
            likely = 2 if tokens[at][:1] in b"\"'" else 0 if tokens[at][:1] in b"-.0123456789" else 1
            tokens[at] = rng.choice(odd[likely if rng.random() < 0.8 else rng.randrange(3)])
        elif what < 0.7:
            tokens[at:at] = [rng.choice(MARKS)]
        elif what < 0.8:
            tokens[at] = rng.choice(MARKS)
        elif what < 0.88:
            del tokens[at : at + rng.choice((1, 2, 5))]
            tokens = tokens or [b" "]
        elif what < 0.94:
            tokens[at:at] = [b" ", *tokens[at : at + rng.choice((1, 3, 9))]]
        else:
            tokens[at:at] = [b" ", rng.choice(FIELDS), b" ", rng.choice(FIELDS), b" "]
    return kind, b"".join(tokens)


def smaller(caffe: Caffe, kind: str, text: bytes, what: str, seconds: float = 3) -> bytes:
    """Leaves out tokens that the difference does not need."""
    tokens, end, size = TOKEN.findall(text), time.monotonic() + seconds, 64
    while size and time.monotonic() < end:
        at = 0
        while at < len(tokens) and time.monotonic() < end:
            shorter = tokens[:at] + tokens[at + size :]
            data = b"".join(shorter)
            if judge(data, kind, caffe.read(data, kind)) == (what, ""):
                tokens = shorter
            else:
                at += size
        size //= 2
    return b"".join(tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng, caffe = random.Random(chosen.seed), Caffe()
    seeds: list[tuple[str, list[bytes]]] = []
    for path in sorted((ROOT / "tests" / "golden").rglob("*.prototxt")):
        text = path.read_bytes()
        kind = "SolverParameter" if b"base_lr" in text else "NetParameter"
        if caffe.read(text, kind) is not None:  # it has all fields of 1.0, but not of Caffe's master
            seeds.append((kind, TOKEN.findall(text)))
    counts: collections.Counter[str] = collections.Counter()
    findings: dict[str, tuple[str, bytes]] = {}
    end = time.monotonic() + chosen.seconds
    while time.monotonic() < end:
        kind, text = changed(seeds, rng)
        theirs = caffe.read(text, kind)
        counts["texts"] += 1
        counts["refused by Caffe"] += theirs is None
        what, why = judge(text, kind, theirs)
        if what:
            counts[f"on purpose: {why}" if why else what] += 1
            if not why and what not in findings:
                findings[what] = kind, smaller(caffe, kind, text, what)
    for what, count in counts.most_common():
        print(f"{count:8,}  {what}")
    for what, (kind, text) in findings.items():
        print(f"\n{what}, in a {kind}: {text.decode(errors='backslashreplace')!r}")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
