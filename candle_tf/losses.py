"""Distillation terms and long-tailed cross-entropies. Logits in, never probabilities."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def kl_divergence(
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    temperature: float = 2.0,
    log_prior: tf.Tensor | None = None,
) -> tf.Tensor:
    """T^2 KL(softmax(z_T / T) || softmax(z_S / T)), one value an example (Hinton et al., 2015).

    Args:
        teacher_logits: z_T, float (batch, classes).
        student_logits: z_S, float (batch, classes).
        temperature: T.
        log_prior: log class frequencies (classes,), added to both sides after the division by T, so
            that both softmaxes describe the long-tailed batch while z_S itself stays balanced.

    Returns:
        float32 (batch,).
    """
    prior = 0.0 if log_prior is None else log_prior
    log_p, log_q = (
        tf.nn.log_softmax(tf.cast(logits, tf.float32) / temperature + prior)
        for logits in (teacher_logits, student_logits)
    )
    return temperature**2 * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def feature_similarity(student_features: tf.Tensor, teacher_features: tf.Tensor) -> tf.Tensor:
    """2 - 2 cos(a(f(x)), g(x)): the squared distance of the L2-normalised features.

    Args:
        student_features: a(f(x)), the adapted student features, float (batch, width).
        teacher_features: g(x), float (batch, width).

    Returns:
        float32 (batch,), in [0, 4].
    """
    a = tf.math.l2_normalize(tf.cast(student_features, tf.float32), axis=-1)
    g = tf.math.l2_normalize(tf.cast(teacher_features, tf.float32), axis=-1)
    return 2.0 - 2.0 * tf.reduce_sum(a * g, axis=-1)


def log_prior(class_counts: Sequence[int]) -> np.ndarray:
    """log(n_c / sum n), float32 (classes,).

    Raises:
        ValueError: if a class has no training image.
    """
    counts = np.asarray(class_counts, np.float64)
    if (counts <= 0).any():
        empty = np.flatnonzero(counts <= 0).tolist()
        raise ValueError(
            f"class_counts is 0 for class {empty[:5]}: every class needs a training image; "
            "leave the class out or lower the imbalance ratio."
        )
    return np.log(counts / counts.sum()).astype(np.float32)


@tf.keras.saving.register_keras_serializable("candle_tf")
class BalancedSoftmax(tf.keras.losses.Loss):
    """Cross-entropy of z + log n_c (Ren et al., BALMS, NeurIPS 2020, eq. 4).

    Args:
        class_counts: training images per class, (classes,).
    """

    def __init__(self, class_counts: Sequence[int], name="balanced_softmax", **kwargs):
        super().__init__(name=name, **kwargs)
        self.class_counts = [int(n) for n in class_counts]
        self.log_prior = log_prior(self.class_counts)

    def call(self, y_true, y_pred):
        return tf.keras.losses.sparse_categorical_crossentropy(
            y_true, y_pred + tf.cast(self.log_prior, y_pred.dtype), from_logits=True
        )

    def get_config(self):
        return {**super().get_config(), "class_counts": self.class_counts}


@tf.keras.saving.register_keras_serializable("candle_tf")
class LabelAwareSmoothing(tf.keras.losses.Loss):
    """(1 - e_y) (-log p_y) + e_y mean_c(-log p_c) (Zhong et al., MiSLAS, CVPR 2021, concave form).

    e_c = tail + (head - tail) sin(pi/2 (n_c - n_C) / (n_1 - n_C)), for n_1 the largest and n_C the
    smallest count; `head` where all counts are equal.

    Args:
        class_counts: training images per class, (classes,).
        head: e of the largest class.
        tail: e of the smallest class.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        head: float,
        tail: float,
        name="label_aware_smoothing",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.class_counts = [int(n) for n in class_counts]
        self.head, self.tail = head, tail
        counts = np.asarray(class_counts, np.float64)
        span = counts.max() - counts.min()
        rank = (counts - counts.min()) / span if span else np.ones_like(counts)
        self.smoothing = (tail + (head - tail) * np.sin(np.pi / 2 * rank)).astype(np.float32)

    def call(self, y_true, y_pred):
        labels = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
        negative_log_p = -tf.nn.log_softmax(y_pred)
        e = tf.gather(tf.cast(self.smoothing, y_pred.dtype), labels)
        of_label = tf.gather(negative_log_p, labels, batch_dims=1)
        return (1.0 - e) * of_label + e * tf.reduce_mean(negative_log_p, axis=-1)

    def get_config(self):
        own = {"class_counts": self.class_counts, "head": self.head, "tail": self.tail}
        return {**super().get_config(), **own}
