"""Numbers, truth values and strings in text: read or refused as Caffe does, with the same value.

What Caffe (1.0.0, brocolli-caffe 9.0.2, protobuf's own text_format in C++) said of each is kept here, and asked again
where ``make caffe`` built it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caffe_port.errors import ParseError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.message import Message

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 4, 5] } } }\n'
LAYER = INPUT + 'layer { name: "l" bottom: "x" top: "y" '
NETS = {
    "bool": LAYER + 'type: "InnerProduct" inner_product_param { num_output: 4 bias_term: VALUE } }',
    "uint": LAYER + 'type: "Pooling" pooling_param { kernel_size: 2 stride: VALUE } }',
    "int": LAYER + 'type: "Softmax" softmax_param { axis: VALUE } }',
    "float": LAYER + 'type: "Power" power_param { power: VALUE } }',
    "string": "name: VALUE\n" + INPUT,
    "syntax": "VALUE",
}
SHORT = {
    "INPUT": INPUT.strip(),
    "POOLING": 'layer { name: "d" type: "Pooling" bottom: "x" top: "y" pooling_param { kernel_size: 2',
    "POWER": 'layer { name: "p" type: "Power" bottom: "x" top: "y"',
}
READ = {
    "bool": ("true", "false", "True", "False", "t", "f", "1", "0", "0x1", "0x0", "00", "01", "001", "0x00", "0X1"),
    "uint": ("4", "04", "0x4", "0X4", "00", "4294967295", "0xFFFFFFFF", "037777777777", "0" * 70 + "4"),
    "int": (
        "-1",
        "- 1",
        "-0x1",
        "-01",
        "2147483647",
        "-2147483648",
        "-0",
        "-\n1",
        "- # c\n 1",
        "0x7FFFFFFF",
        "-0x80000000",
    ),
    "float": (
        "0.5",
        ".5",
        "5.",
        "0.5f",
        "0.5F",
        "5f",
        "5F",
        "1e5",
        "1E5",
        "1e-5",
        "1e400",
        "-1e400",
        "1e-400",
        "3.4028235678e38",
        "3.4028234e38",
        "3.5e38",
        "1e39",
        "-3.5e38",
        "inf",
        "-inf",
        "nan",
        "-nan",
        "Inf",
        "INF",
        "infinity",
        "Infinity",
        "NaN",
        "INFINITY",
        "- 1.5",
        "-.5",
        "1e5f",
        "99999999999999999999",
        "18446744073709551615",
        "18446744073709551616",
        "-18446744073709551616",
        "1.f",
        "1.e3",
        "-infinity",
        "-  inf",
    ),
    "string": (
        '"a"',
        "'a'",
        '"a\\0b"',
        '"a\\x00b"',
        '"\\ud800"',
        '"\\uD83D\\uDE00"',
        '"\\U0001F600"',
        '"\\U00110000"',
        '"\\uD800\\uD800"',
        '"\\uDC00"',
        '"\\xff"',
        '"\\377"',
        '"\\400"',
        '"\\?"',
        '"\\u12345"',
        '"\\a\\b\\f\\n\\r\\t\\v"',
        '"a" "b"',
        "'a' \"b\"",
        '"é"',
        '"\x01"',
        '"\x7f"',
        '"\\000"',
        '"\\x1"',
        '"\\x123"',
        '"\\1234"',
        '""',
        '"a""b"',
        '"a\tb"',
    ),
    "syntax": (
        'layer: { name: "x" type: "Input" top: "x" }',
        'layer < name: "x" type: "Input" top: "x" >',
        'name: "a"; INPUT\n',
        'name: "a", INPUT\n',
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 4, 5] } } }\n',
        'INPUT\nlayer { name: "p" type: "Power" bottom: [] bottom: "x" top: "y" }',
        'layer [{ name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }]',
        "INPUT\nPOOLING pool: 1 } }",
        "INPUT\nPOOLING pool: 0x1 } }",
        'name: "a"\x0cINPUT\n',
        'name: "a"\x0bINPUT\n',
        "INPUT\n# end",
        "INPUT\r",
        'layer { name: # hi\n "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n',
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2, dim: 3 dim: 4 dim: 5 } } }\n',
        'layer { name: "x" type: "Input" top: "x", input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n',
        'layer { name: "x" type: "Input" ; top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n',
    ),
}
REFUSED = {
    "bool": ("TRUE", "T", "2", "0x2", "-0", "-1", "1.0", '"true"', "0b1", "+1", "tRUE"),
    "uint": (
        "09",
        "08",
        "+4",
        "-4",
        "4.0",
        "4e0",
        "0x",
        "4u",
        "4L",
        "4294967296",
        "0x100000000",
        "040000000000",
        " -  4",
        "-0",
        "4 4",
        "0x4g",
        "4_4",
        "1e1",
        '"4"',
        "0o4",
    ),
    "int": ("-09", "-2147483649", "2147483648", "--1", "0x80000000"),
    "float": (
        "00",
        "00.5",
        "1e",
        "1e+",
        "+1.0",
        "0x10",
        "010",
        "09",
        "1.5.5",
        "1..5",
        ".",
        "1_0",
        "0x1.8p1",
        "inff",
        '"1"',
        "0xFFFFFFFFFFFFFFFF",
        "0x1FFFFFFFFFFFFFFFFF",
        "01777777777777777777777777",
        "1d",
        "true",
        "08",
        "0.0e",
        "0_1",
        "1e5.0",
    ),
    "string": (
        '"\\8"',
        '"\\q"',
        '"\\x"',
        '"\\xg"',
        '"\\u12"',
        '"a\nb"',
        '"a',
        "'a\"",
        '"a\\\nb"',
        "a",
        '"\\X41"',
        '"\\/"',
    ),
    "syntax": (
        'layer < name: "x" type: "Input" top: "x" }',
        'name: "a",; INPUT\n',
        ', name: "a" INPUT\n',
        'name: "a" name: "b" INPUT\n',
        "INPUT\nPOWER power_param { scale: 2 } power_param { shift: 2 } }",
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 4, 5,] } } }\n',
        'name: ["a"] INPUT\n',
        "INPUT\nPOOLING pool: 77 } }",
        'INPUT\nPOOLING pool: "MAX" } }',
        "INPUT\nPOOLING pool: max } }",
        "INPUT\nPOOLING pool: -1 } }",
        'name "a" INPUT\n',
        'Name: "a" INPUT\n',
        'name: "a"\x00INPUT\n',
        "INPUT\n// end",
        "/* a */INPUT\n",
        "[a.b]: 1 INPUT\n",
        'name: "a" [x/y.z] { }INPUT\n',
        '1: "a" INPUT\n',
        "INPUT\n}",
    ),
}
"""By kind: the values that Caffe reads, and those that it refuses."""
OURS = ("\ufeff" + INPUT, "name:\u00a0'x'\n" + INPUT)
"""What Caffe refuses and we read: a byte order mark, and spaces that are not ASCII, which editors and web pages add."""

ASKED = """
import json, os, sys
import caffe
for number, text in enumerate(json.load(open("nets.json"))):
    open("net.prototxt", "wb").write(text.encode("utf-8", "surrogatepass"))
    process = os.fork()
    if not process:  # Caffe aborts
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        caffe.Net("net.prototxt", caffe.TEST).save("%d.caffemodel" % number)
        os._exit(0)
    os.waitpid(process, 0)
    refused = "Error parsing text-format" in open("log", errors="replace").read()
    print(json.dumps(refused), flush=True)
