"""Exports the student of a run from its last checkpoint.

    python scripts/export.py --workdir=runs/digits --output=export/digits
    python scripts/export.py --workdir=runs/digits --format=lce --output=digits.tflite

The second writes a flatbuffer of Larq Compute Engine, and beside it, as digits.md, what it saves:
sizes, operations, latency.
"""

import os
from pathlib import Path

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.model import FORMATS
from candle_tf.reports.export_report import export_report
from candle_tf.runs import build as building
from candle_tf.runs.inputs import centre_square
from candle_tf.utils.files import write_text


def export():
    settings, format = run_flags.settings_of(flags.FLAGS.workdir), flags.FLAGS.format
    model, class_names = building.restore(settings)
    name = format if format == "saved_model" else f"{format}.tflite"
    output = flags.FLAGS.output or os.path.join(settings.workdir, name)
    model.export(output, class_names, format, centre_square(settings))
    print(f"Wrote {output}")
    if format == "lce":
        report = export_report(model.student, output, model.resolution.base)
        write_text(Path(output).with_suffix(".md"), report)
        print(report)


def main():
    flags.DEFINE_string("workdir", None, "Directory of a run of train.py.", required=True)
    flags.DEFINE_enum(
        "format",
        "saved_model",
        list(FORMATS),
        "saved_model for TensorFlow and TF Serving; lce for Larq Compute Engine, 1-bit weights "
        "packed; tflite for any TFLite runtime, real-valued weights.",
    )
    flags.DEFINE_string(
        "output", None, "What to write (WORKDIR/saved_model or WORKDIR/FORMAT.tflite if not given)."
    )
    run_flags.start(export)


if __name__ == "__main__":
    main()
