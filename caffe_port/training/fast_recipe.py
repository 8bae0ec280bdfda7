"""The same net, trained as one would today: minutes on one GPU instead of hours. Nothing of Caffe's semantics is meant.

SGD with Nesterov's momentum, a rate that rises and falls along two straight lines, label smoothing, mirroring,
shifts and cutout on the device, an average of the parameters for the test, channels-last memory, bfloat16 where the
device has it, torch.compile on a GPU. The prototxt's layers are kept, its Dropout is not. The result is a .caffemodel
that `caffe-port evaluate` knows.

What happens in an epoch depends on (seed, epoch) alone: a run that is resumed goes on as if it had not stopped.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caffe_port import api, devices
from caffe_port.data import datasets
from caffe_port.data.augment import Augmentation, Epochs
from caffe_port.data.prepare import Preprocessor
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import registry
from caffe_port.evaluation.evaluate import evaluate
from caffe_port.layers.activation import Dropout
from caffe_port.storage.files import atomic_write, read_bytes
from caffe_port.training import fused_layers, plots, processes, signals
from caffe_port.training.run_folder import RunFolder, hold

Listener = Callable[[dict[str, Any]], None]
Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """The constants. None of them was tuned on a whole run: see docs/training.md.

    Attributes:
        epochs: passes over the training set.
        batch_size: pictures an update.
        peak_rate: of the learning rate, reached after ``rise`` of all updates, then it falls to 0.
        weight_decay: of convolution and classifier weights; biases and Scale have none.
        smoothing: share of every label that is spread over all classes.
        average: decay an update of the averaged parameters, less in the beginning.
        augmentation: what is done to the pictures.
    """

    epochs: int = 100
    batch_size: int = 512
    peak_rate: float = 0.2
    rise: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    average: float = 0.999
    augmentation: Augmentation = field(default_factory=Augmentation)

    def rate(self, update: int, updates: int) -> float:
        """The learning rate of an update, counted from 0."""
        at, peak = update + 1, max(self.rise * updates, 1)
        return self.peak_rate * min(at / peak, (updates + 1 - at) / max(updates + 1 - peak, 1))


RECIPES = (  # for at most so many classes: the net, and how it is trained
    (10, "simplenet_cifar10.prototxt", Recipe()),
    (100, "simplenet_cifar100.prototxt", Recipe(epochs=120)),
)


@dataclass(frozen=True)
class FastOptions:
    """What the command line says.

    Attributes:
        data, root, download: as for :func:`caffe_port.data.datasets.load`.
        net: a prototxt; None: SimpleNet (5.48 M) for as many classes.
        epochs, batch_size: instead of the recipe's.
        seed: of the parameters, the order and the augmentation.
        resume: go on with what lies in the folder.
        max_seconds: ends the run after the epoch in which this time is over.
        compile, bf16: None: compile on a GPU, bf16 where the device has instructions for it.
    """

    data: str
    root: str | None = None
    download: bool = False
    net: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0
    resume: bool = False
    max_seconds: float | None = None
    device: str = "auto"
    compile: bool | None = None
    bf16: bool | None = None


@dataclass
class Run:
    """What changes in a training. ``averages`` are of the net's parameters and buffers, in their order."""

    epoch: int
    averages: list[Tensor]
    momenta: list[Tensor]
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(out: str | Path, options: FastOptions, listen: Listener | None = None, seeds: int = 1) -> Results:
    """Trains, once or with several seeds; gives what run.json says of each.

    Args:
        out: the run's folder; with several seeds, a folder ``seed-N`` for each lies in it.
        seeds: how many, counted up from ``options.seed``. The net is compiled once.
        listen: hears of epochs, notes, and the end.

    Raises:
        CaffePortError: bad input; the folder is in use or holds a run; or the loss is not finite.
    """
    listen, began = listen or (lambda _: None), time.monotonic()
    device = devices.find_device(options.device)
    if options.bf16 is None:
        options = replace(options, bf16=devices.has_bf16(device))
        if not options.bf16:
            listen({"kind": "note", "text": devices.NO_BF16})
    if gpu := device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    train_set, test_set = (
        datasets.load(options.data, split, options.root, options.download).to(device) for split in datasets.SPLITS
    )
    classes = int(train_set.labels.max()) + 1
    name, recipe = next((name, recipe) for most, name, recipe in RECIPES if classes <= most or most == RECIPES[-1][0])
    recipe = replace(recipe, epochs=options.epochs or recipe.epochs, batch_size=options.batch_size or recipe.batch_size)
    path = Path(options.net) if options.net else registry.model_defs() / name
    definition = Definition.read(path)
    inputs = [blob for blob, _ in phase_spec(definition, "TEST", 0, (), (), keep_loss=False).inputs]
    net = api.port(path, input_shapes={inputs[0]: (recipe.batch_size, *train_set.shape)}).net.to(device)
    for module in net.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    fused_layers.fuse(net, relu_dropout=False)
    net.to(memory_format=torch.channels_last)
    with torch.no_grad():
        scores = net(torch.zeros(2, *train_set.shape, device=device))
    if not isinstance(scores, Tensor):
        raise CaffePortError(f"has {len(scores)} outputs; scores are one", str(path))
    for each in (train_set, test_set):
        each.check_labels(scores.flatten(1).shape[1])
    channels = [train_set.images[:, c].double() for c in range(train_set.shape[0])]
    mean = torch.stack([c.mean() for c in channels]).round(decimals=4)
    std = torch.stack([c.std(correction=0) for c in channels]).round(decimals=4).clamp(min=1e-3)
    plan = Preprocessing(train_set.channel_order, tuple(mean.tolist()), 1.0, tuple(std.tolist()))
    load_seconds = time.monotonic() - began
    model, compile_seconds = _compiled(net, recipe, train_set.shape, device, options, gpu)
    results = []
    for seed in range(options.seed, options.seed + seeds):
        folder = Path(out) / f"seed-{seed}" if seeds > 1 else Path(out)
        if options.resume and (done := _finished(folder, recipe, seed)):
            results.append(done)
            continue
        with hold(folder), signals.caught() as stop:
            epochs = Epochs(train_set, mean.float(), std.float(), recipe.batch_size, recipe.augmentation, seed)
            run_folder = RunFolder(folder, "fast")
            facts = {
                "recipe": asdict(recipe),
                "seed": seed,
                "data": train_set.name,
                "pictures": len(train_set),
                "net": str(path),
                "preprocessing": plan.as_dict(),
                "device": str(device),
                "device_name": torch.cuda.get_device_name(device) if gpu else "cpu",
                "torch": torch.__version__,
                "bf16": options.bf16,
                "load_seconds": round(load_seconds, 2),
                "compile_seconds": round(compile_seconds, 2),
            }
            run = _begin(run_folder, net, recipe, seed, options.resume, listen)
            run_folder.write_json("config.json", facts)
            stopped = _epochs(run_folder, net, model, epochs, recipe, run, options, began, stop, listen)
            torch._foreach_copy_(_state(net), run.averages)
            began_test = time.monotonic()
            prepare = Preprocessor(plan, test_set.channel_order, device)
            with _autocast(device, options):
                result = evaluate(net, test_set, prepare, batch_size=500, device=device)
            facts |= {
                "epochs_done": run.epoch,
                "stopped": stopped,
                "train_seconds": round(run.seconds, 2),
                "images_per_s": round(run.epoch * len(epochs) * epochs.batch_size / max(run.seconds, 1e-9), 1),
                "evaluation_seconds": round(time.monotonic() - began_test, 2),
                "accuracy": result.accuracy,
                "interval": list(result.interval),
                "history": run.history,
                "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if gpu else None,
            }
            run_folder.save_weights("last", net, definition.net)
            _plot(run_folder, recipe, run, len(epochs), result.accuracy, listen)
            run_folder.write_json("run.json", facts | {"sha256": run_folder.checksums()})
        results.append(facts)
        listen({"kind": "end", **facts})
        if stopped:
            break
    return results


