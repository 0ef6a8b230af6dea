"""The calibration: from frozen features to a classifier that treats all classes alike.

The features x of each image are standardised to u = (x - mean) / std. The loss of a calibration
gives each image a weight w_i and a target q_i, and all images one prior pi. Kernel K and bias b
minimise, over all views i of the n images,

    mean_i w_i CE(q_i, K u_i + b + log pi) + ||K||^2 / (2 s sqrt(n))

by L-BFGS (`scipy.optimize`). Cross-validation chooses s: the smallest of `STRENGTHS` whose
class-mean accuracy is within one standard error of the best. Mean and std are folded into K and b,
so the result is a linear classifier of x.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from candle_tf import losses, metrics
from candle_tf.data.checks import check_labels
from candle_tf.utils.names import lookup
from scipy.optimize import minimize

CALIBRATIONS = ("balanced_softmax", "label_aware_smoothing", "cross_entropy")
STRENGTHS = (1.0, 10.0, 100.0)  # tried on 173 to 11,165 images (docs/lab/choices.md)
FOLDS = 3
ITERATIONS = 50  # of L-BFGS at most; each passes over all rows once or twice
MOST_CROSS_VALIDATED = 5_000  # images; above this, the largest classes lose images first
MOST_ROWS = 100_000  # above this, the last views of all images are left out
MOST_LOGITS = 2**26  # of a block of rows: 256 MB for each of its arrays


@dataclass(frozen=True)
class CrossValidation:
    """A calibration's accuracy on training images that it did not see.

    The images are split into folds. A classifier fitted to one view of the other folds classifies
    each fold. A class of one image cannot be held out: its accuracy is NaN, and means leave it out.

    Attributes:
        strength: s of the penalty ||K||^2 / (2 s sqrt(n)); a larger one penalises less.
        per_class: Accuracy of each class, as a fraction of 1, (classes,).
        class_counts: Training images per class, (classes,).

    Example:
        >>> checked = CrossValidation(0.3, [0.9, 0.8, 0.7], class_counts=[9, 5, 2])
        >>> round(checked.class_mean, 2), checked.by_rank()
        (0.8, {'head': 0.9, 'medium': 0.8, 'tail': 0.7})
    """

    strength: float
    per_class: Sequence[float]
    class_counts: Sequence[int]

    @property
    def class_mean(self) -> float:
        """The mean of the classes' accuracies; NaN where no class could be held out."""
        return nan_mean(np.array(self.per_class))

    def by_rank(self, bounds: tuple[int, int] | None = None) -> dict[str, float]:
        """Returns the mean accuracy of head, medium and tail (see `metrics.rank_groups`)."""
        groups = metrics.rank_groups(self.class_counts, bounds)
        means = {name: nan_mean(np.array(self.per_class)[c]) for name, c in groups.items()}
        return {name: mean for name, mean in means.items() if not np.isnan(mean)}

    def get_config(self) -> dict:
        """Returns the attributes in types that JSON keeps."""
        values = {"per_class": self.per_class, "class_counts": self.class_counts}
        return {"strength": self.strength, **{name: list(v) for name, v in values.items()}}

    def summary(self) -> str:
        """Returns one line for people, and a second line where the teacher knows little."""
        groups = ", ".join(f"{name} {100 * mean:.1f}" for name, mean in self.by_rank().items())
        mean = f"{100 * self.class_mean:.1f} %, the mean of the classes ({groups})"
        line = f"Cross-validated accuracy of the teacher: {mean}"
        if self.class_mean >= 0.5:
            return line
        return (
            f"{line}\nThat is poor: these images may be unlike those that the teacher was trained "
            "on, or too few. Try another teacher, or a larger size of its images."
        )


def nan_mean(values: np.ndarray) -> float:
    """Returns the mean of the values that are not NaN; NaN where all are.

    Example:
        >>> nan_mean(np.array([1.0, np.nan, 3.0]))
        2.0
    """
    return float(np.mean(values[~np.isnan(values)])) if (~np.isnan(values)).any() else float("nan")


