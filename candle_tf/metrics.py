"""Accuracy by group of classes: many / medium / few (by shots), head / medium / tail (by rank).

And what else the papers measure: calibration error, the gap of the classifier's weight norms.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

MANY, FEW = 100, 20  # shots: many > 100, medium 20 to 100, few < 20 training images


def shot_groups(class_counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Class indices of the many-, medium- and few-shot groups; an empty group is left out."""
    n = np.asarray(class_counts)
    groups = {"many": n > MANY, "medium": (n >= FEW) & (n <= MANY), "few": n < FEW}
    return {name: np.flatnonzero(mask) for name, mask in groups.items() if mask.any()}


def head_to_tail(class_counts: Sequence[int]) -> np.ndarray:
    """Class indices by training images, most first; ties in label order."""
    return np.argsort(-np.asarray(class_counts), kind="stable")


def rank_groups(
    class_counts: Sequence[int], bounds: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Class indices of head, medium and tail: classes sorted by count, cut at the two `bounds`.

    Args:
        class_counts: training images per class, (classes,).
        bounds: the first rank of medium and of tail; thirds by default.
    """
    order = head_to_tail(class_counts)
    first, second = bounds or (round(len(order) / 3), round(2 * len(order) / 3))
    groups = {"head": order[:first], "medium": order[first:second], "tail": order[second:]}
    return {name: np.sort(members) for name, members in groups.items() if len(members)}


def per_class_accuracy(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Accuracy of each class, float64 (classes,); NaN for a class with no example here."""
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
    """Overall, class-mean and per-class accuracy, and the means of the classes of each group.

    Args:
        labels: int (n,), the true classes.
        predictions: int (n,), the predicted classes.
        class_counts: training images per class, (classes,).
        bounds: ranks at which medium and tail begin; thirds by default.

    Returns:
        {"overall", "class_mean", "shots": {...}, "ranks": {...}, "per_class": [...]} of
        fractions of 1. A group without a class, or without an example here, is left out; a class
        without an example is None in per_class.
    """
    per_class = per_class_accuracy(labels, predictions, len(class_counts))

    def means(groups: Mapping[str, np.ndarray]) -> dict[str, float]:
        seen = {name: per_class[members] for name, members in groups.items()}
        return {k: float(np.nanmean(v)) for k, v in seen.items() if not np.isnan(v).all()}

    return {
        "overall": float(np.mean(labels == predictions)),
        "class_mean": float(np.nanmean(per_class)),
        "shots": means(shot_groups(class_counts)),
        "ranks": means(rank_groups(class_counts, bounds)),
        "per_class": [None if np.isnan(a) else float(a) for a in per_class],
    }


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples by confidence, in `bins` intervals ((m - 1) / bins, m / bins].

    Args:
        confidence: float (n,), the largest softmax probability of each example.
        correct: bool (n,), whether its class was right.

    Returns:
        The number of examples, their accuracy and their mean confidence, (bins,) each; the last
        two are NaN for an empty bin.
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
    """sum_m |B_m| / n |acc(B_m) - conf(B_m)| (Guo et al., ICML 2017, equation 3), in [0, 1].

    Args: as in `calibration_bins`.
    """
    count, accuracy, mean_confidence = calibration_bins(confidence, correct, bins)
    gap = np.abs(accuracy - mean_confidence)
    return float(np.nansum(count * gap) / count.sum())


def norm_gap(norms: np.ndarray, reference: np.ndarray) -> float:
    """The Binary-FP gap: mean over the classes of |w_c / max w - v_c / max v|, in [0, 1].

    The distance between the curves of Figure 1 of arXiv 2404.00285.

    Args:
        norms: w (classes,), L2 norms of a binary network's classifier weights.
        reference: v (classes,), those of a full-precision network.
    """
    return float(np.mean(np.abs(norms / np.max(norms) - reference / np.max(reference))))


@tf.keras.saving.register_keras_serializable("candle_tf")
class ShotAccuracy(tf.keras.metrics.Metric):
    """Mean of per-class accuracies over the many-, medium- and few-shot classes.

    Its result is a dict, so Keras logs "many", "medium" and "few"; a group without a class is left
    out (Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019).

    Args:
        class_counts: training images per class, (classes,).
    """

    def __init__(self, class_counts: Sequence[int], name="shot_accuracy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.class_counts = [int(n) for n in class_counts]
        shape = (len(self.class_counts),)
        self.correct = self.add_weight("correct", shape=shape, initializer="zeros")
        self.total = self.add_weight("total", shape=shape, initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
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
        accuracy = tf.math.divide_no_nan(self.correct, self.total)
        seen = tf.cast(self.total > 0, self.dtype)  # a class not met yet counts for nothing
        return {
            name: tf.math.divide_no_nan(
                tf.reduce_sum(tf.gather(accuracy * seen, members)),
                tf.reduce_sum(tf.gather(seen, members)),
            )
            for name, members in shot_groups(self.class_counts).items()
        }

    def reset_state(self):
        for variable in (self.correct, self.total):
            variable.assign(tf.zeros_like(variable))

    def get_config(self):
        return {**super().get_config(), "class_counts": self.class_counts}
