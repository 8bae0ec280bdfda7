#!/usr/bin/env bash
# protobuf 7.36.2: Python's text_format and the C++ TextFormat, with which Caffe reads a prototxt, are two parsers.
#
# Python's reads what C++ refuses (measured with protobuf 3.21.12 inside Caffe: "Error parsing text-format"):
#   - `1_000`, `+1` and `0b1` as numbers, -0 for an unsigned field;
#   - the escapes "\q" and "\8", which stay in the string with their backslash.
# It refuses what C++ reads:
#   - a bool written 01, 00 or 0x1; a space after the sign, `- 1`;
#   - "\400" (C++ keeps the lowest byte) and "\ud800".
#
# What a porter should do: not judge whether Caffe accepts a prototxt by caffe_pb2 and text_format.Parse, which are Python
# even in pycaffe; ask Caffe (`caffe.Net`, in a process of its own, because it aborts). When writing a prototxt, use plain
# decimals, true and false.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "protobuf==7.36.2"
"$folder/venv/bin/python" - <<'PYTHON'
import google.protobuf
from google.protobuf import text_format, wrappers_pb2

REFUSED = "refused"
print("protobuf", google.protobuf.__version__)


def read(kind: str, text: str) -> object:
    message = getattr(wrappers_pb2, f"{kind}Value")()
    try:
        return text_format.Parse(f"value: {text}", message).value
    except Exception:  # ParseError, or a UnicodeEncodeError that leaves the parser
        return REFUSED


for kind, text, python in (
    ("Int32", "1_000", 1000),
    ("Int32", "+1", 1),
    ("Int32", "0b1", 1),
    ("Float", "+1", 1.0),
    ("UInt32", "-0", 0),
    ("String", r'"\q"', r"\q"),
    ("String", r'"\8"', r"\8"),
    ("Bool", "01", REFUSED),
    ("Bool", "00", REFUSED),
    ("Bool", "0x1", REFUSED),
    ("Int32", "- 1", REFUSED),
    ("String", r'"\400"', REFUSED),
    ("String", r'"\ud800"', REFUSED),
):
    found = read(kind, text)
    print(f"{kind} value: {text} -> {found!r}")
    assert found == python, (kind, text, found)

for kind, text, both in (("Int32", "0x10", 16), ("Int32", "010", 8), ("Bool", "t", True), ("Float", "1.f", 1.0)):
    assert read(kind, text) == both, (kind, text)
PYTHON
