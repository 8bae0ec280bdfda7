"""pycaffe's own tests (python/caffe/test of BVLC/caffe) against caffe_port.pycaffe: how many pass, why others do not.

    make pycaffe-tests FOLDER=caffe/python/caffe/test

The folder is that of a checkout of Caffe; its tests are run as they are, with ``import caffe`` meaning this package.
They need the package six. Exit code 1 if a test fails.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import unittest
from pathlib import Path

from caffe_port.pycaffe.script import as_caffe

os.environ.setdefault("GLOG_minloglevel", "2")


def tests_of(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    """The single tests of a suite."""
    found: list[unittest.TestCase] = []
    for one in suite:
        found += tests_of(one) if isinstance(one, unittest.TestSuite) else [one]
    return found


def outcome(test: unittest.TestCase) -> tuple[str, str]:
    """``passed``, ``skipped`` or ``failed``, and the reason."""
    result = unittest.TestResult()
    test.run(result)
    if result.skipped:
        return "skipped", result.skipped[0][1]
    wrong = result.errors + result.failures
    return ("failed", wrong[0][1].strip().splitlines()[-1]) if wrong else ("passed", "")


def main() -> int:
    """Runs the tests and prints a line for each that does not pass, and the count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="python/caffe/test of a checkout of BVLC/caffe")
    parser.add_argument("--verbose", action="store_true", help="a line for every test")
    options = parser.parse_args()
    as_caffe()
    folder = options.folder.resolve()
    sys.path.insert(0, str(folder))
    tests = tests_of(unittest.defaultTestLoader.discover(str(folder)))
    if not tests:
        print(f"{folder}: no tests", file=sys.stderr)
        return 2
    counts = dict.fromkeys(("passed", "skipped", "failed"), 0)
    with tempfile.TemporaryDirectory() as here:  # snapshots go to the current folder
        os.chdir(here)
        for test in tests:
            stdout, sys.stdout = sys.stdout, io.StringIO()
            try:
                verdict, reason = outcome(test)
            finally:
                sys.stdout = stdout
            counts[verdict] += 1
            if options.verbose or verdict != "passed":
                print(f"{verdict:8}{test.id()}{': ' + reason if reason else ''}")
        os.chdir("/")
    print(f"{counts['passed']} of {len(tests)} pass, {counts['skipped']} skipped, {counts['failed']} failed")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
