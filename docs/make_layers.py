"""Writes docs/layers.md: every layer type, from its class, its docstring and its golden cases.

python docs/make_layers.py             writes docs/layers.md (seconds)
python docs/make_layers.py --goldens FOLDER
                                       before that, counts the nets of each type in a folder that a fork ran, and writes
                                       docs/layers_goldens.json
python docs/make_layers.py --measure   before that, exports every case to ONNX and pt2, runs what came out, and writes
                                       docs/layers_support.json (minutes; needs the test tools)
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import inspect
import json
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
GOLDEN = TESTS / "golden" / "layers"
PAGE, SUPPORT, GOLDENS = HERE / "layers.md", HERE / "layers_support.json", HERE / "layers_goldens.json"
sys.path[:0] = [str(TESTS), str(TESTS / "helpers")]

import golden_nets  # noqa: E402  tests/ was put on the path for it
from fork_cases import CASES, DETECTIONS  # noqa: E402
from fork_layers import random  # noqa: E402

from caffe_port import api  # noqa: E402
from caffe_port.emit import export  # noqa: E402
from caffe_port.emit.model_source import model  # noqa: E402
from caffe_port.emit.self_check import read_model  # noqa: E402
from caffe_port.errors import CaffePortError  # noqa: E402
from caffe_port.layers import REGISTRY, UNSUPPORTED, Layer  # noqa: E402
from caffe_port.net.net import Net  # noqa: E402
from caffe_port.net.state_dict import write_safetensors  # noqa: E402
from caffe_port.signatures.signature import Trait, has  # noqa: E402
from caffe_port.verification.references.numpy_formulas import FORMULAS, computes  # noqa: E402

_NAMES = """
    AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution Crop Data
    Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data HDF5Output HingeLoss
    Im2col ImageData InfogainLoss InnerProduct Input LRN LSTM LSTMUnit Log MVN MemoryData MultinomialLogisticLoss PReLU
    Parameter Pooling Power Python RNN ReLU Reduction Reshape SPP Scale Sigmoid SigmoidCrossEntropyLoss Silence Slice
    Softmax SoftmaxWithLoss Split Swish TanH Threshold Tile WindowData
"""
CAFFE_1_0 = tuple(_NAMES.split())
"""The types that layer_factory.cpp and the REGISTER_LAYER_CLASS lines of Caffe 1.0 know."""

X = random(2, 3, 5, 6)
STEPS = random(4, 2, 3)
CONT = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
FILLER = "weight_filler { type: 'xavier' }"
BOXES = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.2, 0.3, 0.7, 0.9], [0.4, 0.1, 0.9, 0.5], [0.0, 0.5, 0.4, 1.0]])
PRIORS = torch.stack([BOXES.flatten(), torch.tensor([0.1, 0.1, 0.2, 0.2] * 4)])[None]
TRUTH = torch.tensor(
    [[0, 1, 0, 0.1, 0.1, 0.5, 0.5, 0], [1, 2, 0, 0.2, 0.3, 0.7, 0.8, 0], [1, 1, 0, 0.4, 0.1, 0.8, 0.5, 0]]
)
FOUND = TRUTH[:, :7]

EXTRA: dict[str, tuple[Any, ...]] = {
    **CASES,
    **DETECTIONS,
    "BN": ("bn_param { }", X),
    "BN frozen": ("bn_param { frozen: true }", X),
    "ContinuationIndicator": ("continuation_indicator_param { time_step: 4 batch_size: 2 }",),
    "ConvolutionDepthwise": (f"convolution_param {{ kernel_size: 3 pad: 1 {FILLER} }}", X),
    "HDF5Output": ("hdf5_output_param { file_name: 'out.h5' }", X),
    "DetectionEvaluate": ("detection_evaluate_param { num_classes: 3 }", FOUND[None, None], TRUTH[None, None]),
    "L2Normalization": ("", X),
    "Lstm": (f"lstm_param {{ num_output: 5 {FILLER} }}", STEPS, CONT),
    "MultiBoxLoss": ("multibox_loss_param { num_classes: 3 }", random(2, 16), random(2, 12), PRIORS, TRUTH[None, None]),
    "Normalize": ("norm_param { scale_filler { value: 20 } }", X),
    "Permute": ("permute_param { order: 0 order: 2 order: 3 order: 1 }", X),
    "PriorBoxClustered": ("prior_box_param { width: 9 width: 20 height: 12 height: 7 }", X, random(2, 3, 50, 60)),
    "ReLU6": ("", X),
    "ShuffleChannel": ("shuffle_channel_param { group: 3 }", random(2, 6, 5, 4)),
    "SmoothL1Loss": ("smooth_l1_loss_param { sigma: 3 }", random(3, 4), random(3, 4, seed=1)),
    "Transpose": ("transpose_param { dim: 0 dim: 2 dim: 3 dim: 1 }", X),
    "Unpooling": ("unpooling_param { unpool: AVE kernel_size: 2 stride: 2 }", X),
}
"""Type (and a word) -> parameters and bottoms, for types that Caffe 1.0 cannot run; tests/layers tests them."""


# -- cases --------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A small net: a golden case, or a layer of EXTRA."""

    name: str
    net: Net
    inputs: list[torch.Tensor]
    golden: bool


