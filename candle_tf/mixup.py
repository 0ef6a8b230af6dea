"""Mixup: convex combinations of the images of a batch, and of what they shall be learned as."""

from typing import NamedTuple

import tensorflow as tf

LEAST_ALPHA = 0.05  # of smaller ones both gammas of a share may be 0


class Pairs(NamedTuple):
    """Each image of a batch beside another image of it, and how much of the mixture it makes up.

    Attributes:
        share: Share of the image itself, float32 () or (batch,).
        partner: Index of the other image, int32 (batch,).
    """

    share: tf.Tensor
    partner: tf.Tensor

    def mix(self, values: tf.Tensor) -> tf.Tensor:
        """Returns share * x_i + (1 - share) * x_partner, float32, for values (batch, ...)."""
        values = tf.cast(values, tf.float32)
        dimensions = [-1, *[1] * (values.shape.rank - 1)]
        share = tf.reshape(self.share, dimensions)
        return share * values + (1.0 - share) * tf.gather(values, self.partner)

    def label_terms(
        self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns what Keras' loss takes for share * loss(z, y) + (1 - share) * loss(z, y_partner).

        Args:
            labels: Class numbers (batch,).
            logits: z of the mixed images, float (batch, classes).
            sample_weight: Weights of the images (batch,), or None.
        """
        others = None if sample_weight is None else tf.gather(sample_weight, self.partner)
        return stack(
            (self.share, labels, logits, sample_weight),
            (1.0 - self.share, tf.gather(labels, self.partner), logits, others),
        )


def check_alpha(alpha: float):
    """Refuses an alpha of mixup that is not 0 and not, finite, from `LEAST_ALPHA` on."""
    if alpha and not LEAST_ALPHA <= alpha < float("inf"):
        raise ValueError(f"mixup is {alpha} but must be 0, or finite and at least {LEAST_ALPHA}.")


def draw_pairs(
    step: tf.Tensor, batch_size: tf.Tensor, alpha: float, seed: int, per_image: bool
) -> Pairs:
    """Returns the pairs of a batch, a function of seed and step alone.

    Args:
        step: Number of the update, from 0.
        batch_size: Number of images.
        alpha: Parameter of Beta(alpha, alpha), which the shares are drawn from.
        seed: Seed of the random draws.
        per_image: Draw one share per image, in place of one share per batch.
    """
    keys = tf.random.split(tf.random.fold_in([seed, 3], step))
    partner = tf.random.experimental.stateless_shuffle(tf.range(batch_size), keys[1])
    return Pairs(beta([batch_size] if per_image else [], keys[0], alpha), partner)


def beta(shape: list, key: tf.Tensor, alpha: float) -> tf.Tensor:
    """Returns stateless draws from Beta(alpha, alpha), float32."""
    gammas = tf.random.stateless_gamma([2, *shape], key, alpha, dtype=tf.float64)
    return tf.cast(gammas[0] / tf.reduce_sum(gammas, axis=0), tf.float32)


def stack(*terms: tuple) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns K batches as one whose mean loss is sum_k w_k mean(s_k loss(y_k, z_k)).

    Args:
        terms: (w_k, y_k, z_k, s_k) each: a weight (), labels (batch,), logits (batch, classes) and
            sample weights (batch,) or None; all of one batch size.

    Returns:
        Labels (K batch,), logits (K batch, classes) and sample weights float32 (K batch,).
    """
    weights, labels, logits, sample_weights = zip(*terms)
    of_examples = [
        tf.ones(tf.shape(z)[:1]) if s is None else tf.cast(tf.reshape(s, [-1]), tf.float32)
        for z, s in zip(logits, sample_weights)
    ]
    of_terms = [len(terms) * w * s for w, s in zip(weights, of_examples)]
    return tf.concat(labels, 0), tf.concat(logits, 0), tf.concat(of_terms, 0)
