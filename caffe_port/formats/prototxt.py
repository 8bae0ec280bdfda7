"""Protobuf's text format: ``.prototxt`` <-> :class:`~caffe_port.formats.message.Message`.

Written for files that people edit: every message knows its line, every error gives line and column, and fields that are
not in the schema (a fork's own) are kept in ``Message.unknown``. A name that is one or two letters away from a name in
the schema is treated as a typo and rejected, unless a fork is known to have it
(:data:`FORKS_FIELDS`). Grammar: protobuf's text format specification, as
google::protobuf::TextFormat reads it for Caffe (io.cpp).
"""

from __future__ import annotations

import difflib
import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final, NoReturn

from caffe_port.errors import ParseError, did_you_mean
from caffe_port.formats.dialects import ALIASES, names_field
from caffe_port.formats.kinds import refuse_foreign
from caffe_port.formats.message import Field, Message, Schema, decimal, schema
from caffe_port.storage.files import read_bytes

MAX_DEPTH = 100  # protobuf's own recursion limit
MAX_BYTES = 256 << 20
MAX_MESSAGES = 1_000_000  # four bytes may open a message, which takes hundreds of bytes in memory

_SPACE = re.compile(r"[\s\0]+|#[^\n]*")
_TOKEN = re.compile(
    r"""(?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)(?![A-Za-z0-9_.]))
      | (?P<string>["'])
      | (?P<mark>[][{}<>:;,\-/.])
      | (?P<end>\Z)
    """,
    re.VERBOSE,
)
_INSIDE = {'"': re.compile(r'[^"\\\n]+|\\.'), "'": re.compile(r"[^'\\\n]+|\\.")}
_ESCAPE = re.compile(
    r"""\\(?:([abfnrtv\\'\"?]) | x([0-9a-fA-F]{1,2}) | ([0-7]{1,3})
    | u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})  # a surrogate pair
    | u([0-9a-fA-F]{4}) | U(00[01][0-9a-fA-F]{5})) | \\(.)""",
    re.DOTALL | re.VERBOSE,
)
_SIMPLE_ESCAPES = dict(zip("abfnrtv\\'\"?", "\a\b\f\n\r\t\v\\'\"?", strict=True))
_INTEGER_RANGES = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
}
_ENDS = r"(?![A-Za-z0-9_.+-])"
_WHOLE = rf"(?:0|[1-9][0-9]{{0,8}}){_ENDS}"
_BROKEN = rf"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?{_ENDS}"
#: Kind of a field -> how its values are usually written, and what they are.
_USUAL: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "int32": (f"-?{_WHOLE}", int),
    "int64": (f"-?{_WHOLE}", int),
    "uint32": (_WHOLE, int),
    "uint64": (_WHOLE, int),
    "float": (_BROKEN, lambda token: decimal(float(token))),
    "double": (_BROKEN, float),
}
#: Message type -> fields of forks that look like typos for fields of proto/caffe.proto, but are not.
FORKS_FIELDS: Final[dict[str, frozenset[str]]] = {
    kind: frozenset(names.split())
    for kind, names in {
        # The third axis of volumes
        "ConvolutionParameter": "dilation_h dilation_w kernel_d kernel_l kernel_t pad_d pad_l pad_t stride_d stride_l "
        "stride_t",
        "PoolingParameter": "kernel_d kernel_l kernel_t pad_d pad_l pad_t stride_d stride_l stride_t",
        # How images are read
        "TransformationParameter": "crop flip mean_files mean_values mirror_y scale_factor scales",
        "DataParameter": "batch_sizes random_skip sources",
        "ImageDataParameter": "new_heights new_widths sources",
        # How a net is trained
        "BatchNormParameter": "use_local_stats",
        "LossParameter": "class_weight class_weights ignore_labels",
        "FillerParameter": "values",
        "ParamSpec": "l1_mult",
        "SolverParameter": "larc larc_eta larc_policy weight_decay_policy weight_decay_power",
    }.items()
}

