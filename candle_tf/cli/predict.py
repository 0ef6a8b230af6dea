"""Prints the classes of images by an exported student, a SavedModel, a .tflite file or C source.

    candle-tf predict --model=runs/digits/saved_model digit.png
    candle-tf predict --model=student.tflite --output=classes.csv photos/ more/*.jpg

Photographs are cropped as in the run's evaluation, which the export records. The command names
files that cannot be read, and continues with the others.
"""

import sys
from functools import partial

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.export.loaded import Exported
from candle_tf.export.prediction import check_output, predict_files


def predict(names: list[str]):
    """Predicts the classes of image files and of the images in directories."""
    values = flags.FLAGS
    check_output(values.output)
    model = Exported(values.model)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be of any bytes
    say = partial(print, flush=True)
    count, bad = predict_files(model, names, values.output, values.centre_square, values.top, say)
    if bad:
        sys.exit(f"{bad} of {count} files could not be read.")


def main():
    """Defines the flags and starts the prediction."""
    flags.DEFINE_string(
        "model", None, "SavedModel directory, .tflite file or C source directory.", required=True
    )
    flags.DEFINE_string("output", None, "A .csv or .json file to write the classes to as well.")
    flags.DEFINE_float(
        "centre_square",
        None,
        "Look at the central square of this share of the shorter side, in place of what the "
        "export says; 1 looks at the whole image.",
        lower_bound=0.01,
        upper_bound=1.0,
    )
    flags.DEFINE_integer("top", 3, "How many classes to print, the most probable first.", 1)
    run_flags.start(predict, "IMAGE...")


if __name__ == "__main__":
    main()
