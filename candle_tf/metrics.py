"""Accuracy by group of classes: many / medium / few (by shots), head / medium / tail (by rank).

The papers' other measures are here too: the calibration error, and the gap of the classifier's
weight norms.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

MANY, FEW = 100, 20  # shots: many > 100, medium 20 to 100, few < 20 training images
SHIFTS = {"forward 50": 50, "forward 10": 10, "backward 10": 1 / 10, "backward 50": 1 / 50}


def shot_groups(class_counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the classes of the many-, medium- and few-shot groups; an empty group is left out.

    Args:
        class_counts: Training images per class, (classes,).

    Example:
        >>> {name: c.tolist() for name, c in shot_groups([500, 60, 5, 300]).items()}
        {'many': [0, 3], 'medium': [1], 'few': [2]}
    """
    n = np.asarray(class_counts)
    groups = {"many": n > MANY, "medium": (n >= FEW) & (n <= MANY), "few": n < FEW}
    return {name: np.flatnonzero(mask) for name, mask in groups.items() if mask.any()}


def head_to_tail(class_counts: Sequence[int]) -> np.ndarray:
    """Returns the classes by training images, the largest first; ties in label order.

    Args:
        class_counts: Training images per class, (classes,).

    Example:
        >>> head_to_tail([5, 60, 5]).tolist()
        [1, 0, 2]
    """
    return np.argsort(-np.asarray(class_counts), kind="stable")


def rank_groups(
    class_counts: Sequence[int], bounds: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Returns the classes of head, medium and tail: sorted by count, cut at the two `bounds`.

    Args:
        class_counts: Training images per class, (classes,).
        bounds: First rank of medium and of tail; thirds by default.

    Example:
        >>> {name: c.tolist() for name, c in rank_groups([9, 5, 7]).items()}
        {'head': [0], 'medium': [2], 'tail': [1]}
    """
    order = head_to_tail(class_counts)
    first, second = bounds or (round(len(order) / 3), round(2 * len(order) / 3))
    groups = {"head": order[:first], "medium": order[first:second], "tail": order[second:]}
    return {name: np.sort(members) for name, members in groups.items() if len(members)}


def per_class_accuracy(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the accuracy of each class, float64 (classes,); NaN for a class without an example.

    Args:
        labels: True classes, int (n,).
        predictions: Predicted classes, int (n,).
        num_classes: Number of classes.

    Raises:
        ValueError: For logits or probabilities in place of class numbers.

    Example:
        >>> per_class_accuracy(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
        array([0.5, 1. , nan])
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    for name, classes in (("labels", labels), ("predictions", predictions)):
        if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(
                f"{name} are class numbers, one per example: pass logits.argmax(-1) in place of "
                f"an array {classes.shape} of {classes.dtype}."
            )
    total = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[labels == predictions], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return correct / total


def accuracy_report(
    labels: np.ndarray,
    predictions: np.ndarray,
    class_counts: Sequence[int],
    bounds: tuple[int, int] | None = None,
) -> dict:
    """Returns overall, class-mean and per-class accuracy, and the means of each group of classes.

    Args:
        labels: True classes, int (n,).
        predictions: Predicted classes, int (n,).
        class_counts: Training images per class, (classes,).
        bounds: Ranks at which medium and tail begin; thirds by default.

    Returns:
        {"overall", "class_mean", "shots": {...}, "ranks": {...}, "shifted": {...}, "per_class":
        [...]} in fractions of 1. A group without a class, or without an example, is left out. A
        class without an example is None in per_class. For "shifted" see `shifted_accuracy`.

    Example:
        >>> labels, predictions = np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1])
        >>> accuracy_report(labels, predictions, class_counts=[500, 60, 5])["shots"]
        {'many': 1.0, 'medium': 1.0, 'few': 0.0}
    """
    per_class = per_class_accuracy(labels, predictions, len(class_counts))

    def means(groups: Mapping[str, np.ndarray]) -> dict[str, float]:
        seen = {name: per_class[members] for name, members in groups.items()}
        return {k: float(np.nanmean(v)) for k, v in seen.items() if not np.isnan(v).all()}

    return {
        "overall": float(np.mean(np.equal(labels, predictions))),
        "class_mean": float(np.nanmean(per_class)),
        "shots": means(shot_groups(class_counts)),
        "ranks": means(rank_groups(class_counts, bounds)),
        "shifted": shifted_accuracy(per_class, class_counts),
        "per_class": [None if np.isnan(a) else float(a) for a in per_class],
    }


def shifted_accuracy(per_class: np.ndarray, class_counts: Sequence[int]) -> dict[str, float]:
    """Returns the accuracy to expect where some classes are more frequent than others.

    The class priors are exponential profiles over the classes that have examples, sorted from head
    to tail. "forward 50" means that the largest training class is 50 times as frequent as the
    smallest one, "backward 50" the reverse (Zhang et al., TADE, NeurIPS 2022, section 5).

    Args:
        per_class: Accuracy of each class, float (classes,); NaN for a class without an example.
        class_counts: Training images per class, (classes,).

    Returns:
        Accuracies in fractions of 1, by the names of `SHIFTS`; {} if no class has an example.

    Example:
        >>> shifted = shifted_accuracy(np.array([1.0, 0.0]), class_counts=[9, 1])
        >>> round(shifted["forward 10"], 3), round(shifted["backward 10"], 3)
        (0.909, 0.091)
    """
    accuracy = per_class[head_to_tail(class_counts)]
    accuracy = accuracy[~np.isnan(accuracy)]
    if not len(accuracy):
        return {}
    rank = np.arange(len(accuracy)) / max(len(accuracy) - 1, 1)
    return {
        name: float(np.average(accuracy, weights=ratio**-rank)) for name, ratio in SHIFTS.items()
    }


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the examples by confidence, in `bins` intervals ((m - 1) / bins, m / bins].

    Args:
        confidence: Largest softmax probability of each example, float (n,).
        correct: Whether the predicted class was right, bool (n,).
        bins: Number of intervals.

    Returns:
        The number of examples, their accuracy and their mean confidence, (bins,) each; the last
        two are NaN for an empty bin.

    Example:
        >>> calibration_bins(np.array([0.4, 0.9]), np.array([True, False]), bins=2)[0]
        array([1, 1])
    """
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    member = np.searchsorted(inner_edges, confidence)
    count, right, total = (
        np.bincount(member, weights, bins) for weights in (None, correct, confidence)
    )
    with np.errstate(invalid="ignore"):
        return count, right / count, total / count


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
    """Returns sum_m |B_m| / n |acc(B_m) - conf(B_m)| (Guo et al., ICML 2017, eq. 3), in [0, 1].

    Args:
        confidence: Largest softmax probability of each example, float (n,).
        correct: Whether the predicted class was right, bool (n,).
        bins: Number of intervals of the confidence.

    Example:
        >>> expected_calibration_error(np.array([0.75, 0.75]), np.array([True, False]))
        0.25
    """
    count, accuracy, mean_confidence = calibration_bins(confidence, correct, bins)
    gap = np.abs(accuracy - mean_confidence)
    return float(np.nansum(count * gap) / count.sum())


