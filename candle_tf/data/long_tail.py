"""Long-tailed profiles, and subsets drawn to follow them."""

from collections.abc import Callable, Sequence

import numpy as np
from candle_tf.utils.names import lookup


def exponential(classes: int, ratio: float) -> np.ndarray:
    """ratio^(-c / (C - 1)) (Cui et al., CVPR 2019)."""
    return ratio ** (-np.arange(classes) / max(classes - 1, 1))


def step(classes: int, ratio: float) -> np.ndarray:
    """1 for the first half of the classes, 1 / ratio for the rest (Buda et al., 2018)."""
    return np.where(np.arange(classes) < (classes + 1) // 2, 1.0, 1.0 / ratio)


def pareto(classes: int, ratio: float) -> np.ndarray:
    """(c + 1)^(-a), a power law with a = log ratio / log C (as in ImageNet-LT's Pareto draw)."""
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
    """Images to keep of each class: n_c = n_max * profile(rank of c), truncated to an integer.

    Classes are ranked by what they have (ties in label order).

    Args:
        available: images per class, (classes,).
        imbalance_ratio: n_1 / n_C, at least 1.
        profile: a name of `PROFILES`.
        n_max: images of the largest class; the most that every class can follow where None.

    Returns:
        int64 (classes,).

    Raises:
        ValueError: for a ratio below 1, an unknown profile, an n_max that a class cannot follow, or
            a class left without an image.
    """
    shape = lookup("profile", profile, PROFILES)
    if not 1 <= imbalance_ratio < np.inf:
        raise ValueError(
            f"imbalance_ratio is {imbalance_ratio:g} but the largest class over the smallest is at "
            "least 1: give 1 for balanced data, 10 or 100 for long-tailed."
        )
    available = np.asarray(available, np.int64)
    order = np.argsort(-available, kind="stable")
    share = shape(len(available), imbalance_ratio)
    most = (available[order] / share).min()
    n_max = most if n_max is None else n_max
    if n_max > most + 1e-6:
        raise ValueError(
            f"n_max is {n_max} but the classes have images for {int(most + 1e-6)} at imbalance "
            f"ratio {imbalance_ratio:g}: lower one of the two."
        )
    counts = np.zeros_like(available)
    # The margin keeps a product such as 5000 * 0.01 from falling below its integer.
    counts[order] = np.floor(n_max * share + 1e-6)
    if (counts == 0).any():
        raise ValueError(
            f"Class {order[-1]} keeps no training image at imbalance ratio "
            f"{imbalance_ratio:g} and {n_max:.0f} images of the largest: lower the ratio or leave "
            "the class out."
        )
    return counts


def long_tail_subset(
    labels: np.ndarray,
    imbalance_ratio: float,
    profile: str = "exponential",
    n_max: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Sorted indices int64 of a long-tailed subset of `labels`, drawn by `seed`."""
    counts = long_tail_counts(np.bincount(labels), imbalance_ratio, profile, n_max)
    return draw_per_class(labels, counts, np.random.default_rng(seed))


def draw_per_class(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices of counts[c] examples of each class c, drawn without replacement."""
    by_class = np.argsort(labels, kind="stable")
    members = np.split(by_class, np.cumsum(np.bincount(labels, minlength=len(counts)))[:-1])
    drawn = [rng.permutation(some)[:n] for some, n in zip(members, counts)]
    return np.sort(np.concatenate(drawn))
