"""The options of a training run, and everything that is set up before its first iteration."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port import devices
from caffe_port.api import load_notes
from caffe_port.data import datasets
from caffe_port.data.annotated import AnnotatedFeed
from caffe_port.data.batches import Feed, Prefetch
from caffe_port.data.datasets import ImageFeed
from caffe_port.data.prepare import Preprocessor
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.data.records import RecordFeed, from_layer
from caffe_port.definition.fields import read_by_data, refuse
from caffe_port.errors import CaffePortError, SpecError
from caffe_port.evaluation import registry
from caffe_port.formats import caffemodel, solverstate
from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.net.layout import prefers_channels_last
from caffe_port.net.net import LoadReport, Net
from caffe_port.signatures.signature import signature_of
from caffe_port.spec import LayerSpec, NetSpec
from caffe_port.storage.files import find
from caffe_port.terminal import count
from caffe_port.training import fused_layers, processes, recurrent, solver
from caffe_port.training.optimizers import CaffeOptimizer
from caffe_port.training.run_folder import Claim, RunFolder, restore_random_states, seed_everything
from caffe_port.training.sizes import Sizes
from caffe_port.training.snapshot import restore
from caffe_port.training.solver import SolverSpec
from caffe_port.typing import Array
from caffe_port.version import __version__

Listener = Callable[[dict[str, Any]], None]
"""Called with every event: a dict with ``iter`` and a ``kind``: start, progress, train, testing (after every ``batch``
of ``batches``), test, snapshot, note or end."""


@dataclass(frozen=True)
class TrainOptions:
    """The options that the command line adds to a solver.prototxt.

    Attributes:
        data: a data set by name or path (see :func:`~caffe_port.data.datasets.load`);
            None: what the net's Data layers read.
        root, download: folder of the data set, and whether it may be downloaded.
        entry: registry entry whose preprocessing is used; None: the entry of this solver, otherwise the net's
            transform_param.
        epochs, max_iter, batch_size: override the solver's and the net's settings.
        shuffle: None: databases in sequence, as in Caffe; data sets shuffled.
        weights: weights files to start from, separated by commas; a layer gets its blobs from the last that has it.
            None: the solver's ``weights``.
        resume: True: from the newest complete snapshot in the folder; a path: from that .solverstate.
        fast: channels_last, and amp bf16 if the device has instructions for it, otherwise Winograd's convolutions on a
            CPU; on a GPU also compile and cuda_graph.
        amp: ``"bf16"``: autocast; ``"tf32"``: a GPU's convolutions and matrix products round their factors to 10 bits.
        compile, deterministic: as in PyTorch.
        channels_last: compute in that memory format; None: on a CPU, if the net has convolutions of images.
        cuda_graph: launch each update as one CUDA graph; on a GPU, in one process.
        read_loss_every: iterations between two readings of the loss, each of which synchronizes with the device; None:
            1, or 100 on a GPU. The loss is always read before a display, test or snapshot.
        max_seconds: time limit; the run stops, with a snapshot, after the batch or the tested batch in which it is
            reached, but not before its first update. With several processes: after the iteration.
        seed: None: the solver's random_seed, or 0 if it has none.
        sync_batch_norm: with several processes, compute BatchNorm's statistics over the whole batch; False: over each
            process's rows, as in Caffe.
        keep: number of snapshots to keep; 0: all.
        reference_log: a Caffe log; every test is compared with its accuracy curve.
        ignore_fields: names of fields of the nets to go without, see :func:`caffe_port.port`.
        tensorboard: also write TensorBoard's events, to ``tensorboard`` in the run's folder.
    """

    data: str | None = None
    root: str | None = None
    download: bool = False
    entry: str | None = None
    epochs: float | None = None
    max_iter: int | None = None
    batch_size: int | None = None
    shuffle: bool | None = None
    weights: str | None = None
    resume: bool | str = False
    fast: bool = False
    amp: str | None = None
    compile: bool = False
    channels_last: bool | None = None
    cuda_graph: bool = False
    read_loss_every: int | None = None
    max_seconds: float | None = None
    deterministic: bool = False
    device: str = "cpu"
    seed: int | None = None
    sync_batch_norm: bool = True
    keep: int = 3
    reference_log: str | None = None
    ignore_fields: tuple[str, ...] = ()
    tensorboard: bool = False


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        iter: number of updates done.
        outputs: outputs of the last test, by blob name; those of further test nets as ``"#1 NAME"``.
        best: the best test: ``{"iter": ..., "name": ..., "value": ...}``; None without tests of a trained net.
        stopped: what stopped it early: a signal's name, ``"max_seconds"``, or empty.
        run: the run's folder.
        outputs_iter: the iteration at which each of ``outputs`` was tested.
        train: the last training loss that was reported: ``{"iter": ..., "loss": ...}``, the mean of ``average_loss``
            iterations; None before the first iteration.
    """

    iter: int
    outputs: dict[str, float]
    best: dict[str, Any] | None
    stopped: str
    run: Path
    outputs_iter: dict[str, int] = field(default_factory=dict)
    train: dict[str, Any] | None = None


