"""A modern training recipe for the same net, designed for one GPU. It does not follow Caffe's semantics.

SGD with Nesterov momentum, a learning rate that rises and then falls linearly, label smoothing, flips, shifts and
cutout on the device, averaged parameters for the test, channels-last memory, bfloat16 if the device supports it, and
torch.compile on a GPU. The prototxt's layers are kept, except that Dropout is disabled. The result is a .caffemodel
that `caffe-port evaluate` recognizes.

The images of a batch depend only on (seed, epoch, number of the batch). A run can stop after any update, and continues
as if it had not stopped.
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
from caffe_port.data.augment import Augmentation, Epochs, scaled
from caffe_port.data.prepare import Preprocessor
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import registry
from caffe_port.evaluation.evaluate import Evaluation, evaluate
from caffe_port.layers.activation import Dropout
from caffe_port.storage.files import atomic_write, read_bytes
from caffe_port.terminal import count
from caffe_port.training import fused_layers, plots, processes, signals
from caffe_port.training.run_folder import (
    Claim,
    RunFolder,
    check_random_states,
    check_unused,
    hold,
    random_states,
    restore_random_states,
    seed_everything,
)

Listener = Callable[[dict[str, Any]], None]
Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters. They were not tuned on a complete run: see docs/training.md.

    Attributes:
        epochs: passes over the training set.
        batch_size: images per update.
        peak_rate: the highest learning rate, reached after the fraction ``rise`` of all updates; then it falls to 0.
        weight_decay: weight decay of convolution and classifier weights; biases and Scale have none.
        smoothing: label smoothing, the share of every label that is spread over all classes.
        average: the fraction of all updates over which the parameters are averaged, exponentially.
        scale: the side of the images in the first epoch, relative to the data set's; it grows linearly to 1.
        grown: the fraction of the epochs after which the images have their full size.
        augmentation: the augmentation of the images.
    """

    epochs: int = 100
    batch_size: int = 512
    peak_rate: float = 0.2
    rise: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    average: float = 0.03
    scale: float = 1.0
    grown: float = 0.8
    augmentation: Augmentation = field(default_factory=Augmentation)

    def rate(self, update: int, updates: int) -> float:
        """The learning rate of an update; updates are counted from 0."""
        at, peak = update + 1, max(self.rise * updates, 1)
        return self.peak_rate * min(at / peak, (updates + 1 - at) / max(updates + 1 - peak, 1))

    def share(self, update: int, updates: int) -> float:
        """The share of the present parameters in the averages after an update; greater in the first updates."""
        return max(1 / max(self.average * updates, 1), 9 / (10 + update))

    def scale_in(self, epoch: int) -> float:
        """The scale of the images in an epoch; epochs are counted from 0."""
        return min(self.scale + (1 - self.scale) * epoch / max(self.grown * self.epochs, 1), 1.0)


SIMPLENETS = ((10, "simplenet_cifar10.prototxt"), (100, "simplenet_cifar100.prototxt"))
"""The nets that are trained if none is given, by the largest number of classes."""

SLIM, SHORT = 1_000_000, 30
"""Nets of fewer parameters and runs of fewer epochs get smaller batches, images that grow, and less augmentation."""


def recipe_for(parameters: int, classes: int, channels: int, flip: bool, epochs: int | None = None) -> Recipe:
    """The recipe for a net and a data set. Gray images are taken for characters, which are shifted less."""
    epochs = epochs or (100 if classes <= 10 else 120)
    light = parameters < SLIM or epochs < SHORT
    augmentation = Augmentation(shift=4 if channels > 1 else 2, cutout=0 if light or channels == 1 else 8, flip=flip)
    recipe = Recipe(epochs, augmentation=augmentation)
    return replace(recipe, batch_size=128, peak_rate=0.1, scale=0.625) if light else recipe


