#!/usr/bin/env bash
# PyTorch 2.14.1: torch.onnx.export leaves out the divisor_override of an average pooling.
#
# F.avg_pool2d(x, k, divisor_override=n) divides the sum of each window by n. Ports of Caffe have it with n = k * k, since
# Caffe is said to divide by the kernel, and with n = 1 for a pooling that sums. ONNX's AveragePool has nothing like it, and
# the exporter, the default one as well as dynamo=False, writes a plain AveragePool without an error or a warning. A sum
# over 2 x 2 comes out as a quarter. With n = k * k, only the windows that reach over the edge are off: ONNX divides them by
# what they cover. So the middle of each map is right, and a net may lose just some of its accuracy. (torch.export
# keeps the divisor. The exporter notices it with verify=True, which is off by default, and goes on.)
#
# What a porter should do: write the division into the net, with a mean over whole windows: F.avg_pool2d(F.pad(x, ...), k) *
# (k * k / n), after padding with zeros as far as the last window reaches.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir \
    "torch==2.14.1" "onnx==1.23.2" "onnxscript==0.7.2" "onnxruntime==1.32.0" "numpy==2.4.6"
export CUDA_VISIBLE_DEVICES=
"$folder/venv/bin/python" - <<'PYTHON'
import io
import warnings

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

X = torch.ones(1, 2, 6, 8)


class Overriding(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, **self.options)


class WrittenOut(nn.Module):
    """The same as kernel 3, stride 2, ceil_mode, divisor_override 9."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)


def exported(net: nn.Module, dynamo: bool) -> np.ndarray:
    file = io.BytesIO()
    if dynamo:
        file.write(torch.onnx.export(net, (X,), dynamo=True, verbose=False).model_proto.SerializeToString())
    else:
        torch.onnx.export(net, (X,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]


print("PyTorch", torch.__version__)
ceil = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
for said, net, times in (
    ("kernel 2, divisor_override 1", Overriding(kernel_size=2, divisor_override=1), {0.25}),
    ("kernel 3, stride 2, ceil_mode, divisor_override 9", Overriding(**ceil, divisor_override=9), {1, 1.5, 2.25}),
    ("kernel 3, stride 2, ceil_mode", Overriding(**ceil), {1}),
    ("the same as with 9, written out", WrittenOut(), {1}),
):
    torchs = net.eval()(X).numpy()
    for dynamo in (True, False):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            onnxs = exported(net, dynamo)
        about = [str(w.message) for w in warned if "divisor" in str(w.message)]
        found = np.unique((onnxs / torchs).round(4)).tolist()
        print(f"{said}, dynamo={dynamo}: ONNX's are PyTorch's times {found}; warnings about the divisor: {about}")
        assert set(found) == times and not about, (said, found, about)
PYTHON
