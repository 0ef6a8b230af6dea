"""The calibration of a teacher by all replicas, from which every worker gets the classifier."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.calibration import CrossValidation
from candle_tf.classifiers import encode_dataset
from candle_tf.teacher import Teacher
from candle_tf.utils.distribution import from_first, leads


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
        teacher.embed,
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
