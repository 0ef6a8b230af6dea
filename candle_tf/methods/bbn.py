"""BBN: a bilateral-branch network that turns from the head to the tail over training."""

import tensorflow as tf
from candle_tf.methods.experts import check_experts
from candle_tf.mixup import stack
from candle_tf.networks.keras_internals import Untracked, iterations
from candle_tf.networks.surgery import split_at_features
from candle_tf.student_model import StudentModel


@tf.keras.saving.register_keras_serializable("candle_tf")
class BbnModel(StudentModel):
    """Cumulative learning on two branches (Zhou et al., BBN, CVPR 2020, arXiv 1912.02413).

    The conventional branch sees an instance-balanced batch (x_c, y_c). The re-balancing branch sees
    a batch of the reversed sampler (x_r, y_r). At step t of T, with the loss given to `compile`,

        alpha = 1 - (t / T)^2
        z = alpha z_c + (1 - alpha) z_r                     (eq. 1)
        L = alpha loss(z, y_c) + (1 - alpha) loss(z, y_r)   (eq. 3)

    The prediction for an image is the mean of the logits of both branches.

    `fit` takes ((x_c, x_r), (y_c, y_r)), two batches of equal size. `evaluate` and validation data
    are (images, labels), as usual. Training metrics compare z with the labels of both batches.

    Args:
        student: A student with two branches, `branch(student, 2)`.
        total_steps: T, the number of updates of the whole training.
        **kwargs: `resolutions`, `image_size` and `seed`, as in `StudentModel`.

    Raises:
        ValueError: As `StudentModel`. Also for a student without two branches, for total_steps
            below 1, or, in `fit`, for data that are not such pairs.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> model = ct.methods.BbnModel(ct.methods.branch(student, 2), total_steps=100)
        >>> float(model.alpha(50))
        0.75
    """

    def __init__(self, student: tf.keras.Model, total_steps: int, **kwargs):
        super().__init__(student, **kwargs)
        check_experts(student, 2)
        if total_steps < 1:
            raise ValueError(
                f"total_steps, the updates of the training, must be at least 1, not {total_steps}."
            )
        self.total_steps = int(total_steps)
        own_size_only = self.resolution.sizes == (student.input_shape[1],)
        encoder, _ = split_at_features(student, own_size_only)
        pooled = encoder.get_layer("features").get_input_at(-1)
        # Each with its own batch's statistics in the trunk, as each branch passes it alone.
        self.branches = Untracked([tf.keras.Model(encoder.input, features) for features in pooled])

    def train_step(self, data):
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in data):
            raise ValueError(
                "BBN trains on pairs of batches: give ((conventional images, re-balancing images), "
                "(conventional labels, re-balancing labels))."
            )
        return super().train_step(tuple(tf.concat(pair, axis=0) for pair in data))

    def objective(self, images, labels, sample_weight):
        each = self.student.layers[-1].each(self.embed_each(tf.split(images, 2)))
        each = tf.cast(each, tf.float32)
        alpha = self.alpha(iterations(self.optimizer))
        z = alpha * each[:, 0] + (1.0 - alpha) * each[:, 1]
        y_c, y_r = tf.split(labels, 2)
        s_c, s_r = (None, None) if sample_weight is None else tf.split(sample_weight, 2)
        terms = stack((alpha, y_c, z, s_c), (1.0 - alpha, y_r, z, s_r))
        return self.compute_loss(images, *terms), tf.concat([z, z], axis=0)

    def embed_each(self, batches: list[tf.Tensor]) -> tf.Tensor:
        """Returns the features (batch, 2 * width) of one batch per branch, side by side."""
        pairs = zip(self.branches.value, batches)
        return tf.concat([branch(images, training=True) for branch, images in pairs], axis=-1)

    def alpha(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the weight of the conventional branch, which falls from 1 to 0 at step T."""
        return 1.0 - tf.minimum(tf.cast(step, tf.float32) / self.total_steps, 1.0) ** 2

    def get_config(self):
        return {**super().get_config(), "total_steps": self.total_steps}
