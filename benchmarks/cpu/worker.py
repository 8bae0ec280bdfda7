"""Times one net in one program. Started by turns.py with the Python of that program:

    python worker.py KIND JSON

Once it is ready, it answers every line of standard input, a number of seconds, with {"times": [...], "peak": MB,
"import": MB}: the seconds of each pass within that time (one at least), the greatest memory so far, and the
memory once the libraries were imported. With CPU_TIME=1 in the environment, the seconds are of processor time.

The kinds that end in ``_layers`` also answer "layers": the median of each layer's seconds by its name.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Pass = Callable[[], Any]
clock = time.process_time if os.environ.get("CPU_TIME") else time.perf_counter


def memory(field: str) -> float:
    """MB of this process: VmRSS, what it holds; VmHWM, the most that it held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


class Layers:
    """The seconds of each layer in each pass: from a mark to the next."""

    def __init__(self) -> None:
        self.passes: list[dict[str, float]] = []
        self.start()

    def start(self) -> None:
        """A pass begins."""
        self.now: dict[str, float] = {}
        self.mark = clock()

    def done(self, name: str) -> None:
        """A layer has done a part of its work."""
        now = clock()
        self.now[name] = self.now.get(name, 0.0) + now - self.mark
        self.mark = now

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(one[name] for one in self.passes) for name in self.passes[-1]}


REST = "update and all else"
"""What is not in a layer."""


class Answers:
    """Standard input and output, which libraries cannot print to."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.imported = 0.0
        self.times: list[float] = []
        self.end = self.mark = 0.0
        self.layers = Layers()

    def has_imported(self) -> None:
        self.imported = memory("VmRSS")
        # the most that it held from here on: writing 5 resets it to what is held now
        Path("/proc/self/clear_refs").write_text("5")

    def say(self, **what: Any) -> None:
        self.out.write(json.dumps(what) + "\n")
        self.out.flush()

    def wait(self) -> None:
        """Waits for the next line; ends the process with the input."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.times.clear()
        self.layers.passes.clear()
        self.layers.start()
        self.mark = clock()
        self.end = self.mark + float(line)

    def passed(self) -> None:
        """Called after each pass: answers and waits if it is time."""
        now = clock()
        self.times.append(now - self.mark)
        self.mark = now
        if self.layers.now:
            self.layers.done(REST)
            self.layers.passes.append(self.layers.now)
        if now >= self.end:
            layers = self.layers.medians() if self.layers.passes else {}
            self.say(times=self.times, peak=memory("VmHWM"), layers=layers, **{"import": self.imported})
            self.wait()
        self.layers.start()


def drawn(task: dict[str, Any]) -> Any:
    shape = [task["batch"], *task["shape"]]
    return np.random.default_rng(1).standard_normal(shape, np.float32)


# -- Caffe, and caffe-port --------------------------------------------------------------------------------------------


def caffe_forward(task: dict[str, Any], answers: Answers) -> Pass:
    net = _caffe_net(task, answers)
    return lambda: _array(net.forward())


def _caffe_net(task: dict[str, Any], answers: Answers) -> Any:
    import caffe

    answers.has_imported()
    too_large = os.path.getsize(task["weights"]) > 1 << 29  # for brocolli-caffe 9.0.2, which then draws its own
    net = caffe.Net(task["net"], *([] if too_large else [task["weights"]]), caffe.TEST)
    net.blobs["data"].reshape(task["batch"], *task["shape"])
    net.reshape()
    net.blobs["data"].data[...] = drawn(task)
    return net


def caffe_train(task: dict[str, Any], answers: Answers) -> Pass:
    import caffe

    answers.has_imported()
    solver = caffe.get_solver(task["solver"])
    return lambda: solver.step(1)


def caffe_forward_layers(task: dict[str, Any], answers: Answers) -> Pass:
    net = _caffe_net(task, answers)
    return lambda: _caffe_layers(net, net._forward, answers.layers)