def golden_names() -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob("*.prototxt"))


def case(name: str) -> Case:
    """A case by name, built, with its inputs, in phase TEST."""
    if name not in EXTRA:
        golden = golden_nets.load(GOLDEN / f"{name}.prototxt")
        golden.net.eval()
        return Case(name, golden.net, golden.inputs, True)
    parameters, *bottoms = EXTRA[name]
    text = 'name: "Net"\n'
    for i, x in enumerate(bottoms):
        dims = " ".join(f"dim: {n}" for n in x.shape)
        text += f'layer {{ name: "x{i}" type: "Input" top: "x{i}" input_param {{ shape {{ {dims} }} }} }}\n'
    ends = [f'bottom: "x{i}"' for i in range(len(bottoms))] + ['top: "y"'] * (name != "HDF5Output")
    text += f'layer {{ name: "l" type: "{name.split()[0]}" {" ".join(ends)} {parameters} }}\n'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        path.write_text(text, encoding="utf-8")
        net = api.port(path, keep_loss=True).net
    return Case(name, net, bottoms, False)


def types_of(name: str) -> list[str]:
    """The types that a case is about: the one it is named after; none for nets of several layers."""
    if name in EXTRA:
        return [REGISTRY[name.split()[0]].__name__]
    return [t for t in CAFFE_1_0 if t.lower() == name.partition("_")[0]]


def shown(case: Case, type_: str) -> Iterator[str]:
    """How the model.py of a case writes its layers of a type: constructors, or expressions."""
    try:
        made = model(case.net)
    except CaffePortError as error:
        yield f"not possible: {error.what.partition(': ')[2]}"
        return
    tree = ast.parse(made.source)
    assigned = {
        target.attr: " ".join((ast.get_source_segment(made.source, node.value) or "").split())
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }
    for step in case.net.plan.steps:
        if step.layer.type == type_:
            attribute = made.attributes[step.layer.name]
            if attribute is not None:
                yield assigned[attribute].replace("( ", "(").replace(", )", ")").replace(" )", ")")
            elif step.tops and type_ != "Split":
                names = ["x"] if len(step.bottoms) == 1 else ["a", "b", "c", "d"][: len(step.bottoms)]
                yield getattr(case.net, step.attribute).call_source(*names) or ""


# -- measuring ----------------------------------------------------------------------------------------------------


def measure(name: str) -> tuple[str, dict[str, str]]:
    """Exports a case's model.py both ways and runs what was written; "" or the reason why not."""
    torch.set_num_threads(1)
    result = {"onnx": "", "pt2": ""}
    with tempfile.TemporaryDirectory() as folder:
        at = case(name)
        try:
            source = model(at.net)
        except CaffePortError as error:
            return name, dict.fromkeys(result, f"there is no model.py: {error.what}")
        write_safetensors(f"{folder}/w", source.state)
        for kind, write in (("onnx", export.onnx), ("pt2", export.pt2)):
            module = read_model(source.source, source.class_name, f"{folder}/w")
            try:
                said = write(module, at.inputs, at.net.plan, f"{folder}/model.{kind}")
                assert "differs from the model by" in said, said
            except CaffePortError as error:
                result[kind] = " ".join(error.what.replace(folder, "").split())
            except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
                result[kind] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return name, result


def measure_all(only: list[str]) -> None:
    """Measures all cases, or those named, and keeps what is stored of the others."""
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in packages}
    names = [name for name in golden_names() if case(name).net.plan.outputs]
    names += [name for name in EXTRA if name != "HDF5Output"]
    stored = json.loads(SUPPORT.read_text(encoding="utf-8"))["cases"] if only else {}
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=40) as pool:
        cases = {name: stored[name] for name in names if name in stored}
        for name, result in pool.imap_unordered(measure, only or names):
            cases[name] = result
            print(name, result, flush=True)  # noqa: T201  the progress of minutes
    lines = [f"    {json.dumps(name)}: {json.dumps(cases[name])}" for name in sorted(cases)]
    text = f'{{\n  "versions": {json.dumps(versions)},\n  "cases": {{\n' + ",\n".join(lines) + "\n  }\n}\n"
    SUPPORT.write_text(text, encoding="utf-8")


