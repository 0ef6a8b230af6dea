"""Every method by name: one row says what enters the batches and what is minimised."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from candle_tf import losses


@dataclass(frozen=True)
class Method:
    """One way to train the student.

    Attributes:
        loss: class_counts -> the loss of a student trained alone; None where it is distilled.
        sampler: what enters the batches, a name of `candle_tf.data.SAMPLERS`.
        fixed_lambda: the weight of the KL term; None for the adversarial balancer.
        temperature: of the KL term.
        prior_adjusted: the log prior inside the KL term.
    """

    loss: Callable[[np.ndarray], tf.keras.losses.Loss] | None = None
    sampler: str = "instance_balanced"
    fixed_lambda: float | None = None
    temperature: float = 2.0
    prior_adjusted: bool = False

    @property
    def distills(self) -> bool:
        return self.loss is None


def cross_entropy(class_counts: np.ndarray) -> tf.keras.losses.Loss:
    return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


METHODS = {
    # The variant that measures best on held-out training images (docs/results.md): a balanced
    # teacher makes the student balanced only where balanced batches show it the tail.
    "candle": Method(sampler="class_balanced"),
    # The published objective (arXiv 2404.00285) and its ablations.
    "candle_paper": Method(),
    "candle_paper_kl": Method(fixed_lambda=1.0),
    "candle_paper_feature": Method(fixed_lambda=0.0),
    "candle_paper_fixed": Method(fixed_lambda=0.5),
    # Students trained alone.
    "cross_entropy": Method(loss=cross_entropy),
    "balanced_softmax": Method(loss=losses.BalancedSoftmax),
}