class WithLoss(nn.Module):
    """A net whose forward returns (outputs, loss), for DistributedDataParallel and torch.compile."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, *bottoms: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return self.net.forward_with_loss(*bottoms)


@dataclass(frozen=True)
class TestNet:
    """A net that is tested: the training's own in phase TEST, or another, whose layers get the blobs of the
    training's layers of the same name before every test.

    Attributes:
        batches: number of batches in a test.
        states: those of its recurrent layers, after its last test.
    """

    __test__ = False  # no tests are in this class, whatever its name

    net: Net
    feeds: list[Feed]
    batches: int
    sizes: Sizes = field(init=False)
    states: recurrent.States = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", Sizes(self.net.plans[False].spec, self.feeds))

    def take_over(self, trained: Net) -> None:
        """Copies the blobs of the trained layers, by name. Source: Net::ShareTrainedLayersWith."""
        if self.net is trained:
            return
        own = self.net.caffe_layers()
        for name, module in trained.caffe_layers().items():
            for blob in module.blob_names() if name in own else ():
                own[name].set_blob(blob, module.get_blob(blob))


@dataclass
class Training:
    """Everything that the training loop needs.

    Attributes:
        best: the best test so far; ``untrained``: that of iteration 0, of a net that was not initialized from weights.
        tested, tested_at: the last value of every output of the test nets, and its iteration.
        trained: the last training loss and its iteration.
        fine_tuned: the net was initialized from weights.
    """

    spec: SolverSpec
    options: TrainOptions
    net: Net
    model: nn.Module
    optimizer: CaffeOptimizer
    feeds: Mapping[str, list[Feed]]
    tests: list[TestNet]
    definition: Message
    device: torch.device
    run: RunFolder
    listen: Listener
    notes: list[str] = field(default_factory=list)
    claim: Claim = field(default_factory=Claim)
    best: dict[str, Any] | None = None
    untrained: dict[str, Any] | None = None
    tested: dict[str, float] = field(default_factory=dict)
    tested_at: dict[str, int] = field(default_factory=dict)
    trained: dict[str, Any] | None = None
    fine_tuned: bool = False
    losses: deque[float] = field(default_factory=deque)
    unread: list[Tensor] = field(default_factory=list)
    read_every: int = 1
    began: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0
    reference: list[tuple[int, float]] = field(default_factory=list)
    drawn: float = field(default_factory=time.monotonic)
    plateau: solver.Plateau | None = None
    start: int = 0
    sizes: Sizes = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = Sizes(self.net.plans[True].spec, self.feeds["TRAIN"])

    def batch(self, number: int) -> list[Tensor]:
        """This process's rows of a batch, in the order of the net's inputs."""
        return [processes.rows(top, bool(self.options.channels_last)) for top in self.sizes.batch(number)]

    @property
    def batch_size(self) -> int:
        """Records of a batch; 1 if the net makes its own data."""
        return self.feeds["TRAIN"][0].batch_size if self.feeds["TRAIN"] else 1

    def seconds(self) -> float:
        """The run's total time, including the time before it was resumed."""
        return self.seconds_before + time.monotonic() - self.began

    def loss_weights(self, test: int = 0) -> dict[str, float]:
        """The outputs of a test net that are losses, with their weights."""
        plan = self.tests[test].net.plans[False]
        weights = dict(plan.losses)
        return {blob: weights[slot] for blob, slot in plan.outputs if slot in weights}

    def remember(self, line: dict[str, Any]) -> None:
        """Takes in the figures of a line of metrics.jsonl."""
        if line["kind"] == "train":
            self.trained = {name: line[name] for name in ("iter", "loss")}
        elif line["kind"] == "test":
            prefix = f"#{line['net']} " if line.get("net") else ""
            self.tested |= {f"{prefix}{name}": value for name, value in line["outputs"].items()}
            self.tested_at |= {f"{prefix}{name}": line["iter"] for name in line["outputs"]}

    def close(self) -> None:
        """Stops the threads that prepare batches."""
        for feed in (*self.feeds["TRAIN"], *(feed for test in self.tests for feed in test.feeds)):
            if isinstance(feed, Prefetch):
                feed.close()
        self.run.close()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        # no cache: every weight is cast once per pass anyway, and a cache could keep tensors that a CUDA graph captured
        return torch.autocast(self.device.type, torch.bfloat16, self.options.amp == "bf16", cache_enabled=False)