def summary(results: Results) -> str:
    """Mean and standard deviation of the accuracies of several seeds, in a line."""
    values = [r["accuracy"] for r in results]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    seconds = statistics.mean(r["train_seconds"] for r in results)
    return f"{statistics.mean(values):.2f}{spread} % over {len(values)} seeds, {seconds:.1f} s of training each"


# -- the loop -------------------------------------------------------------------------------------------------------


def _epochs(
    folder: RunFolder,
    net: nn.Module,
    model: nn.Module,
    epochs: Epochs,
    recipe: Recipe,
    run: Run,
    options: FastOptions,
    began: float,
    stop: list[str],
    listen: Listener,
) -> str:
    """Trains to the last epoch, or to a signal or the end of the time; says which."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    gpu = epochs.device.type == "cuda"
    optimizer = torch.optim.SGD(groups, 0.1, recipe.momentum, nesterov=True, fused=gpu or None)
    if run.momenta:
        for parameter, momentum in zip(decayed + plain, run.momenta, strict=True):
            optimizer.state[parameter]["momentum_buffer"] = momentum
    updates = recipe.epochs * len(epochs)
    present = _state(net)
    net.train()
    while run.epoch < recipe.epochs:
        started, losses = time.monotonic(), []
        for update, (images, labels) in enumerate(epochs.epoch(run.epoch), run.epoch * len(epochs)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(update, updates)
            optimizer.zero_grad(set_to_none=True)
            with _autocast(epochs.device, options):
                scores = model(images).flatten(1)
            loss = F.cross_entropy(scores.float(), labels, label_smoothing=recipe.smoothing)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
            torch._foreach_lerp_(run.averages, present, 1 - min(recipe.average, (1 + update) / (10 + update)))
        loss_now = float(torch.stack(losses).mean())  # the only wait for the device in an epoch
        seconds = time.monotonic() - started
        run.epoch, run.seconds = run.epoch + 1, run.seconds + seconds
        line = {"epoch": run.epoch, "loss": round(loss_now, 4), "seconds": round(seconds, 3)}
        run.history.append(line)
        listen({"kind": "epoch", "epochs": recipe.epochs, **line})
        if not math.isfinite(loss_now):
            raise CaffePortError(
                f"the loss is {loss_now} in epoch {run.epoch}",
                str(folder.path),
                "Another --seed, or a smaller --batch-size, may do.",
            )
        over = options.max_seconds is not None and time.monotonic() - began >= options.max_seconds
        if run.epoch == recipe.epochs:
            break
        if over or stop or run.epoch % 10 == 0:
            run.momenta = [optimizer.state[p]["momentum_buffer"] for p in decayed + plain]
            _save(folder, net, recipe, epochs.seed, run)
        if over or stop:
            return stop[0] if stop else processes.TIME_OVER
    return ""


def _compiled(
    net: nn.Module, recipe: Recipe, shape: tuple[int, ...], device: torch.device, options: FastOptions, gpu: bool
) -> tuple[nn.Module, float]:
    """The net, compiled where that is asked for and run a few times, and how long this took. Nothing of it changes."""
    model: Any = torch.compile(net) if (gpu if options.compile is None else options.compile) else net
    if not gpu and model is net:
        return model, 0.0
    started, before = time.monotonic(), [t.clone() for t in _state(net)]
    images = torch.zeros(recipe.batch_size, *shape, device=device).to(memory_format=torch.channels_last)
    net.train()
    for _ in range(3):
        with _autocast(device, options):
            scores = model(images).flatten(1)
        torch.autograd.backward(F.cross_entropy(scores.float(), scores.argmax(1)))
    net.zero_grad(set_to_none=True)
    torch._foreach_copy_(_state(net), before)
    if gpu:
        torch.cuda.synchronize(device)
    return model, time.monotonic() - started


def _autocast(device: torch.device, options: FastOptions) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, bool(options.bf16))


def _state(net: nn.Module) -> list[Tensor]:
    """All that is averaged and kept: parameters and BatchNorm's sums."""
    return [tensor.detach() for tensor in (*net.parameters(), *net.buffers())]