_BOOLS = {"true": True, "t": True, "True": True, "false": False, "f": False, "False": False}  # or an integer, 0 or 1


def read(path: str | Path, message_type: str, unknown: Collection[str] = ()) -> Message:
    """Reads a text file.

    Args:
        path: the file.
        message_type: ``"NetParameter"``, ``"SolverParameter"``, ...
        unknown: as for :func:`parse`.

    Raises:
        ParseError: the file is not text or not of this type; gives line and column.
        CaffePortError: the file cannot be read.
    """
    return parse(read_text(path), message_type, str(path), unknown)


def read_text(path: str | Path) -> str:
    """The decoded text of a file."""
    return decode(read_bytes(path, MAX_BYTES), str(path))


def decode(data: bytes, where: str = "") -> str:
    """Decodes a prototxt: UTF-8 (comments may be in any encoding) or UTF-16 with a byte order mark."""
    refuse_foreign(data, "a prototxt", where)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    text = data.decode("utf-8-sig", errors="replace")
    if "\0" in text[:4096]:
        hint = "Give a prototxt here, and weights where the command takes them."
        raise ParseError("is a binary file, not prototxt text", where, hint)
    return text


def parse(text: str, message_type: str, where: str = "<text>", unknown: Collection[str] = ()) -> Message:
    """Parses text as a message of proto/caffe.proto.

    Args:
        text: the text.
        message_type: its type.
        where: the file, for messages.
        unknown: names that are no typos, however close to a name of the schema.

    Raises:
        ParseError: with line and column, and "did you mean" for an unknown name that is close to a known one.
    """
    return _Parser(text, where, unknown).parse(schema(message_type))


