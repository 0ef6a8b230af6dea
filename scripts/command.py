"""Starts a script as the command of `candle-tf` with its name."""

import sys


def run(command: str):
    """Runs a command of `candle_tf.cli`."""
    sys.argv[:1] = ["candle-tf", command]  # which candle_tf reads when it is imported
    from candle_tf.__main__ import main

    main()
