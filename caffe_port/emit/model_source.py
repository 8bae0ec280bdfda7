"""The text of model.py: the class of a net, the layer classes that torch does not have, and the weights it loads.

No data of the net becomes code: names are turned into identifiers, everything else goes through ``repr``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_port.data.preprocessing import Preprocessing
from caffe_port.emit import fold as folding
from caffe_port.emit import preprocess_source
from caffe_port.emit.copied_classes import Copied, Import, constructor_call, quoted
from caffe_port.emit.forward_method import MARK as MARK
from caffe_port.emit.forward_method import Body, Call, Flow, flow, wrap
from caffe_port.emit.frozen_batch_norm import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from caffe_port.errors import CaffePortError
from caffe_port.layers.activation import ReLU
from caffe_port.layers.layer import Layer
from caffe_port.layers.linear import Scale
from caffe_port.layers.normalization import BN, BatchNorm
from caffe_port.layers.shape import Reshape
from caffe_port.net import fusion
from caffe_port.net.identifiers import identifiers
from caffe_port.net.net import Net
from caffe_port.net.plan import Plan, Step
from caffe_port.spec import top_name
from caffe_port.terminal import count
from caffe_port.version import __version__

_TAKEN = {"Tensor", "F", "nn", "Any", "Path", "CLASSES", "preprocess", "numpy"}
"""Names that model.py may bind, besides those of copied classes."""

_ON_A_CPU = (
    "to() orders the weights for a CPU once, instead of in every pass. For batches on Linux, start Python with",
    "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647, which keeps freed memory: up to twice as fast.",
)


@dataclass(frozen=True)
class Model:
    """A net as source.

    Attributes:
        class_name: the name of the net's class in ``source``.
        source: the text of model.py.
        state: the argument of its ``load_state_dict``; tied parameters are listed under each of their keys.
        attributes: Caffe's layer name -> attribute; None if the layer became an expression or was dropped.
        inputs: input blob -> argument of ``forward``, in the order of the arguments.
        notes: warnings.
        per_item: whether it takes any batch size where the Net has one written out.
    """

    class_name: str
    source: str
    state: dict[str, Tensor]
    attributes: dict[str, str | None]
    inputs: dict[str, str]
    notes: tuple[str, ...]
    per_item: bool = False


def model(
    net: Net,
    fold: bool = False,
    channels_last: bool = False,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
    marked: bool = False,
) -> Model:
    """The source of a net. A BatchNorm and the Scale that follows are one affine BatchNorm.

    Args:
        fold: fold BatchNorm, BN and Scale into the weights of the Convolution or InnerProduct before them; for
            inference, because train() then computes what eval() does.
        channels_last: it computes in that memory format; parameters and outputs are contiguous as ever.
        preprocessing: how an image becomes the net's only input, the result of
            :func:`caffe_port.emit.preprocess_source.fitted`; None: no ``preprocess`` is written.
        classes: names by label.
        marked: mark the tops of every layer with their names, by a function :data:`MARK` that the source does not have;
            for exports that keep the names.

    Raises:
        CaffePortError: a layer cannot be written as self-contained source.
    """
    return _Writer(net, fold, channels_last, marked).model(preprocessing, classes)


class _Writer:
    def __init__(self, net: Net, fold: bool, channels_last: bool, marked: bool = False) -> None:
        self.net, self.channels_last, self.marked = net, channels_last, marked
        self.modules: dict[str, Layer] = {}
        self.layer_names: dict[str, str] = {}
        self.steps: dict[str, list[Step]] = {}
        for training in (False, True):
            for step in net.plans[training].steps:
                self.modules.setdefault(step.attribute, getattr(net, step.attribute))
                self.layer_names.setdefault(step.attribute, step.layer.name)
                self.steps.setdefault(step.attribute, []).append(step)
        self.unfixed = self._unfix_batches()
        self.attributes = {id(module): attribute for attribute, module in self.modules.items()}
        self.order = _in_order(net)
        self.folded = {scale: norm for norm, scale in net.scales.items()}  # a layer -> the one it is folded into
        self.absorbed = folding.absorbed(net) if fold else {}
        self.folded.update(self.absorbed)
        self.inside: dict[str, list[str]] = {}  # a layer -> those folded into it, in the net's order
        for name in (name for name in self.order if name in self.folded):
            self.inside.setdefault(self.folded[name], []).append(name)
        self.copied = Copied()
        self.state: dict[str, Tensor] = {}
        self.shown: list[str] = []

    def _unfix_batches(self) -> list[str]:
        """Lets each Reshape that writes out the batch size of the net keep that of its input; their layer names."""
        unfixed = []
        for plan in self.net.plans.values():
            batches = {plan.shapes[source][:1] for _, source in plan.spec.inputs}
            for step in plan.steps:
                module = self.modules[step.attribute]
                if not isinstance(module, Reshape) or module.start or not module.dims or len(batches) != 1:
                    continue
                (batch,) = batches
                bottom = plan.shapes[step.layer.producers[0]]
                if (module.dims[0],) == batch == bottom[:1]:
                    self.modules[step.attribute] = Reshape((0, *module.dims[1:]), module.start, module.end)
                    unfixed.append(step.layer.name)
        return list(dict.fromkeys(unfixed))

    def model(self, preprocessing: Preprocessing | None, classes: Sequence[str]) -> Model:
        init = self._init()
        methods, inputs = self._methods()
        around: list[str] = []
        if preprocessing is not None:
            plan = self.net.plans[False]
            around, imports = preprocess_source.lines(preprocessing, plan.shapes[plan.spec.inputs[0][1]], classes)
            self.copied.imports |= imports
        self.copied.imports |= {Import("torch", "Tensor", "Tensor"), Import("torch", "nn", "nn")}
        name = class_name(self.net.plans[False].spec.name, set(self.copied.names) | _TAKEN)
        text = [
            f'"""{self._header(name)}"""',
            "",
            *(["from __future__ import annotations", ""] if self.copied.blocks else []),
            *self.copied.import_lines(),
            "",
        ]
        previous = ""
        for kind, lines in self.copied.blocks:
            text += ([] if previous == kind == "assignment" else [""] if kind == "assignment" else ["", ""]) + lines
            previous = kind
        text += ["", "", f"class {name}(nn.Module):", f'    """{self._class_docstring()}"""', ""]
        text += ["    def __init__(self) -> None:", "        super().__init__()", *init, *methods, *around]
        source = "\n".join(text).replace("\n\n\n\n", "\n\n\n") + "\n"
        attributes: dict[str, str | None] = {}
        for step in (*self.net.plans[False].steps, *self.net.plans[True].steps):
            attribute = self.folded.get(step.attribute, step.attribute)
            attributes.setdefault(step.layer.name, attribute if attribute in self.shown else None)
        notes: tuple[str, ...] = ()
        if self.unfixed:
            named = ", ".join(self.unfixed[:3]) + (", ..." if len(self.unfixed) > 3 else "")
            notes += (f"Reshape layers with the batch size written out keep that of the input instead ({named})",)
        if self.absorbed:
            n = len(self.absorbed)
            into = f"{count(n, 'layer was', 'layers were')} folded into the weights of the layers before them"
            notes += (f"{into}: for inference only; train the model that convert writes without --fold",)
        return Model(name, source, self.state, attributes, inputs, notes, bool(self.unfixed))

    # -- __init__ ---------------------------------------------------------------------------------------------------

    def _init(self) -> list[str]:
        lines = []
        for attribute in self.order:
            if attribute in self.folded or not self._called(attribute):
                continue
            module = self.modules[attribute]
            if self._expression(module) is not None:
                continue
            source, state = self._module_source(attribute, module)
            self.shown.append(attribute)
            self.state.update({f"{attribute}.{key}": value for key, value in state.items()})
            lines += wrap(f"self.{attribute} = {source}", 8)
        for name, owner in self._ties():
            lines.append(f"        self.{name} = self.{owner}")
        return lines

    def _called(self, attribute: str) -> bool:
        """Whether the layer has an effect: Silence has no tops and no state."""
        return any(s.tops for s in self.steps[attribute]) or bool(self.modules[attribute].state_dict())

    def _module_source(self, attribute: str, module: Layer) -> tuple[str, dict[str, Tensor]]:
        """The expression that constructs the module, and its state_dict."""
        inside = self.inside.get(attribute, [])
        if inside and inside[0] in self.absorbed:
            source = (module.torch_source() or "").replace(", bias=False", "")
            return source, folding.weights(module, [self.modules[name] for name in inside])
        if inside:
            affine, state = _affine(module, self.modules[inside[0]])
            return self._frozen(module, affine), state
        written = module.torch_source()
        if written is not None:
            source = self._frozen(module, finite(written, self.copied))
            if isinstance(module, ReLU) and self._in_place(attribute):
                source = f"{source[:-1]}{', ' if module.negative_slope else ''}inplace=True)"
            self.copied.need(source, ())
            return source, module.torch_state()
        try:
            name = self.copied.add_layer(type(module))
            call, arguments = constructor_call(type(module), module.args)
        except CaffePortError as error:
            raise CaffePortError(
                f"layer '{self.layer_names[attribute]}': {error.what}", error.where, error.hint
            ) from None
        assert call == name
        return f"{name}({', '.join(arguments)})", dict(module.state_dict())

    def _in_place(self, attribute: str) -> bool:
        return all(s.operation is fusion.overwrite for s in self.steps[attribute])

    def _frozen(self, module: Layer, source: str) -> str:
        """The constructor call of a BatchNorm that never uses batch statistics, which torch.nn does not have."""
        stays = isinstance(module, BatchNorm) and module.global_stats[0]
        if not stays and not (isinstance(module, BN) and module.frozen):
            return source
        found = re.fullmatch(r"nn\.BatchNorm([123])d\((.*)\)", source)
        if found is None:
            return source
        helper = (FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)[int(found[1]) - 1]
        self.copied.add(helper)
        return f"{helper.__name__}({re.sub(r', momentum=[^,]*', '', found[2])})"

    def _expression(self, module: Layer, *bottoms: str) -> str | None:
        return None if module.state_dict() else module.call_source(*(bottoms or ["x"] * self._bottom_count(module)))

    def _bottom_count(self, module: Layer) -> int:
        steps = self.steps.get(self.attributes.get(id(module), ""), ())
        return next((1 if s.per_bottom else len(s.bottoms) for s in steps), 1)

    def _ties(self) -> Iterator[tuple[str, str]]:
        """(parameter, the earlier one that it is identical to), for parameters and buffers that layers share."""
        owners: dict[tuple[object, ...], str] = {}
        whole: dict[tuple[object, ...], str] = {}
        for key, value in self.state.items():
            attribute, _, name = key.rpartition(".")
            stored = tuple(t.data_ptr() for t in self.modules[attribute].state_dict().values() if t.numel())
            twin = whole.setdefault((type(self.modules[attribute]), stored), attribute) if stored else attribute
            same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            owner = owners.setdefault(same, key) if value.numel() else key
            if owner == key and twin != attribute and value.dim():
                owner = f"{twin}.{name}"  # built anew from blobs that are all shared
            if owner != key:
                yield key, owner

    # -- forward ----------------------------------------------------------------------------------------------------

    def _flow(self, phases: tuple[bool, ...]) -> Flow:
        def alias(step: Step, module: Layer) -> bool:
            if step.attribute in self.folded or step.layer.type == "Split":
                return True
            return len(step.bottoms) == len(step.tops) == 1 and self._expression(module, "x") == "x"

        return flow(self.net.plans, self.modules, alias, self._tuple_of_one, phases)

    def _tuple_of_one(self, plan: Plan, step: Step, module: Layer) -> bool:
        if self._expression(module) is not None or module.torch_source() is not None:
            return False
        with torch.device("meta"), torch.no_grad():
            like = type(module).make(module.args).eval()
            made = like.infer(*(torch.empty(plan.shapes[s]) for s in step.layer.producers))
        return isinstance(made, tuple)

    def _render(self, module: Layer, attribute: str, bottoms: Sequence[str]) -> str:
        source = self._expression(module, *bottoms)
        if source is not None:
            source = finite(source, self.copied)
            self.copied.need(source, {"self"}.union(*(_words(bottom) for bottom in bottoms)))
            return source
        return f"self.{attribute}({', '.join(map(module.bottom_source, bottoms))})"

    def _methods(self) -> tuple[list[str], dict[str, str]]:
        """The lines of forward, with one method per phase if the phases differ; and its arguments."""
        plans = self.net.plans
        merged = self._flow((False,) if _same(plans[False], plans[True]) else (False, True))
        names = self._top_names if self.marked else None
        images = self._images()
        body = Body(merged, self._render, self.copied.names, names, images)
        if body.right:
            return self._method("forward", merged, body), body.parameters
        lines: list[str] = []
        both = Body(Flow([], merged.inputs, {False: ()}), self._render, self.copied.names)
        calls = {}
        for phase, name in ((False, "_forward_test"), (True, "_forward_train")):
            own = self._flow((phase,))
            part = Body(own, self._render, self.copied.names, names, images)
            lines += self._method(name, own, part)
            calls[phase] = f"return self.{name}({', '.join(both.parameters[blob] for blob in own.inputs)})"
        head = self._signature("forward", both.parameters, self._returns(merged))
        head += ["        if self.training:", *wrap(calls[True], 12), *wrap(calls[False], 8)]
        return head + lines, both.parameters

    def _images(self) -> set[str]:
        """The inputs that are taken into channels-last memory, and the outputs that come out of it, by blob name."""
        if not self.channels_last:
            return set()
        self.copied.imports.add(Import("torch", None, "torch"))
        test = self.net.plans[False]
        inputs = {blob for blob, source in test.spec.inputs if _is_image(test.shapes[source])}
        plans = self.net.plans.values()
        return inputs | {blob for plan in plans for blob, top in plan.spec.outputs if len(plan.shapes[top]) == 4}

    def _top_names(self, call: Call) -> list[str]:
        """The name of each top: its layer's, or that of the last layer that was folded into that one."""
        inside = [name for name in self.order if self._root(name) == call.attribute != name]
        names = {layer: self.layer_names[inside[-1]] for layer, _ in call.tops} if inside else {}
        return [top_name(names.get(layer, layer), k) for layer, k in call.tops]

    def _root(self, attribute: str) -> str:
        while attribute in self.folded:
            attribute = self.folded[attribute]
        return attribute

    def _method(self, name: str, flow_: Flow, body: Body) -> list[str]:
        return [*self._signature(name, body.parameters, self._returns(flow_)), *body.lines()]

    def _signature(self, name: str, parameters: Mapping[str, str], returns: str) -> list[str]:
        needed = self.net.plans[False].inputs
        shown = []
        for blob, parameter in parameters.items():
            optional = name == "forward" and blob not in needed
            shown.append(f"{parameter}: Tensor | None = None" if optional else f"{parameter}: Tensor")
        return ["", *wrap(f"def {name}({', '.join(['self', *shown])}) -> {returns}:", 4)]

    @staticmethod
    def _returns(flow_: Flow) -> str:
        kinds = sorted({"Tensor" if len(out) == 1 else "dict[str, Tensor]" for out in flow_.outputs.values()})
        return " | ".join(kinds)

    # -- docstrings -------------------------------------------------------------------------------------------------

    def _header(self, name: str) -> str:
        plan = self.net.plans[False]
        of = f"The Caffe net {quoted(plan.spec.name)}," if plan.spec.name else "A net"
        ranks = {value.dim() for value in self.state.values()}
        reorders = self.channels_last and 4 in ranks and 5 not in ranks  # of which to() raises
        imports = ["    import torch"] if reorders else []
        imports += ["    from safetensors.torch import load_file"] if self.state else []
        lines = [
            f"{of} converted from Caffe by caffe-port {__version__}.",
            "",
            *imports,
            *([""] if imports else []),
            f"    model = {name}()",
            *(['    model.load_state_dict(load_file("weights.safetensors"))'] if self.state else []),
            f"    model.eval(){'.to(memory_format=torch.channels_last)' if reorders else ''}",
            "",
            "eval() is Caffe's phase TEST, train() is TRAIN.",
            *(_ON_A_CPU if reorders else []),
        ]
        return "\n".join(map(escaped, lines)) + "\n"

    def _class_docstring(self) -> str:
        plan = self.net.plans[False]
        inputs = [f"{quoted(blob)} {plan.shapes[source]}" for blob, source in plan.spec.inputs]
        outputs = [f"{quoted(blob)} {plan.shapes[source]}" for blob, source in plan.spec.outputs]
        parts = [("Input", inputs), ("Output", outputs)]
        sentences = [f"{word}{'s' if len(items) > 1 else ''} {', '.join(items)}." for word, items in parts if items]
        text = " ".join(sentences)
        if len(text) <= 100:
            return escaped(text)
        lines: list[str] = []
        for word, items in parts:
            lines += [f"{word}s:", *(f"    {item}" for item in items), ""] if items else []
        return "\n    ".join([escaped(line) for line in lines]).replace("    \n", "\n").rstrip() + "\n    "


