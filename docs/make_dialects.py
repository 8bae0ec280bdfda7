"""Makes caffe_port/formats/dialects.json.gz, the table of Caffe's dialects, and docs/dialects.md, the same for people.

    python docs/make_dialects.py             both, from shared/dialects/dialects.json ($CAFFE_PORT_SHARED)
    python docs/make_dialects.py --refresh   without it: what follows from this package (types and their messages), and
                                             the page

The source lists what each schema of a fork changes in BVLC's. The table keeps what a file of weights can show: the
messages that can be reached from a NetParameter, each distinct layout once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import caffe_port.signatures  # noqa: F401 - registers the records
from caffe_port.formats import dialects
from caffe_port.formats.message import schema
from caffe_port.layers import REGISTRY
from caffe_port.signatures.signature import SIGNATURES

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "caffe_port/formats/dialects.json.gz"
PAGE = ROOT / "docs/dialects.md"

#: Short name -> schema of the source. Their order is that in which equal evidence is decided.
NAMED = {
    "caffe": "BVLC/caffe",
    "caffe-1.0": "BVLC/caffe@1.0",
    "ssd": "weiliu89/caffe@ssd",
    "fast-rcnn": "rbgirshick/caffe-fast-rcnn@fast-rcnn",
    "faster-rcnn": "rbgirshick/caffe-fast-rcnn@faster-rcnn-upstream-33f2445",
    "r-fcn": "daijifeng001/caffe-rfcn",
    "microsoft": "Microsoft/caffe",
    "nvidia-0.17": "NVIDIA/caffe",
    "nvidia-0.17.0": "NVIDIA/caffe@v0.17.0",
    "nvidia-0.16": "NVIDIA/caffe@caffe-0.16",
    "nvidia-0.16.5": "NVIDIA/caffe@v0.16.5",
    "nvidia-0.16.3": "NVIDIA/caffe@v0.16.3",
    "nvidia-0.16.1": "NVIDIA/caffe@v0.16.1",
    "nvidia-0.15": "NVIDIA/caffe@caffe-0.15",
    "nvidia-0.15.1": "NVIDIA/caffe@v0.15.1",
    "nvidia-0.14": "NVIDIA/caffe@caffe-0.14",
    "nvidia-0.13": "NVIDIA/caffe@caffe-0.13",
    "intel": "intel/caffe",
    "intel-1.0.5": "intel/caffe@1.0.5",
    "intel-2017-05": "intel/caffe@2017-05-17",
    "intel-1.0.0": "intel/caffe@1.0.0",
    "deeplab-v2": "xmyqsh/deeplab-v2@2016-06-05",
    "pspnet": "hszhao/PSPNet",
    "segnet": "alexgkendall/caffe-segnet",
    "enet": "TimoSaemann/caffe-enet",
    "segnet-cudnn5": "TimoSaemann/caffe-segnet-cudnn5",
    "flownet2": "lmb-freiburg/flownet2 (caffe.proto)",
    "flownet2-2018": "lmb-freiburg/flownet2@add_dummy_data",
    "flownet2-2017-04": "lmb-freiburg/flownet2",
    "liteflownet": "twhui/LiteFlowNet",
    "flownet": "liruoteng/FlowNet",
    "yjxiong": "yjxiong/caffe",
    "pspnet-2016-12-04": "hszhao/PSPNet@2016-12-04",
    "mobilenet-yolo": "eric612/MobileNet-YOLO",
    "happynear": "happynear/caffe-windows",
    "happynear-2016": "happynear/caffe-windows@master",
    "happynear-2015": "happynear/caffe-windows@2015-07-09",
    "caffe-face": "ydwen/caffe-face",
    "sphereface": "wy1iu/sphereface",
    "waifu2x": "lltcggie/caffe@lltcggie/custom",
    "c3d-1.0": "facebookarchive/C3D",
    "c3d-1.1": "facebookarchive/C3D (caffe.proto)",
    "ristretto": "pmgysel/caffe",
    "textboxes": "MhLiao/TextBoxes",
    "textboxes++": "MhLiao/TextBoxes_plusplus",
    "refinedet": "sfzhang15/RefineDet",
    "ssd-2016-01": "weiliu89/caffe@2016-01-30",
    "ms-cnn": "zhaoweicai/mscnn",
    "cascade-rcnn": "zhaoweicai/cascade-rcnn",
    "mnc": "AndreiBarsan/caffe-mnc",
    "pvanet": "sanghoon/caffe@dev_pvanet",
    "ctpn": "tianzhi0549/CTPN",
    "ctc": "ChWick/caffe@ctc",
    "warp-ctc": "ChWick/caffe@warp-ctc",
    "lrcn": "jeffdonahue/caffe@recurrent",
    "crf-rnn": "bittnt/caffe@crfrnn",
    "dorn": "hufu6371/DORN",
    "video-caffe": "BoLiu-SVCL/video-caffe",
    "opencl": "BVLC/caffe@opencl",
    "ti-0.17": "tidsp/caffe-jacinto@caffe-0.17",
    "ti-0.16": "tidsp/caffe-jacinto@caffe-0.16",
    "ti-0.15": "tidsp/caffe-jacinto@caffe-0.15",
    "ti-fp16": "tidsp/caffe-jacinto@experimental/fp16",
    "spp-net": "ShaoqingRen/caffe@SPP_net",
    "deepdetect": "jolibrain/caffe",
    "brocolli": "PyPI brocolli-caffe 9.0.2",
}

#: Projects that read caffemodels and write few or none.
READERS = {
    "Cambricon/caffe",
    "Adrian-Yan16/darknet2caffe_yolov3",
    "Ascend/parser",
    "ModelTC/NART",
    "OAID/Tengine-Convert-Tools",
    "PaddlePaddle/X2Paddle",
    "PyPI caffe2onnx 2.0.1",
    "PyPI caffe_onnx 0.1.2",
    "PyPI openvino_dev 2022.3.0",
    "PyPI pytorch2caffe 0.1.0",
    "Tencent/ncnn",
    "XiaoMi/mace",
    "alibaba/MNN",
    "falex-a/caffe2any",
    "jizhuoran/caffe-huawei-atlas-convertor",
    "kendryte/nncase",
    "lutzroeder/netron",
    "luoyetx/mini-caffe",
    "openppl-public/ppq",
    "sathibault/opencv",
    "w3sip/mo_problem",
}

#: Schema -> {message.field: our name of that meaning}, where another fork has the name for something else.
RENAMED = {"PyPI brocolli-caffe 9.0.2": {"LayerParameter.proposal_param": "proposal_in_pixels_param"}}

#: Schema -> {message: {field: row}}: what its code does and its schema does not say. The number is ours.
UNSAID = {"PyPI brocolli-caffe 9.0.2": {"BNParameter": {"inverse_std": [600408, "bool", "optional", "true"]}}}

#: Schema of a package without sources in the source -> the types that its program registers, without BVLC's.
REGISTERED = {
    "PyPI brocolli-caffe 9.0.2": "AnnotatedData BN BatchNormKyle BilinearInterpolate DetectionEvaluate DetectionOutput "
    "HardSigmoid HardSwish MaxUnPool MultiBoxLoss Normalize PSROIPooling Pad Permute PixelShuffle PriorBox "
    "Proposal ReLU6 Resize SmoothL1Loss Unsqueeze Upsample"
}

#: (number, field of LayerParameter): who has it there, where no schema of the source does.
LOOSE = {
    (202, "proposal_param"): "PVANet's converters",
    (203, "prior_box_clustered_param"): "OpenVINO",
    (149, "normalize_bbox_param"): "OpenVINO",
    (150, "mish_param"): "YOLOv4 ports",
    (2060, "relu6_param"): "Ascend",
    (151, "margin_inner_product_param"): "SphereFace on Caffe 1.0",
    (147, "largemargin_inner_product_param"): "wy1iu/LargeMargin_Softmax_Loss",
    (136, "triplet_loss_param"): "face recognition forks",
    (137, "triplet_loss_param"): "face recognition forks",
    (147, "triplet_loss_param"): "face recognition forks",
    (145, "focal_loss_param"): "focal loss forks",
    (151, "focal_loss_param"): "focal loss forks",
    (147, "imresize_param"): "OpenPose",
    (148, "nms_param"): "OpenPose",
    (153, "continuation_indicator_param"): "CC4.0",
    (150, "lstm_conv_param"): "agethen/ConvLSTM-for-Caffe",
    (151, "lstm_debug_param"): "agethen/ConvLSTM-for-Caffe",
    (1001, "pointwise_spatial_attention_param"): "hszhao/PSANet",
}

_CODES = {
    "float": "f",
    "double": "d",
    "int32": "i",
    "int64": "l",
    "uint32": "u",
    "uint64": "v",
    "bool": "b",
    "string": "s",
    "bytes": "y",
    "fixed32": "w",
}
_ROOTS = ("NetParameter",)
_LEFT_OUT = {"SolverParameter", "V0LayerParameter", "SolverState", "Datum", "AnnotatedDatum"}


class Pool:
    """Strings or lists, each once, by their number."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._numbers: dict[str, int] = {}

    def __call__(self, item: Any) -> int:
        key = json.dumps(item)
        if key not in self._numbers:
            self._numbers[key] = len(self.items)
            self.items.append(item)
        return self._numbers[key]


