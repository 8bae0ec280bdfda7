"""``caffe-port`` and ``python -m caffe_port``: the command line from its first import on, to the end of the process."""

import atexit
import contextlib
import os
import sys
import threading

USERS = ("caffe_port.pycaffe.script", "caffe_port_plugin_", "_caffe_port_candidate_")
"""How the names of modules begin that run a user's code, or are it."""


def main() -> None:
    """Runs :func:`caffe_port.cli.main`. Ctrl-C while its modules are still being imported ends as it does later."""
    try:
        from caffe_port.cli import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    try:
        command_line()
    except SystemExit as end:
        _leave(end.code)
        raise


def _leave(code: object) -> None:
    """Ends the process without taking apart what torch has made, a tenth of the time of importing it.

    Not where more than memory may be left: a thread, text that cannot be written, a file of a user's code.
    """
    if not isinstance(code, int):  # Python prints it
        return
    if threading.active_count() > 1 or any(name.startswith(USERS) for name in sys.modules):
        return
    with contextlib.suppress(AttributeError, OSError, ValueError):  # of the text: Python reports them at the end
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":  # a process of `survey` imports this file again
    main()
