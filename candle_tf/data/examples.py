"""Images and their labels."""

import os
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from candle_tf.data.images import decode, read_image, stamp_of


@dataclass(frozen=True)
class Examples:
    """Images and their labels.

    Attributes:
        images: what is held of each: pixels, uint8 (n, height, width, 3); the bytes of a JPEG, PNG,
            BMP or GIF, string (n,); or its path.
        labels: int64 array (n,).
        on_disk: whether `images` are paths.
    """

    images: tf.Tensor
    labels: np.ndarray
    on_disk: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at `indices`."""
        taken = tf.gather(self.images, indices)
        return replace(self, images=taken, labels=self.labels[indices])

    def image(self, index: tf.Tensor) -> tf.Tensor:
        """The image, or of pixels the images, at an index: float32 (..., height, width, 3)."""
        held = tf.gather(self.images, index)
        return read_image(held) if self.on_disk else decode(held)

    def files(self) -> list[np.ndarray]:
        """Of images on disk, their names, bytes (n,), and sizes and times of change, (n, 2).

        Where they lie does not matter: a set may be moved.
        """
        paths = [os.fsdecode(path) for path in self.images.numpy()]
        names = np.array([os.path.basename(path).encode() for path in paths], object)
        return [names, stamp_of(paths)[:, :2]]

    def decoded(self) -> "Examples":
        """With pixels for files, all of one size: decoded once, not in every epoch."""
        every = tf.data.Dataset.range(len(self))
        pixels = every.map(lambda i: tf.cast(self.image(i), tf.uint8), tf.data.AUTOTUNE)
        return replace(self, images=next(iter(pixels.batch(len(self)))), on_disk=False)