def set_up(
    spec: SolverSpec, out: Path, options: TrainOptions, device: torch.device, listen: Listener, claim: Claim
) -> tuple[Training, int]:
    options = _for_device(options, device)
    name = Path(spec.snapshot_prefix).name or Path(spec.path).stem.removesuffix("_solver")
    run = RunFolder(out, name, options.keep, options.tensorboard)
    random_seed = spec.random_seed if spec.random_seed >= 0 else 0
    seed = options.seed if options.seed is not None else random_seed
    torch.backends.cudnn.benchmark = not options.deterministic
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    notes = [*spec.notes, *([devices.NO_BF16] if options.fast and options.amp is None else [])]
    definition, specs, others = _specs(spec, notes)
    phases = ("TRAIN", "TEST") if spec.tests else ("TRAIN",)
    feeds = {phase: _feeds(specs[phase], phase, spec, options, seed, device, notes) for phase in phases}
    if any(isinstance(feed, AnnotatedFeed) for feed in feeds["TRAIN"]) and (options.cuda_graph or options.compile):
        notes.append("the number of boxes differs from batch to batch: without compilation and CUDA graphs")
        options = replace(options, cuda_graph=False, compile=False)
    if spec.scheduled and options.cuda_graph:
        notes.append("the momentum or the weight decay changes: without CUDA graphs")
        options = replace(options, cuda_graph=False)
    if options.epochs is not None:
        if not feeds["TRAIN"]:
            raise SpecError("reads no data, which could be counted in epochs", specs["TRAIN"].path, "Use --max-iter.")
        size, batch = feeds["TRAIN"][0].size, feeds["TRAIN"][0].batch_size * spec.iter_size
        spec = spec.changed(max_iter=math.ceil(options.epochs * size / batch))
    spec = spec.changed(max_iter=options.max_iter)
    net = _net(specs, feeds, seed)
    if recurrent.keep(net) and (options.cuda_graph or options.compile):
        notes.append("recurrent layers go on where the last batch ended: without compilation and CUDA graphs")
        options = replace(options, cuda_graph=False, compile=False)
    loaded = [caffemodel.read(path) for path in _weights(spec, options)]
    notes += _notes([net.load_weights(weights, fill=False) for weights in loaded])
    notes += _unreadable(net) if spec.snapshot_format == "HDF5" else []
    net.to(device).train()
    if options.channels_last is None:
        options = replace(options, channels_last=device.type == "cpu" and prefers_channels_last(net))
    if options.channels_last:
        net.to(memory_format=torch.channels_last)
    if not (options.sync_batch_norm and processes.world_size() > 1):
        fused_layers.fuse(net, relu_dropout=not options.compile)
    if options.fast and options.amp is None and device.type == "cpu" and not options.compile:
        fused_layers.use_winograd(net)
    if options.amp == "bf16":  # bf16 has 8 bits: an accuracy of 0.9532 would become 0.9531
        for module in net.modules():
            if getattr(module, "labels", False):
                module.register_forward_pre_hook(_in_float32)
    optimizer = solver.build(spec, net)
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) in learned)
    _check_classes(net, feeds)
    if spec.detects and spec.tests:
        _check_detections(net.plans[False].spec, spec.eval_type == "detection")
    feeds = {phase: _prefetched(own) for phase, own in feeds.items()}
    tests = [TestNet(net, feeds["TEST"], spec.tests[0])] if spec.tests else []
    for k, other in enumerate(others, 1):
        own = _feeds(other, "TEST", spec, options, seed, device, notes)
        tests.append(TestNet(_test_net(other, own, net, loaded, seed), _prefetched(own), spec.tests[k]))
        tests[-1].net.to(device)
    seed_everything(seed + 1000 * processes.rank())
    training = Training(
        spec, options, net, WithLoss(net), optimizer, feeds, tests, definition, device, run, listen, notes, claim
    )
    training.fine_tuned = bool(loaded)
    training.losses = deque(maxlen=spec.average_loss)
    training.read_every = options.read_loss_every or (1 if device.type == "cpu" else 100)
    if spec.lr_policy == "plateau":
        training.plateau, training.read_every = solver.Plateau(), 1
    if options.reference_log:
        from caffe_port.training import caffe_log

        training.reference = caffe_log.read(options.reference_log).accuracies()
    at = training.start = _resume(training) if options.resume else 0
    if options.sync_batch_norm:
        processes.sync_batch_norm(net)
    training.model = processes.wrap(training.model, device)
    if options.compile:
        training.model = torch.compile(training.model)  # type: ignore[assignment]
    if processes.is_first():
        feed = next(iter(feeds["TEST" if "TEST" in feeds else "TRAIN"]), None)
        plan = feed.preprocessor.plan.as_dict() if isinstance(feed, ImageFeed) else None
        run.write_json(
            "config.json", facts(training) | {"options": asdict(options), "seed": seed, "preprocessing": plan}
        )
        if not at:
            run.rewind(0)
        for text in training.notes:
            listen({"kind": "note", "iter": at, "text": text})
        listen(
            {
                "kind": "start",
                "iter": at,
                "max_iter": spec.max_iter,
                "test_interval": spec.test_interval if spec.tests else 0,
                "batch_size": training.batch_size,
                "records": feeds["TRAIN"][0].size if feeds["TRAIN"] else 0,
            }
        )
    return training, at


