"""Mixup: students trained on convex combinations of images."""

import tensorflow as tf
from candle_tf.mixup import LEAST_ALPHA, Pairs, draw_pairs
from candle_tf.networks.keras_internals import iterations
from candle_tf.student_model import StudentModel


@tf.keras.saving.register_keras_serializable("candle_tf")
class MixupModel(StudentModel):
    """A student trained on mixed pairs of images (Zhang et al., ICLR 2018, arXiv 1710.09412).

    Each image x is mixed with another image x' of its batch. The logits z are those of the mixed
    image lambda x + (1 - lambda) x', with one lambda ~ Beta(alpha, alpha) per batch:

        L = lambda loss(z, y) + (1 - lambda) loss(z, y')

    with the loss given to `compile`. Lambda and the pairs depend only on the seed and the step.
    Under a distribution strategy each replica pairs its own images. With cross-entropy this is the
    first stage of MiSLAS (CVPR 2021). Training metrics compare z with y.

    Args:
        student: The student, as in `StudentModel`.
        alpha: Parameter of the Beta distribution, at least 0.05: a smaller alpha mixes less. The
            paper uses 1 on CIFAR and 0.2 on ImageNet.
        **kwargs: `resolutions`, `image_size` and `seed`, as in `StudentModel`.

    Raises:
        ValueError: As `StudentModel`, or for an alpha below 0.05.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> model = ct.methods.MixupModel(student, alpha=1.0)
        >>> model.compile("adam", ct.losses.BalancedSoftmax([40, 20, 4]), metrics=["accuracy"])
        >>> model(np.zeros((2, 16, 16, 3), np.float32)).shape  # then model.fit(...)
        TensorShape([2, 3])
    """

    def __init__(self, student: tf.keras.Model, alpha: float = 1.0, **kwargs):
        super().__init__(student, **kwargs)
        if not LEAST_ALPHA <= alpha < float("inf"):
            raise ValueError(
                f"alpha of mixup must be finite and at least {LEAST_ALPHA}, not {alpha}: to train "
                "without mixup use StudentModel."
            )
        self.alpha = float(alpha)

    def objective(self, images, labels, sample_weight):
        pairs = self.draw(iterations(self.optimizer), tf.shape(images)[0])
        logits = self.halves.classify(
            self.halves.embed(pairs.mix(images), training=True), training=True
        )
        return self.compute_loss(images, *pairs.label_terms(labels, logits, sample_weight)), logits

    def draw(self, step: tf.Tensor, batch_size: tf.Tensor) -> Pairs:
        """Draws lambda () and the index of each image's partner (batch,) at a step."""
        return draw_pairs(step, batch_size, self.alpha, self.resolution.seed, per_image=False)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha}
