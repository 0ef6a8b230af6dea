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
    exported = flags.FLAGS.exported and export_of(flags.FLAGS.exported, run.class_names)
    method = run.settings.method
    for split, report in run.evaluate().items():
        print(f"\n{split}\n{accuracy_table({method: report})}\n")
        print(per_class_table({method: report}, run.class_names))
    if exported:
        batches = run.evaluation_batches(run.examples.test)
        print(f"\n{flags.FLAGS.exported}: {agreement(exported, run.student, batches)}")


def export_of(path: str, class_names: list[str]) -> Exported:
    """Returns the export at a path, and prints a line if its classes have other names.

    Raises:
        ValueError: As `Exported`, or if the number of classes differs.
    """
    exported, classes = Exported(path), len(class_names)
    if len(exported.class_names) != classes:
        raise ValueError(
            f"{path} has {len(exported.class_names)} classes, and the run has {classes}: name an "
            "export of this run."
        )
    if exported.class_names not in (class_names, [str(c) for c in range(classes)]):
        print(f"{path} names its classes otherwise: is it an export of this run?")
    return exported


def main():
    """Defines the flags and starts the evaluation."""
    flags.DEFINE_string("workdir", None, "Directory of a run of train.py.", required=True)
    flags.DEFINE_string("exported", None, "An export of this run to compare on the test images.")
    run_flags.define_data_dir()
    run_flags.start(evaluate)


if __name__ == "__main__":
    main()
