"""``python -m caffe_port.pycaffe script.py [args]``: the same as ``caffe-port run``."""

from __future__ import annotations

import sys

from caffe_port.errors import CaffePortError
from caffe_port.pycaffe import script


def main() -> int:
    """Runs the script that the command line names; returns the exit code."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stderr.write("usage: python -m caffe_port.pycaffe script.py [arguments]\n")
        return 0 if len(sys.argv) > 1 else 2
    try:
        return script.main(sys.argv[1], sys.argv[2:])
    except CaffePortError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