"""


def texts(values: dict[str, tuple[str, ...]]) -> list[str]:
    made = [NETS[kind].replace("VALUE", value) for kind, found in values.items() for value in found]
    for word, text in SHORT.items():
        made = [one.replace(word, text) for one in made]
    return made


def parsed(text: str) -> Message:
    """As from a file."""
    return prototxt.parse(prototxt.decode(text.encode("utf-8", "surrogatepass")), "NetParameter")


@pytest.mark.parametrize("text", texts(READ))
def test_read(text: str) -> None:
    assert parsed(text).layer


@pytest.mark.parametrize("text", texts(REFUSED))
def test_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parsed(text)


@pytest.mark.parametrize("text", OURS)
def test_read_though_caffe_refuses_it(text: str) -> None:
    assert parsed(text).layer


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (r'"\uD83D\uDE00"', "\U0001f600"),
        (r'"\U0001F600"', "\U0001f600"),
        (r'"\U00110000"', r"\U00110000"),
        (r'"\400a"', "\0a"),
        (r'"a\0b"', "a\0b"),
    ],
)
def test_values_of_escapes(literal: str, value: str) -> None:
    assert parsed(f"name: {literal}").name == value


@pytest.mark.parametrize(("token", "value"), [("0x1", True), ("01", True), ("0X0", False), ("000", False)])
def test_truth_values(token: str, value: bool) -> None:
    assert prototxt.parse(f"bias_term: {token}", "InnerProductParameter").bias_term is value


def test_random_texts(caffe: Path) -> None:
    """A little of `make reading`."""
    script = Path(__file__).parents[2] / "benchmarks" / "differential" / "reading.py"
    command = [sys.executable, str(script), "--seconds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0].replace(",", "")) > 100


def test_caffe_says_the_same(caffe: Path, tmp_path: Path) -> None:
    """The verdicts above; and of what it reads, the values in the file that it saves."""
    read, refused = texts(READ), [*texts(REFUSED), *OURS]
    (tmp_path / "nets.json").write_text(json.dumps([*read, *refused]))
    command = [str(caffe / "bin/python"), "-I", "-c", ASKED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert verdicts == [False] * len(read) + [True] * len(refused)
    compared = 0
    for number, text in enumerate(read):
        path = tmp_path / f"{number}.caffemodel"
        if path.exists():  # else the text is read, and the net refused: a stride of 0
            theirs, ours = caffemodel.read(path).net, parsed(text)
            assert theirs is not None
            assert theirs.name == ours.name, text
            for name in ("power_param", "pooling_param", "inner_product_param", "softmax_param", "input_param"):
                for a, b in zip(theirs.layer, ours.layer, strict=True):
                    assert prototxt.dump(getattr(a, name)) == prototxt.dump(getattr(b, name)), text
            compared += 1
    assert compared > 80