# -- the page -----------------------------------------------------------------------------------------------------


def classes() -> dict[str, type[Layer]]:
    """The classes of this package by their own name, in the order of the alphabet; not those of plugins."""
    found = {c.__name__: c for c in REGISTRY.values() if c.__module__.startswith("caffe_port.layers.")}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def family(cls: type[Layer]) -> str:
    return cls.__module__.removeprefix("caffe_port.layers.").replace(".", "/")


def aliases(cls: type[Layer]) -> list[str]:
    return sorted(cls.__dict__.get("aliases", ()))


def anchor(type_: str) -> str:
    return f"[{type_}](#{type_.lower()})"


def paragraphs(cls: type[Layer]) -> list[str]:
    """The docstring as markdown; its fields (Differs from PyTorch, Blobs, Reference) begin with a bold word."""
    blocks: list[list[str]] = [[]]
    for line in (inspect.getdoc(cls) or "").splitlines():
        if not line.strip() or re.match(r"(Differs from \w+|Blobs|Reference|Not supported[^:]*): ", line):
            blocks.append([])
        blocks[-1] += [line.strip()] if line.strip() else []
    made = []
    for block in filter(None, blocks):
        text = re.sub(r":\w+:`[\w.]*?(\w+)`", r"`\1`", " ".join(block)).replace("``", "`")
        made.append(re.sub(r"^(Differs from \w+|Blobs|Reference|Not supported[^:]*): ", r"**\1:** ", text))
    return made


def proofs(names: list[str]) -> list[str]:
    """The files of tests/layers that name one of the types."""
    pattern = re.compile(rf"""["'](?:{"|".join(names)})["' ]""")
    files = sorted((*(TESTS / "layers").rglob("test_*.py"), TESTS / "helpers" / "fork_cases.py"))
    return [str(path.relative_to(TESTS.parent)) for path in files if pattern.search(path.read_text(encoding="utf-8"))]


