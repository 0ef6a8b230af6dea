"""The scaling of pixels that a student begins with."""

from collections.abc import Sequence

import tensorflow as tf

HALF = (0.5, 0.5, 0.5)


def standardize(images: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """Returns (x / 255 - mean) / std by channel, for pixels x in [0, 255].

    Args:
        images: Symbolic or actual images (batch, height, width, 3).
        mean: Mean of the pixels by channel, as fractions of 255.
        std: Standard deviation of the pixels by channel, as fractions of 255.

    Example:
        >>> standardize(tf.fill((1, 1, 1, 3), 255.0), HALF, HALF).numpy().ravel()
        array([1., 1., 1.], dtype=float32)
    """
    scale = [1 / (255 * s) for s in std]
    offset = [-m / s for m, s in zip(mean, std)]
    return tf.keras.layers.Rescaling(scale, offset, dtype="float32")(images)
