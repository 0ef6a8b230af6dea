"""A student with several copies of its last block and classifier on one shared trunk."""

import re
from functools import partial

import tensorflow as tf
from candle_tf.networks.surgery import renewed, split_at_features


@tf.keras.saving.register_keras_serializable("candle_tf")
class Experts(tf.keras.layers.Layer):
    """The mean of n linear classifiers, each on its own n-th part of the features.

    Inputs are float (batch, n * width), outputs are logits (batch, num_classes).

    Args:
        n: Number of experts.
        num_classes: Number of classes.
        **kwargs: Arguments of every Keras layer, such as `name` and `dtype`.

    Example:
        >>> experts = ct.methods.Experts(n=2, num_classes=3)
        >>> features = tf.ones((5, 2 * 8))
        >>> experts(features).shape, experts.each(features).shape
        (TensorShape([5, 3]), TensorShape([5, 2, 3]))
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
        """Returns the logits of each expert, (batch, n, num_classes)."""
        own = tf.split(features, self.n, axis=-1)
        return tf.stack([head(x) for head, x in zip(self.heads, own)], axis=1)

    def call(self, features):
        return tf.reduce_mean(self.each(features), axis=1)

    def get_config(self):
        return {**super().get_config(), "n": self.n, "num_classes": self.num_classes}


def branch(student: tf.keras.Model, n: int) -> tf.keras.Model:
    """Returns a student with n copies of the last block and classifier, with new random weights.

    The last block starts where the last shortcut starts: behind the last layer that each path to
    the features passes through before the last convolution.

    Args:
        student: A student of `candle_tf.students`. It does not change: the new trunk is a copy with
            the same weights.
        n: Number of branches.

    Returns:
        A student: images -> `features` (batch, n * width), the pooled features of all branches ->
        `logits`, an `Experts` layer.

    Raises:
        ValueError: For a student without a layer `features` or without a convolution before it.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> branched = ct.methods.branch(student, 2)
        >>> branched.get_layer("features").output_shape, branched.output_shape
        ((None, 16), (None, 3))
    """
    encoder, _ = split_at_features(renewed(student), own_size_only=True)
    trunk, block = split_before_last_block(encoder)
    copies = (
        tf.keras.models.clone_model(block, clone_function=partial(reseeded, i)) for i in range(n)
    )
    # Not copy(trunk): the student shall have the copy's layers, not one nested model.
    features = tf.keras.layers.Concatenate(name="features")([copy.call(trunk) for copy in copies])
    logits = Experts(n, student.output_shape[-1], name="logits", dtype="float32")(features)
    return tf.keras.Model(encoder.input, logits, name=student.name)


def split_before_last_block(encoder: tf.keras.Model) -> tuple[tf.Tensor, tf.keras.Model]:
    """Returns the (symbolic) output of the encoder's trunk, and the model from it to the features.

    Raises:
        ValueError: For an encoder without a convolution.
    """
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
    """Returns a layer of the same configuration for branch `number`, with new random weights."""
    config = {**layer.get_config(), "name": f"branch_{number}_{layer.name}"}
    for value in config.values():
        initializer = value.get("config", {}) if isinstance(value, dict) else {}
        if initializer.get("seed") is not None:
            initializer["seed"] += number + 1
    return layer.from_config(config)


def start_branches(network: tf.keras.Model, student: tf.keras.Model):
    """Gives the branches of a network the weights of a pretrained student's last block.

    Args:
        network: Result of `branch`; another network stays as it is.
        student: The student that `branch` was given.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> branched = ct.methods.branch(student, 2)
        >>> start_branches(branched, student)
        >>> last = student.layers[-6]
        >>> copy = branched.get_layer(f"branch_1_{last.name}")
        >>> type(last).__name__, bool((copy.get_weights()[0] == last.get_weights()[0]).all())
        ('QuantConv2D', True)
    """
    for layer in network.layers:
        if own := re.fullmatch(r"branch_\d+_(.+)", layer.name):
            layer.set_weights(student.get_layer(own[1]).get_weights())


def check_experts(student: tf.keras.Model, n: int):
    """Refuses a student without n experts.

    Raises:
        ValueError: If the last layer is not an `Experts` layer with n experts.
    """
    logits = student.layers[-1]
    if not isinstance(logits, Experts) or logits.n != n:
        raise ValueError(
            f"The student {student.name!r} does not have {n} experts: give branch(student, {n})."
        )