class _Parser:
    def __init__(self, text: str, where: str, unknown: Collection[str]) -> None:
        self.text, self.where, self.unknown, self.messages = text, where, unknown, 0
        self.newlines = array("q", (m.start() for m in re.finditer("\n", text)))
        self.position = 0
        self.advance()

    # -- tokens -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        self.start = self.past(_SPACE, self.position)
        match = _TOKEN.match(self.text, self.start)
        if match is None:
            if self.text[self.start] in "0123456789.":
                self.fail("this is not a number, or a space is missing after it")
            self.fail(f"unexpected character {self.text[self.start]!r}")
        self.kind = match.lastgroup or ""
        self.position = match.end()
        if self.kind == "string":
            end = self.past(_INSIDE[match[0]], self.position)
            if self.text[end : end + 1] != match[0]:
                self.fail("this string has no closing quote on its line")
            self.position = end + 1
        self.token = self.text[self.start : self.position]

    def past(self, pattern: re.Pattern[str], at: int) -> int:
        """Skips all matches of a pattern. A loop, because a repeated group would keep 150 bytes per repetition."""
        while (match := pattern.match(self.text, at)) is not None:
            at = match.end()
        return at

    def line(self, offset: int) -> int:
        return bisect_right(self.newlines, offset - 1) + 1 if offset else 1

    def fail(self, what: str, at: int | None = None, hint: str = "") -> NoReturn:
        at = self.start if at is None else at
        line = self.line(at)
        column = at - (self.newlines[line - 2] if line > 1 else -1)
        raise ParseError(what, f"{self.where}:{line}:{column}", hint)

    def shown(self) -> str:
        return "the end of the file" if self.kind == "end" else f"'{self.token[:40]}'"

    def take(self, mark: str) -> bool:
        if self.kind == "mark" and self.token == mark:
            self.advance()
            return True
        return False

    # -- messages: a loop with its own stack, so that deep nesting meets a limit instead of crashing --------------

    def parse(self, root: Schema) -> Message:
        message = Message(root, 1)
        # (message, closing mark, where it was opened, the list of messages it belongs to)
        stack: list[tuple[Message, str, int, Field | str | None]] = []
        list_field: Field | str | None = None  # inside `name [ {...}, ...`
        closing, opened = "", 0
        while True:
            if list_field is not None:  # after a message of a list
                if self.take(","):
                    if not (self.kind == "mark" and self.token in "{<"):
                        self.fail(f"expected '{{' after ',' in a list of messages, got {self.shown()}")
                elif self.take("]"):
                    list_field = None
                    self.separator()
                    continue
                else:
                    self.fail(f"expected ',' or ']' in a list of messages, got {self.shown()}")
                field = list_field
            elif self.kind == "end":
                if stack:
                    self.fail(f"the file ends inside the block that opens at line {self.line(opened)}")
                return message
            elif self.kind == "mark" and self.token in "}>":
                if self.token != closing:
                    self.fail(
                        f"'{self.token}' closes nothing" if not closing else f"expected '{closing}', got '{self.token}'"
                    )
                self.advance()
                message, closing, opened, list_field = stack.pop()
                if list_field is None:
                    self.separator()
                continue
            else:
                if self.kind != "name":
                    self.fail(f"expected the name of a field, got {self.shown()}")
                name_at = self.start
                field = self.field(message)
                colon = self.take(":")
                is_message = isinstance(field, Field) and field.message_name is not None
                if self.kind == "mark" and self.token == "[" and (is_message or self.list_of_messages()):
                    self.advance()
                    if self.take("]"):
                        self.separator()
                        continue
                    list_field = field
                if not (self.kind == "mark" and self.token in "{<"):
                    if is_message:
                        self.fail(f"'{_name(field)}' is a message: expected '{{', got {self.shown()}")
                    if not colon:
                        self.fail(f"expected ':' after '{_name(field)}', got {self.shown()}")
                    self.scalars(message, field, name_at)
                    self.separator()
                    continue
                if isinstance(field, Field) and not is_message:
                    self.fail(f"'{field.name}' takes a value, not a block")
            if len(stack) >= MAX_DEPTH:
                self.fail(f"blocks are nested more than {MAX_DEPTH} deep")
            self.messages += 1
            if self.messages > MAX_MESSAGES:
                self.fail(f"there are more than {MAX_MESSAGES} blocks")
            own = field.message if isinstance(field, Field) else _of_newer_layer(message, field)
            child = Message(own, self.line(self.start))
            self.put(message, field, child, self.start)
            stack.append((message, closing, opened, list_field))
            closing, opened, list_field = "}" if self.token == "{" else ">", self.start, None
            message = child
            self.advance()

    def separator(self) -> None:
        if self.kind == "mark" and self.token in ";,":
            self.advance()

    def list_of_messages(self) -> bool:
        following = _TOKEN.match(self.text, self.past(_SPACE, self.position))
        return following is not None and following["mark"] in ("{", "<")

    def field(self, message: Message) -> Field | str:
        """Reads a field name. Returns a str if it is not in the message's schema, or if there is no schema."""
        name, at = self.token, self.start
        self.advance()
        if message.schema is None:
            return name
        name = ALIASES.get(message.schema.name, {}).get(name, name)
        known = message.schema.fields.get(name)
        if known is not None:
            return known
        near = None if name in self.unknown else _slip_of(name, message)
        hint = ""
        if message.schema.name == "NetParameter" and name in schema("SolverParameter").fields:
            hint = "This looks like a solver; give the net that its 'net:' field names."
        if near or hint:
            suggestion = f" Did you mean '{near}'?" if near else ""
            self.fail(f"{message.schema.name} has no field '{name}'.{suggestion}", at, hint)
        return name

    def put(self, message: Message, field: Field | str, value: Any, at: int) -> None:
        fields = message._fields
        if isinstance(field, str):
            target = message.unknown if message.schema is not None else fields
            if message.schema is not None:
                message.unknown.setdefault(field, []).append(value)
            elif field in target:  # a schema-less message: the second value makes it a list
                previous = fields[field]
                fields[field] = [*(previous if isinstance(previous, list) else [previous]), value]
            else:
                fields[field] = value
        elif field.repeated:
            fields.setdefault(field.name, []).append(value)
        elif field.name in fields:
            self.fail(f"'{field.name}' is given twice in one block; it takes one value", at)
        else:
            fields[field.name] = value

    # -- values -------------------------------------------------------------------------------------------------

    def scalars(self, message: Message, field: Field | str, at: int) -> None:
        if not self.take("["):
            self.put(message, field, self.scalar(field), at)
            if isinstance(field, Field) and field.repeated:
                self.run(message, field, rf"{field.name}\s*:\s*(%s)\s*")
            return
        if isinstance(field, Field) and not field.repeated:
            self.fail(f"'{field.name}' takes one value, not a list", at)
        if self.take("]"):
            return
        while True:
            if isinstance(field, Field):
                self.run(message, field, r"(%s)\s*,\s*")
            self.put(message, field, self.scalar(field), at)
            if self.take("]"):
                return
            if not self.take(","):
                self.fail(f"expected ',' or ']' in a list, got {self.shown()}")

    def run(self, message: Message, field: Field, form: str) -> None:
        """Reads what follows of the usual numbers, many at a time: a text may hold millions of them.

        Args:
            form: of one value and what comes around it.
        """
        if field.kind not in _USUAL:
            return
        number, value = _USUAL[field.kind]
        one, many = re.compile(form % number), re.compile(f"(?:{form % number}){{2,10000}}")
        while (match := many.match(self.text, self.start)) is not None:
            message._fields.setdefault(field.name, []).extend(map(value, one.findall(match[0])))
            self.position = match.end()
            self.advance()

    def scalar(self, field: Field | str) -> Any:
        at = self.start
        if self.kind == "string":
            parts = []
            while self.kind == "string":
                parts.append(self.unescape(self.token[1:-1], self.start + 1))
                self.advance()
            data = b"".join(parts)
            if isinstance(field, Field) and field.kind == "bytes":
                return data
            text = data.decode("utf-8", "replace")
            if isinstance(field, Field) and field.kind != "string":
                self.fail(f"'{field.name}' is {_article(field.kind)}, got the string {text[:40]!r}", at)
            return text
        negative = self.take("-")
        if self.kind not in ("name", "number"):
            self.fail(f"expected a value for '{_name(field)}', got {self.shown()}")
        token, kind = self.token, self.kind
        self.advance()
        if isinstance(field, str):
            return self.guess(token, kind, negative)
        return self.typed(field, token, kind, negative, at)

    def typed(self, field: Field, token: str, kind: str, negative: bool, at: int) -> Any:
        sign = -1 if negative else 1
        shown = f"'{'-' * negative}{token[:40]}'"
        if field.kind in ("float", "double"):
            number = _float(token)
            if number is None:
                self.fail(f"'{field.name}' is a number, got {shown}", at)
            return sign * (decimal(number) if field.kind == "float" else number)
        if field.kind == "bool":
            number = _integer(token) if kind == "number" else None
            truth = _BOOLS.get(token) if number is None else {0: False, 1: True}.get(number)
            if truth is None or negative:
                self.fail(f"'{field.name}' is true or false, got {shown}", at)
            return truth
        if field.kind == "enum":
            assert field.values is not None
            number = _integer(token) if kind == "number" else None
            if number is not None and sign * number in field.value_names:
                return field.value_names[sign * number]
            if token in field.values and not negative:
                return token
            if field is schema("V1LayerParameter").fields["type"] and _is_a_forks_type(token, field.values):
                return token
            one_of = ", ".join(field.values) if len(field.values) < 10 else f"one of {len(field.values)} names"
            self.fail(f"'{field.name}' is {one_of}; got {shown}.{did_you_mean(token.upper(), field.values)}", at)
        if field.kind in ("string", "bytes"):
            self.fail(f"'{field.name}' is a string: put {shown} in quotes", at)
        integer = _integer(token) if kind == "number" else None
        if integer is None:
            self.fail(f"'{field.name}' is an integer, got {shown}", at)
        low, high = _INTEGER_RANGES[field.kind]
        if not low <= sign * integer <= high or (negative and not low):  # -0 is not unsigned, as in protobuf
            self.fail(f"'{field.name}' is {_article(field.kind)} ({low} to {high}), got {shown}", at)
        return sign * integer

    def guess(self, token: str, kind: str, negative: bool) -> Any:
        """A value of unknown type: a number, true/false, or a word."""
        if kind == "number":
            value = _integer(token)
            number = value if value is not None else _float(token)
            if number is None:
                self.fail(f"'{token[:40]}' is not a number, or has too many digits")
            return -number if negative else number
        if token in ("true", "false"):
            return token == "true"
        return f"-{token}" if negative else token

    def unescape(self, text: str, at: int) -> bytes:
        encoded = bytearray()
        position = 0
        for match in _ESCAPE.finditer(text):
            encoded += text[position : match.start()].encode("utf-8", "surrogatepass")
            position = match.end()
            simple, hexadecimal, octal, high, low, short, long, wrong = match.groups()
            if wrong is not None:
                self.fail(f"unknown escape '\\{wrong}' in a string", at + match.start())
            if simple:
                encoded += _SIMPLE_ESCAPES[simple].encode()
            elif high:
                encoded += _utf8(0x10000 + (int(high, 16) - 0xD800 << 10) + int(low, 16) - 0xDC00)
            elif short or long:
                encoded += _utf8(int(short or long, 16))
            else:
                encoded.append(int(hexadecimal, 16) if hexadecimal else int(octal, 8) & 255)  # as in protobuf
        encoded += text[position:].encode("utf-8", "surrogatepass")
        return bytes(encoded)


