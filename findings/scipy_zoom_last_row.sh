#!/usr/bin/env bash
# SciPy 1.17.1 and the last row of an image that scipy.ndimage.zoom resizes.
#
# zoom keeps the corners: pixel i of m comes from place i * ((n - 1) / (m - 1)) of n. For some sizes the last product is
# rounded to slightly more than n - 1. With mode "constant", the default, that place counts as outside, and the whole last
# row (or column) is 0, without a warning. So it is for 256 -> 227, the size of AlexNet's input, and for 3% of all pairs of
# sizes up to 300.
#
# caffe.io.resize_image resizes images with any number of channels but 1 and 3 in this way, so that what a net was trained
# or tested on has the black row.
#
# What a porter should do: keep the row where figures of such a net are to be reproduced; else give mode="nearest".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "scipy==1.17.1" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import scipy
from scipy.ndimage import zoom

print("SciPy", scipy.__version__)


def last_rows(old: int, new: int, **options: str) -> np.ndarray:
    image = np.ones((old, 2), np.float32)
    return zoom(image, (new / old, 1), order=1, **options)[-2:, 0]


for old, new, wanted in ((256, 227, [1, 0]), (256, 224, [1, 1])):
    found = last_rows(old, new)
    print(f"{old} -> {new} rows of ones: the last two are {found}, with mode nearest {last_rows(old, new, mode='nearest')}")
    assert found.tolist() == wanted, found
    assert last_rows(old, new, mode="nearest").tolist() == [1, 1]
olds, news = np.meshgrid(np.arange(2, 301.0), np.arange(2, 301.0))
share = ((news - 1) * ((olds - 1) / (news - 1)) > olds - 1).mean()
print(f"of the sizes up to 300, {share:.0%} of the pairs")
assert 0.03 < share < 0.04, share
PYTHON