@dataclass(frozen=True)
class FastOptions:
    """The options of the command line.

    Attributes:
        data, root, download: as for :func:`caffe_port.data.datasets.load`.
        net: a prototxt; None: SimpleNet (5.48 M) for the data set's number of classes.
        epochs, batch_size: override the recipe's.
        seed: seed of the parameters, the order and the augmentation.
        resume: continue the run in the folder.
        max_seconds: time limit; the run stops after the update in which it is reached, but not before its first.
        tensorboard: also write TensorBoard's events, to ``tensorboard`` in the run's folder.
        flip: flip images horizontally; None: if they have colors, except SVHN's digits.
        compile, bf16: None: compile on a GPU; use bf16 if the device has instructions for it.
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
    tensorboard: bool = False
    device: str = "auto"
    flip: bool | None = None
    compile: bool | None = None
    bf16: bool | None = None


@dataclass
class Run:
    """The state of a run.

    Attributes:
        epoch: the number of complete epochs.
        averages: averages of the net's parameters and buffers, in the same order.
        momenta: the optimizer's, by parameter: first those with weight decay.
        losses: the losses of the updates of the incomplete epoch, on the device; ``epoch_seconds`` is their time.
        seconds: the training time of the complete epochs.
        history: a line per complete epoch.
    """

    epoch: int
    averages: list[Tensor]
    momenta: list[Tensor]
    losses: list[Tensor] = field(default_factory=list)
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def updates(self, length: int) -> int:
        """The number of updates done, in epochs of ``length``."""
        return self.epoch * length + len(self.losses)


def train(out: str | Path, options: FastOptions, listen: Listener | None = None, seeds: int = 1) -> Results:
    """Trains with one seed or several; returns the contents of each run.json. ``accuracy`` and ``interval`` are None if
    the run was stopped: it is tested at its end.

    Args:
        out: the run's folder; with several seeds, it contains a folder ``seed-N`` for each.
        seeds: number of seeds, counted up from ``options.seed``. The net is compiled once.
        listen: called with every update (``progress``), epoch, note, and end of a run.

    Raises:
        CaffePortError: bad input; the folder is in use or already contains a run; or the loss is not finite.
    """
    listen, began = listen or (lambda _: None), time.monotonic()
    numbers = range(options.seed, options.seed + seeds)
    folders = {seed: Path(out) / f"seed-{seed}" if seeds > 1 else Path(out) for seed in numbers}
    for folder in folders.values():
        check_unused(folder, options.resume)
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
    name = next((name for most, name in SIMPLENETS if classes <= most), SIMPLENETS[-1][1])
    path = Path(options.net) if options.net else registry.model_defs() / name
    definition = Definition.read(path)
    inputs = [blob for blob, _ in phase_spec(definition, "TEST", 0, (), (), keep_loss=False).inputs]
    net = api.port(path, input_shapes={inputs[0]: (1, *train_set.shape)}).net.to(device)
    recipe = _recipe(net, classes, train_set, options)
    for module in net.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    fused_layers.fuse(net, relu_dropout=False)
    if not (gpu or options.bf16 or options.compile):
        fused_layers.use_winograd(net)
    net.to(memory_format=torch.channels_last)
    with torch.no_grad():
        scores = net(torch.zeros(2, *train_set.shape, device=device))
    if not isinstance(scores, Tensor):
        raise CaffePortError(f"has {len(scores)} outputs; expected one, the scores", str(path))
    for each in (train_set, test_set):
        each.check_labels(scores.flatten(1).shape[1])
    channels = [train_set.images[:, c].double() for c in range(train_set.shape[0])]
    mean = torch.stack([c.mean() for c in channels]).round(decimals=4)
    std = torch.stack([c.std(correction=0) for c in channels]).round(decimals=4).clamp(min=1e-3)
    plan = Preprocessing(train_set.channel_order, tuple(mean.tolist()), 1.0, tuple(std.tolist()))
    load_seconds = time.monotonic() - began
    model, compile_seconds = _compiled(net, recipe, train_set.shape, device, options, gpu)
    results = []
    for seed, folder in folders.items():
        if options.resume and (done := _finished(folder, recipe, seed)):
            results.append(done)
            continue
        with hold(folder) as claim, signals.caught() as stop, devices.memory_kept(device):
            epochs = Epochs(train_set, mean.float(), std.float(), recipe.batch_size, recipe.augmentation, seed)
            run_folder = RunFolder(folder, "fast", tensorboard=options.tensorboard)
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
            run = _begin(run_folder, net, recipe, seed, len(epochs), listen)
            claim.begun = run.updates(len(epochs)) > 0
            run_folder.write_json("config.json", facts)
            stopped = _epochs(run_folder, net, model, epochs, recipe, run, options, began, stop, claim, listen)
            trained = [tensor.clone() for tensor in _state(net)]
            torch._foreach_copy_(_state(net), run.averages)
            run_folder.save_weights("last", net, definition.net)
            began_test, result = time.monotonic(), None
            if not stopped:
                prepare = Preprocessor(plan, test_set.channel_order, device)
                result = _tested(net, test_set, prepare, device, options, stop, listen)
                if result is None:  # interrupted; what is left to do is the test
                    stopped = stop[0]
                    torch._foreach_copy_(_state(net), trained)
                    _save(run_folder, net, recipe, seed, run, len(epochs))
            updates, seconds = run.updates(len(epochs)), run.seconds + run.epoch_seconds
            facts |= {
                "epochs_done": run.epoch,
                "updates_done": updates,
                "updates_per_epoch": len(epochs),
                "stopped": stopped,
                "train_seconds": round(seconds, 2),
                "images_per_s": round(updates * epochs.batch_size / max(seconds, 1e-9), 1),
                "evaluation_seconds": round(time.monotonic() - began_test, 2),
                "accuracy": None if result is None else result.accuracy,
                "interval": None if result is None else list(result.interval),
                "history": run.history,
                "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if gpu else None,
            }
            if result is not None:
                run_folder.log({"kind": "test", "iter": updates, "outputs": {"accuracy": result.accuracy / 100}})
            _plot(run_folder, listen)
            run_folder.write_json("run.json", facts | {"sha256": run_folder.checksums()})
            run_folder.close()
        results.append(facts)
        listen({"kind": "end", **facts})
        if stopped:
            break
    return results


def _recipe(net: nn.Module, classes: int, data: datasets.ImageSet, options: FastOptions) -> Recipe:
    """The recipe with the options' changes; without growing images if the net refuses the smallest."""
    channels, *size = data.shape
    flip = channels > 1 and not data.name.startswith("svhn") if options.flip is None else options.flip
    recipe = recipe_for(sum(p.numel() for p in net.parameters()), classes, channels, flip, options.epochs)
    try:
        with torch.no_grad():
            net(torch.zeros(2, channels, *scaled(size, recipe.scale), device=next(net.parameters()).device))
    except (CaffePortError, RuntimeError):  # the latter from an InnerProduct over maps of another size
        recipe = replace(recipe, scale=1.0)
    return replace(recipe, batch_size=options.batch_size or recipe.batch_size)


