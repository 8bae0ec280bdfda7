#!/usr/bin/env bash
# MNN 3.6.1: the command mnnconvert runs `pip install` when it starts, with whatever pip comes first in PATH.
#
# Its Python wrapper imports a module that reports usage; where the package for that is missing, it installs it through the
# shell, without asking, even for `--version`. The pip is that of PATH, not of the environment that mnnconvert belongs to: run
# by its full path while another environment is active, it changes the other one. (The package pulls in some twenty others,
# protobuf below version 6 among them, and so takes the place of a newer protobuf that onnx may need.)
#
# What a porter should do: call the converter in the extension module, `python -c "import sys, MNN, _tools;
# _tools.mnnconvert(sys.argv)" -f ONNX ...`, which does the same and installs nothing; or use MNN's C++ MNNConvert.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "MNN==3.6.1" "numpy==2.4.6"
mkdir "$folder/first"
printf '#!/bin/sh\necho "pip $*" >> "%s/asked"\n' "$folder" > "$folder/first/pip"  # records, and installs nothing
chmod +x "$folder/first/pip"
export PATH="$folder/first:$PATH"

"$folder/venv/bin/mnnconvert" --version > /dev/null 2>&1 || true
echo "mnnconvert --version asked the first pip of PATH for: $(cat "$folder/asked")"
[ "$(head -n 1 "$folder/asked")" = "pip install -U aliyun-log-python-sdk" ]

rm "$folder/asked"
"$folder/venv/bin/python" -c "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)" --version > /dev/null 2>&1 || true
if [ -e "$folder/asked" ]; then echo "the extension module asked too"; exit 1; fi
echo "_tools.mnnconvert asked for nothing"
