"""DiVE: the soft labels of a teacher, made more balanced, serve as virtual examples."""

import tensorflow as tf
from candle_tf import losses
from candle_tf.mixup import stack
from candle_tf.networks.keras_internals import Untracked
from candle_tf.networks.surgery import any_size
from candle_tf.student_model import StudentModel, batch_mean


@tf.keras.saving.register_keras_serializable("candle_tf")
class DiveModel(StudentModel):
    """Distilled virtual examples (He et al., DiVE, ICCV 2021, arXiv 2103.15042).

    The teacher is a full-precision network of the student's architecture, trained on the same
    long-tailed data with balanced softmax. The soft labels of an image count as virtual examples of
    each class. A temperature tau and a power p make their distribution flatter:

        L = (1 - alpha) loss(z_S, y) + alpha tau^2 KL(t || softmax(z_S / tau))
        t = softmax(z_T / tau)^p / sum_c softmax(z_T / tau)_c^p

    with the loss given to `compile`. The paper's loss is `BalancedSoftmax(class_counts)`.

    Args:
        teacher: A trained Keras model from images in [0, 255] to logits (batch, classes), such as
            `at_bits(student, "32")`. This class freezes it. It sees the same images as the student.
        student: The student, as in `StudentModel`.
        temperature: The temperature tau.
        power: The power p; 1 leaves the soft labels unchanged.
        alpha: Weight of the virtual examples, in [0, 1].
        **kwargs: `resolutions`, `image_size` and `seed`, as in `StudentModel`.

    Raises:
        ValueError: As `StudentModel`. Also for a teacher with other classes, or one that does not
            work at each resolution.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> teacher = ct.students.at_bits(student, "32")  # to be trained first
        >>> model = ct.methods.DiveModel(teacher, student, alpha=0.5)
        >>> model.compile("adam", ct.losses.BalancedSoftmax([40, 20, 4]))
        >>> model(np.zeros((2, 16, 16, 3), np.float32)).shape  # then model.fit(...)
        TensorShape([2, 3])
    """

    def __init__(
        self,
        teacher: tf.keras.Model,
        student: tf.keras.Model,
        temperature: float = 3.0,
        power: float = 0.5,
        alpha: float = 0.5,
        **kwargs,
    ):
        super().__init__(student, **kwargs)
        if teacher.output_shape[-1] != student.output_shape[-1]:
            raise ValueError(
                f"The teacher has {teacher.output_shape[-1]} classes but the student has "
                f"{student.output_shape[-1]}: train the teacher on the student's data."
            )
        teacher.trainable = False
        self.teacher = teacher
        own_size_only = self.resolution.sizes == (teacher.input_shape[1],)
        self.teach = Untracked(teacher if own_size_only else any_size(teacher))
        self.temperature, self.power, self.alpha = temperature, power, alpha

    def objective(self, images, labels, sample_weight):
        logits = self.halves.classify(self.halves.embed(images, training=True), training=True)
        # A power of a softmax, normalised, is the softmax of that multiple of its logits.
        virtual = self.power * self.teach.value(images, training=False)
        kl = batch_mean(losses.kl_divergence(virtual, logits, self.temperature), sample_weight)
        # Added to Keras' loss, which logs the sum and scales it for the replicas.
        added = [*self.student.losses, self.alpha * kl]
        label_term = stack((1.0 - self.alpha, labels, logits, sample_weight))
        return self.compiled_loss(*label_term, regularization_losses=added), logits

    def get_config(self):
        return {
            **super().get_config(),
            "teacher": tf.keras.saving.serialize_keras_object(self.teacher),
            "temperature": self.temperature,
            "power": self.power,
            "alpha": self.alpha,
        }