def _affine(norm: Layer, scale: Layer) -> tuple[str, dict[str, Tensor]]:
    assert isinstance(scale, Scale)
    assert scale.weight is not None
    source = norm.torch_source()
    assert source is not None
    weight = scale.weight.detach()
    bias = torch.zeros_like(weight) if scale.bias is None else scale.bias.detach()
    return source.replace(", affine=False", ""), {"weight": weight, "bias": bias, **norm.torch_state()}


# -- helpers ----------------------------------------------------------------------------------------------------------


def _in_order(net: Net) -> list[str]:
    """The attributes of both phases' steps, in the net's order; a TRAIN-only step comes before its successor."""
    test = list(dict.fromkeys(step.attribute for step in net.plans[False].steps))
    ends = {attribute: place for place, attribute in enumerate(test, 1)}
    waiting: list[str] = []
    order: list[str] = []
    position = 0
    for attribute in dict.fromkeys(step.attribute for step in net.plans[True].steps):
        if attribute in ends:
            until = ends[attribute]
            order += [*test[position : until - 1], *waiting, attribute] if until > position else []
            waiting = [] if until > position else waiting
            position = max(position, until)
        else:
            waiting.append(attribute)
    return list(dict.fromkeys([*order, *waiting, *test[position:]]))


def _same(a: Plan, b: Plan) -> bool:
    """Whether two plans run the same calls on the same values."""
    if a is b:
        return True
    rows = [[(s.attribute, s.layer.type, s.bottoms, s.tops, s.per_bottom) for s in plan.steps] for plan in (a, b)]
    return rows[0] == rows[1] and a.inputs == b.inputs and a.outputs == b.outputs


def class_name(name: str, taken: set[str]) -> str:
    """A class name for a net's name: ``SimpleNet``, ``Cifar10Full`` for ``cifar10_full``, ``Net`` if it has none."""
    safe = identifiers([name], prefix="Net_")[name] if name.strip() else "Net"
    if not (safe == name and safe[0].isupper()):
        words = [word for word in re.split(r"[^0-9A-Za-z]+", safe) if word]
        safe = "".join(word[0].upper() + word[1:] for word in words)[:60] or "Net"
    while safe in taken:
        safe += "Net"
    return safe


def escaped(text: str) -> str:
    """Text that is safe in a docstring: no quotes that end it, no escapes, no control characters."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return printable.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and shape[2] * shape[3] > 1


def _words(source: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", source))


def finite(source: str, copied: Copied) -> str:
    """Replaces the ``inf`` that repr writes by ``math.inf``."""
    if not re.search(r"\b(inf|nan)\b", source):
        return source
    copied.imports.add(Import("math", None, "math"))
    return re.sub(r"(?<![\w.])(inf|nan)\b", r"math.\1", source)
