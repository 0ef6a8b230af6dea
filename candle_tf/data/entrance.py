"""Checks of the data that Keras' `fit`, `evaluate` and `predict` get, on their first batch."""

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from candle_tf.data.checks import check_image_shape, check_labels, check_pixels

MOST_LOOKED_AT = 1024  # images of an array
UNREADABLE = (errno.ENOENT, errno.EACCES, errno.EIO, errno.ESTALE)
LOST = re.compile(rf"([^{{}}\n]+); ({'|'.join(map(os.strerror, UNREADABLE))})")
SENTENCE = re.compile(r"(?:ValueError|OSError|FileNotFoundError): (.*?)\n\s*\n?\s*Traceback", re.S)


def images_of(x: Any) -> list:
    """Returns the image batches in `fit`'s x: one batch, several views or a store's batch."""
    if isinstance(x, Mapping):
        return [x["images"]] if "images" in x else []
    return list(x) if isinstance(x, tuple) else [x]


def labels_of(y: Any) -> list:
    """Returns the label batches in `fit`'s y."""
    return [] if y is None else list(y) if isinstance(y, tuple) else [y]


def check_batch(batch: Any, where: str, num_classes: int):
    """Refuses a batch (images, labels, ...) that `fit` cannot train on.

    Raises:
        ValueError: Says what is wrong with the images or the labels.
    """
    x, y, _ = tf.keras.utils.unpack_x_y_sample_weight(batch)
    for images in images_of(x):
        check_pixels(images, where)
    for labels in labels_of(y):
        check_labels(labels, num_classes, where)
        for images in images_of(x):
            check_lengths(len(images), len(labels), where)


def check_spec(spec: Any, where: str):
    """Refuses wrong image shapes and one-hot labels, without reading a batch.

    Raises:
        ValueError: Says which shape is wrong.
    """
    x, y, _ = tf.keras.utils.unpack_x_y_sample_weight(spec)
    for images in images_of(x):
        shape = getattr(images, "shape", None)
        if shape is not None and shape.rank is not None:
            check_image_shape(shape.as_list(), where)
    for labels in labels_of(y):
        shape = getattr(labels, "shape", None)
        if shape is not None and shape.rank == 2 and shape[1] not in (None, 1):
            raise ValueError(
                f"{where}: labels are class numbers, one per image, not one-hot: pass "
                "labels.argmax(-1)."
            )


class Entrance:
    """Checks the data of one call of `fit`, `evaluate` or `predict`, and says what is wrong.

    Args:
        where: Name of the call, for messages.
        num_classes: Number of classes.
        takes_stores: Whether the call takes the batches of a `TeacherStore`.
    """

    def __init__(self, where: str, num_classes: int, takes_stores: bool = False):
        self.where, self.num_classes, self.takes_stores = where, num_classes, takes_stores
        self.found: list[ValueError] = []

    def checked(self, x: Any, y: Any = None) -> Any:
        """Returns x, or a dataset that checks the data of x when Keras reads them.

        Only the first batch is checked in full. For arrays, sequences and generators this happens
        here. A `tf.data.Dataset` may not allow a second reading, so its own pipeline does it.
        The labels of a dataset are checked in every batch.

        Raises:
            ValueError: Says what is wrong with the first batch.
        """
        if isinstance(x, tf.data.Dataset):
            check_spec(x.element_spec, self.where)
            images, _, _ = tf.keras.utils.unpack_x_y_sample_weight(x.element_spec)
            if isinstance(images, Mapping) and not self.takes_stores:
                raise ValueError(
                    f"{self.where}: the batches are dictionaries of {', '.join(images)}: give "
                    "batches of (images, labels). Those of a TeacherStore are for CandleModel.fit."
                )
            return x.enumerate().map(self.watch)
        if isinstance(x, tf.distribute.DistributedDataset):
            return x
        if isinstance(x, tf.keras.utils.Sequence):
            check_batch(x[0], self.where, self.num_classes)
        elif hasattr(x, "__next__"):
            first = next(x, None)
            if first is not None:
                check_batch(first, self.where, self.num_classes)
                return itertools.chain([first], x)
        elif x is not None and not callable(x):
            some = [images[:MOST_LOOKED_AT] for images in map(as_array, images_of(x))]
            for images, part in zip(images_of(x), some):
                check_pixels(part, self.where)
                for labels in labels_of(y):
                    check_labels(labels, self.num_classes, self.where)
                    check_lengths(len(images), len(labels), self.where)
        return x

    def watch(self, number: tf.Tensor, batch: Any):
        """Returns the batch; checks it first if it is batch 0 or has a label out of range."""
        _, y, _ = tf.keras.utils.unpack_x_y_sample_weight(batch)
        suspect = number < 1
        for labels in labels_of(y):
            if labels.dtype.is_integer or labels.dtype.is_floating:
                most = tf.cast(self.num_classes - 1, labels.dtype)
                suspect |= tf.reduce_any((labels < 0) | (labels > most))
        flat = tf.nest.flatten(batch)

        def look() -> tf.Tensor:
            return tf.numpy_function(
                lambda *arrays: self.look(tf.nest.pack_sequence_as(batch, arrays)), flat, tf.bool
            )

        looked = tf.cond(suspect, look, lambda: tf.constant(True))
        with tf.control_dependencies([looked]):
            return tf.nest.map_structure(tf.identity, batch)

    def look(self, batch: Any) -> np.bool_:
        """Checks a batch and keeps its error for `in_a_sentence`, as TensorFlow would hide it."""
        try:
            check_batch(batch, self.where, self.num_classes)
        except ValueError as error:
            self.found.append(error)
            raise
        return np.bool_(True)

    @contextlib.contextmanager
    def in_a_sentence(self) -> Iterator[None]:
        """Replaces TensorFlow's errors in its block by the sentence of the check or reader."""
        try:
            with reading_errors():
                yield
        except Exception:
            if self.found:
                raise self.found[0] from None
            raise


def as_array(images: Any) -> Any:
    """Returns images that have a shape: a list becomes an array."""
    return images if hasattr(images, "shape") else np.asarray(images)


def check_lengths(images: int, labels: int, where: str):
    """Refuses a batch in which the numbers of images and labels differ."""
    if images != labels:
        raise ValueError(f"{where}: {images} images have {labels} labels: give one per image.")


@contextlib.contextmanager
def reading_errors() -> Iterator[None]:
    """Replaces TensorFlow's error in its block by the sentence of the reader that failed.

    Raises:
        ValueError: With the reader's sentence.
    """
    try:
        yield
    except tf.errors.OpError as error:
        message = str(error.message)
        said, lost = SENTENCE.search(message), LOST.search(message)
        if not said and not lost:
            raise
        why = said[1] if said else f"{lost[1].strip()} cannot be read ({lost[2]})."
        raise ValueError(
            f"{' '.join(why.split())} Start the same command again: it checks all files that "
            "changed, and names or skips those that it cannot read."
        ) from None
