#!/usr/bin/env bash
# PyTorch 2.14.1: torch.compile(net, options={"freezing": True}) is accepted and freezes nothing.
#
# Inductor's `freezing` makes the weights constants of the compiled code, so that oneDNN packs those of a convolution once
# instead of in every call. Dynamo decides whether weights become constants or arguments when it traces the net, and asks
# for the global setting there; the option counts only later, when the weights are arguments already. No error, no
# warning: the code is that of a plain torch.compile, and on a CPU it is no faster with one image than the net itself. (As
# they are constants, a change of the weights afterwards shows which of the two it is.)
#
# What a porter should do: set torch._inductor.config.freezing = True, or TORCHINDUCTOR_FREEZING=1 in the environment,
# before the first call, which has to be in torch.no_grad(); and compile again after the weights have changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
command -v g++ > /dev/null || { echo "needs g++"; exit 1; }
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir "torch==2.14.1" "numpy==2.4.6"
cat > "$folder/freeze.py" <<'PYTHON'
import sys

import torch
import torch._inductor.config
from torch import nn
from torch._inductor.utils import run_and_get_code

torch._inductor.config.freezing = "globally" in sys.argv
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
x = torch.ones(1, 3, 16, 16)
with torch.no_grad():
    compiled = torch.compile(net, options={"freezing": True} if "option" in sys.argv else None)
    before, code = run_and_get_code(compiled, x)
    packed = "mkldnn._convolution_pointwise" in "\n".join(code)
    net[0].bias += 10
    constant = torch.equal(compiled(x), before)
    net[0].bias -= 10
print(f"packed weights: {packed}, constant weights: {constant}")
PYTHON
export CUDA_VISIBLE_DEVICES= TORCHINDUCTOR_CACHE_DIR="$folder/cache"
for how in plain option globally; do
    said=$("$folder/venv/bin/python" "$folder/freeze.py" $how 2> /dev/null)
    echo "$how: $said"
    expected=False
    [ $how = globally ] && expected=True
    [ "$said" = "packed weights: $expected, constant weights: $expected" ]
done