def caffe_train_layers(task: dict[str, Any], answers: Answers) -> Pass:
    """An update, and then the same passes again by layer."""
    import caffe

    answers.has_imported()
    solver = caffe.get_solver(task["solver"])
    net = solver.net

    def run() -> None:
        start = clock()
        solver.step(1)
        net.clear_param_diffs()
        whole = clock() - start
        answers.layers.start()
        _caffe_layers(net, net._forward, answers.layers)
        _caffe_layers(net, net._backward, answers.layers, backward=True)
        answers.layers.now[REST] = whole - sum(answers.layers.now.values())

    return run


def _caffe_layers(net: Any, run: Callable[[int, int], Any], layers: Layers, backward: bool = False) -> None:
    numbered = list(enumerate(net._layer_names))
    for number, name in reversed(numbered) if backward else numbered:
        run(number, number)
        layers.done(name)


def model(task: dict[str, Any], answers: Answers) -> Pass:
    """The folder that convert wrote, used as the docstring of model.py says."""
    import torch

    torch.set_num_threads(task["threads"])
    answers.has_imported()
    os.chdir(task["folder"])
    sys.path.insert(0, task["folder"])
    scope = dict(vars(__import__("model")))
    exec("\n".join(line[4:] for line in scope["__doc__"].splitlines() if line.startswith("    ")), scope)
    net = scope["model"]
    x = torch.from_numpy(drawn(task))
    torch.set_grad_enabled(False)
    if task.get("compile"):
        import torch._inductor.config

        torch._inductor.config.freezing = True  # torch 2.14.1 ignores it as an option of torch.compile
        net = torch.compile(net)
    return lambda: net(x)


def model_layers(task: dict[str, Any], answers: Answers) -> Pass:
    """The same, with a source whose calls are marked with the names of their tops."""

    def tops(made: Any, name: str, *_: str) -> Any:
        answers.layers.done(name)
        return made

    sys.path.insert(0, task["folder"])
    vars(__import__("model"))["_tops"] = tops
    return model(task, answers)


def train(task: dict[str, Any], answers: Answers) -> None:
    """What `caffe-port train SOLVER` does: never returns."""
    import torch

    torch.set_num_threads(task["threads"])
    answers.has_imported()
    from caffe_port.training.train import TrainOptions
    from caffe_port.training.train import train as run

    started = []

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            if not started:  # the first update is the warm-up
                started.append(True)
                answers.say(ready=True)
                answers.wait()
            else:
                answers.passed()

    run(task["solver"], task["out"], TrainOptions(**task.get("options", {})), listen)


def train_layers(task: dict[str, Any], answers: Answers) -> None:
    """The same, layer by layer: each node of autograd's graph belongs to the layer after which it appeared."""
    from caffe_port.net.execution import Execution

    run, layers = Execution.run, answers.layers

    def each(self: Any, steps: Any) -> None:
        known: set[Any] = set()
        layers.done(REST)
        for step in steps:
            run(self, (step,))
            layers.done(step.layer.name)
            for node in _nodes([self.values[top] for top in step.tops], known):
                node.register_hook(lambda *_, name=step.layer.name: layers.done(name))

    Execution.run = each  # type: ignore[method-assign]
    train(task, answers)


def _nodes(tensors: list[Any], known: set[Any]) -> list[Any]:
    """The nodes of the graph that made tensors, without the known ones; these are known from here on."""
    found, ahead = [], [tensor.grad_fn for tensor in tensors if tensor is not None]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in known:
            known.add(node)
            found.append(node)
            ahead += [before for before, _ in node.next_functions]
    return found


# -- others -----------------------------------------------------------------------------------------------------------


def onnxruntime(task: dict[str, Any], answers: Answers) -> Pass:
    import onnxruntime as ort

    answers.has_imported()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = task["threads"]
    session = ort.InferenceSession(task["onnx"], options, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: drawn(task)}
    return lambda: session.run(None, fed)


