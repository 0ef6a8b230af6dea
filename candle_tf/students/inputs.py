"""What a student makes of pixels first."""

from collections.abc import Sequence

import tensorflow as tf

HALF = (0.5, 0.5, 0.5)


def standardize(images: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """(x / 255 - mean) / std by channel: pixels in [0, 255] to values about 0."""
    scale = [1 / (255 * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std)]
    return tf.keras.layers.Rescaling(scale, offset, dtype="float32")(images)
