"""The teacher by name and its speed, and networks made again for other devices or precisions."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.calibration import CrossValidation
from candle_tf.classifiers import encode_dataset
from candle_tf.teacher import Teacher, named_teachers
from candle_tf.utils.distribution import from_first, leads
from candle_tf.utils.names import arguments_of, lookup, parse_spec
from candle_tf.utils.throughput import seconds_per_item

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
            return named[kind](
                name,
                image_size,
                weights=weights or None,
                preprocessing=preprocessing,
                **arguments,
            )
    if not os.path.exists(spec) and not os.path.splitext(spec)[1]:
        lookup("teacher", spec, dict.fromkeys(named_teachers()))
    path = LETTERS if spec == "letters" else spec
    return Teacher.from_file(
        path, image_size, preprocessing=preprocessing, allow_custom_code=allow_custom_code
    )


def images_per_second(
    embed: Callable[[tf.Tensor], tf.Tensor], batches: Iterable[tf.Tensor]
) -> float:
    """Returns the number of images that a network encodes per second, reading included.

    Args:
        embed: Function from images to features.
        batches: At least two batches of equally many images.
    """
    encode, sizes = tf.function(embed), []

    def features() -> Iterator[np.ndarray]:
        for images in batches:
            sizes.append(len(images))
            yield encode(images).numpy()

    seconds = seconds_per_item(features(), at_most=5.0)
    return sizes[0] / seconds


def mirrored_teacher(teacher: Teacher) -> Teacher:
    """Returns the same teacher in new layers, for the scope in which the function is called."""
    again = Teacher.from_config(teacher.get_config())
    again.encoder.set_weights(teacher.encoder.get_weights())
    again.classifier.set_weights(teacher.classifier.get_weights())
    return again


def calibrate_for_all(
    teacher: Teacher,
    batches: tf.data.Dataset | tf.distribute.DistributedDataset,
    class_counts: np.ndarray,
    views: int,
    directory: Path,
    strategy: tf.distribute.Strategy,
    **how,
) -> CrossValidation:
    """Calibrates a teacher whose features all replicas compute, and gives it to all workers.

    Args:
        teacher: Teacher to calibrate.
        batches: Batches of (images, labels), from `candle_tf.utils.distribution.distributed`.
        class_counts: Training images per class, (classes,).
        views: Number of readings of the batches.
        directory: Directory of the features, which an interrupted calibration continues.
        strategy: Strategy whose replicas each encode their part.
        **how: Further arguments of `Teacher.calibrate`.

    Returns:
        The cross-validated accuracy, the same on all workers.

    Example:
        >>> calibrate_for_all(
        ...     teacher, batches, counts, 4, "features", strategy, seed=0
        ... )  # doctest: +SKIP
    """
    verbose = int(leads(strategy))
    encoded = encode_dataset(
        teacher.embedder(views * sum(class_counts), strategy=strategy),
        batches,
        class_counts,
        views=views,
        verbose=verbose,
        directory=directory,
        made_of=teacher.made_of(),
        strategy=strategy,
    )
    classes = len(class_counts)
    kernel, bias, measured = np.zeros((teacher.width, classes)), np.zeros(classes), [0.0] * classes
    checked = CrossValidation(0.0, measured, class_counts.tolist())
    if leads(strategy):
        checked = teacher.calibrate(encoded, class_counts, verbose=verbose, **how)
        kernel, bias = teacher.classifier.get_weights()
    kernel, bias = from_first(strategy, kernel), from_first(strategy, bias)
    measured = np.asarray(from_first(strategy, np.array([checked.strength, *checked.per_class])))
    strength, *per_class = measured.tolist()
    checked = CrossValidation(strength, per_class, class_counts.tolist())
    teacher.set_classifier(kernel, bias, checked)
    return checked


@contextlib.contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Lets layers that are built within compute by a Keras mixed-precision policy."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
