"""Samplers: the order in which an epoch shows the examples.

Class j has a probability p_j proportional to n_j^q (Kang et al., Decoupling, ICLR 2020), or to the
effective number of its n_j examples, (1 - b^n_j) / (1 - b) (Cui et al., CVPR 2019). It may change
over training: p_j(t) = (1 - t) p_j(first) + t p_j(last), where t in [0, 1) is the fraction of the
epochs that have passed. `reversed` is the sampler of BBN (Zhou et al., CVPR 2020).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf
from candle_tf.losses import effective_number
from candle_tf.utils.names import lookup

shuffle = tf.random.experimental.stateless_shuffle

BETA = 0.95  # effective numbers are below 1 / (1 - b) = 20


def power(q: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from counts n, float64, to n^q; 0 for an empty class."""
    return lambda counts: np.power(counts, q, where=counts > 0, out=np.zeros_like(counts))


effective = partial(effective_number, beta=BETA)

SAMPLERS = {  # name -> (first, last): functions from class counts to weights
    "instance_balanced": (power(1.0), power(1.0)),
    "square_root": (power(0.5), power(0.5)),
    "effective_number": (effective, effective),
    "class_balanced": (power(0.0), power(0.0)),
    "reversed": (power(-1.0), power(-1.0)),
    "progressively_balanced": (power(1.0), power(0.0)),
    "over_sampling": (power(0.0), power(0.0)),
    "under_sampling": (power(0.0), power(0.0)),
}
EVEN = {"over_sampling": np.max, "under_sampling": np.min}  # class_counts -> draws per class


def class_probabilities(
    class_counts: np.ndarray, sampler: str, progress: tf.Tensor | float = 0.0
) -> np.ndarray | tf.Tensor:
    """Returns the probabilities with which a sampler draws the classes, float64 (classes,).

    Args:
        class_counts: Training images per class, (classes,).
        sampler: Name in `SAMPLERS`.
        progress: Part of the training that is over, for "progressively_balanced": a float or a
            float64 tensor.

    Example:
        >>> ct.data.class_probabilities([400, 20, 2], "effective_number").round(2)
        array([0.58, 0.37, 0.06])
    """
    counts = np.asarray(class_counts, np.float64)
    weights = [weight(counts) for weight in lookup("sampler", sampler, SAMPLERS)]
    first, last = (weight / weight.sum() for weight in weights)
    return first + progress * (last - first)


def epoch_length(labels: np.ndarray, sampler: str) -> int:
    """Returns the number of draws in one epoch.

    It equals the number of examples, except with `over_sampling` and `under_sampling`: they draw
    as many examples of each class as the largest, or the smallest, class has.
    """
    lookup("sampler", sampler, SAMPLERS)
    if sampler not in EVEN:
        return len(labels)
    counts = np.unique(labels, return_counts=True)[1]
    return len(counts) * int(EVEN[sampler](counts))


def epoch_order(
    labels: np.ndarray, sampler: str, seed: tf.Tensor, progress: tf.Tensor | float = 0.0
) -> tf.Tensor:
    """Returns the indices of one epoch, int64 (epoch_length,): equal seeds give equal indices.

    - `instance_balanced`: a permutation, each example once.
    - `over_sampling`: a permutation of each class, repeated to the size of the largest class.
    - `under_sampling`: a random part of each class.
    - All others: independent draws of a class by its probability, then of one of its examples.

    Args:
        labels: Class of each example, int64 (n,).
        sampler: Name of a sampler in `SAMPLERS`.
        seed: Stateless seed of the random draws, (2,).
        progress: Fraction t of the epochs that have passed, for `progressively_balanced`.
    """
    lookup("sampler", sampler, SAMPLERS)
    if sampler == "instance_balanced":
        return shuffle(tf.range(len(labels), dtype=tf.int64), seed)
    if sampler in EVEN:
        return even_order(labels, EVEN[sampler], seed)
    probabilities = class_probabilities(np.bincount(labels), sampler, progress)
    return independent_draws(labels, probabilities, len(labels), seed)


def independent_draws(
    labels: np.ndarray, probabilities: np.ndarray | tf.Tensor, count: int, seed: tf.Tensor
) -> tf.Tensor:
    """Draws `count` indices, int64: each time a class by its probability, then an example of it."""
    class_counts = np.bincount(labels)
    cumulative = tf.cumsum(probabilities)[:-1]
    by_class = np.argsort(labels, kind="stable").astype(np.int64)
    start = np.cumsum(class_counts) - class_counts
    u = tf.random.stateless_uniform([2, count], seed, dtype=tf.float64)
    drawn = tf.searchsorted(cumulative, u[0], side="right")
    size = tf.cast(tf.gather(tf.constant(class_counts), drawn), tf.float64)
    place = tf.gather(tf.constant(start), drawn) + tf.cast(tf.floor(u[1] * size), tf.int64)
    return tf.gather(tf.constant(by_class), place)


def even_order(
    labels: np.ndarray, size_of: Callable[[np.ndarray], int], seed: tf.Tensor
) -> tf.Tensor:
    """Draws `size_of(class_counts)` indices of each class, from its shuffled, repeated examples."""
    within, between = tf.unstack(tf.random.split(seed))
    counts = np.unique(labels, return_counts=True)[1]
    start = np.cumsum(counts) - counts
    places = start[:, None] + np.arange(size_of(counts)) % counts[:, None]
    shuffled = shuffle(tf.range(len(labels), dtype=tf.int64), within)
    by_class = tf.gather(shuffled, tf.argsort(tf.gather(labels, shuffled), stable=True))
    return shuffle(tf.gather(by_class, places.reshape(-1)), between)