Messages = dict[str, dict[str, list[Any]]]


def _schema(source: dict[str, Any], base: dict[str, Any]) -> tuple[Messages, dict[str, dict[str, int]]]:
    """The messages and the enums of a schema, whole."""
    messages: Messages = {name: dict(fields) for name, fields in base["messages"].items()}
    for name in source.get("lacks_messages", ()):
        messages.pop(name, None)
    for name, fields in source.get("lacks", {}).items():
        for field in fields:
            messages.get(name, {}).pop(field, None)
    places = {"number": 0, "type": 1, "label": 2, "default": 3, "packed": 4}
    for name, changed in source.get("changed", {}).items():
        for field, properties in changed.items():
            row = [*messages[name][field], None][:5]
            for key, (_, new) in properties.items():
                row[places[key]] = new
            messages[name][field] = row
    for name, fields in source.get("added", {}).items():
        messages.setdefault(name, {}).update(fields)
    messages.update(source.get("new_messages", {}))
    enums = {name: dict(values) for name, values in base["enums"].items()}
    enums.update({name: dict(values) for name, values in source.get("new_enums", {}).items()})
    for name, values in source.get("new_enum_values", {}).items():
        old = enums.setdefault(name, {})
        for value, number in values.items():  # C3D 1.0 has its own V1 types from 30 on
            same = [other for other, n in old.items() if n == number and name.endswith("LayerType")]
            if not any(value.startswith(other) for other in same):
                for other in same:
                    del old[other]
                old[value] = number
    for name, values in source.get("changed_enum_values", {}).items():
        enums[name].update({value: new for value, (_, new) in values.items()})
    return messages, enums


