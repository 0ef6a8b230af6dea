"""Images and their labels."""

import hashlib
import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.data.own_images.images import MARK, decode, read_image, stamp_of
from candle_tf.data.pixel_file import PixelFile
from candle_tf.utils.files import fingerprint


@dataclass(frozen=True, repr=False)
class Examples:
    """Images and their labels.

    Attributes:
        images: what is held of each: pixels, uint8 (n, height, width, 3); the bytes of a JPEG, PNG,
            BMP or GIF, string (n,); or its path.
        labels: int64 array (n,).
        on_disk: whether `images` are paths.
        cache: where their pixels are read from, if not from `images`.
        marks: `candle_tf.data.own_images.images.MARK` (n,), by which files are recognised, where
            they were looked at.
    """

    images: tf.Tensor
    labels: np.ndarray
    on_disk: bool = False
    cache: PixelFile | None = None
    marks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        kinds = {True: "files", False: "encoded images"}
        kind = "images" if self.images.dtype == tf.uint8 else kinds[self.on_disk]
        side = "x".join(map(str, self.images.shape[1:3]))
        classes = len(np.unique(self.labels))
        return f"Examples({len(self):,} {kind}{side and f' of {side}'}, {classes} classes)"

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at `indices`."""
        return replace(
            self,
            images=tf.gather(self.images, indices),
            labels=self.labels[indices],
            cache=self.cache and self.cache.take(indices),
            marks=None if self.marks is None else self.marks[indices],
        )

    def image(self, index: tf.Tensor) -> tf.Tensor:
        """The image, or of pixels the images, at an index: uint8 (..., height, width, 3)."""
        if self.cache:
            return self.cache.image(index)
        held = tf.gather(self.images, index)
        return read_image(held) if self.on_disk else decode(held)

    def files(self) -> list[np.ndarray]:
        """Of images on disk, their names, bytes (n,), and sizes and times of change, (n, 2).

        Where they lie does not matter: a set may be moved.
        """
        paths = [os.fsdecode(path) for path in self.images.numpy()]
        names = np.array([os.path.basename(path).encode() for path in paths], object)
        return [names, stamp_of(paths)[:, :2]]

    def fingerprint(self) -> str:
        """Of images and labels; of files on disk as `files` has them."""
        if self.on_disk:
            parts = self.files()
        else:
            starts = range(0, len(self), 1024)  # not all of them twice in memory
            parts = (self.images[i : i + 1024].numpy() for i in starts)
        return fingerprint(itertools.chain(parts, [self.labels]))

    def recognised_by(self) -> np.ndarray:
        """The marks of the images; of those in memory only digests of what is held."""
        if self.marks is not None:
            return self.marks
        marks = np.zeros(len(self), MARK)
        for start in range(0, len(self), 1024):  # not all of them twice in memory
            for i, held in enumerate(self.images[start : start + 1024].numpy(), start):
                digest = hashlib.blake2b(np.ascontiguousarray(held), digest_size=8).digest()
                marks["content"][i] = int.from_bytes(digest, "little")
        return marks

    def decoded(self) -> "Examples":
        """With pixels for files, all of one size, held in memory: decoded once."""
        every = tf.data.Dataset.range(len(self)).map(self.image, tf.data.AUTOTUNE)
        return replace(self, images=next(iter(every.batch(len(self)))), on_disk=False)

    def cached(self, directory: str | os.PathLike) -> "Examples":
        """With pixels decoded once, into a file below `directory` that other runs read too.

        Images that are held as pixels stay as they are.

        Raises:
            ValueError: if another process makes the file now, or it is damaged.
            OSError: if there is no room for it.
        """
        if self.images.dtype == tf.uint8:
            return self
        where = Path(directory) / f"pixels_{self.fingerprint()}"
        return replace(self, cache=PixelFile.of(self.image, len(self), where))
