"""Exports the student of a run from its last checkpoint as a TensorFlow SavedModel.

python scripts/export.py --workdir=runs/digits --output=export/digits
"""

import os

import run_flags
from absl import app, flags
from candle_tf import training

flags.DEFINE_string("workdir", None, "Directory of a run of train.py.", required=True)
flags.DEFINE_string("output", None, "Directory to write (WORKDIR/saved_model if not given).")


def export():
    workdir = flags.FLAGS.workdir
    model, class_names = training.restore(run_flags.settings_of(workdir))
    output = flags.FLAGS.output or os.path.join(workdir, "saved_model")
    model.export(output, class_names)
    print(f"Wrote {output}")


if __name__ == "__main__":
    app.run(run_flags.main_of(export))
