"""Mixup: convex combinations of the images of a batch, and of their targets."""

from typing import NamedTuple

import tensorflow as tf

LEAST_ALPHA = 0.05  # below it both gammas of a weight may be 0


class Pairs(NamedTuple):
    """Each image of a batch, its partner in that batch, and its own weight in their mixture.

    Attributes:
        weight: Weight of the image itself, float32 () or (batch,).
        partner: Index of the other image, int32 (batch,).

    Example:
        >>> pairs = Pairs(tf.constant([0.75, 0.5]), tf.constant([1, 0]))
        >>> pairs.mix(tf.constant([0.0, 8.0])).numpy()
        array([2., 4.], dtype=float32)
    """

    weight: tf.Tensor
    partner: tf.Tensor

    def mix(self, values: tf.Tensor | None) -> tf.Tensor | None:
        """Returns weight * x_i + (1 - weight) * x_partner, float32, for values (batch, ...).

        None, for a batch without sample weights, stays None.
        """
        if values is None:
            return None
        values = tf.cast(values, tf.float32)
        dimensions = [-1, *[1] * (values.shape.rank - 1)]
        weight = tf.reshape(self.weight, dimensions)
        return weight * values + (1.0 - weight) * tf.gather(values, self.partner)

    def label_terms(
        self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns arguments of a Keras loss for weight * loss(z, y) + (1 - weight) * loss(z, y').

        Args:
            labels: Class numbers y (batch,); y' are those of the partners.
            logits: Logits z of the mixed images, float (batch, classes).
            sample_weight: Weights of the images (batch,), or None.
        """
        others = None if sample_weight is None else tf.gather(sample_weight, self.partner)
        return stack(
            (self.weight, labels, logits, sample_weight),
            (1.0 - self.weight, tf.gather(labels, self.partner), logits, others),
        )


class Unmixed:
    """The `Pairs` of a training without mixup: every value stays as it is.

    Example:
        >>> Unmixed().mix(5.0)
        5.0
    """

    def mix(self, values: tf.Tensor | None) -> tf.Tensor | None:
        """Returns the values."""
        return values

    def label_terms(self, *terms: tf.Tensor | None) -> tuple[tf.Tensor | None, ...]:
        """Returns labels, logits and sample weights as they are given."""
        return terms


def check_alpha(alpha: float):
    """Refuses an alpha of mixup that is neither 0 nor finite and at least `LEAST_ALPHA`.

    Raises:
        ValueError: For any other alpha.

    Example:
        >>> check_alpha(0.001)
        Traceback (most recent call last):
        ValueError: mixup is 0.001 but must be 0, or finite and at least 0.05.
    """
    if alpha and not LEAST_ALPHA <= alpha < float("inf"):
        raise ValueError(f"mixup is {alpha} but must be 0, or finite and at least {LEAST_ALPHA}.")


def draw_pairs(
    step: tf.Tensor, batch_size: tf.Tensor, alpha: float, seed: int, per_image: bool
) -> Pairs:
    """Returns the pairs of a batch, a function of seed and step alone.

    Args:
        step: Number of the update, from 0.
        batch_size: Number of images.
        alpha: Parameter of Beta(alpha, alpha), from which the weights are drawn.
        seed: Seed of the random draws.
        per_image: Whether each image draws its own weight, in place of one weight per batch.

    Example:
        >>> pairs = draw_pairs(0, 4, alpha=1.0, seed=0, per_image=True)
        >>> pairs.weight.shape, sorted(pairs.partner.numpy().tolist())
        (TensorShape([4]), [0, 1, 2, 3])
    """
    keys = tf.random.split(tf.random.fold_in([seed, 3], step))
    partner = tf.random.experimental.stateless_shuffle(tf.range(batch_size), keys[1])
    return Pairs(beta([batch_size] if per_image else [], keys[0], alpha), partner)


def beta(shape: list, key: tf.Tensor, alpha: float) -> tf.Tensor:
    """Returns stateless draws from Beta(alpha, alpha), float32.

    Args:
        shape: Shape of the draws.
        key: Stateless seed, (2,).
        alpha: Parameter of the distribution.

    Example:
        >>> beta([3], [0, 1], 1.0).shape
        TensorShape([3])
    """
    gammas = tf.random.stateless_gamma([2, *shape], key, alpha, dtype=tf.float64)
    return tf.cast(gammas[0] / tf.reduce_sum(gammas, axis=0), tf.float32)


def stack(*terms: tuple) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns K batches as one whose mean loss is sum_k w_k mean(s_k loss(y_k, z_k)).

    Args:
        terms: Tuples (w_k, y_k, z_k, s_k), all of one batch size: a weight (), labels (batch,),
            logits (batch, classes) and sample weights (batch,) or None.

    Returns:
        Labels (K batch,), logits (K batch, classes) and sample weights float32 (K batch,).

    Example:
        >>> y, z = tf.constant([0]), tf.zeros((1, 2))
        >>> stack((0.25, y, z, None), (0.75, y, z, None))[2].numpy()
        array([0.5, 1.5], dtype=float32)
    """
    weights, labels, logits, sample_weights = zip(*terms)
    of_examples = [
        tf.ones(tf.shape(z)[:1]) if s is None else tf.cast(tf.reshape(s, [-1]), tf.float32)
        for z, s in zip(logits, sample_weights)
    ]
    of_terms = [len(terms) * w * s for w, s in zip(weights, of_examples)]
    return tf.concat(labels, 0), tf.concat(logits, 0), tf.concat(of_terms, 0)
