"""Writes the report of a finished run, WORKDIR/report/report.html and its figures, once more.

    candle-tf report --workdir=runs/c10
    candle-tf report --workdir=runs/c10 --from_scratch=runs/ce --full_precision=runs/ce32

The second compares the student's classifier with those of two other runs on the same data.
"""

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.runs import job


def report():
    """Writes the page of a finished run."""
    path = job.report(
        run_flags.run_of(flags.FLAGS.workdir, flags.FLAGS.data_dir),
        from_scratch=flags.FLAGS.from_scratch,
        full_precision=flags.FLAGS.full_precision,
    )
    print(f"Wrote {path}")


def main():
    """Defines the flags and starts the report."""
    flags.DEFINE_string("workdir", None, "Directory of a run of train.py.", required=True)
    flags.DEFINE_string("from_scratch", None, "A run of the same student, trained alone.")
    flags.DEFINE_string("full_precision", None, "A run of the same student with --student_bits=32.")
    run_flags.define_data_dir()
    run_flags.start(report)


if __name__ == "__main__":
    main()