def _utf8(code_point: int) -> bytes:
    """What protobuf's text format makes of a code point: above Unicode's last one, the escape itself.

    Source: io/tokenizer.cc (AppendUTF8)
    """
    return (chr(code_point) if code_point <= 0x10FFFF else f"\\U{code_point:08x}").encode("utf-8", "surrogatepass")


def _name(field: Field | str) -> str:
    return field if isinstance(field, str) else field.name


def _is_a_forks_type(token: str, known: Iterable[str]) -> bool:
    """Whether a V1 type that Caffe does not have is a fork's own, such as DENSE_IMAGE_DATA, rather than a typo."""
    return token.isupper() and (token[-1].isdecimal() or not any(_nearly(token, name) for name in known))


_LAYERS = ("LayerParameter", "V1LayerParameter")
_EVERY_LAYERS = ("transform_param", "loss_param")


def _of_newer_layer(message: Message, name: str) -> Schema | None:
    """The schema of parameters that a fork's own V1LayerParameter has: those of a layer of today."""
    if message.schema is None or message.schema.name != "V1LayerParameter":
        return None
    field = schema("LayerParameter").fields.get(name)
    return field.message if field is not None and field.message_name and not field.repeated else None


def _slip_of(name: str, message: Message) -> str | None:
    """The field of which ``name`` is a typo; None if it is not close to any field, or is a fork's own."""
    assert message.schema is not None
    kind = message.schema.name
    if name in FORKS_FIELDS.get(kind, ()):
        return None
    slips = [field for field in message.schema.fields if _nearly(name, field) and not _specifies(name, field)]
    if slips and kind not in _LAYERS and names_field(kind, name):
        return None
    if not name.endswith("_param") or kind not in _LAYERS or not message.has("type"):
        return _nearest(name, slips)
    # A layer's parameters are a typo only if they are close to Caffe's for this type; otherwise they are a fork's own.
    type_ = str(message.type).replace("_", "").lower()
    plain = name.replace("_", "")
    if plain == f"{type_}param" and plain not in (field.replace("_", "") for field in slips):
        return None
    return _nearest(
        name, (f for f in slips if f in _EVERY_LAYERS or f.removesuffix("_param").replace("_", "") in type_)
    )


