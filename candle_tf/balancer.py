"""The adversarial balancer: lambda, the weight of the KL term against the feature term."""

from collections.abc import Sequence

import tensorflow as tf


@tf.keras.saving.register_keras_serializable("candle_tf")
class AdversarialBalancer(tf.keras.layers.Layer):
    """lambda_phi(L_KL, L_FS) in (0, 1): the first output of softmax(MLP(losses)).

    The balancer reads the two losses and does not differentiate them. `CandleModel` maximises over
    the balancer's weights phi what it minimises over the student:

        E[lambda L_KL + (1 - lambda) L_FS]    (arXiv 2404.00285, section 3.2)

    Args:
        per_sample: Whether there is one lambda per example, in place of one per batch.
        hidden: Widths of the ReLU layers.
        seed: Seed of the initial weights.

    Example:
        >>> balancer = ct.AdversarialBalancer()
        >>> lambda_ = balancer((tf.constant([2.0, 1.0]), tf.constant([0.2, 0.1])))
        >>> 0.0 < float(lambda_) < 1.0
        True
    """

    def __init__(
        self,
        per_sample: bool = False,
        *,
        hidden: Sequence[int] = (8, 16, 16, 8),
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**{"dtype": "float32", **kwargs})  # whatever the policy of its model
        self.per_sample, self.hidden, self.seed = per_sample, tuple(hidden), seed

        def dense(i, units, activation):
            initializer = tf.keras.initializers.GlorotUniform(seed + i)
            return tf.keras.layers.Dense(
                units, activation, kernel_initializer=initializer, dtype=self.dtype
            )

        self.mlp = tf.keras.Sequential(
            [dense(i, units, "relu") for i, units in enumerate(self.hidden)]
            + [dense(len(self.hidden), 2, "softmax")]
        )

    def build(self, input_shape):
        """Creates the weights of the MLP."""
        self.mlp.build((None, 2))
        super().build(input_shape)

    def call(self, losses: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Returns lambda for (L_KL, L_FS), each (batch,): (batch,) if per sample, else ()."""
        read = tf.stop_gradient(tf.stack(losses, axis=-1))
        if not self.per_sample:
            total, count = tf.reduce_sum(read, axis=0, keepdims=True), tf.shape(read)[0]
            count = tf.cast(count, read.dtype)
            replica = tf.distribute.get_replica_context()
            if replica and replica.num_replicas_in_sync > 1:  # the means of the whole batch
                total, count = replica.all_reduce(tf.distribute.ReduceOp.SUM, [total, count])
            read = tf.math.divide_no_nan(total, count)
        weights = self.mlp(read)[:, 0]
        return weights if self.per_sample else weights[0]

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        own = {"per_sample": self.per_sample, "hidden": self.hidden, "seed": self.seed}
        return {**super().get_config(), **own}