def _reachable(messages: Messages) -> list[str]:
    found, waiting = [], list(_ROOTS)
    while waiting:
        name = waiting.pop()
        if name in found or name in _LEFT_OUT or name not in messages:
            continue
        found.append(name)
        waiting += [row[1] for row in messages[name].values()]
    return found


def _fact(name: str, row: list[Any], messages: Messages, enums: dict[str, dict[str, int]], pool: Pool) -> str:
    """``number code name=default``; the code of a message is its name, that of an enum ``#`` and the number of its
    values."""
    number, type_, label, default = row[:4]
    if type_ in messages or type_ in _LEFT_OUT:
        code = type_
    elif type_.startswith("enum "):
        values = enums.get(type_[5:]) or enums.get(f"V1{type_[5:]}", {})
        code = f"#{pool(' '.join(f'{n}={v}' for n, v in sorted(values.items(), key=lambda item: item[1])))}"
    else:
        code = _CODES[type_]
    star = "*" if label == "repeated" else ""
    return f"{number} {star}{code} {name}" + (f"={default}" if default not in (None, "") else "")


def _is_base(source: dict[str, Any]) -> bool:
    return source["name"] == "BVLC/caffe"


def make(source: dict[str, Any]) -> dict[str, Any]:
    """The table."""
    facts, enums, variants, names = Pool(), Pool(), Pool(), Pool()
    base_messages, base_enums = _schema({}, source["baseline"])
    base = {
        m: [facts(_fact(f, row, base_messages, base_enums, enums)) for f, row in base_messages[m].items()]
        for m in _reachable(base_messages)
    }
    copies: dict[str, list[str]] = defaultdict(list)
    by_name = {one["name"]: one for one in source["sources"]}
    for one in source["sources"]:
        if one.get("same_as"):
            copies[one["same_as"]].append(one["name"])
    dialects = []
    for one in source["sources"]:
        if one.get("same_as") or one.get("era") == "V0" or one.get("partial"):
            continue
        messages, values = _schema(one, source["baseline"])
        for path, name in RENAMED.get(one["name"], {}).items():
            message, _, field = path.partition(".")
            if name in schema(message).fields:
                messages[message] = {name if f == field else f: row for f, row in messages[message].items()}
        for message, rows_ in UNSAID.get(one["name"], {}).items():
            messages[message] = {**messages[message], **rows_}
        chosen = []
        for m in _reachable(messages):
            rows = [facts(_fact(f, row, messages, values, enums)) for f, row in messages[m].items()]
            mine, theirs = set(rows), set(base.get(m, ()))
            if mine != theirs or m not in base:
                chosen.append(variants([names(m), sorted(theirs - mine), sorted(mine - theirs)]))
        absent = [names(m) for m in base if m not in _reachable(messages)]
        others = copies[one["name"]]
        short = next((k for k, v in NAMED.items() if v == one["name"] or v in others), "")
        title = NAMED[short] if short else one["name"]
        also = sorted({one["name"], *others} - {title})
        origin = by_name[title]
        dialects.append(
            {
                "name": title,
                "short": short,
                "date": origin["date"] or "",
                "commit": origin["commit"] or "",
                "era": one.get("era") or "V2",
                "also": also,
                "reads": int(one["where"] in READERS),
                "without": absent,
                "variants": chosen,
            }
        )
    order = list(NAMED)
    dialects.sort(
        key=lambda d: (d["reads"], order.index(d["short"]) if d["short"] else len(order), d["date"] or "9", d["name"])
    )
    registered = {name: list(users) for name, users in source["registered_types"].items()}
    for project, names_ in REGISTERED.items():
        for name in names_.split():
            registered.setdefault(name, []).append(project)
    projects = sorted({p for users in registered.values() for p in users})
    types = {
        t: [projects.index(p) for p in users]
        for t, users in registered.items()
        if not re.fullmatch(r"[A-Z0-9_]+", t) or t in ("BN", "LRN", "MVN", "SPP")
    }
    (contested, safe), (_, old) = (_contested(source["sources"], source["baseline"], era) for era in ("V2", "V1"))
    return {
        "contested": contested,
        "safe": safe,
        "safe_v1": old,
        "messages": names.items,
        "enums": enums.items,
        "facts": facts.items,
        "base": base,
        "variants": variants.items,
        "dialects": dialects,
        "projects": projects,
        "types": types,
        "earlier": sorted(_earlier(source["earlier_numbers"])),
        "loose": [[number, field, who] for (number, field), who in sorted(LOOSE.items())],
        "owners": owners(),
    }