def _nearest(name: str, fields: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(fields), n=1, cutoff=0)), None)


def _specifies(name: str, field: str) -> bool:
    """Whether a name is a field's name with a suffix: ``crop_size_x``, ``source2``."""
    return name.startswith(field) and re.fullmatch(r"_\w+|[0-9]+", name[len(field) :]) is not None


def _nearly(a: str, b: str) -> bool:
    """Whether ``a`` is at most one edit from ``b``, or two if it is long: a letter added, lost, wrong or swapped."""
    most = 1 if len(a) < 10 else 2
    if a == b or abs(len(a) - len(b)) > most or len(set(a) ^ set(b)) > 2 * most:
        return False
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, before_previous = row, before
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[-1] = min(row[-1], before_previous[j - 2] + 1)
        before = previous
        if min(row) > most:
            return False
    return row[-1] <= most


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"


def _integer(token: str) -> int | None:
    try:
        if token[:2] in ("0x", "0X") and len(token[2:].lstrip("0")) < 64:
            return int(token, 16)
        if token.isdecimal() and len(token.lstrip("0")) < 64:
            return int(token, 8 if len(token) > 1 and token[0] == "0" else 10)
    except ValueError:
        pass
    return None


def _float(token: str) -> float | None:
    """A decimal number; None for hexadecimal and octal ones, which protobuf's parsers treat differently."""
    if token.lower() in ("inf", "infinity"):
        return math.inf
    if token.lower() == "nan":
        return math.nan
    if token[0] == "0" and token[1:2].isdecimal():
        return None
    try:
        return float(token.rstrip("fF")) if token[0] in "0123456789." else None
    except ValueError:
        return None


