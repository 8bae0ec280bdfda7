"""Net: a Caffe net as an nn.Module. Its two phases are ``train()`` and ``eval()``.

Source of the semantics: net.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port import layers
from caffe_port.definition import structure
from caffe_port.definition.stored_blobs import for_layers, renamed
from caffe_port.errors import CaffePortError, SpecError, did_you_mean, first_line, out_of_memory
from caffe_port.formats.caffemodel import Weights
from caffe_port.formats.message import Message
from caffe_port.layers import fillers
from caffe_port.layers.layer import Layer
from caffe_port.layers.linear import InnerProduct
from caffe_port.net import fusion, summary
from caffe_port.net.execution import Execution
from caffe_port.net.identifiers import identifiers
from caffe_port.net.plan import Plan, Step
from caffe_port.net.state_dict import LARGE
from caffe_port.net.unfilled import unfilled
from caffe_port.signatures import shapes
from caffe_port.signatures.normalization import row_shape
from caffe_port.signatures.signature import Trait
from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.terminal import human_bytes
from caffe_port.typing import Array, Shape

Outputs = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class LayerRun:
    """What :meth:`Net.steps` yields: a layer, what it read, what it made."""

    layer: LayerSpec
    module: Layer
    bottoms: tuple[Tensor, ...]
    tops: tuple[Tensor, ...]


@dataclass(frozen=True)
class LoadReport:
    """What loading weights did, by layer name.

    Attributes:
        loaded: layers that got their blobs.
        initialised: layers of the net that the file does not hold; initialized from their fillers.
        unused: layers of the file that the net does not have.
    """

    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]


class Net(nn.Module):
    """A net with modules named as in Caffe (``net.conv1``), made safe for Python where need be (``net.names``).

    Args:
        test: the net in phase TEST, what ``eval()`` computes.
        shapes: shape of every input blob, by blob name.
        train: the net in phase TRAIN; None: the layers of ``test``, whose modules still know train() from eval().
        seed: seed of the fillers; None leaves the parameters to :meth:`load_weights`.
        stand_in: the class of the layers that no class is known for; None: they are refused.

    Raises:
        UnsupportedLayerError: names every layer of a type that is not registered.
        SpecError: parameters that make no sense, with layer and line.
    """

    def __init__(
        self,
        test: NetSpec,
        shapes: Mapping[str, Shape],
        train: NetSpec | None = None,
        seed: int | None = 0,
        stand_in: type[Layer] | None = None,
    ) -> None:
        super().__init__()
        specs = {False: test, True: train or test}
        if stand_in is None:
            structure.check_types(specs.values())
        named = dict.fromkeys(layer.name for spec in specs.values() for layer in spec.layers)
        taken = set(dir(nn.Module)) | set(dir(Net)) | {"training", "names", "plans", "scales", "copies"}
        self.names: dict[str, str] = identifiers(named, taken)
        self.plans: dict[bool, Plan] = {}
        self.scales: dict[str, str] = {}  # BatchNorm -> the Scale after it, by attribute; the two are one in eval()
        self._train_names: dict[str, str] = {}  # layers that TRAIN defines so differently that it has its own module
        built: dict[str, tuple[LayerSpec, tuple[Shape, ...]]] = {}
        for training, spec in specs.items():
            if training and spec is test:
                self.plans[True] = self.plans[False]
            else:
                self.plans[training] = self._plan(spec, shapes, built, training, stand_in)
        self._allocate()
        self.scales = fusion.scales(self, self.plans)
        self.plans = {training: fusion.with_operations(self, plan) for training, plan in self.plans.items()}
        self.plans[False] = fusion.together(self.plans[False], self.scales, fusion.affine)
        if seed is not None:
            self.initialise(seed)
        self.eval()

    # -- building -----------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        """Gives the parameters, which are on the meta device so far, memory."""
        try:
            self._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))  # to_empty would import sympy, for a second
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            sizes = {
                step.attribute: (sum(t.nbytes for t in getattr(self, step.attribute).parameters()), step.layer)
                for plan in self.plans.values()
                for step in plan.steps
            }
            size, layer = max(sizes.values(), key=lambda pair: pair[0])
            what = f"not enough memory for its parameters, {human_bytes(size)}"
            whole = human_bytes(sum(size for size, _ in sizes.values()))
            raise layer.error(what, f"The net needs {whole} for all parameters.") from None

    def _plan(
        self,
        spec: NetSpec,
        shapes: Mapping[str, Shape],
        built: dict[str, tuple[LayerSpec, tuple[Shape, ...]]],
        training: bool,
        stand_in: type[Layer] | None,
    ) -> Plan:
        slot: dict[Producer, int] = {}
        inferred: dict[Producer, Shape] = {}
        for blob, producer in spec.inputs:
            structure.check_input(blob, shapes, spec.path)
            slot[producer], inferred[producer] = len(slot), tuple(shapes[blob])
        last_read = {s: i for i, layer in enumerate(spec.layers) for s in layer.producers}
        kept = {producer for _, producer in spec.outputs}
        steps, losses = [], []
        for index, layer in enumerate(spec.layers):
            module = self._module(layer, [inferred[s] for s in layer.producers], built, stand_in)
            if module is None:
                continue
            tops = _infer(layer, module, [inferred[s] for s in layer.producers])
            for k, shape in enumerate(tops):
                slot[layer.name, k], inferred[layer.name, k] = len(slot), shape
            weights = structure.loss_weights(layer, module.signature)
            losses += [(slot[layer.name, k], w) for k, w in enumerate(weights) if w]
            kept |= {(layer.name, k) for k, w in enumerate(weights) if w}
            tops_here = {(layer.name, k) for k in range(len(tops))}
            dead = {s for s in (*layer.producers, *tops_here) if last_read.get(s, index) == index and s not in kept}
            steps.append(
                Step(
                    layer,
                    self._attribute(layer.name, training),
                    tuple(slot[s] for s in layer.producers),
                    tuple(slot[layer.name, k] for k in range(len(tops))),
                    module.per_bottom and len(layer.producers) > 1,
                    tuple(sorted(slot[s] for s in dead)),
                )
            )
        outputs = tuple((blob, slot[producer]) for blob, producer in spec.outputs)
        return Plan(spec, tuple(steps), len(slot), tuple(b for b, _ in spec.inputs), outputs, tuple(losses), inferred)

    def _attribute(self, name: str, training: bool) -> str:
        return (training and self._train_names.get(name)) or self.names[name]

    def _module(
        self,
        layer: LayerSpec,
        bottoms: list[Shape],
        built: dict[str, tuple[LayerSpec, tuple[Shape, ...]]],
        stand_in: type[Layer] | None,
    ) -> Layer | None:
        try:
            cls = layers.class_of(layer.param) or stand_in
        except SpecError as error:  # Python code that nothing stands for
            if stand_in is None:
                raise layer.error(error.what, error.hint) from None
            cls = stand_in
        assert cls is not None
        if cls.source:
            return None
        attribute = self.names[layer.name]
        first = built.get(layer.name)
        if first is not None and first[0].type == layer.type:
            same_shapes = first[1] == tuple(bottoms)
            if first[0].param is layer.param and same_shapes:
                return getattr(self, attribute)  # type: ignore[no-any-return]
        try:
            with layer.checked(), unfilled():
                module = cls.build(layer.param, bottoms)
                if first is not None:
                    other: Layer = getattr(self, attribute)
                    if type(other) is type(module):
                        if other.args == module.args:
                            return other
                        merged = cls.merge_phases(module.args, other.args)
                        if merged is not None:
                            module = cls.make(merged)
                            self.add_module(attribute, module)
                            return module
        except RuntimeError as error:  # a shape beyond PyTorch's range
            raise layer.error(first_line(error)) from None
        if cls is not stand_in:
            structure.check_params(layer, {name: getattr(module, name).shape for name in module.blob_names()})
        if first is not None:
            twin = getattr(self, attribute)
            structure.check_phases(layer, *([b.shape for b in map(m.get_blob, m.blob_names())] for m in (module, twin)))
            attribute = f"{attribute}__train"
            while attribute in self.names.values():
                attribute += "_"
            self._train_names[layer.name] = attribute
        else:
            built[layer.name] = (layer, tuple(bottoms))
        self.add_module(attribute, module)
        return module

    def _apply(self, fn: Any, recurse: bool = True) -> Net:
        """to(), cuda() and double() replace buffers one by one: those that are shared are shared again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tie()
        return self

    def _tie(self) -> None:
        """Shares blobs that ``param { name }`` names alike, and those of a layer of which each phase has a module.

        Blobs that share_mode PERMISSIVE shares in another shape are listed in ``copies``: they hold equal values.
        """
        self.copies: list[tuple[LayerSpec, Layer, str, Layer, str]] = []
        owners: dict[str, tuple[LayerSpec, Layer, str]] = {}
        for training in (False, True):
            for step in self.plans[training].steps:
                module, twin = getattr(self, step.attribute), getattr(self, self.names[step.layer.name])
                if not (isinstance(module, Layer) and isinstance(twin, Layer)):
                    continue  # a module that a user put there
                if twin is not module and twin.blob_names() == module.blob_names():
                    for name in module.blob_names():
                        setattr(module, name, getattr(twin, name))
                for name, param in zip(module.blob_names(), step.layer.param.param, strict=False):
                    if not param.name:
                        continue
                    owner, owner_module, owner_blob = owners.setdefault(param.name, (step.layer, module, name))
                    if not _share(step.layer, module, name, owner, owner_module, owner_blob, param.share_mode):
                        self.copies.append((step.layer, module, name, owner_module, owner_blob))

    def _copy(self, stored: Collection[str]) -> None:
        """Gives the blobs in ``copies`` equal values: what the last of their layers in a file has, as in Caffe."""
        for layer, module, name, owner, blob in self.copies:
            if layer.name in stored:
                owner.set_blob(blob, module.get_blob(name).reshape(owner.get_blob(blob).shape))
        for _, module, name, owner, blob in self.copies:
            module.set_blob(name, owner.get_blob(blob).reshape(module.get_blob(name).shape))

    def train(self, mode: bool = True) -> Net:
        """Switches to phase TRAIN, or to TEST."""
        fusion.forget(self)
        return super().train(mode)

    # -- running ------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The plan of the present phase."""
        return self.plans[self.training]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the input blobs, in the order in which the net takes them, in the present phase."""
        return self.plan.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the output blobs, in Caffe's (alphabetical) order, in the present phase."""
        return tuple(blob for blob, _ in self.plan.outputs)

    def extra_repr(self) -> str:
        return f"name={self.plan.spec.name!r}, inputs={self.inputs}, outputs={self.outputs}"

    def _repr_html_(self) -> str:
        return summary.table(self, self.plan)

    def forward(self, *bottoms: Tensor, **named: Tensor) -> Outputs:
        """The outputs for the inputs: in the order of :attr:`inputs`, or by name, as ``net(data=x)``.

        Returns:
            A tensor where the net has one output, else a dict by blob name, in Caffe's (alphabetical) order.
        """
        plan = self.plans[self.training]
        values = self._run(plan, bottoms, named)
        if len(plan.outputs) == 1:
            return values[plan.outputs[0][1]]  # type: ignore[return-value]
        return {blob: values[slot] for blob, slot in plan.outputs}  # type: ignore[misc]

    def forward_with_loss(self, *bottoms: Tensor, **named: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The outputs by blob name, and the sum of all losses, each times its loss_weight.

        Raises:
            CaffePortError: the net has no loss (the deploy view drops them; see ``keep_loss``).
        """
        plan = self.plans[self.training]
        if not plan.losses:
            raise CaffePortError("the net has no loss", plan.spec.path, "Load it with keep_loss=True.")
        values = self._run(plan, bottoms, named)
        terms = [values[slot].sum() * weight for slot, weight in plan.losses]  # type: ignore[union-attr]
        return {blob: values[slot] for blob, slot in plan.outputs}, torch.stack(terms).sum()  # type: ignore[misc]

    def _run(self, plan: Plan, bottoms: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor | None]:
        execution = Execution(self._modules, plan, _ordered(plan, bottoms, named))
        execution.run(plan.fused)
        return execution.values

    def steps(self, *bottoms: Tensor, **named: Tensor) -> Generator[LayerRun, Sequence[Tensor] | None, None]:
        """Runs layer by layer and yields what each layer read and made.

        ``send(tops)`` replaces the layer's tops, so that the layers downstream read those: fed
        with a reference's tops, every layer runs on the reference's own bottoms.
        """
        plan = self.plans[self.training]
        execution = Execution(self._modules, plan, _ordered(plan, bottoms, named))
        for step in plan.steps:
            module: Any = self._modules[step.attribute]
            tops = execution.tops(step)
            instead = yield LayerRun(step.layer, module, execution.bottoms(step), tops)
            execution.put(step, tops if instead is None else tuple(instead))

    # -- parameters ---------------------------------------------------------------------------------------------

    def caffe_layers(self) -> dict[str, Layer]:
        """The modules by Caffe's layer names, in the net's order."""
        return {
            step.layer.name: getattr(self, self.names[step.layer.name])
            for training in (False, True)
            for step in self.plans[training].steps
        }

    def initialise(self, seed: int = 0, only: Sequence[str] | None = None) -> None:
        """Initializes parameters from their fillers, as Caffe does before training.

        Args:
            seed: of NumPy's PCG64.
            only: names of the layers; None for all.
        """
        rng = np.random.Generator(np.random.PCG64(seed))
        filled: set[int] = set()  # a shared blob is its first layer's
        specs = {s.layer.name: s.layer for training in (True, False) for s in self.plans[training].steps}
        for name, module in self.caffe_layers().items():
            if only is not None and name not in only:
                filled.update(id(getattr(module, blob)) for blob in module.blob_names())
                continue
            layer = specs[name]
            by_blob = module.fillers(module.own_message(layer.param)) if module.blob_names() else {}
            for blob in module.blob_names():
                if id(getattr(module, blob)) in filled:
                    continue
                filled.add(id(getattr(module, blob)))
                shape = tuple(module.get_blob(blob).shape)
                try:
                    value = fillers.fill(by_blob[blob], shape, rng) if blob in by_blob else np.zeros(shape, np.float32)
                except SpecError as error:
                    raise layer.error(error.what, error.hint) from None
                module.set_blob(blob, torch.from_numpy(value))
        self._copy(())

    def load_weights(self, weights: Weights, share: bool = False, fill: bool = True) -> LoadReport:
        """Copies blobs by layer name, as Caffe's CopyTrainedLayersFrom.

        Args:
            fill: initialize layers that are not in the file from their fillers; else they keep what they have. Blobs
                that they share with a layer of the file are loaded with that layer.
            share: large parameters become views of the blobs, which must be writable; see :meth:`Layer.share_blobs`.

        Raises:
            WeightsError: no layer of the net is in the file, or any layer's blobs have another number or shape;
                then nothing was copied.
        """
        modules = self.caffe_layers()
        phases = [[step.layer for step in self.plans[training].steps] for training in (False, True)]
        weights = renamed(weights, phases)
        held = for_layers(weights, [layer.param for layers_ in phases for layer in layers_])
        stored = held.by_name()
        targets = {name: module for name, module in modules.items() if module.blob_names()}
        matched = [name for name in targets if name in stored]
        bare = [name for name in modules if name in stored and name not in targets]
        keys = {name: [id(getattr(module, blob)) for blob in module.blob_names()] for name, module in modules.items()}
        structure.check_blobs(held, weights, keys, lambda name, arrays: modules[name].mismatch(arrays))
        absent = [name for name in targets if name not in stored]
        if absent and fill:  # first, for a layer of the file may share their blobs
            self.initialise(only=absent)
        for name in (*matched, *bare):
            if share:
                modules[name].share_blobs(stored[name].blobs, LARGE)
            else:
                modules[name].load_blobs(stored[name].blobs)
        self._copy(stored)
        loaded = {id(getattr(modules[name], blob)) for name in matched for blob in targets[name].blob_names()}
        drawn = [n for n in absent if any(id(getattr(targets[n], b)) not in loaded for b in targets[n].blob_names())]
        known = set(self.names)
        return LoadReport((*matched, *bare), tuple(drawn), tuple(name for name in stored if name not in known))

    def blobs(self) -> dict[str, list[Array]]:
        """Every layer's blobs as Caffe stores them: layer name -> float32 arrays (copies)."""
        params = {layer.name: layer.param for plan in self.plans.values() for layer in plan.spec.layers}
        return {
            name: [_stored(module.get_blob(b), module, params.get(name)) for b in module.blob_names()]
            for name, module in self.caffe_layers().items()
            if module.blob_names()
        }


def _stored(blob: Tensor, module: Layer, param: Message | None) -> Array:
    """A copy of a blob in the shape that Caffe asks for."""
    array = blob.detach().cpu().float().numpy().copy()
    rows = param is not None and array.ndim == 1 and module.signature.has(Trait.ROWS)
    return array.reshape(row_shape(param, array.size)) if rows and param is not None else array


def _ordered(plan: Plan, bottoms: Sequence[Tensor], named: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """The inputs in the plan's order, which were given by position or by name."""
    if not named and len(bottoms) == len(plan.inputs):
        return bottoms
    takes = f"the net takes {len(plan.inputs)} input{'s' * (len(plan.inputs) != 1)} ({', '.join(plan.inputs)})"
    path = plan.spec.path
    if not named:
        raise CaffePortError(f"{takes}, got {len(bottoms)}", path)
    if bottoms:
        raise CaffePortError(
            f"{takes} by position or by name, got {len(bottoms)} by position and {structure.few(named)}", path
        )
    for name in named:
        if name not in plan.inputs:
            raise CaffePortError(f"{takes}, got '{name}'", path, did_you_mean(name, plan.inputs).strip())
    if missing := [name for name in plan.inputs if name not in named]:
        raise CaffePortError(f"{takes}, got none for {structure.few(missing)}", path)
    return [named[name] for name in plan.inputs]


# -- checks ---------------------------------------------------------------------------------------------------------


def _infer(layer: LayerSpec, module: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """Top shapes: by rule where there is one, since the meta device takes seconds to load; others are run there."""
    if shapes.rule_of(layer) is not None:
        tops = shapes.top_shapes(layer, bottoms)
    else:
        tops = infer_by_running(layer, module, bottoms)
    structure.check_tops(layer, tops, len(bottoms))
    return tops


def infer_by_running(layer: LayerSpec, module: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    """Top shapes, by running the layer on the meta device, where tensors have shapes and no numbers."""
    try:
        inputs = [torch.empty(shape, device="meta") for shape in bottoms]
        with torch.no_grad(), torch.device("meta"):
            module.eval()
            if module.per_bottom and len(inputs) > 1:
                made: Any = tuple(module.infer(x) for x in inputs)
            else:
                made = module.infer(*inputs)
    except SpecError as error:
        raise layer.error(error.what, error.hint) from None
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError) as error:
        shown = ", ".join(str(tuple(s)) for s in bottoms) or "none"
        raise layer.error(f"does not fit its bottoms of shape {shown}: {first_line(error)}") from None
    tops = made if isinstance(made, tuple) else () if made is None else (made,)
    return [tuple(top.shape) for top in tops]


def _share(
    layer: LayerSpec, module: Layer, blob: str, owner: LayerSpec, owner_module: Layer, owner_blob: str, mode: str
) -> bool:
    """Makes two blobs one. False where they have equal numbers of values in other shapes, and share_mode allows it.

    Source: net.cpp (AppendParam)
    """
    mine, theirs = getattr(module, blob), getattr(owner_module, owner_blob)
    if mine is theirs:
        return True
    pair = ((module, blob), (owner_module, owner_blob))
    if len({_is_turned(*one) for one in pair}) > 1:
        for one, name in pair:
            if isinstance(one, InnerProduct) and _is_turned(one, name):
                one.keep_caffe_layout()
        mine, theirs = getattr(module, blob), getattr(owner_module, owner_blob)
    if mine.shape != theirs.shape:
        if mode == "PERMISSIVE" and mine.numel() == theirs.numel():
            return False
        shapes = (tuple(one.get_blob(name).shape) for one, name in pair)
        what = f"shares {blob} {next(shapes)} with layer '{owner.name}', whose blob is {next(shapes)}"
        raise layer.error(what, "Caffe's share_mode PERMISSIVE allows other shapes, of as many values.")
    setattr(module, blob, theirs)
    return True


def _is_turned(module: Layer, blob: str) -> bool:
    """Whether a weight is (C_out, C_in) here, and (C_in, C_out) in Caffe."""
    return isinstance(module, InnerProduct) and blob == "weight" and module.transpose and not module.caffe_layout