@dataclass
class Entry:
    """What the page says of a type."""

    cls: type[Layer]
    golden: list[str]
    extra: list[str]
    sources: list[str]
    support: dict[str, dict[str, str]]

    @property
    def standard(self) -> bool:
        return self.cls.__name__ in CAFFE_1_0

    def in_short(self) -> str:
        """How model.py shows the type, in a few words: the name of what is called."""
        if self.cls.source:
            return "an input"
        if self.cls.__name__ == "Python":
            return "its replacement"
        if self.cls.__name__ == "ForkLoss":
            return "left out"
        if not self.golden and not self.extra:
            return "not shown"
        heads = list(dict.fromkeys(self._head(source) for source in self.sources))
        return ", ".join(heads) or "nothing"

    def _head(self, source: str) -> str:
        name = source.partition("(")[0]
        if source.startswith("not possible"):
            return "not possible"
        if name == self.cls.__name__ or ("(" in source and name.isidentifier() and name[0].isupper()):
            return f"class `{name}`"
        return f"`{name}`" if re.fullmatch(r"(nn|F|torch|torchvision\.ops)\.\w+", name) else "an expression"

    def measured(self, kind: str) -> dict[str, str]:
        return {name: self.support[name][kind] for name in (*self.golden, *self.extra) if name in self.support}

    def verdict(self, kind: str) -> str:
        """yes, no, or how many of the cases."""
        if self.cls.source:
            return "an input"
        found = self.measured(kind)
        good = sum(not reason for reason in found.values())
        return (
            "not measured"
            if not found
            else "yes"
            if good == len(found)
            else f"{good} of {len(found)}" * (good > 0) or "no"
        )

    def verified(self) -> str:
        """What tells that the numbers of a type are right."""
        name = self.cls.__name__
        if not computes(name):
            return (
                "an input"
                if self.cls.source
                else "no top"
                if has(name, Trait.SINK)
                else "not verified: caffe-port does not compute it"
            )
        forks = json.loads(GOLDENS.read_text(encoding="utf-8")) if GOLDENS.exists() else {}
        means = [
            f"Caffe 1.0 ({len(self.golden)})" if self.golden else "",
            f"brocolli-caffe ({forks[name]})" if name in forks else "",
            "OpenCV" if name in agrees_with_opencv() else "",
            "a formula" if name in FORMULAS else "not verified by a formula",
        ]
        return ", ".join(filter(None, means))

    def row(self) -> str:
        names = " ".join([anchor(self.cls.__name__), *aliases(self.cls)[:3]]) + " ..." * (len(aliases(self.cls)) > 3)
        blobs = ", ".join(self.cls.blobs)
        cells = [
            names,
            family(self.cls),
            self.in_short(),
            blobs,
            self.verdict("onnx"),
            self.verdict("pt2"),
            self.verified(),
        ]
        return f"| {' | '.join(cells)} |"

    def section(self) -> Iterator[str]:
        cls = self.cls
        yield f"### {cls.__name__}"
        origin = "Caffe 1.0" if self.standard else "Forks, not Caffe 1.0"
        also = f" Also called {', '.join(f'`{name}`' for name in aliases(cls))}." if aliases(cls) else ""
        yield f"{origin}.{also}"
        yield from paragraphs(cls)
        if cls.blobs and not any(text.startswith("**Blobs:**") for text in paragraphs(cls)):
            yield f"**Blobs:** {', '.join(cls.blobs)}"
        if cls.source:
            yield "**In model.py:** no module; its tops are arguments of `forward`."
            return
        if cls.labels:
            yield "For labels only: `convert` leaves it out unless `--keep-loss`."
        if self.sources:
            examples: dict[str, str] = {}
            for source in self.sources:
                examples.setdefault(self._head(source) if self._head(source) != "an expression" else source, source)
            some = [source if source.startswith("not possible") else f"`{source}`" for source in examples.values()][:4]
            yield f"**In model.py:** {', '.join(some)}"
        for kind, name in (("onnx", "ONNX"), ("pt2", "pt2")):
            reasons: dict[str, list[str]] = {}
            for at, reason in self.measured(kind).items():
                if reason:
                    reasons.setdefault(reason, []).append(at)
            told = "".join(f" {', '.join(names)}: {plain(reason)}." for reason, names in reasons.items())
            yield f"**{name}:** {self.verdict(kind)}.{told}"
        files = ", ".join(f"`{path}`" for path in proofs([cls.__name__, *aliases(cls)]))
        yield f"**Verified by:** {self.verified()}"
        if self.golden:
            yield f"**Golden cases ({len(self.golden)}):** {', '.join(self.golden)}"
        elif files:
            yield f"**Tested by:** {files}"


def count_goldens(folder: Path) -> None:
    """Keeps how many nets of a folder are about each type: ``type_case.prototxt``."""
    stems = [path.stem.partition("_")[0] for path in folder.glob("*.prototxt")]
    counts = {name: stems.count(name.lower()) for name in sorted(classes(), key=str.lower) if name.lower() in stems}
    GOLDENS.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def agrees_with_opencv() -> set[str]:
    """The types of which benchmarks/opencv_deviations.py found cases in which OpenCV and the formula agree."""
    table = (HERE / "verification.md").read_text("utf-8").split("<!-- opencv -->")[1].split("<!-- /opencv -->")[0]
    rows = re.findall(r"^\| (\w+) \| \d+ \| (\d+) \|", table, re.MULTILINE)
    return {type_ for type_, agrees in rows if int(agrees)}


def plain(reason: str) -> str:
    """A reason as text in markdown."""
    text = re.sub(r"([\\`*_<>|\[\]])", r"\\\1", reason.partition(". ")[0])
    return text.rstrip(".")


def entries() -> dict[str, Entry]:
    support = json.loads(SUPPORT.read_text(encoding="utf-8"))["cases"] if SUPPORT.exists() else {}
    found = {name: Entry(cls, [], [], [], support) for name, cls in classes().items()}
    for name in (*golden_names(), *EXTRA):
        for type_ in types_of(name):
            at = case(name)
            (found[type_].golden if at.golden else found[type_].extra).append(name)
            found[type_].sources += [s for s in shown(at, type_) if s not in found[type_].sources]
    return found


