"""``caffe-port`` and ``python -m caffe_port``: the command line from its first import on."""

import sys


def main() -> None:
    """Runs :func:`caffe_port.cli.main`. Ctrl-C while its modules are still being imported ends as it does later."""
    try:
        from caffe_port.cli import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    command_line()


if __name__ == "__main__":  # a process of `survey` imports this file again
    main()