def _in_float32(_: nn.Module, bottoms: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in bottoms)


def _for_device(options: TrainOptions, device: torch.device) -> TrainOptions:
    """Expands the option ``fast`` and sets PyTorch's global switches. Raises CaffePortError for unsupported options."""
    gpu, alone = device.type == "cuda", processes.world_size() == 1
    if options.fast:
        amp = options.amp or ("bf16" if devices.has_bf16(device) else None)
        options = replace(
            options,
            amp=amp,
            channels_last=options.channels_last is not False,
            compile=options.compile or gpu,
            cuda_graph=options.cuda_graph or (gpu and alone),
        )
    if options.amp not in (None, "bf16", "tf32"):
        raise CaffePortError(f"amp '{options.amp}' is not supported; expected bf16 or tf32")
    if options.cuda_graph and not (gpu and alone):
        what = f"device {device.type}" if alone else f"{processes.world_size()} processes"
        raise CaffePortError(f"a CUDA graph needs a GPU and one process, got {what}", hint="Omit --cuda-graph.")
    if gpu:  # by default, cuDNN uses TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.amp == "tf32"
    return options


def _specs(spec: SolverSpec, notes: list[str]) -> tuple[Message, dict[str, NetSpec], list[NetSpec]]:
    """The definition to write into caffemodels, the net of each phase, and all test nets but the first."""
    train, tests = spec.definition(), [spec.definition("TEST", k) for k in range(len(spec.tests))]
    ignored = {*spec.ignored, *train.ignored, *(name for test in tests for name in test.ignored)}
    for name in spec.ignore_fields:
        if name not in ignored:
            raise SpecError(f"neither the solver nor a net has a field '{name}' that could be ignored", spec.path)
    specs = [refuse(train.spec("TRAIN", *spec.state("TRAIN")), training=True)]
    for k, test in enumerate(tests):
        specs.append(refuse(test.spec("TEST", *spec.state("TEST", k)), training=True))
    notes += dict.fromkeys(note for one in specs for note in one.notes if note not in read_by_data(one))
    if _in_half_precision(train.net):
        notes.append("the net asks for half precision (FLOAT16), as NVIDIA/caffe has it; it is trained in float32")
    return train.net, {"TRAIN": specs[0], "TEST": specs[min(1, len(tests))]}, specs[2:]