def summary(results: Results) -> str:
    """One line with the mean and standard deviation of the accuracies; empty if no run was tested."""
    results = [r for r in results if r["accuracy"] is not None]
    if not results:
        return ""
    values = [r["accuracy"] for r in results]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    seconds = statistics.mean(r["train_seconds"] for r in results)
    return (
        f"{statistics.mean(values):.2f}{spread} % over {count(len(values), 'seed')}, {seconds:.1f} s of training each"
    )


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
    claim: Claim,
    listen: Listener,
) -> str:
    """Trains until the last epoch, a signal or the time limit; returns what stopped it, or an empty string.

    The state is saved then, and otherwise every ten minutes.
    """
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    gpu = epochs.device.type == "cuda"
    optimizer = torch.optim.SGD(groups, 0.1, recipe.momentum, nesterov=True, fused=gpu or None)
    if run.momenta:
        for parameter, momentum in zip(decayed + plain, run.momenta, strict=True):
            optimizer.state[parameter]["momentum_buffer"] = momentum
    updates, length = recipe.epochs * len(epochs), len(epochs)
    present = _state(net)
    net.train()
    saved = time.monotonic()

    def save() -> None:
        claim.begun = True
        run.momenta = [_momentum(optimizer, p) for p in decayed + plain]
        _save(folder, net, recipe, epochs.seed, run, len(epochs))

    def stopped() -> str:
        over = options.max_seconds is not None and time.monotonic() - began >= options.max_seconds
        return stop[0] if stop else processes.TIME_OVER if over else ""

    while run.epoch < recipe.epochs:
        started, before = time.monotonic(), run.epoch_seconds
        for images, labels in epochs.epoch(run.epoch, len(run.losses), recipe.scale_in(run.epoch)):
            update = run.updates(length)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(update, updates)
            optimizer.zero_grad(set_to_none=True)
            with _autocast(epochs.device, options):
                scores = model(images).flatten(1)
            loss = F.cross_entropy(scores.float(), labels, label_smoothing=recipe.smoothing)
            torch.autograd.backward(loss)
            optimizer.step()
            run.losses.append(loss.detach())
            torch._foreach_lerp_(run.averages, present, recipe.share(update, updates))
            listen({"kind": "progress", "update": update + 1, "updates": updates})
            if len(run.losses) == length:
                break
            if (reason := stopped()) or time.monotonic() - saved >= SAVE_EVERY:
                if gpu:
                    torch.cuda.synchronize(epochs.device)
                run.epoch_seconds, saved = before + time.monotonic() - started, time.monotonic()
                save()
            if reason:
                return reason
        loss_now = float(torch.stack(run.losses).mean())  # the only synchronization with the device in an epoch
        seconds = before + time.monotonic() - started
        run.epoch, run.seconds, run.epoch_seconds, run.losses = run.epoch + 1, run.seconds + seconds, 0.0, []
        line = {"epoch": run.epoch, "loss": round(loss_now, 4), "seconds": round(seconds, 3)}
        run.history.append(line)
        listen({"kind": "epoch", "epochs": recipe.epochs, **line})
        rate, done = recipe.rate(run.updates(length) - 1, updates), run.updates(length)
        folder.log({"kind": "train", "iter": done, "loss": loss_now, "lr": rate})
        if not math.isfinite(loss_now):
            raise CaffePortError(
                f"the loss is {loss_now} in epoch {run.epoch}",
                str(folder.path),
                "Try another --seed or a smaller --batch-size.",
            )
        claim.begun = True
        if run.epoch < recipe.epochs and (reason := stopped()):
            save()
            return reason
    if optimizer.state:
        run.momenta = [_momentum(optimizer, p) for p in decayed + plain]
    return ""


