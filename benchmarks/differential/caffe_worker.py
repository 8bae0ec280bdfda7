"""Runs nets under pycaffe, one after the other, for __main__.py: Python 3 and NumPy, as Caffe's own Python has them.

Frames come in on stdin and go out on stdout, see :func:`send`. The first that goes out says what this Caffe knows:
types, and the fields of its messages. Each net runs in a child, for a failed check of Caffe ends its process; a child
that ends so says at which stage.
"""

import json
import os
import select
import signal
import struct
import sys
import tempfile
import time

import numpy as np

SECONDS = 10.0
LARGEST = 1 << 20
HEAD = struct.Struct("<II")


def send(file, header, arrays):
    """Writes a frame: the lengths of the header and of what follows, the header as JSON, the arrays' float32s."""
    header = dict(header, arrays=[[key, list(np.shape(array))] for key, array in arrays.items()])
    text = json.dumps(header).encode()
    body = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays.values())
    file.write(HEAD.pack(len(text), len(body)) + text + body)
    file.flush()


def parse(data, start=0):
    """A frame of bytes: the header, the arrays by key, and where the next frame begins; None where it is not whole."""
    if len(data) < start + HEAD.size:
        return None
    text, body = HEAD.unpack_from(data, start)
    at = start + HEAD.size + text
    if len(data) < at + body:
        return None
    header, arrays = json.loads(bytes(data[start + HEAD.size : at])), {}
    for key, shape in header.pop("arrays"):
        count = int(np.prod(shape, dtype=int))
        arrays[key] = np.frombuffer(data, "<f4", count, at).reshape(shape).copy()
        at += 4 * count
    return header, arrays, at


def receive(file):
    """Reads a frame: its header and its arrays; None at the end of the file."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    found = parse(head + file.read(sum(HEAD.unpack(head))))
    return found and found[:2]


def knowledge(caffe):
    """Layer types; message -> field -> what it holds; field of LayerParameter -> its message."""
    from caffe.proto import caffe_pb2

    messages = {}
    for name, message in caffe_pb2.DESCRIPTOR.message_types_by_name.items():
        messages[name] = {
            f.name: [value.name for value in f.enum_type.values] if f.enum_type else None for f in message.fields
        }
    parameters = {f.name: f.message_type.name for f in caffe_pb2.LayerParameter.DESCRIPTOR.fields if f.message_type}
    return {"types": list(caffe.layer_type_list()), "messages": messages, "parameters": parameters}


def fill(net, request):
    """Draws the parameters, the same for a blob that several layers share."""
    random = np.random.RandomState(request["seed"])
    for name, layer in zip(net._layer_names, net.layers, strict=True):
        positive = request["positive"].get(name, [])
        for j, blob in enumerate(layer.blobs):
            if blob.count > LARGEST:
                raise SystemExit("too large")
            value = random.standard_normal(blob.data.shape).astype(np.float32) * 0.5
            if random.rand() < 0.2:
                value = np.round(value * 2) / 2
            if j < len(positive) and positive[j]:
                value = np.abs(value) + 0.25
            blob.data[...] = value


def top_names(net, index):
    return [net._blob_names[i] for i in net._top_ids(index)]


def automatic(net, index):
    """Whether Caffe itself put this Split in."""
    return net.layers[index].type == "Split" and net._layer_names[index].endswith("_split")


def run(caffe, request, inputs, stage, out):
    """One net, forward and backward."""
    caffe.set_mode_cpu()
    caffe.set_random_seed(request["seed"])
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt", dir="/dev/shm") as file:
        file.write(request["text"])
        file.flush()
        net = caffe.Net(file.name, getattr(caffe, request["phase"]))
    if max(blob.count for blob in net.blobs.values()) > LARGEST:
        raise SystemExit("too large")
    fill(net, request)
    for name, array in inputs.items():
        net.blobs[name].data[...] = array
    names, blobs = list(net._layer_names), {}
    pairs = zip(names, net.layers, strict=True)
    parameters = [(name, j, blob) for name, layer in pairs for j, blob in enumerate(layer.blobs)]
    blobs.update((f"blob:{name}:{j}", blob.data.copy()) for name, j, blob in parameters)
    loss, tops = 0.0, {}
    for index, name in enumerate(names):
        stage("forward " + name)
        loss += net._forward(index, index)
        if not automatic(net, index) and net.layers[index].type != "Input":
            for k, top in enumerate(top_names(net, index)):
                tops[f"top:{name}:{k}"] = net.blobs[top].data.copy()
    for name, j, blob in parameters:
        if not np.array_equal(blobs[f"blob:{name}:{j}"], blob.data, equal_nan=True):
            tops[f"after:{name}:{j}"] = blob.data.copy()
    tops["loss"] = np.float32(loss)
    weights = list(net._blob_loss_weights)
    weighted = {name for name, weight in zip(net._blob_names, weights, strict=True) if weight}
    made = {top for i, layer in enumerate(net.layers) if layer.type != "Input" for top in top_names(net, i)}
    outputs = [name for name in net.outputs if name in made]
    send(out, {"outputs": outputs}, dict(blobs, **tops))

    random, gradients = np.random.RandomState(request["seed"] + 1), {}
    for _, _, blob in parameters:
        blob.diff[...] = 0
    for name in outputs:
        if name not in weighted:
            diff = random.standard_normal(net.blobs[name].diff.shape).astype(np.float32)
            net.blobs[name].diff[...] = diff
            gradients["topdiff:" + name] = diff
    for index in reversed(range(len(names))):
        stage("backward " + names[index])
        net._backward(index, index)
    for name in inputs:
        gradients["grad:" + name] = net.blobs[name].diff.copy()
    for name, j, blob in parameters:
        gradients[f"gradparam:{name}:{j}"] = blob.diff.copy()
    send(out, {}, gradients)


def child(caffe, request, inputs):
    """Runs a net in a child: its frames, the stage it reached, how it ended, its stderr."""
    reader, writer = os.pipe()
    where, errors = (tempfile.TemporaryFile(dir="/dev/shm") for _ in range(2))  # noqa: SIM115 - closed below
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reader)
            os.dup2(errors.fileno(), 2)

            def stage(text):
                os.pwrite(where.fileno(), text.encode().ljust(80), 0)

            stage("make")
            with os.fdopen(writer, "wb") as out:
                run(caffe, request, inputs, stage, out)
            code = 0
        except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the parent
            os.write(2, (f"{type(error).__name__}: {error}\n").encode())
        finally:
            os._exit(code)
    os.close(writer)
    data, until, late = bytearray(), time.monotonic() + SECONDS, False
    while True:
        if not select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
            late = True
            os.kill(process, signal.SIGKILL)
            break
        piece = os.read(reader, 1 << 20)
        if not piece:
            break
        data += piece
    os.close(reader)
    status = os.waitpid(process, 0)[1]
    ended = "late" if late else -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    header, arrays, at = {"ended": ended}, {}, 0
    while True:
        frame = parse(bytes(data), at)
        if frame is None:
            break
        header.update(frame[0])
        arrays.update(frame[1])
        at = frame[2]
    texts = []
    for file in (where, errors):
        file.seek(0)
        texts.append(file.read(20000).decode("utf-8", "replace"))
        file.close()
    header["stage"], header["stderr"] = texts[0].strip(), texts[1] if ended else ""
    return header, arrays


def main():
    out, stdin = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)
    import caffe

    send(out, knowledge(caffe), {})
    while True:
        frame = receive(stdin)
        if frame is None:
            break
        send(out, *child(caffe, *frame))


if __name__ == "__main__":
    main()