INTRO = """
# Layer types

All layer types of caffe-port, how they differ from PyTorch's, and what they become. Generated by `docs/make_layers.py`
from the classes under `caffe_port/layers/`: do not edit it. Custom types:
[custom-layers.md](custom-layers.md).

- **In model.py**: the module or the expression in model.py. "class" means that torch has no equivalent: the class is
  copied into model.py, with its docstring.
- **ONNX, pt2**: measured. The model.py of every case, in `eval()`, was exported with `--format onnx` and
  run in onnxruntime, and exported with `--format pt2` and loaded again; "yes" means that outputs agree within 1e-4 of
  the largest value. For "no" and "3 of 4", the reason is given below. With {versions}.
- **Verified by**: what tells that the numbers are right: figures that **Caffe 1.0** or **brocolli-caffe** computed,
  with the number of nets; **OpenCV**, where it agrees with Caffe; **a formula**, written in NumPy from the source of
  the fork that owns the type, with which `verify --against numpy` compares. Where there is none, `verify` counts the
  layer as not compared.
- **Golden cases**: small nets of `tests/golden/layers`, {goldens} in total, that Caffe 1.0 itself ran; forward and
  gradients must agree. Caffe 1.0 cannot run the types of forks; the page names the file that tests them against
  OpenCV, a loop that follows the fork's source, or values computed by hand.
- Data layers become **inputs** of the Net. Losses and Accuracy are left out unless `--keep-loss`.
""".strip()

SUMMARY = """
How many types are verified, and by what. Aliases count as types; data layers and what makes no top, which compute
nothing, do not.

| | types | classes |
| --- | ---: | ---: |
"""


def summary(found: list[Entry]) -> str:
    """How many registered types have a formula, a golden of a real Caffe, or neither."""
    forks = json.loads(GOLDENS.read_text(encoding="utf-8")) if GOLDENS.exists() else {}
    computing = [e for e in found if computes(e.cls.__name__)]
    golden = {e.cls.__name__ for e in computing if e.golden or e.cls.__name__ in forks}
    formula = {e.cls.__name__ for e in computing if e.cls.__name__ in FORMULAS}
    groups = {
        "with a formula": formula,
        "with a golden of a real Caffe": golden,
        "with both": formula & golden,
        "with neither": {e.cls.__name__ for e in computing} - formula - golden,
    }
    lines = []
    for title, names in groups.items():
        types = sum(1 + len(aliases(e.cls)) for e in computing if e.cls.__name__ in names)
        listed = f": {', '.join(sorted(names))}" if title == "with neither" and names else ""
        lines.append(f"| {title}{listed} | {types} | {len(names)} |")
    return SUMMARY.strip("\n") + "\n" + "\n".join(lines)


HEAD = "| type | family | in model.py | blobs | ONNX | pt2 | {} |\n| --- | --- | --- | --- | --- | --- | --- |"


def page() -> str:
    """The text of docs/layers.md."""
    found = entries()
    told = json.loads(SUPPORT.read_text(encoding="utf-8"))["versions"] if SUPPORT.exists() else {}
    versions = ", ".join(f"{name} {version}" for name, version in told.items())
    blocks = [INTRO.format(versions=versions, goldens=len(golden_names())), summary(list(found.values()))]
    standard = [e for e in found.values() if e.standard]
    forks = [e for e in found.values() if not e.standard]
    blocks.append(f"## Caffe 1.0\n\nAll {len(standard)} types.")
    blocks.append("\n".join([HEAD.format("verified by"), *(e.row() for e in standard)]))
    count = sum(1 + len(aliases(e.cls)) for e in forks)
    blocks.append(
        f"## Forks\n\n{count} types, {len(forks)} classes. Aliases are names that other forks use for the same type."
    )
    blocks.append("\n".join([HEAD.format("verified by"), *(e.row() for e in forks)]))
    several = [name for name in golden_names() if not types_of(name)]
    blocks.append(f"Golden cases of several layers: {', '.join(several)}.")
    blocks.append("## Not supported\n\nThese types are rejected; the error says what to do instead.")
    blocks.append("\n".join(f"- `{name}`: {why}." for name, why in sorted(UNSUPPORTED.items())))
    for name in sorted({family(e.cls) for e in found.values()}):
        blocks.append(f"## Family {name}")
        module = inspect.getdoc(sys.modules[f"caffe_port.layers.{name.replace('/', '.')}"]) or ""
        blocks.append(f"`caffe_port/layers/{name}.py`: " + " ".join(module.split("\n\n")[0].split()).replace("``", "`"))
        for entry in found.values():
            if family(entry.cls) == name:
                blocks += entry.section()
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", metavar="CASE", help="export every case first, or those named")
    parser.add_argument("--goldens", type=Path, metavar="FOLDER", help="count the nets that a fork ran first")
    options = parser.parse_args()
    only = options.measure
    if options.goldens is not None:
        count_goldens(options.goldens)
    if only is not None:
        measure_all(only)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
