"""Trains the encoder of a student on images without labels, for students that start from it.

    candle-tf pretrain --dataset=folder:photos --workdir=runs/photos
    candle-tf train --dataset=folder:birds --workdir=runs/birds --student=STUDENT

with STUDENT "resnet_e:weights='runs/photos/encoder.npz'".

The student learns the features of the teacher. Labels are not used, and --dataset=folder:DIR takes
all images below the folder, also those that a training on the same folder holds out for its test.
The same command again continues an interrupted pretraining.
"""

import dataclasses

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.pretraining import job

TEXTS = {
    "dataset": "Images: 'folder:DIR' for all images below a folder; or a set whose labels are not "
    "used: 'tfds:NAME', 'list:TRAIN.txt,TEST.txt', 'csv:FILE' or 'digits'.",
    "epochs": "Epochs of the training. If not given, the run plans passes over the images.",
    "mixup": "Alpha of mixup of images and of the teacher's features; 0 for none; 1 if not given.",
    "minutes": "Minutes for the teacher and the training together, in place of `epochs`.",
}


def pretrain():
    """Trains the encoder of the flags."""
    run_flags.stop_at_signals()
    settings = dataclasses.asdict(run_flags.settings(flags.FLAGS))
    job.pretrain(**{name: value for name, value in settings.items() if name not in job.UNUSED})


def main():
    """Defines the flags and starts the pretraining."""
    run_flags.define(omit=job.UNUSED, texts=TEXTS)
    run_flags.start(pretrain)


if __name__ == "__main__":
    main()