_DAYS = {"jeffdonahue/caffe"}  # branches of a day before 2015, whose files have other marks, too
_WIRE = {"float": 5, "fixed32": 5, "double": 1, "string": 2, "bytes": 2}
_SAME = {"axis concat_dim", "axis slice_dim", "transpose transpose_weights", "expose_hidden expose_hidden_state"}


def _contested(sources: list[dict[str, Any]], baseline: dict[str, Any], era: str) -> tuple[list[int], dict[str, Any]]:
    """Numbers of LayerParameter that BVLC and others claim; and of each message of BVLC's, the numbers that mean one
    thing everywhere, with the values of enums. ``era``: of the files; V1 schemas wrote none of V2."""
    base, enums = _schema({}, baseline)
    kept: dict[str, dict[int, Any]] = {
        m: {
            row[0]: sorted(set(enums[row[1][5:]].values())) if row[1].startswith("enum ") else 1
            for row in base[m].values()
        }
        for m in _reachable(base)
    }
    by_number = {m: {row[0]: (name, row) for name, row in base[m].items()} for m in kept}
    contested = set()
    for one in sources:
        if one.get("same_as") or one.get("era") == "V0" or (one.get("era") and (era == "V2" or one["where"] in _DAYS)):
            continue
        messages, values = _schema(one, baseline)
        for m in kept:
            for name, row in messages.get(m, {}).items():
                ours, mine = by_number[m].get(row[0], (name, row))
                wires = [2 if r[1] in messages or r[1] in base else _WIRE.get(r[1], 0) for r in (row, mine)]
                packed = 2 in wires and "repeated" in (row[2], mine[2])
                same = ours == name or " ".join(sorted((ours, name))) in _SAME
                if not same and (wires[0] == wires[1] or packed):
                    kept[m].pop(row[0], None)
                    if m == "LayerParameter":
                        contested.add(row[0])
                elif row[1].startswith("enum ") and isinstance(kept[m].get(row[0]), list):
                    names = {v: n for n, v in enums.get(mine[1][5:], {}).items()}
                    for n, v in values.get(row[1][5:], {}).items():
                        if names.get(v, n) != n and v in kept[m][row[0]] and n not in names.values():
                            kept[m][row[0]].remove(v)
    return sorted(contested), {m: {str(n): kind for n, kind in numbers.items()} for m, numbers in kept.items()}


