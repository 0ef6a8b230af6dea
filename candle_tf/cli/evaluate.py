"""Evaluates the student of a run from its last checkpoint, and prints the table.

    candle-tf evaluate --workdir=runs/digits
    candle-tf evaluate --workdir=runs/digits --exported=digits.tflite

The second measures an export too, beside the student.
"""

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.export.loaded import Exported, agreement
from candle_tf.reports.tables import accuracy_table, per_class_table


def evaluate():
    """Prints the accuracy of a run, and of an export beside it."""
    run = run_flags.run_of(flags.FLAGS.workdir, flags.FLAGS.data_dir)
    exported = flags.FLAGS.exported and Exported(flags.FLAGS.exported)
    if exported and len(exported.class_names) != len(run.class_names):
        raise ValueError(
            f"{flags.FLAGS.exported} has {len(exported.class_names)} classes, and the run has "
            f"{len(run.class_names)}: name an export of this run."
        )
    numbers = list(map(str, range(len(run.class_names))))
    if exported and exported.class_names not in (run.class_names, numbers):
        print(f"{flags.FLAGS.exported} names its classes otherwise: is it an export of this run?")
    method = run.settings.method
    for split, report in run.evaluate().items():
        print(f"\n{split}\n{accuracy_table({method: report})}\n")
        print(per_class_table({method: report}, run.class_names))
    if exported:
        batches = run.evaluation_batches(run.examples.test)
        print(f"\n{flags.FLAGS.exported}: {agreement(exported, run.student, batches)}")


def main():
    """Defines the flags and starts the evaluation."""
    flags.DEFINE_string("workdir", None, "Directory of a run of train.py.", required=True)
    flags.DEFINE_string("exported", None, "An export of this run to compare on the test images.")
    run_flags.define_data_dir()
    run_flags.start(evaluate)


if __name__ == "__main__":
    main()
