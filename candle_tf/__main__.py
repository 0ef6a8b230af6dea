"""Runs a command: `candle-tf COMMAND`, or `python -m candle_tf COMMAND`."""

import importlib
import sys


def main():
    """Runs the command that the command line names; `quick_answers` has checked its name."""
    _, command, *arguments = sys.argv
    sys.argv = [f"candle-tf {command}", *arguments]
    importlib.import_module(f"candle_tf.cli.{command}").main()


if __name__ == "__main__":
    main()
