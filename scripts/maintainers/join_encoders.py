"""Joins encoders to one, a teacher's file: what they see differently helps the classifier.

    python scripts/maintainers/join_encoders.py --encoder=efficientnet_lite2.keras:192 \\
        --encoder=mobilenet_1_0_conv_pw_12.h5:128 --output=joined.keras
    python scripts/train.py --teacher=joined.keras --teacher_image_size=192 ...

Each encoder comes with the side in pixels of the images it sees, and takes pixels in [-1, 1]
(preprocessing mode 'tf'). Give --teacher_image_size the largest: for the others it is reduced, by
bilinear interpolation.
"""

import candle_tf  # noqa: F401  # isort: skip  # Before TensorFlow, which it switches to Keras 2.

from collections.abc import Mapping

import tensorflow as tf
from absl import app, flags
from candle_tf.cli import run_flags
from candle_tf.networks.safe_load import load_model
from candle_tf.networks.surgery import any_size, fold_batch_norm


def joined(encoders: Mapping[tf.keras.Model, int]) -> tf.keras.Model:
    """Their pooled features side by side.

    Args:
        encoders: (batch, height, width, 3) -> a feature map or an embedding; and the side in pixels
            of the images it sees.

    Returns:
        (batch, height, width, 3) of any size -> (batch, the sum of their widths).
    """
    images = tf.keras.Input((None, None, 3))
    features = []
    for i, (encoder, size) in enumerate(encoders.items()):
        encoder = any_size(fold_batch_norm(encoder))
        encoder = tf.keras.Model(encoder.input, encoder.output, name=f"encoder_{i}")
        x = encoder(tf.keras.layers.Resizing(size, size)(images))
        features.append(tf.keras.layers.GlobalAveragePooling2D()(x) if x.shape.rank == 4 else x)
    return tf.keras.Model(images, tf.keras.layers.Concatenate()(features), name="joined")


def parse(given: str) -> tuple[str, int]:
    """FILE:PIXELS as path and size.

    Raises:
        ValueError: for anything else.
    """
    path, _, size = given.rpartition(":")
    if not path or not size.isdigit() or not int(size):
        raise ValueError(f"--encoder={given} is not FILE:PIXELS, such as network.keras:192.")
    return path, int(size)


def join():
    given = [parse(each) for each in flags.FLAGS.encoder]
    joined({load_model(path): size for path, size in given}).save(flags.FLAGS.output)
    largest = max(size for _, size in given)
    print(f"--teacher={flags.FLAGS.output} --teacher_image_size={largest}")


if __name__ == "__main__":
    flags.DEFINE_multi_string("encoder", None, "FILE:PIXELS, once or more.", required=True)
    flags.DEFINE_string("output", None, "The joined encoder's file, .keras.", required=True)
    app.run(run_flags.main_of(join))
