"""TADE, also known as SADE: three experts for three test distributions."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from candle_tf import losses
from candle_tf.methods.experts import check_experts
from candle_tf.mixup import stack
from candle_tf.student_model import StudentModel


@tf.keras.saving.register_keras_serializable("candle_tf")
class TadeModel(StudentModel):
    """Skill-diverse experts (Zhang et al., SADE, NeurIPS 2022, arXiv 2107.09249, section 4.1).

    With pi the prior of the class counts, pi^- the same values in inverse order, and the loss given
    to `compile` (by default cross-entropy, the paper's), three experts' logits z_i minimise

        L = loss(z_1, y) + loss(z_2 + log pi, y) + loss(z_3 + log pi - 2 log pi^-, y)

    softmax, balanced softmax and inverse softmax, for long-tailed, balanced and inversely
    long-tailed test sets. The prediction is the uniform mean of the z_i: the paper weighs them by
    test-time aggregation where the test distribution is unknown, and here it is balanced.

    Args:
        student: `branch(student, 3)`.
        class_counts: training images per class, (classes,).
        **kwargs: resolutions, image_size and seed, as in `StudentModel`.

    Raises:
        ValueError: as `StudentModel`; for a student of other than three experts, or counts that are
            not as many as its classes or 0.
    """

    def __init__(self, student: tf.keras.Model, class_counts: Sequence[int], **kwargs):
        super().__init__(student, **kwargs)
        check_experts(student, 3)
        self.class_counts = [int(n) for n in class_counts]
        if len(self.class_counts) != student.output_shape[-1]:
            raise ValueError(
                f"class_counts has {len(self.class_counts)} classes but the student has "
                f"{student.output_shape[-1]}: count the labels of the data that it is trained on."
            )
        prior = losses.log_prior(self.class_counts)
        self.shifts = [np.zeros_like(prior), prior, prior - 2.0 * inverted(prior)]

    def objective(self, images, labels, sample_weight):
        each = self.student.layers[-1].each(self.halves.embed(images, training=True))
        each = tf.cast(each, tf.float32)
        terms = [
            (1.0, labels, z + tf.cast(shift, z.dtype), sample_weight)
            for z, shift in zip(tf.unstack(each, axis=1), self.shifts)
        ]
        return self.compute_loss(images, *stack(*terms)), tf.reduce_mean(each, axis=1)

    def get_config(self):
        return {**super().get_config(), "class_counts": self.class_counts}


def inverted(values: np.ndarray) -> np.ndarray:
    """The same values in inverse order: the largest where the smallest stood, and so on."""
    order = np.argsort(values)
    result = np.empty_like(values)
    result[order] = values[order[::-1]]
    return result