def _initialise(net: nn.Module, seed: int) -> None:
    """Kaiming's normal distribution for weights, whatever the fillers say; the classifier's is smaller."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.ndim > 1:
            gain = math.sqrt(2.0) if tensor.ndim > 2 else 1.0
            value = torch.randn(tensor.shape, generator=generator) * gain / math.sqrt(tensor[0].numel())
        else:
            value = torch.full(tensor.shape, float(tensor.requires_grad and name.endswith("weight")))
        tensor.detach().copy_(value)


def _plot(folder: RunFolder, recipe: Recipe, run: Run, length: int, accuracy: float, listen: Listener) -> None:
    """Draws loss and rate by updates, and the one test."""
    ends = [(line["epoch"] * length, line["loss"]) for line in run.history]
    metrics: list[dict[str, Any]] = [
        {"kind": "train", "iter": at, "loss": loss, "lr": recipe.rate(at - 1, recipe.epochs * length)}
        for at, loss in ends
    ]
    metrics.append({"kind": "test", "iter": run.epoch * length, "outputs": {"accuracy": accuracy / 100}})
    try:
        plots.curves(metrics, folder.path / "curves.png", folder.path / "curves.svg")
    except CaffePortError as error:
        listen({"kind": "note", "text": str(error)})


# -- what is kept ---------------------------------------------------------------------------------------------------


def _finished(folder: Path, recipe: Recipe, seed: int) -> dict[str, Any] | None:
    """What run.json says of a whole run with this recipe and seed."""
    path = folder / "run.json"
    try:
        facts: dict[str, Any] = json.loads(read_bytes(path)) if path.is_file() else {}
    except ValueError:
        return None
    same = (facts.get("recipe"), facts.get("seed")) == (_plain(recipe), seed)
    return facts if same and facts.get("epochs_done") == recipe.epochs else None


def _plain(recipe: Recipe) -> Any:
    return json.loads(json.dumps(asdict(recipe)))


def _save(folder: RunFolder, net: nn.Module, recipe: Recipe, seed: int, run: Run) -> None:
    """One file, so that a run killed while it is written finds the one before."""
    from safetensors.torch import save

    kinds = {"state": _state(net), "averages": run.averages, "momenta": run.momenta}
    tensors = {f"{kind}.{k}": t.contiguous().clone() for kind, group in kinds.items() for k, t in enumerate(group)}
    told = {"recipe": _plain(recipe), "seed": seed, "epoch": run.epoch, "seconds": run.seconds, "history": run.history}
    with atomic_write(folder.path / "fast.safetensors") as file:
        file.write(save(tensors, {"run": json.dumps(told)}))


def _begin(folder: RunFolder, net: nn.Module, recipe: Recipe, seed: int, resume: bool, listen: Listener) -> Run:
    """A new run, or the one that lies in the folder."""
    if folder.used() and not resume:
        raise CaffePortError("holds a run already", str(folder.path), "Give another folder, or --resume.")
    _initialise(net, seed)
    kept = folder.path / "fast.safetensors"
    if not kept.is_file():
        return Run(0, [tensor.clone() for tensor in _state(net)], [])
    from safetensors import SafetensorError, safe_open

    state = _state(net)
    moving = [p for p in net.parameters() if p.ndim > 1] + [p for p in net.parameters() if p.ndim <= 1]
    try:
        with safe_open(kept, "pt") as file:
            told = json.loads(file.metadata()["run"])
            if (told["recipe"], told["seed"]) != (_plain(recipe), seed):
                raise CaffePortError("is a run with another recipe or seed", str(folder.path), "Give another folder.")
            found = {
                kind: [file.get_tensor(f"{kind}.{k}") for k in range(len(like))]
                for kind, like in (("state", state), ("averages", state), ("momenta", moving))
            }
        run = Run(
            int(told["epoch"]),
            [torch.empty_like(t) for t in state],
            [torch.empty_like(p) for p in moving],
            float(told["seconds"]),
            list(told["history"]),
        )
        for mine, theirs in ((state, "state"), (run.averages, "averages"), (run.momenta, "momenta")):
            for one, other in zip(mine, found[theirs], strict=True):
                one.detach().copy_(other)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CaffePortError(f"cannot be resumed from: {str(error)[:100]}", str(kept)) from None
    listen({"kind": "note", "text": f"resumed after epoch {run.epoch}"})
    return run
