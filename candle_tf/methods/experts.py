"""A student whose last block and classifier stand several times over one trunk."""

from functools import partial

import tensorflow as tf
from candle_tf.networks.surgery import renewed, split_at_features


@tf.keras.saving.register_keras_serializable("candle_tf")
class Experts(tf.keras.layers.Layer):
    """The mean of n linear classifiers, each on its own n-th of the features.

    Inputs are float (batch, n * width), outputs logits (batch, num_classes).

    Args:
        n: how many experts.
        num_classes: width of each classifier.
    """

    def __init__(self, n: int, num_classes: int, **kwargs):
        super().__init__(**kwargs)
        self.n, self.num_classes = n, num_classes
        self.heads = [tf.keras.layers.Dense(num_classes, dtype=self.dtype_policy) for _ in range(n)]

    def build(self, input_shape):
        for head in self.heads:
            head.build((None, input_shape[-1] // self.n))
        super().build(input_shape)

    def each(self, features: tf.Tensor) -> tf.Tensor:
        """The logits of every expert, (batch, n, num_classes)."""
        own = tf.split(features, self.n, axis=-1)
        return tf.stack([head(x) for head, x in zip(self.heads, own)], axis=1)

    def call(self, features):
        return tf.reduce_mean(self.each(features), axis=1)

    def get_config(self):
        return {**super().get_config(), "n": self.n, "num_classes": self.num_classes}


def branch(student: tf.keras.Model, n: int) -> tf.keras.Model:
    """The student with its last block and its classifier in n copies, each of other random weights.

    The last block is what follows the last layer that every path to the last convolution, and every
    path around it, passes through: in a residual network, where the last shortcut starts.

    Args:
        student: as `candle_tf.students` build it. It stays as it is: the trunk is a copy, with its
            weights.
        n: how many branches.

    Returns:
        A student: images -> `features` (batch, n * width), the branches' pooled features side by
        side -> `logits`, an `Experts` layer.

    Raises:
        ValueError: for a student without a layer `features` or without a convolution before it.
    """
    encoder, _ = split_at_features(renewed(student), own_size_only=True)
    trunk, block = split_before_last_block(encoder)
    copies = (
        tf.keras.models.clone_model(block, clone_function=partial(reseeded, i)) for i in range(n)
    )
    # Not copy(trunk): its layers, not itself, are to be the student's.
    features = tf.keras.layers.Concatenate(name="features")([copy.call(trunk) for copy in copies])
    logits = Experts(n, student.output_shape[-1], name="logits", dtype="float32")(features)
    return tf.keras.Model(encoder.input, logits, name=student.name)


def split_before_last_block(encoder: tf.keras.Model) -> tuple[tf.Tensor, tf.keras.Model]:
    """The (symbolic) output of the encoder's trunk, and the model from there to the features."""
    convolutions = [x for x in encoder.layers if isinstance(x, tf.keras.layers.Conv2D)]
    if not convolutions:
        raise ValueError(
            "The student has no convolution before its features, so no last block to branch at: "
            "give a convolutional student."
        )
    for layer in reversed(encoder.layers[: encoder.layers.index(convolutions[-1])]):
        trunk = layer.get_output_at(-1)
        try:
            return trunk, tf.keras.Model(trunk, encoder.output)
        except ValueError:  # another path leads around this layer
            continue


def reseeded(number: int, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
    """A layer of the same configuration for branch `number`, with random weights of its own."""
    config = {**layer.get_config(), "name": f"branch_{number}_{layer.name}"}
    for value in config.values():
        initializer = value.get("config", {}) if isinstance(value, dict) else {}
        if initializer.get("seed") is not None:
            initializer["seed"] += number + 1
    return layer.from_config(config)


def check_experts(student: tf.keras.Model, n: int):
    """Refuses a student whose `logits` are not those of n experts."""
    logits = student.layers[-1]
    if not isinstance(logits, Experts) or logits.n != n:
        raise ValueError(
            f"The student {student.name!r} has not {n} experts: give branch(student, {n})."
        )