def _in_half_precision(net: Message) -> bool:
    kinds = ("forward_type", "backward_type")
    return any(getattr(net, f"default_{kind}") == "FLOAT16" for kind in kinds) or any(
        getattr(layer, kind) == "FLOAT16" for layer in net.layer for kind in kinds
    )


def _weights(spec: SolverSpec, options: TrainOptions) -> list[Path]:
    """The files to start from, in the order in which they are loaded. Source: LoadNetWeights of solver.cpp.

    Raises:
        SpecError: a file that the solver names does not exist.
    """
    if options.weights:
        whole = Path(options.weights)
        return [whole] if whole.is_file() else [Path(name.strip()) for name in options.weights.split(",")]
    names = [name.strip() for entry in (spec.param.weights if spec.param else ()) for name in entry.split(",")]
    folder = Path(spec.path).parent
    found = [find(name, folder) for name in names]
    for name, path in zip(names, found, strict=True):
        if path is None:
            raise SpecError(f"weights '{name}' do not exist (looked in {folder} and in the current folder)", spec.path)
    return [path for path in found if path is not None]


def _notes(reports: Sequence[LoadReport]) -> list[str]:
    """Notes on the layers that are in none of the files, and on what is in one but not in the net."""
    if not reports:
        return []
    drawn = tuple(name for name in reports[0].initialised if all(name in one.initialised for one in reports))
    return load_notes(LoadReport((), drawn, tuple(dict.fromkeys(name for one in reports for name in one.unused))))


def _unreadable(net: Net) -> list[str]:
    """A note if Caffe cannot load HDF5 snapshots: it takes a group within a layer's for a further blob of it.

    Source: Net::CopyTrainedLayersFromHDF5
    """
    layers = net.caffe_layers()
    pairs = ((name, name.rpartition("/")[0]) for name in layers if "/" in name)
    inner, outer = next(((a, b) for a, b in pairs if b in layers and layers[b].blob_names()), ("", ""))
    if not inner:
        return []
    return [
        f"caffe-port can load HDF5 snapshots with layers '{outer}' and '{inner}', Caffe cannot; BINARYPROTO suits both"
    ]


