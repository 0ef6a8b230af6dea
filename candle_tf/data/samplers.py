"""Samplers: which example comes at which place of an epoch.

The probability of class j is proportional to n_j^q (Kang et al., Decoupling, ICLR 2020).
"""

import numpy as np
import tensorflow as tf
from candle_tf.registry import lookup

SAMPLERS = {"instance_balanced": 1.0, "square_root": 0.5, "class_balanced": 0.0}  # name -> q


def class_probabilities(class_counts: np.ndarray, sampler: str) -> np.ndarray:
    """p_j = n_j^q / sum_i n_i^q, float64 (classes,)."""
    counts = np.asarray(class_counts, np.float64)
    weight = np.where(counts > 0, counts ** lookup("sampler", sampler, SAMPLERS), 0.0)  # 0^0 is 1
    return weight / weight.sum()


def epoch_order(labels: np.ndarray, sampler: str, seed: tf.Tensor) -> tf.Tensor:
    """The indices of one epoch, int64 (n,), a function of the stateless `seed` (2,) alone.

    Instance-balanced: a permutation, each example once. Else n independent draws: a class by its
    probability, then an example of it.
    """
    if lookup("sampler", sampler, SAMPLERS) == 1.0:
        return tf.random.experimental.stateless_shuffle(tf.range(len(labels), dtype=tf.int64), seed)
    class_counts = np.bincount(labels)
    cumulative = np.cumsum(class_probabilities(class_counts, sampler))[:-1]
    by_class = np.argsort(labels, kind="stable").astype(np.int64)
    start = np.cumsum(class_counts) - class_counts
    u = tf.random.stateless_uniform([2, len(labels)], seed, dtype=tf.float64)
    drawn = tf.searchsorted(tf.constant(cumulative), u[0], side="right")
    count = tf.cast(tf.gather(tf.constant(class_counts), drawn), tf.float64)
    place = tf.gather(tf.constant(start), drawn) + tf.cast(tf.floor(u[1] * count), tf.int64)
    return tf.gather(tf.constant(by_class), place)
