"""Exports the student of a run from its last checkpoint.

    candle-tf export --workdir=runs/digits --output=export/digits
    candle-tf export --workdir=runs/digits --format=lce --output=digits.tflite
    candle-tf export --workdir=runs/digits --format=c --output=export/digits

The second writes a flatbuffer of Larq Compute Engine, and beside it digits.md, which compares size,
operations and latency with float32. The third writes export/digits/digits.c and digits.h.
"""

import os
from pathlib import Path

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.export.c_source import scratch_bytes
from candle_tf.reports.export_report import export_report, is_export_report
from candle_tf.student_model import FORMATS
from candle_tf.utils.files import write_text


def export():
    """Writes the student of a run, and the report of a 1-bit flatbuffer."""
    run, format = run_flags.run_of(flags.FLAGS.workdir, flags.FLAGS.data_dir), flags.FLAGS.format
    reports = format in ("lce", "lce_int8")
    name = {"saved_model": "saved_model", "c": "student"}.get(format, f"{format}.tflite")
    output = flags.FLAGS.output or os.path.join(run.workdir, name)
    page = Path(output).with_suffix(".md")
    if reports and page.exists() and not is_export_report(page.read_text(errors="replace")):
        raise FileExistsError(f"{page} is not an earlier report: give another name for --output.")
    run.export(output, format=format)
    if reports:
        report = export_report(run.student.student, output, run.resolution.base)
        write_text(page, report)
        print(f"{report.partition('```')[0]}Wrote {page}, with a row for each layer")
    print(f"Wrote {output}")
    if format == "c":
        print(f"Its scratch memory takes {scratch_bytes(output):,} bytes.")


def main():
    """Defines the flags and starts the export."""
    flags.DEFINE_string("workdir", None, "Directory of a run of train.py.", required=True)
    flags.DEFINE_enum(
        "format",
        "saved_model",
        list(FORMATS),
        "saved_model for TensorFlow and TF Serving; lce for Larq Compute Engine, 1-bit weights "
        "packed; lce_int8 the same, its other weights in 8 bits; tflite for any TFLite runtime, "
        "real-valued weights; int8 for students at 32 bits, full-integer; c for C source that "
        "needs no library.",
    )
    flags.DEFINE_string(
        "output",
        None,
        "What to write (WORKDIR/saved_model, WORKDIR/FORMAT.tflite or, for c, WORKDIR/student if "
        "not given; C source is named after its directory).",
    )
    run_flags.define_data_dir()  # int8 reads some training images
    run_flags.start(export)


if __name__ == "__main__":
    main()
