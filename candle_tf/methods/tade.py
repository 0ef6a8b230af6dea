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

    Three experts with the logits z_i minimise

        L = loss(z_1, y) + loss(z_2 + log pi, y) + loss(z_3 + log pi - 2 log pi^-, y)

    with the prior pi of the class counts, and pi^- with the same values in inverse order. The paper
    uses cross-entropy as the loss given to `compile`. The terms are softmax, balanced softmax and
    inverse softmax, for long-tailed, balanced and inversely long-tailed test sets.

    The prediction is the mean of the z_i. The paper weighs them by test-time aggregation for
    unknown test distributions. Here the test distribution is balanced.

    Args:
        student: A student with three branches, `branch(student, 3)`.
        class_counts: Training images per class, (classes,).
        **kwargs: `resolutions`, `image_size` and `seed`, as in `StudentModel`.

    Raises:
        ValueError: As `StudentModel`. Also for a student without three branches, for another number
            of counts than classes, or for a count of 0.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> model = ct.methods.TadeModel(ct.methods.branch(student, 3), class_counts=[40, 20, 4])
        >>> model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> model(np.zeros((2, 16, 16, 3), np.float32)).shape  # then model.fit(...)
        TensorShape([2, 3])
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
    """Returns the same values in inverse order: the largest replaces the smallest, and so on."""
    order = np.argsort(values)
    result = np.empty_like(values)
    result[order] = values[order[::-1]]
    return result