def _shapes(net: NetSpec, feeds: Sequence[Feed]) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs, by blob name."""
    tops = [(shape[0] // processes.world_size() or 1, *shape[1:]) for feed in feeds for shape in feed.shapes]
    blobs = [blob for blob, _ in net.inputs]
    if len(blobs) != len(tops):
        raise SpecError(
            f"has {count(len(blobs), 'input')} ({', '.join(blobs)}), but the data provides {len(tops)}", net.path
        )
    return dict(zip(blobs, tops, strict=True))


def _net(specs: Mapping[str, NetSpec], feeds: Mapping[str, list[Feed]], seed: int) -> Net:
    shapes: dict[str, tuple[int, ...]] = {}
    for phase in reversed(list(feeds)):
        shapes |= _shapes(specs[phase], feeds[phase])
    net = Net(specs["TEST"], shapes, specs["TRAIN"], seed=seed)
    if net.copies:
        layer, _, name, _, _ = net.copies[0]
        raise layer.error(f"shares {name} in another shape (share_mode PERMISSIVE), which cannot be trained here")
    if not net.plans[True].losses:
        raise SpecError("has no loss in phase TRAIN: there is nothing to minimize", specs["TRAIN"].path)
    return net


def _test_net(
    spec: NetSpec, feeds: Sequence[Feed], trained: Net, loaded: Sequence[caffemodel.Weights], seed: int
) -> Net:
    """A further test net. Layers that the trained net does not have keep the blobs of the weights files, or fillers.

    Raises:
        SpecError: a layer's blobs have another number or shape than those of the trained layer of the same name.
    """
    net = Net(spec, _shapes(spec, feeds), seed=seed)
    recurrent.keep(net)
    for weights in loaded:
        if not {layer.name for layer in weights.layers}.isdisjoint(net.caffe_layers()):
            net.load_weights(weights, fill=False)
    own = net.caffe_layers()
    for name, module in trained.caffe_layers().items():
        if name in own and (wrong := own[name].mismatch(_arrays(module))):
            raise SpecError(f"layer '{name}' of the test net {wrong.replace('holds', 'gets', 1)}", spec.path)
    return net


def _arrays(module: Layer) -> list[Array]:
    return [module.get_blob(name).detach().cpu().numpy() for name in module.blob_names()]


def _prefetched(feeds: Sequence[Feed]) -> list[Feed]:
    return [Prefetch(feed) if isinstance(feed, (RecordFeed, AnnotatedFeed)) else feed for feed in feeds]


def _feeds(
    net: NetSpec, phase: str, spec: SolverSpec, options: TrainOptions, seed: int, device: torch.device, notes: list[str]
) -> list[Feed]:
    layers = [layer for layer in net.layers if layer.is_input]
    if not layers and not any(not layer.bottoms for layer in net.layers):
        raise SpecError(
            f"reads no data in phase {phase}", net.path, f"Add a data layer with include {{ phase: {phase} }}."
        )
    size = options.batch_size if phase == "TRAIN" else None
    for layer in net.layers if options.data is None else ():
        if layer.name in net.borrowed and not layer.bottoms:
            what = f"belongs to another phase or stage, and in phase {phase} no layer makes '{layer.tops[0]}'"
            raise layer.error(what, f"Add a data layer with include {{ phase: {phase} }}.")
    if options.data is None:
        shuffle = options.shuffle if phase == "TRAIN" else None
        feeds = [
            from_layer(layer, phase, shuffle=shuffle, seed=seed, device=device, batch_size=size) for layer in layers
        ]
    else:
        if sum(len(layer.tops) for layer in layers) != 2:
            found = count(sum(len(layer.tops) for layer in layers), "input")
            raise SpecError(f"has {found}; --data provides two, images and labels", net.path)
        feeds = [_image_feed(layers[0], phase, spec, options, size, seed, device, notes)]
    for feed in feeds:
        if isinstance(feed, AnnotatedFeed) and processes.world_size() > 1:
            raise CaffePortError(
                f"has images with boxes; they need one process, got {processes.world_size()}", net.path
            )
        if feed.batch_size % processes.world_size():
            raise CaffePortError(
                f"batch size {feed.batch_size} is not divisible by {processes.world_size()} processes", net.path
            )
    return feeds


def _image_feed(
    layer: LayerSpec,
    phase: str,
    spec: SolverSpec,
    options: TrainOptions,
    size: int | None,
    seed: int,
    device: torch.device,
    notes: list[str],
) -> Feed:
    assert options.data is not None
    training = phase == "TRAIN"
    pictures = datasets.load(options.data, "train" if training else "test", options.root, options.download).to(device)
    plan = _plan(layer, spec, options, pictures, notes)
    if plan.channel_order in ("RGB", "BGR"):
        pictures = pictures.colored()
    if plan.lacks_mean_image:
        training_set = pictures if training else datasets.load(options.data, "train", options.root)
        plan = datasets.with_mean_image(plan, training_set)
    preprocessor = Preprocessor(plan, pictures.channel_order, device)
    record = signature_of(layer.type)
    own = record.parameters(layer.param) if record is not None and record.messages else layer.param
    shape = list(layer.param.input_param.shape) if layer.type == "Input" else []
    batch: Any = size or (shape[0].dim[0] if shape and shape[0].dim else getattr(own, "batch_size", 0))
    if batch < 1:
        raise layer.error("has no batch_size", "Set it with --batch-size.")
    shuffle = training and (options.shuffle is None or options.shuffle)
    return ImageFeed(pictures, preprocessor, batch, train=training, shuffle=shuffle, seed=seed)


def _plan(
    layer: LayerSpec, spec: SolverSpec, options: TrainOptions, pictures: datasets.ImageSet, notes: list[str]
) -> Preprocessing:
    entry = registry.entry(options.entry) if options.entry else None
    if entry is None:
        names = {e.name: e for e in registry.entries().values() if e.solver_path and e.dataset == options.data}
        same = [e for e in names.values() if e.solver_path and _same_file(e.solver_path, spec.path)]
        entry = same[0] if same else None
    if entry is not None:
        text = f"preprocessing of registry entry '{entry.name}': {entry.preprocessing}"
        plan = entry.preprocessing
    else:
        plan = Preprocessing.from_transform_param(layer, pictures.channel_order, notes)
        text = f"preprocessing from transform_param of layer '{layer.name}': {plan}"
    if text not in notes:
        notes.append(text)
    return plan


def _same_file(a: Path, b: str) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _check_classes(net: Net, feeds: Mapping[str, list[Feed]]) -> None:
    """Checks labels against the number of classes: before the first iteration, or when a batch is read."""
    for phase, training in (("TRAIN", True), ("TEST", False)):
        plan = net.plans[training]
        losses = [
            s.layer for s in plan.steps if s.layer.type == "SoftmaxWithLoss" and not s.layer.param.has("loss_param")
        ]
        owners = [(feed, k) for feed in feeds.get(phase, []) for k in range(len(feed.shapes))]
        inputs = dict(zip((producer for _, producer in plan.spec.inputs), owners, strict=False))
        for layer in losses:
            feed, top = inputs.get(layer.producers[1], (None, 0))
            classes = plan.shapes[layer.producers[0]][layer.param.softmax_param.axis]
            if isinstance(feed, ImageFeed):
                feed.data.check_labels(classes)
            elif isinstance(feed, RecordFeed) and top == 1:
                feed.classes = min(classes, feed.classes or classes)


def _check_detections(test: NetSpec, only: bool) -> None:
    """Raises SpecError if the outputs of a test net are not what the eval_type measures: only detections."""
    for blob, (layer, _) in test.outputs if only else ():
        if (kind := test.by_name[layer].type) != "DetectionEvaluate":
            what = f"eval_type detection needs outputs of DetectionEvaluate, but '{blob}' is one of {kind}"
            hint = 'Feed it to a Silence layer in phase TEST, or use eval_type: "classification".'
            raise SpecError(what, test.path, hint)
    if processes.world_size() > 1:
        raise SpecError("eval_type detection needs one process", test.path)


def _resume(t: Training) -> int:
    """Restores a snapshot; returns its iteration."""
    if isinstance(t.options.resume, str):
        state = solverstate.read(t.options.resume)
        extra: dict[str, Any] = {}
        weights = solverstate.weights_beside(state)
    else:
        snapshot, refused = t.run.latest()
        t.notes.extend(f"snapshot rejected: {text}" for text in refused)
        if snapshot is None:
            t.notes.append("no snapshot to resume from: starting at iteration 0")
            return 0
        state, weights, extra = solverstate.read(snapshot.state), snapshot.weights, snapshot.extra
        t.notes.append(f"resumed from {snapshot.state.name}")
    t.net.load_weights(caffemodel.read(weights))
    if t.plateau is not None:
        t.plateau = solver.Plateau(state.minimum_loss, state.iter_last_event, state.current_step)
    restore(state, t.net, t.optimizer, t.spec)
    if extra:
        restore_random_states(extra["random"])
        t.best, losses = extra["best"], extra["losses"]
        t.losses.extend(losses)
        kept = [recurrent.unpacked(own, t.net, str(state.path)) for own in extra.get("recurrent", ())]
        for own, test in zip(kept[1:], t.tests, strict=False):
            test.states.update(own)
        recurrent.put(t.net, kept[0] if kept else {})
        t.seconds_before = float(extra.get("seconds", 0))
        t.untrained = extra.get("untrained")
    if processes.is_first():
        t.claim.begun = True
        t.run.rewind(state.iter)
        for line in t.run.metrics():
            t.remember(line)
            if not extra and line.get("best"):  # resumed from a .solverstate, which does not have it
                t.best = line["best"]
    return state.iter


def facts(t: Training) -> dict[str, Any]:
    """Facts about the run, versions and machine, for config.json and run.json."""
    device = (
        torch.cuda.get_device_name(t.device) if t.device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "solver": t.spec.path,
        "type": t.spec.type,
        "max_iter": t.spec.max_iter,
        "net": t.net.plans[True].spec.name,
        "parameters": sum(p.numel() for p in t.net.parameters()),
        "device": str(t.device),
        "device_name": device,
        "processes": processes.world_size(),
        "threads": torch.get_num_threads(),
        "versions": {"caffe_port": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }
