"""Long-tailed profiles, and the draw of subsets that follow them."""

from collections.abc import Callable, Sequence

import numpy as np
from candle_tf.utils.names import lookup


def exponential(classes: int, ratio: float) -> np.ndarray:
    """Returns ratio^(-c / (C - 1)) for each class c (Cui et al., CVPR 2019)."""
    return ratio ** (-np.arange(classes) / max(classes - 1, 1))


def step(classes: int, ratio: float) -> np.ndarray:
    """Returns 1 for the first half of the classes, 1 / ratio for the rest (Buda et al., 2018)."""
    return np.where(np.arange(classes) < (classes + 1) // 2, 1.0, 1.0 / ratio)


def pareto(classes: int, ratio: float) -> np.ndarray:
    """Returns (c + 1)^(-a) for each class c, with a = log ratio / log C, as ImageNet-LT's draw."""
    return np.arange(1, classes + 1) ** (-np.log(ratio) / np.log(max(classes, 2)))


PROFILES: dict[str, Callable[[int, float], np.ndarray]] = {
    "exponential": exponential,
    "step": step,
    "pareto": pareto,
}


def long_tail_counts(
    available: Sequence[int],
    imbalance_ratio: float,
    profile: str = "exponential",
    n_max: int | None = None,
) -> np.ndarray:
    """Returns the number of images to keep per class: n_c = n_max * profile(rank of c).

    Classes are ranked by their available images, ties in label order. Counts are truncated to
    integers.

    Args:
        available: Available images per class, (classes,).
        imbalance_ratio: Largest class count divided by the smallest, at least 1.
        profile: Name of a profile in `PROFILES`.
        n_max: Images to keep of the largest class. By default the largest number for which no
            other class runs out of images.

    Returns:
        int64 (classes,).

    Raises:
        ValueError: For a ratio below 1 or an unknown profile. Also if a class has too few images
            for `n_max`, or keeps none.

    Example:
        >>> ct.data.long_tail_counts([500, 500, 500], imbalance_ratio=100)
        array([500,  50,   5])
    """
    shape = lookup("profile", profile, PROFILES)
    if not 1 <= imbalance_ratio < np.inf:
        raise ValueError(
            f"imbalance_ratio, the largest class count over the smallest, is {imbalance_ratio:g} "
            "but must be at least 1: give 1 for balanced data, 10 or 100 for long-tailed."
        )
    if n_max is not None and not 1 <= n_max < np.inf:
        raise ValueError(f"n_max is {n_max} but must be finite and at least 1.")
    available = np.asarray(available, np.int64)
    order = np.argsort(-available, kind="stable")
    share = shape(len(available), imbalance_ratio)
    most = (available[order] / share).min()
    n_max = most if n_max is None else n_max
    if n_max > most + 1e-6:
        raise ValueError(
            f"n_max is {n_max} but at imbalance ratio {imbalance_ratio:g} the classes have only "
            f"enough images for {int(most + 1e-6)}: lower n_max or the ratio."
        )
    counts = np.zeros_like(available)
    # The margin keeps a product such as 5000 * 0.01 from falling below its integer.
    counts[order] = np.floor(n_max * share + 1e-6)
    if (counts == 0).any():
        raise ValueError(
            f"Class {order[-1]} keeps no training image at imbalance ratio "
            f"{imbalance_ratio:g} with {n_max:.0f} images of the largest class: lower the ratio, "
            "leave the class out, or train on the set as it is, without a ratio."
        )
    return counts


def long_tail_subset(
    labels: np.ndarray,
    imbalance_ratio: float,
    profile: str = "exponential",
    n_max: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Draws a long-tailed subset of examples.

    Args:
        labels: Class of each example, int64 (n,).
        imbalance_ratio: Largest class count divided by the smallest, at least 1.
        profile: Name of a profile in `PROFILES`.
        n_max: Images to keep of the largest class, as in `long_tail_counts`.
        seed: Seed of the random draw.

    Returns:
        The sorted indices of the subset, int64.

    Raises:
        ValueError: As `long_tail_counts`.

    Example:
        >>> labels = np.repeat([0, 1, 2], 100)
        >>> kept = ct.data.long_tail_subset(labels, imbalance_ratio=100)
        >>> np.bincount(labels[kept])
        array([100,  10,   1])
    """
    counts = long_tail_counts(np.bincount(labels), imbalance_ratio, profile, n_max)
    return draw_per_class(labels, counts, np.random.default_rng(seed))


def draw_per_class(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws counts[c] examples of each class c without replacement, and returns sorted indices."""
    by_class = np.argsort(labels, kind="stable")
    members = np.split(by_class, np.cumsum(np.bincount(labels, minlength=len(counts)))[:-1])
    drawn = [rng.permutation(some)[:n] for some, n in zip(members, counts)]
    return np.sort(np.concatenate(drawn))