def norm_gap(norms: np.ndarray, reference: np.ndarray) -> float:
    """Returns the Binary-FP gap, mean_c |w_c / max w - v_c / max v|, in [0, 1].

    It is the distance between the curves of Figure 1 of arXiv 2404.00285.

    Args:
        norms: L2 norms w of a binary network's classifier weights, (classes,).
        reference: L2 norms v of a full-precision network's classifier weights, (classes,).

    Example:
        >>> norm_gap(np.array([4.0, 3.0]), np.array([2.0, 1.0]))
        0.125
    """
    return float(np.mean(np.abs(norms / np.max(norms) - reference / np.max(reference))))


@tf.keras.saving.register_keras_serializable("candle_tf")
class ShotAccuracy(tf.keras.metrics.Metric):
    """Mean of per-class accuracies over the many-, medium- and few-shot classes.

    Its result is a dict, so Keras logs "many", "medium" and "few"; a group without a class is left
    out (Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019). A group whose
    classes have no example so far has 0.

    Args:
        class_counts: Training images per class, (classes,).

    Example:
        >>> metric = ct.metrics.ShotAccuracy([500, 5])
        >>> metric.update_state([0, 1], [[2.0, 1.0], [2.0, 1.0]])
        >>> {name: float(value) for name, value in metric.result().items()}
        {'many': 1.0, 'few': 0.0}
    """

    def __init__(self, class_counts: Sequence[int], name="shot_accuracy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.class_counts = [int(n) for n in class_counts]
        shape = (len(self.class_counts),)
        self.correct = self.add_weight("correct", shape=shape, initializer="zeros")
        self.total = self.add_weight("total", shape=shape, initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts the examples of a batch.

        Args:
            y_true: Class numbers (batch,) or (batch, 1).
            y_pred: Logits or probabilities (batch, classes).
            sample_weight: Weights of the examples (batch,), or None.
        """
        y_true = tf.convert_to_tensor(y_true)
        if y_true.shape.rank == 2 and y_true.shape[1] not in (None, 1):
            raise ValueError(
                f"{self.name}: labels are class numbers, one per image, not one-hot: pass "
                "labels.argmax(-1)."
            )
        labels = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
        weight = tf.ones_like(labels, self.dtype)
        if sample_weight is not None:
            weight = weight * tf.cast(tf.reshape(sample_weight, [-1]), self.dtype)
        hit = tf.cast(tf.equal(tf.argmax(y_pred, -1, tf.int32), labels), self.dtype)
        classes = len(self.class_counts)
        self.correct.assign_add(tf.math.unsorted_segment_sum(weight * hit, labels, classes))
        self.total.assign_add(tf.math.unsorted_segment_sum(weight, labels, classes))

    def result(self):
        """Returns the accuracy of each group, by name."""
        accuracy = tf.math.divide_no_nan(self.correct, self.total)
        seen = tf.cast(self.total > 0, self.dtype)  # a class without examples does not count
        return {
            name: tf.math.divide_no_nan(
                tf.reduce_sum(tf.gather(accuracy * seen, members)),
                tf.reduce_sum(tf.gather(seen, members)),
            )
            for name, members in shot_groups(self.class_counts).items()
        }

    def reset_state(self):
        """Forgets all examples."""
        for variable in (self.correct, self.total):
            variable.assign(tf.zeros_like(variable))

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        return {**super().get_config(), "class_counts": self.class_counts}
