r"""Joins several encoders into one for a teacher: their different features help the classifier.

    python scripts/maintainers/join_encoders.py --encoder=efficientnet_lite2.keras:192 \
        --encoder=mobilenet_1_0_conv_pw_12.h5:128 --output=joined.keras
    python scripts/train.py --teacher=joined.keras --teacher_image_size=192 ...

Give the image size of each encoder in pixels after its file. Encoders take pixels in [-1, 1]
(preprocessing mode 'tf'). Set --teacher_image_size to the largest size. The joined network reduces
images for the other encoders by bilinear interpolation.
"""

import candle_tf  # noqa: F401  # isort: skip  # Before TensorFlow, which it switches to Keras 2.

from collections.abc import Mapping

import tensorflow as tf
from absl import app, flags
from candle_tf.cli import run_flags
from candle_tf.networks.safe_load import load_model
from candle_tf.networks.surgery import any_size, fold_batch_norm


def joined(encoders: Mapping[tf.keras.Model, int]) -> tf.keras.Model:
    """Returns one encoder with the pooled features of all encoders side by side.

    Args:
        encoders: Encoder, from images to a feature map or an embedding -> side of its images in
            pixels.

    Returns:
        A model from images (batch, height, width, 3) of any size to features (batch, sum of the
        widths).
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
