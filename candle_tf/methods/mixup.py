"""Mixup: students trained on convex combinations of images."""

import tensorflow as tf
from candle_tf.mixup import LEAST_ALPHA, Pairs, draw_pairs
from candle_tf.networks.keras_internals import iterations
from candle_tf.student_model import StudentModel


@tf.keras.saving.register_keras_serializable("candle_tf")
class MixupModel(StudentModel):
    """A student trained on mixed pairs of images (Zhang et al., ICLR 2018, arXiv 1710.09412).

    Each image x of a batch meets another one x' of it, at one lambda ~ Beta(alpha, alpha) a batch:

        L = lambda loss(z, y) + (1 - lambda) loss(z, y'),    z of lambda x + (1 - lambda) x'

    with the loss given to `compile`. Lambda and the pairs depend on seed and step alone; under a
    distribution strategy a replica pairs the images of its own share. The first stage of MiSLAS
    (CVPR 2021) is this with cross-entropy. Training metrics compare z with y.

    Args:
        student: as in `StudentModel`.
        alpha: of the Beta distribution, positive; the smaller, the less is mixed. Published: 1 on
            CIFAR, 0.2 on ImageNet.
        **kwargs: resolutions, image_size and seed, as in `StudentModel`.

    Raises:
        ValueError: as `StudentModel`, and for an alpha below 0.05.
    """

    def __init__(self, student: tf.keras.Model, alpha: float = 1.0, **kwargs):
        super().__init__(student, **kwargs)
        if not LEAST_ALPHA <= alpha < float("inf"):
            raise ValueError(
                f"alpha of mixup must be finite and at least {LEAST_ALPHA}, not {alpha}: to mix "
                "nothing use StudentModel."
            )
        self.alpha = float(alpha)

    def objective(self, images, labels, sample_weight):
        pairs = self.draw(iterations(self.optimizer), tf.shape(images)[0])
        logits = self.halves.classify(
            self.halves.embed(pairs.mix(images), training=True), training=True
        )
        return self.compute_loss(images, *pairs.label_terms(labels, logits, sample_weight)), logits

    def draw(self, step: tf.Tensor, batch_size: tf.Tensor) -> Pairs:
        """Lambda () and the index of each image's partner (batch,) at a step."""
        return draw_pairs(step, batch_size, self.alpha, self.resolution.seed, per_image=False)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha}