def _earlier(source: dict[str, Any]) -> Iterator[list[Any]]:
    for project, entries in source.items():
        for key, (_, first, last) in entries.items():
            field, _, number = key.rpartition("=")
            if field.islower() and number.isdigit():
                yield [int(number), field, project, first, last]


#: Fields that a type has beside those that its record here reads.
ALSO_OWNED = {"SmoothL1LossOHEM": ("smooth_l1_loss_param",)}


def owners() -> dict[str, list[str]]:
    """Type -> the fields of LayerParameter that layers of it read, of the records of this package."""
    plugins = {name for name, cls in REGISTRY.items() if not cls.__module__.startswith("caffe_port.")}
    own = {name: {*r.messages, *r.also} for name, r in SIGNATURES.items() if name not in plugins}
    for name, fields in ALSO_OWNED.items():
        own.setdefault(name, set()).update(fields)
    return {name: sorted(fields) for name, fields in sorted(own.items())}


_INTRODUCTION = """# Dialects

<!-- Made from caffe_port/formats/dialects.json.gz by docs/make_dialects.py; do not edit. -->

A caffemodel holds numbers instead of names, and the forks of Caffe gave the same numbers to different things. This page
lists who uses which number of a layer. caffe-port works out from the file which dialect wrote it, as
[from Caffe to PyTorch](from-caffe-to-pytorch.md#whose-numbers) explains; `--dialect NAME` decides. A prototxt has names
and needs none of this.

A schema holds from its date until the next one of its project. Projects that only read caffemodels are marked *reads*.
Further places with the same schema are not listed here; `caffe-port dialects NAME` shows them.
"""


_MARKS = ("<!-- measured by benchmarks/dialect_layers.py --publish -->\n\n", "\n\n<!-- end -->\n")