def openvino(task: dict[str, Any], answers: Answers) -> Pass:
    import openvino as ov

    answers.has_imported()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": task["threads"]}
    settings["PERFORMANCE_HINT"] = "LATENCY"
    core = ov.Core()
    read = core.read_model(task["onnx"])
    read.reshape([task["batch"], *task["shape"]])
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    x = drawn(task)
    return lambda: request.infer([x], share_inputs=True)


def opencv(task: dict[str, Any], answers: Answers) -> Pass:
    import cv2

    answers.has_imported()
    cv2.setNumThreads(task["threads"])
    net = cv2.dnn.readNetFromCaffe(task["net"], task["weights"])
    x = drawn(task)

    def run() -> Any:
        net.setInput(x)
        return net.forward()

    return run


def mnn(task: dict[str, Any], answers: Answers) -> Pass:
    """From Caffe's files, by MNN's converter."""
    import MNN
    import MNN.expr as F
    import MNN.nn as nn

    answers.has_imported()
    made = f"{task['work']}/net.mnn"
    if not Path(made).exists():
        tool = [sys.executable, "-c", "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)", "-f", "CAFFE"]
        files = ["--modelFile", task["weights"], "--prototxt", task["net"], "--MNNModel", made, "--bizCode", "x"]
        done = subprocess.run(
            [*tool, *files], capture_output=True, text=True, cwd=task["work"]
        )  # it leaves a file there
        if not Path(made).exists():
            raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
    settings = {"precision": "high", "backend": "CPU", "numThread": task["threads"]}
    manager = nn.create_runtime_manager((settings,))
    net = nn.load_module_from_file(made, ["data"], [task["output"]], runtime_manager=manager)
    x = drawn(task)

    def run() -> Any:
        value = F.placeholder(x.shape, F.NCHW)
        value.write(x)
        return np.array(net.forward(value).read())

    assert MNN is not None
    return run


def ncnn(task: dict[str, Any], answers: Answers) -> Pass:
    """From our ONNX, by pnnx; ncnn has no batches: the images are given one by one."""
    import ncnn as n

    answers.has_imported()
    stem = Path(task["work"]) / "net"
    if not stem.with_suffix(".ncnn.param").exists():
        stem.with_suffix(".onnx").write_bytes(Path(task["onnx"]).read_bytes())
        shape = ",".join(map(str, (1, *task["shape"])))
        tool = [Path(sys.executable).parent / "pnnx", stem.with_suffix(".onnx"), "fp16=0", f"inputshape=[{shape}]"]
        done = subprocess.run(tool, capture_output=True, text=True, cwd=task["work"])
        if not stem.with_suffix(".ncnn.param").exists():
            raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
    net = n.Net()
    net.opt.num_threads = task["threads"]
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    net.opt.use_bf16_storage = False
    if net.load_param(str(stem.with_suffix(".ncnn.param"))) or net.load_model(str(stem.with_suffix(".ncnn.bin"))):
        raise RuntimeError("ncnn does not load what pnnx wrote")
    images = [n.Mat(image).clone() for image in drawn(task)]

    def run() -> Any:
        for image in images:
            extractor = net.create_extractor()
            extractor.input("in0", image)
            code, made = extractor.extract("out0")
            if code:
                raise RuntimeError("ncnn computes nothing")
        return np.array(made)

    return run


def _array(made: Any) -> Any:
    return next(iter(made.values())) if isinstance(made, dict) else made


def main() -> None:
    """Serves until standard input ends."""
    warnings.simplefilter("ignore")
    answers, task = Answers(), json.loads(sys.argv[2])
    try:
        run = globals()[sys.argv[1]](task, answers)
        run()  # the warm-up
        run()
    except BaseException as error:  # noqa: BLE001
        text = " ".join(str(error).split())
        answers.say(error=f"{type(error).__name__}: {text[:160]}")
        os._exit(1)
    answers.say(ready=True)
    answers.wait()
    while True:
        run()
        answers.passed()


if __name__ == "__main__":
    main()
