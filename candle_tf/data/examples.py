"""Images and their labels."""

import hashlib
import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.data.own_images.images import MARK, look_at_files, stamp_of
from candle_tf.data.own_images.pixels import Box, cut, decode, decode_part, read_part
from candle_tf.data.pixel_file import PixelFile
from candle_tf.utils.files import fingerprint

UNSHRUNK = 2**20  # a side in pixels that no image has


@dataclass(frozen=True, repr=False)
class Examples:
    """Images and their labels.

    Attributes:
        images: Pixels, uint8 (n, height, width, 3), or strings (n,): the bytes or the path of a
            JPEG, PNG, BMP or GIF.
        labels: Class numbers, int64 (n,).
        on_disk: Whether `images` are paths.
        cache: File of decoded pixels, read in place of `images`.
        marks: Marks by which files are recognised, `candle_tf.data.own_images.images.MARK` (n,),
            if the files were looked at. Only files with marks are decoded by TensorFlow, faster
            than by Pillow.

    Example:
        >>> ct.data.Examples(tf.zeros((3, 8, 8, 3), tf.uint8), np.array([0, 0, 1]))
        Examples(3 images of 8x8, 2 classes)
    """

    images: tf.Tensor
    labels: np.ndarray
    on_disk: bool = False
    cache: PixelFile | None = None
    marks: np.ndarray | None = None

    def __post_init__(self):
        images, labels = len(self.images), len(self.labels)
        if images != labels:
            raise ValueError(f"Examples: {images} images but {labels} labels: give one per image.")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        kinds = {True: "files", False: "encoded images"}
        kind = "images" if self.images.dtype == tf.uint8 else kinds[self.on_disk]
        side = "x".join(map(str, self.images.shape[1:3]))
        classes = len(np.unique(self.labels))
        return f"Examples({len(self):,} {kind}{side and f' of {side}'}, {classes} classes)"

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples at `indices`."""
        return replace(
            self,
            images=tf.gather(self.images, indices),
            labels=self.labels[indices],
            cache=self.cache and self.cache.take(indices),
            marks=None if self.marks is None else self.marks[indices],
        )

    def image(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the image at an index, uint8 (height, width, 3); of pixels also several."""
        if self.cache:
            return self.cache.image(index)
        if self.on_disk:
            return self.part(index, lambda sides: tf.concat([[0, 0], sides], 0), UNSHRUNK)
        return decode(tf.gather(self.images, index))

    @property
    def in_parts(self) -> bool:
        """True if `part` decodes only a part, so that some pixels differ slightly."""
        return not self.cache and self.images.dtype == tf.string

    def part(self, index: tf.Tensor, box: Box, side: int) -> tf.Tensor:
        """Returns a part of the image at an index, uint8 (height, width, 3).

        Args:
            index: Index of the image, a scalar.
            box: Function from height and width, int32 (2,), to the part's top, left, height and
                width, int32 (4,).
            side: Side in pixels that the part is needed at. A JPEG's part of twice this side or
                more is shrunk while it is decoded, to no less than this side.
        """
        if self.cache or self.images.dtype == tf.uint8:
            return cut(self.image(index), box)
        held = tf.gather(self.images, index)
        if not self.on_disk:
            return decode_part(held, box, side)
        plain = 0 if self.marks is None else tf.gather(self.marks["plain"], index)
        return read_part(held, tf.cast(plain, tf.int64), box, side)

    def paths(self) -> list[str]:
        """Returns the paths of images on disk."""
        return [os.fsdecode(path) for path in self.images.numpy()]

    def files(self) -> list[np.ndarray]:
        """Returns the names of images on disk, bytes (n,), and their sizes in bytes, (n,).

        Directories are left out, so that a set may be moved; times of change, so that it may be
        copied.
        """
        paths = self.paths()
        names = np.array([os.path.basename(path).encode() for path in paths], object)
        return [names, stamp_of(paths)[:, 0]]

    def fingerprint(self) -> str:
        """Returns a digest of images and labels; for files on disk, of their pixels."""
        if self.on_disk:  # a copied file keeps its pixels, but not its times
            parts = [self.recognised_by()["content"]]
        else:
            starts = range(0, len(self), 1024)  # not all of them twice in memory
            parts = (self.images[i : i + 1024].numpy() for i in starts)
        return fingerprint(itertools.chain(parts, [self.labels]))

    def recognised_by(self) -> np.ndarray:
        """Returns the marks of the images; for images in memory, digests of what is held."""
        if self.marks is not None:
            return self.marks
        if self.on_disk:
            return look_at_files(self.paths()).marks
        marks = np.zeros(len(self), MARK)
        for start in range(0, len(self), 1024):  # not all of them twice in memory
            for i, held in enumerate(self.images[start : start + 1024].numpy(), start):
                digest = hashlib.blake2b(np.ascontiguousarray(held), digest_size=8).digest()
                marks["content"][i] = int.from_bytes(digest, "little")
        return marks

    def decoded(self) -> "Examples":
        """Returns the examples with their images, all of one size, decoded into memory."""
        every = tf.data.Dataset.range(len(self)).map(self.image, tf.data.AUTOTUNE)
        return replace(self, images=next(iter(every.batch(len(self)))), on_disk=False)

    def cached(self, directory: str | os.PathLike) -> "Examples":
        """Returns the examples with their pixels in a file below `directory`, which runs share.

        The images are decoded once. Images that are pixels already stay as they are.

        Raises:
            ValueError: If another process is writing the file, or it is damaged.
            OSError: If there is no room for it.
        """
        if self.images.dtype == tf.uint8:
            return self
        where = Path(directory) / f"pixels_{self.fingerprint()}"
        return replace(self, cache=PixelFile.of(self.image, len(self), where))
