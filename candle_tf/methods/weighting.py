"""Several weighted losses in one call of Keras' loss, which then logs their sum."""

import tensorflow as tf


def stack(*terms: tuple) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """K batches as one whose mean loss is sum_k w_k mean(s_k loss(y_k, z_k)).

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
