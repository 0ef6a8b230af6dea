"""Metric learning beside the classification loss."""

import tensorflow as tf
from candle_tf import losses
from candle_tf.student_model import StudentModel
from candle_tf.utils.names import lookup

TERMS = {"range": losses.range_loss, "lifted_structured": losses.lifted_structured_loss}


@tf.keras.saving.register_keras_serializable("candle_tf")
class AuxiliaryModel(StudentModel):
    """A student trained with compile's loss plus `weight` times a term on its features.

    The term compares the images of a batch. Class-balanced batches give it pairs of each class.
    Sample weights do not affect the term.

    Args:
        student: The student, as in `StudentModel`.
        term: "range", the range loss (Zhang et al., ICCV 2017), or "lifted_structured", the lifted
            structured loss (Oh Song et al., CVPR 2016).
        weight: Factor on the term.
        **kwargs: `resolutions`, `image_size` and `seed`, as in `StudentModel`.

    Raises:
        ValueError: As `StudentModel`, or for an unknown term.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> model = ct.methods.AuxiliaryModel(student, "range", weight=1e-3)
        >>> model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> model(np.zeros((2, 16, 16, 3), np.float32)).shape  # then model.fit(...)
        TensorShape([2, 3])
    """

    def __init__(self, student: tf.keras.Model, term: str, weight: float, **kwargs):
        super().__init__(student, **kwargs)
        self.auxiliary = lookup("auxiliary term", term, TERMS)
        self.term, self.weight = term, weight

    def objective(self, images, labels, sample_weight):
        features = self.halves.embed(images, training=True)
        logits = self.halves.classify(features, training=True)
        terms = [*self.student.losses, self.weight * self.auxiliary(features, labels)]
        return self.compiled_loss(labels, logits, sample_weight, terms), logits

    def get_config(self):
        return {**super().get_config(), "term": self.term, "weight": self.weight}
