"""The teacher by name, and networks made again for other devices or another precision."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.teacher import Teacher, named_teachers
from candle_tf.utils.names import arguments_of, lookup, parse_spec

LETTERS = Path(__file__).parents[1] / "assets" / "letters.h5"


def named_teacher(
    spec: str,
    image_size: int,
    weights: str,
    preprocessing: str | None,
    allow_custom_code: bool = False,
) -> Teacher:
    """Returns a teacher that is not calibrated yet.

    Args:
        spec: Network by name, "letters", or the path of a Keras file.
        image_size: Side in pixels of the images that the teacher sees.
        weights: "imagenet" or a weights file, for a network by name; empty for random weights.
        preprocessing: Scaling of the images, as in Keras; the network's own for None.
        allow_custom_code: Whether to trust a file that contains code of its own.

    Raises:
        ValueError, OSError: If there is no such teacher.
    """
    kind = spec.partition(":")[0]
    named = {"keras": Teacher.from_keras, "larq_zoo": Teacher.from_larq_zoo}
    if kind in named:
        name, arguments = parse_spec(spec)
        name = name.removeprefix(f"{kind}:")
        with arguments_of("teacher", spec):
            return named[kind](name, image_size, weights or None, preprocessing, **arguments)
    if not os.path.exists(spec) and not os.path.splitext(spec)[1]:
        lookup("teacher", spec, dict.fromkeys(named_teachers()))
    path = LETTERS if spec == "letters" else spec
    return Teacher.from_file(path, image_size, preprocessing, allow_custom_code)


def mirrored_teacher(teacher: Teacher) -> Teacher:
    """Returns the same teacher in new layers, for the scope in which the function is called."""
    again = Teacher.from_config(teacher.get_config())
    again.encoder.set_weights(teacher.encoder.get_weights())
    again.classifier.set_weights(teacher.classifier.get_weights())
    return again


@contextlib.contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Lets layers that are built within compute by a Keras mixed-precision policy."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