# -- writing ------------------------------------------------------------------------------------------------------


def dump(message: Message) -> str:
    """The message as text, indented by two spaces per level; :func:`parse` reads it back unchanged."""
    lines: list[str] = []
    _dump(message, "", lines)
    return "".join(f"{line}\n" for line in lines)


_ONE_VALUE = (str, bytes, memoryview, Message)


def _dump(message: Message, indent: str, lines: list[str]) -> None:
    known = message.schema.fields if message.schema else {}
    named = [(str(name), values) for name, values in message.unknown.items() if isinstance(name, str)]
    for name, value in [*message.items(), *named]:
        field = known.get(name)
        for one in [value] if isinstance(value, _ONE_VALUE) or not hasattr(value, "__iter__") else value:
            if isinstance(one, Message):
                lines.append(f"{indent}{name} {{")
                _dump(one, indent + "  ", lines)
                lines.append(f"{indent}}}")
            else:
                lines.append(f"{indent}{name}: {_scalar_text(one, field)}")


def _scalar_text(value: Any, field: Field | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, bytes, memoryview)):
        if field is not None and field.kind == "enum":
            return str(value)
        return quoted(value)
    if field is not None and field.kind == "float":
        return short_float(float(value))
    return repr(float(value)) if field is not None and field.kind == "double" else repr(value)


def quoted(value: str | bytes | memoryview) -> str:
    """A string as text format writes it: printable, escaped, in double quotes."""
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
    special = {34: '\\"', 92: "\\\\", 10: "\\n", 13: "\\r", 9: "\\t"}
    return '"' + "".join(special.get(b) or (chr(b) if 32 <= b < 127 else f"\\{b:03o}") for b in data) + '"'


def short_float(value: float) -> str:
    """The shortest text that reads back as the same float32."""
    import numpy as np

    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    text = str(np.float32(value))
    return text.removesuffix(".0")
