"""Describes a data set, and names the files in it that cannot be read.

    candle-tf describe --dataset=folder:photos
    candle-tf describe --dataset=tfds:cifar10 --data_dir=DIR --output=OUT

With --output, the command draws the class distribution and a sheet of head and tail images.
"""

import dataclasses

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.reports import description
from candle_tf.runs.benchmark import DATA
from candle_tf.runs.settings import Settings

OF_DATA = {*DATA, "data_dir", "download", "seed"} - {"on_bad_image"}


def describe():
    """Prints and draws the data set of the flags."""
    # Images that cannot be read are named, and the others are described.
    settings = dataclasses.replace(run_flags.settings(), on_bad_image="skip")
    dataclasses.replace(settings, workdir="unused").check()
    if flags.FLAGS.output:
        description.picture_paths(flags.FLAGS.output)
    examples = settings.load_images()
    if any(note.startswith("Skipped") for note in examples.notes):
        print("A training stops at such files; --on_bad_image=skip leaves them out.")
    print(description.describe(examples))
    if flags.FLAGS.output:
        for path in description.write_pictures(examples, flags.FLAGS.output):
            print(f"Wrote {path}")


def main():
    """Defines the flags and starts the description."""
    flags.DEFINE_string("output", None, "Directory of the pictures; none are drawn if not given.")
    others = (field.name for field in dataclasses.fields(Settings) if field.name not in OF_DATA)
    run_flags.define(omit=tuple(others))
    run_flags.start(describe)


if __name__ == "__main__":
    main()
