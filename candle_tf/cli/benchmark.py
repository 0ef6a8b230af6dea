"""Runs methods x data sets x seeds, and writes results.csv and results.md.

    candle-tf benchmark --config=benchmark/cifar10_lt --data_dir=DIR

The same command again continues where it was stopped: finished cells are kept, an interrupted cell
continues from its last epoch, and a failed cell is tried again. Other rows in the same --output use
the cells that are finished there; the results show the rows of the last command. Each cell writes
its output to its log.txt.
"""

import os
import sys
from collections.abc import Mapping

import tensorflow as tf
from absl import flags
from candle_tf.cli import run_flags
from candle_tf.runs import benchmark
from candle_tf.utils import configs

try:
    from rich.live import Live
    from rich.markup import escape
    from rich.table import Column, Table
except ImportError:
    sys.exit("rich is not installed: pip install rich.")

TRAIN = [sys.executable, "-m", "candle_tf.cli.train"]


def run():
    """Runs the cells of the flags and prints their table."""
    given, output = flags.FLAGS, os.path.expanduser(flags.FLAGS.output)
    tf.config.set_visible_devices([], "GPU")  # the cells need its memory
    cells = benchmark.plan(
        run_flags.settings(given), given.methods, given.datasets, given.seeds, output
    )
    print("Making each data set, teacher and student once, to see that all can be made.")
    benchmark.check_parts(cells)
    run_flags.stop_at_signals()
    with Live(auto_refresh=False) as live:
        states = benchmark.run(
            cells, TRAIN, output, lambda states: live.update(progress(states), refresh=True)
        )
    print(f"\n{benchmark.results_table(cells)}")
    if failed := [cell.name for cell, state in states.items() if state.startswith("failed")]:
        sys.exit(f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}.")


def progress(states: Mapping[benchmark.Cell, str]) -> Table:
    """Returns a table of the cells at work and those that failed, and the number of the others."""
    table = Table("cell", "state", Column("directory", overflow="fold"))
    counts = dict.fromkeys(("finished", "waiting"), 0)
    for cell, state in states.items():
        if state in counts:
            counts[state] += 1
        else:
            table.add_row(*map(escape, (cell.name, state, cell.settings.workdir)))
    table.caption = ", ".join(f"{number} {state}" for state, number in counts.items())
    return table


def main():
    """Defines the flags and starts the benchmark."""
    flags.DEFINE_multi_string(
        "methods", [], "A row: NAME, NAME:FLAG=VALUE,... or LABEL = NAME:FLAG=VALUE,..."
    )
    flags.DEFINE_multi_string("datasets", [], "A set to run them on, written as a row is.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of the repetitions.")
    flags.DEFINE_string("output", None, "Directory of the cells and the results.", required=True)
    configs.define()
    run_flags.define(omit=(*benchmark.DECIDED, "dataset"))
    run_flags.start(run)


if __name__ == "__main__":
    main()
