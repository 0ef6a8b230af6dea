"""Calibrates a teacher, distills a binary student on long-tailed data, evaluates and exports it.

    candle-tf train --dataset=folder:photos --workdir=runs/photos --minutes=30
    candle-tf train --config=digits_lt --workdir=runs/digits
    candle-tf train --config=cifar10_lt_100 --data_dir=DIR --workdir=runs/c10

The same command again continues an interrupted run. docs/workdir.md lists the files in the workdir.
"""

import shlex

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.reports.tables import comparison_table
from candle_tf.runs import job
from candle_tf.utils import configs


def train():
    """Runs the main job of the flags."""
    run_flags.stop_at_signals()
    settings = run_flags.settings(flags.FLAGS)
    if job.run(settings):  # of several workers the first one has results
        print(f"Accuracy on the test images in %:\n{comparison_table([settings.workdir])}")
        if settings.epochs != 0:
            workdir = shlex.quote(settings.workdir)
            print(f"Next: candle-tf export --workdir={workdir} --format=lce")


def main():
    """Defines the flags and starts the training."""
    configs.define()
    run_flags.define()
    run_flags.start(train)


if __name__ == "__main__":
    main()