def measured() -> tuple[str, str, str]:
    """The page before, in and after the figures that benchmarks/dialect_layers.py measured."""
    before, mark, rest = PAGE.read_text("utf-8").partition(_MARKS[0])
    figures, end, after = rest.partition(_MARKS[1])
    return before + mark, figures, end + after


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page() -> str:
    """docs/dialects.md."""
    found = dialects.dialects()
    figures = _MARKS[0] + measured()[1] + _MARKS[1]
    lines = [
        _INTRODUCTION,
        "## How much is read right",
        "",
        figures,
        "## Names",
        "",
        "| name | source | date | fields of LayerParameter beside BVLC's |",
    ]
    lines += ["| --- | --- | --- | ---: |"]
    base = {(n, f.name) for n, f in found[0].layout("LayerParameter").items()}
    for one in found:
        own = {(n, f.name) for n, f in one.layout("LayerParameter").items()} - base
        kind = " *reads*" if one.reads else " V1" if one.era == "V1" else ""
        lines.append(f"| {f'`{one.short}`' if one.short else ''} | {one.name}{kind} | {one.date} | {len(own) or ''} |")
    lines += ["", "## Numbers of LayerParameter", "", "| number | field: who |", "| ---: | --- |"]
    numbers = sorted({n for one in found for n in one.layout("LayerParameter")})
    for number in numbers:
        users = dialects.users("LayerParameter", number)
        if len(users) == 1 and found[0] in next(iter(users.values())):
            continue
        words = [
            f"{name.removesuffix('_param')}: {'BVLC' if found[0] in who else dialects.labels(who, 4)}"
            for name, who in sorted(users.items(), key=lambda item: -len({d.project for d in item[1]}))
        ]
        lines.append(f"| {number} | {_cell('; '.join(words))} |")
    lines += ["", "## Numbers inside Caffe's own messages", "", "Where two dialects that are listed by name disagree."]
    lines += ["", "| message | number | field: who |", "| --- | ---: | --- |"]
    named = [one for one in found if one.short]
    for message in sorted(dialects.plain()["safe"]):
        if message in ("LayerParameter", "V1LayerParameter", "NetParameter"):
            continue
        users_by: dict[int, dict[str, list[dialects.Dialect]]] = {}
        for one in named:
            for number, fact in one.layout(message).items():
                users_by.setdefault(number, {}).setdefault(fact.name, []).append(one)
        for number, by_name in sorted(users_by.items()):
            if len(by_name) > 1:
                words = [f"{n}: {'BVLC' if found[0] in who else dialects.labels(who, 4)}" for n, who in by_name.items()]
                lines.append(f"| {message} | {number} | {_cell('; '.join(words))} |")
    lines += ["", "## Earlier numbers", "", "Numbers that a project gave up.", ""]
    lines += ["| number | field | project | from | to |", "| ---: | --- | --- | --- | --- |"]
    earlier = sorted(dialects.earlier())
    lines += [f"| {n} | {field} | {project} | {first} | {last} |" for n, field, project, first, last in earlier]
    lines += ["", "## Numbers without a schema", "", "| number | field | who |", "| ---: | --- | --- |"]
    lines += [f"| {n} | {field} | {who} |" for n, field, who in dialects.unsourced()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refresh", action="store_true", help="keep the facts of the table")
    if parser.parse_args().refresh:
        first, rest = map(json.loads, gzip.decompress(TABLE.read_bytes()).splitlines())
        table = {**first, **rest}
        table["owners"] = owners()
        table["loose"] = [[number, field, who] for (number, field), who in sorted(LOOSE.items())]
    else:
        shared = Path(os.environ.get("CAFFE_PORT_SHARED", ROOT.parent / "shared"))
        table = make(json.loads((shared / "dialects/dialects.json").read_text("utf-8")))
    first = {key: table.pop(key) for key in ("owners", "contested", "safe", "safe_v1")}
    lines = "".join(json.dumps(part, separators=(",", ":")) + "\n" for part in (first, table))
    TABLE.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