SAVE_EVERY = 600.0
"""Seconds between two saves of the state, for the case that the process is killed."""


def _momentum(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    """A parameter's momentum; zeros if it has none, because it takes no part in the loss."""
    found = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
    return torch.zeros_like(parameter) if found is None else found


def _tested(
    net: nn.Module,
    test_set: datasets.ImageSet,
    prepare: Preprocessor,
    device: torch.device,
    options: FastOptions,
    stop: list[str],
    listen: Listener,
) -> Evaluation | None:
    """The test at the end; None if a signal stopped it."""

    def progress(done: int, total: int) -> None:
        listen({"kind": "testing", "done": done, "total": total})
        if stop and done < total:
            raise _StoppedError

    try:
        with _autocast(device, options):
            return evaluate(net, test_set, prepare, batch_size=500, device=device, progress=progress)
    except _StoppedError:
        return None


class _StoppedError(Exception):
    """The test was stopped by a signal."""


def _compiled(
    net: nn.Module, recipe: Recipe, shape: tuple[int, ...], device: torch.device, options: FastOptions, gpu: bool
) -> tuple[nn.Module, float]:
    """Compiles and warms up the net if requested; returns it and the seconds this took. Its state does not change."""
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
    """The tensors that are averaged and saved: parameters and BatchNorm's sums."""
    return [tensor.detach() for tensor in (*net.parameters(), *net.buffers())]


def _initialise(net: nn.Module, seed: int) -> None:
    """Initializes weights with Kaiming's normal distribution, not the fillers; the classifier has a smaller gain."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.ndim > 1:
            gain = math.sqrt(2.0) if tensor.ndim > 2 else 1.0
            value = torch.randn(tensor.shape, generator=generator) * gain / math.sqrt(tensor[0].numel())
        else:
            value = torch.full(tensor.shape, float(tensor.requires_grad and name.endswith("weight")))
        tensor.detach().copy_(value)


def _plot(folder: RunFolder, listen: Listener) -> None:
    """Plots the loss and learning rate over the updates, and the final test."""
    try:
        plots.curves(folder.metrics(), folder.path / "curves.png", folder.path / "curves.svg")
    except CaffePortError as error:
        listen({"kind": "note", "text": str(error)})


# -- saved state ----------------------------------------------------------------------------------------------------


def _finished(folder: Path, recipe: Recipe, seed: int) -> dict[str, Any] | None:
    """The contents of run.json if it is of a finished run with this recipe and seed; otherwise None."""
    path = folder / "run.json"
    try:
        facts = json.loads(read_bytes(path)) if path.is_file() else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict):
        return None
    same = (facts.get("recipe"), facts.get("seed")) == (_plain(recipe), seed)
    done = facts.get("epochs_done") == recipe.epochs and facts.get("accuracy") is not None
    return facts if same and done else None


def _plain(recipe: Recipe) -> Any:
    return json.loads(json.dumps(asdict(recipe)))


def _save(folder: RunFolder, net: nn.Module, recipe: Recipe, seed: int, run: Run, length: int) -> None:
    """Saves the run in one file, so that the previous save survives if the process is killed while writing."""
    from safetensors.torch import save

    kinds = {"state": _state(net), "averages": run.averages, "momenta": run.momenta}
    tensors = {f"{kind}.{k}": t.contiguous().clone() for kind, group in kinds.items() for k, t in enumerate(group)}
    tensors["losses"] = torch.stack(run.losses) if run.losses else torch.empty(0)
    told = {
        "recipe": _plain(recipe),
        "seed": seed,
        "length": length,
        "epoch": run.epoch,
        "epoch_seconds": run.epoch_seconds,
        "seconds": run.seconds,
        "history": run.history,
        "random": random_states(),
    }
    with atomic_write(folder.path / SAVED) as file:
        file.write(save(tensors, {"run": json.dumps(told)}))


SAVED = "fast.safetensors"


def _begin(folder: RunFolder, net: nn.Module, recipe: Recipe, seed: int, length: int, listen: Listener) -> Run:
    """A new run, or the saved run in the folder. ``length`` is the number of updates in an epoch."""
    _initialise(net, seed)
    seed_everything(seed)
    kept = folder.path / SAVED
    if not kept.is_file():
        folder.rewind(0)
        return Run(0, [tensor.clone() for tensor in _state(net)], [])
    from safetensors import SafetensorError, safe_open

    state = _state(net)
    moving = [p for p in net.parameters() if p.ndim > 1] + [p for p in net.parameters() if p.ndim <= 1]
    try:
        with safe_open(kept, "pt") as file:
            told = json.loads(file.metadata()["run"])
            if (told["recipe"], told["seed"]) != (_plain(recipe), seed):
                raise CaffePortError(
                    "contains a run with another recipe or seed", str(folder.path), "Give another folder."
                )
            if told.get("length", length) != length:
                what = f"contains a run of {told['length']} updates per epoch; with this data set there are {length}"
                raise CaffePortError(what, str(folder.path), "Give another folder, or the data set of that run.")
            found = {
                kind: [file.get_tensor(f"{kind}.{k}") for k in range(len(like))]
                for kind, like in (("state", state), ("averages", state), ("momenta", moving))
            }
            kinds = file.keys()
            losses = file.get_tensor("losses").to(state[0].device) if "losses" in kinds else torch.empty(0)
        run = Run(
            int(told["epoch"]),
            [torch.empty_like(t) for t in state],
            [torch.empty_like(p) for p in moving],
            list(losses.unbind()),
            float(told.get("epoch_seconds", 0)),
            float(told["seconds"]),
            list(told["history"]),
        )
        if len(run.losses) >= length or not 0 <= run.epoch <= recipe.epochs:
            raise ValueError(f"epoch {run.epoch} has {len(run.losses)} updates")
        for mine, theirs in ((state, "state"), (run.averages, "averages"), (run.momenta, "momenta")):
            for one, other in zip(mine, found[theirs], strict=True):
                one.detach().copy_(other)
        if "random" in told:  # earlier versions stopped between two epochs only, and did not need it
            check_random_states(told["random"])
            restore_random_states(told["random"])
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CaffePortError(f"cannot be resumed from: {str(error)[:100]}", str(kept)) from None
    folder.rewind(run.updates(length) + 1)
    listen({"kind": "note", "text": f"resumed after {done_in_words(run.epoch, len(run.losses), length)}"})
    return run


def done_in_words(epochs: int, updates: int, length: int) -> str:
    """``3 epochs and 12 of 97 updates``."""
    return count(epochs, "epoch") + (f" and {updates:,} of {count(length, 'update')}" if updates else "")