def fit_classifier(
    features: np.ndarray,
    labels: np.ndarray,
    class_counts: Sequence[int],
    *,
    loss: str = "balanced_softmax",
    label_smoothing: tuple[float, float] = (0.05, 0.1),
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, CrossValidation]:
    """Returns the kernel and the bias of a linear classifier, and its cross-validation.

    Args:
        features: Features of the training images, float32 (n * views, width): the first n rows
            hold each image once.
        labels: Class of each row, int64 (n * views,).
        class_counts: Training images per class, (classes,); their sum is n.
        loss: Name in `CALIBRATIONS`.
        label_smoothing: Factors of head and tail, for "label_aware_smoothing".
        seed: Seed of the random folds.

    Returns:
        Kernel float32 (width, classes), bias float32 (classes,), and the cross-validation.

    Raises:
        ValueError: If a feature is NaN or Inf, a label is out of range, or `loss` has another name.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
        >>> y = (x[:, 0] > 0.5).astype(int)
        >>> kernel, bias, checked = fit_classifier(x, y, np.bincount(y))
        >>> float(np.mean((x @ kernel + bias).argmax(axis=1) == y))
        1.0
    """
    lookup("calibration", loss, dict.fromkeys(CALIBRATIONS))
    counts = np.asarray(class_counts)
    check_labels(labels, len(counts), "calibrate")
    if len(labels) != len(features):
        raise ValueError(
            f"calibrate: {len(features)} rows of features have {len(labels)} labels: give one per "
            "row."
        )
    n = int(counts.sum())
    rows = n * max(1, min(len(features), MOST_ROWS) // n)  # whole views
    x = np.array(features[:rows], np.float32)
    y = np.asarray(labels[:rows]).reshape(-1).astype(np.int64)
    mean, std = standardize(x)
    if (np.bincount(y[:n], minlength=len(counts)) != counts).any():
        raise ValueError(
            f"The first {n} rows of the features do not hold each training image once: give data "
            "that hold it once, and views to read them more than once."
        )
    how = (loss, label_smoothing)
    # For the cross-validation, half of the iterations are enough.
    checked = cross_validate(x[:n], y[:n], len(counts), *how, ITERATIONS // 2, seed)
    penalty = penalty_of(checked.strength, images=n)
    kernel, bias = fit_standardized(x, y, len(counts), penalty, *how, ITERATIONS)
    kernel /= std[:, None]
    return kernel, bias - mean @ kernel, checked


def standardize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardises the columns of x in place, and returns their mean and standard deviation.

    Raises:
        ValueError: If a value is NaN or Inf.

    Example:
        >>> x = np.float32([[1.0], [3.0]])
        >>> [float(value[0]) for value in standardize(x)], x.ravel().tolist()
        ([2.0, 1.0], [-1.0, 1.0])
    """
    mean = x.mean(axis=0, dtype=np.float64)
    std = x.std(axis=0, dtype=np.float64)
    if not np.isfinite(std).all():
        raise ValueError(
            "The teacher's features hold NaN or Inf: give images in [0, 255] and a teacher with "
            "the preprocessing that it was trained with."
        )
    std[std == 0] = 1.0  # a constant feature becomes 0
    x -= mean.astype(np.float32)
    x /= std.astype(np.float32)
    return mean.astype(np.float32), std.astype(np.float32)


def cross_validate(
    x: np.ndarray,
    y: np.ndarray,
    num_classes: int,
    loss: str,
    label_smoothing: tuple[float, float],
    iterations: int,
    seed: int,
) -> CrossValidation:
    """Returns the strength chosen on held-out images, and the accuracy on such images.

    Above `MOST_CROSS_VALIDATED` images, the strength is chosen on a part of them, and the accuracy
    is measured on up to `MOST_ROWS`: a classifier of a part would be worse than the teacher's.

    Args:
        x: Standardised features of each training image, float32 (n, width).
        y: Class of each image, (n,).
        num_classes: Number of classes.
        loss: Name in `CALIBRATIONS`.
        label_smoothing: Factors of head and tail, for "label_aware_smoothing".
        iterations: Most iterations of L-BFGS per fit.
        seed: Seed of the random folds.

    Example:
        >>> x = np.float32([[-1], [1]] * 9)
        >>> cross_validate(x, np.array([0, 1] * 9), 2, "cross_entropy", (0.0, 0.0), 9, 0).per_class
        [1.0, 1.0]
    """
    generator = np.random.default_rng(seed)

    def accuracies(most: int, strengths: Sequence[float]) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns the accuracies per class for each strength, and the images that measured them."""
        kept = most_balanced(y, most, generator)
        fold = deal(y[kept], FOLDS, generator)
        tried = kept[fold >= 0]
        measured = []
        for strength in strengths:
            predicted = np.full(len(y), -1)
            for k in range(fold.max() + 1):
                fitted, held_out = kept[fold != k], kept[fold == k]
                penalty = penalty_of(strength, images=len(fitted))
                kernel, bias = fit_standardized(
                    x[fitted], y[fitted], num_classes, penalty, loss, label_smoothing, iterations
                )
                predicted[held_out] = np.argmax(x[held_out] @ kernel + bias, axis=1)
            per_class = metrics.per_class_accuracy(y[tried], predicted[tried], num_classes)
            measured.append(per_class)
        return measured, np.bincount(y[tried], minlength=num_classes)

    measured, held_out = accuracies(MOST_CROSS_VALIDATED, STRENGTHS)
    means = np.array([nan_mean(per_class) for per_class in measured])
    best = measured[int(np.argmax(np.nan_to_num(means)))]
    within = np.nan_to_num(means) >= np.nan_to_num(means.max()) - standard_error(best, held_out)
    chosen = int(np.argmax(within))
    strength, per_class = STRENGTHS[chosen], measured[chosen]
    if len(y) > MOST_CROSS_VALIDATED:
        [per_class], _ = accuracies(MOST_ROWS, [strength])
    counts = np.bincount(y, minlength=num_classes)
    return CrossValidation(strength, per_class.tolist(), counts.tolist())


def standard_error(per_class: np.ndarray, images: np.ndarray) -> float:
    """Returns the standard error of a class mean of accuracies.

    Args:
        per_class: Accuracy of each class, (classes,).
        images: Number of images that measured each accuracy, (classes,).

    Example:
        >>> standard_error(np.array([0.5, 0.5]), np.array([8, 8]))
        0.125
    """
    seen = images > 0
    variances = per_class[seen] * (1.0 - per_class[seen]) / images[seen]
    return float(np.sqrt(variances.sum()) / max(seen.sum(), 1))


def most_balanced(y: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Returns the sorted places of at most `count` images; large classes keep equally many images.

    Each class keeps two of its images, even if these are more than `count` together. A class with
    one image could not be held out.

    Args:
        y: Class of each image, (n,).
        count: Largest number of images.
        generator: Source of the random choice.

    Example:
        >>> most_balanced(np.array([0, 0, 0, 1]), 3, np.random.default_rng(0)).size
        3
    """
    if len(y) <= count:
        return np.arange(len(y))
    counts = np.bincount(y)
    kept = (np.minimum(counts, m).sum() for m in range(1, counts.max()))
    most = max(2, sum(n <= count for n in kept))
    shuffled = generator.permutation(len(y))
    return np.sort(shuffled[rank_in_class(y[shuffled]) < most])


def deal(y: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """Returns the fold of each image, int64 (n,); -1 for the only image of a class.

    The images of a class are dealt in turn, from fold to fold. So a class of two images is in two
    folds, and every fit sees it.

    Args:
        y: Class of each image, (n,).
        folds: Number of folds.
        generator: Source of the random order.

    Example:
        >>> sorted(deal(np.array([0, 0, 0, 1]), 3, np.random.default_rng(0)).tolist())
        [-1, 0, 1, 2]
    """
    shuffled = generator.permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    fold = np.empty(len(y), int)
    fold[by_class] = np.arange(len(y)) % folds
    return np.where(np.bincount(y)[y] > 1, fold, -1)


def rank_in_class(y: np.ndarray) -> np.ndarray:
    """Returns the number of images of the same class before each image, int64 (n,).

    Example:
        >>> rank_in_class(np.array([1, 0, 1, 1])).tolist()
        [0, 0, 1, 2]
    """
    order = np.argsort(y, kind="stable")
    counts = np.bincount(y)
    rank = np.empty(len(y), int)
    rank[order] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def penalty_of(strength: float, images: int) -> float:
    """Returns the factor 1 / (s sqrt(n)) of ||K||^2 / 2.

    Example:
        >>> penalty_of(10.0, images=100)
        0.01
    """
    return 1.0 / (strength * math.sqrt(images))


def fit_standardized(
    x: np.ndarray,
    y: np.ndarray,
    num_classes: int,
    penalty: float,
    loss: str,
    label_smoothing: tuple[float, float],
    iterations: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel K and bias b that minimise the objective in the docstring of this module.

    Balanced softmax gives all rows equal weight and adds the log prior. Label-aware smoothing gives
    all classes equal weight and smooths the targets. MiSLAS learns one factor per class; here the
    whole kernel is learned, so it includes that factor.

    Args:
        x: Standardised features, float32 (n, width).
        y: Class of each row, (n,).
        num_classes: Number of classes.
        penalty: Factor of ||K||^2 / 2.
        loss: Name in `CALIBRATIONS`.
        label_smoothing: Factors of head and tail, for "label_aware_smoothing".
        iterations: Most iterations of L-BFGS.

    Example:
        >>> x, y = np.float32([[-1], [1]] * 9), np.array([0, 1] * 9)
        >>> kernel, bias = fit_standardized(x, y, 2, 0.05, "cross_entropy", (0.0, 0.0), 9)
        >>> (x[:2] @ kernel + bias).argmax(axis=1)
        array([0, 1])
    """
    counts = np.maximum(np.bincount(y, minlength=num_classes), 1)
    target = np.eye(num_classes, dtype=np.float32)
    weight, prior = np.ones(len(y), np.float32), np.zeros(num_classes, np.float32)
    if loss == "balanced_softmax":
        prior = losses.log_prior(counts)
    if loss == "label_aware_smoothing":
        head, tail = label_smoothing
        smoothing = losses.LabelAwareSmoothing(counts, head=head, tail=tail).smoothing[:, None]
        target = (1.0 - smoothing) * target + smoothing / num_classes
        weight = losses.inverse_frequency_weights(counts)[y]
        weight *= len(y) / weight.sum()
    rows = max(1, MOST_LOGITS // num_classes)
    blocks = [slice(first, first + rows) for first in range(0, len(y), rows)]

    def of_block(block: slice, kernel: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray]:
        w, q = weight[block, None], target[y[block]]
        z = x[block] @ kernel
        z += bias + prior
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        total = p.sum(axis=1, keepdims=True)
        value = np.sum(w * q * (np.log(total) - z), dtype=np.float64)
        p *= w / total
        p -= w * q
        return value, np.concatenate([x[block].T @ p, p.sum(axis=0, keepdims=True)])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.astype(np.float32).reshape(-1, num_classes)
        kernel, bias = parameters[:-1], parameters[-1]
        value, slope = 0.0, np.zeros_like(parameters)
        for block in blocks:
            part, its_slope = of_block(block, kernel, bias)
            value += part
            slope += its_slope
        value = value / len(y) + penalty * np.sum(kernel.astype(np.float64) ** 2) / 2.0
        slope /= len(y)
        slope[:-1] += penalty * kernel
        return value, slope.astype(np.float64).ravel()

    found = minimize(
        objective,
        np.zeros((x.shape[1] + 1) * num_classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "gtol": 1e-5, "ftol": 1e-8},
    )
    parameters = found.x.astype(np.float32).reshape(-1, num_classes)
    return parameters[:-1], parameters[-1]
