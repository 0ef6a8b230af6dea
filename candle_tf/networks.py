"""Keras networks taken apart: at any input size, and at the features."""

from collections.abc import Callable

import tensorflow as tf


def rewire(
    network: tf.keras.Model,
    input_shape: tuple[int | None, ...],
    replace: Callable[[tf.keras.layers.Layer], tf.keras.layers.Layer] = lambda layer: layer,
) -> tf.keras.Model:
    """The same layers and weights on an input of their own, or what `replace` makes of a layer."""
    return tf.keras.models.clone_model(
        network, input_tensors=tf.keras.Input(input_shape), clone_function=replace
    )


def reconfigured(network: tf.keras.Model, change: Callable[[dict], None]) -> tf.keras.Model:
    """New layers of the same weights; `change` changes the config of each in place."""

    def clone(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        config = layer.get_config()
        change(config)
        return layer.from_config(config)

    again = tf.keras.models.clone_model(network, clone_function=clone)
    again.set_weights(network.get_weights())
    return again


def any_size(network: tf.keras.Model) -> tf.keras.Model:
    """The same layers and weights, rewired to an input of (None, None, 3).

    Raises:
        ValueError: for a network that only works at its own size (for instance one that flattens).
    """
    try:
        rewired = rewire(network, (None, None, 3))
        if own := network.input_shape[1]:
            # A layer that lets an unknown size pass may still refuse another one.
            other = tf.TensorSpec((1, 2 * own, 2 * own, 3))
            tf.function(rewired).get_concrete_function(other)
        return rewired
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The network {network.name!r} works at its own size alone, not with images of any "
            "size: end its feature map with global pooling instead of flattening it."
        ) from error


def split_at_features(
    student: tf.keras.Model, own_size_only: bool = False
) -> tuple[tf.keras.Model, tf.keras.Model]:
    """The student as (encoder, classifier), cut at its layer `features`.

    Args:
        own_size_only: for images of the student's input size, not for those of any size.

    Raises:
        ValueError: if there is no such layer, or the network does not work at any size.
    """
    if "features" not in {layer.name for layer in student.layers}:
        raise ValueError(
            f"The student {student.name!r} has no layer named 'features': give that name to the "
            "layer whose output is the pooled embedding before the classifier."
        )
    network = rewire(student, student.input_shape[1:]) if own_size_only else any_size(student)
    # Shared layers have one node a network: the last one is that of `network`.
    features = network.get_layer("features").get_output_at(-1)
    return tf.keras.Model(network.input, features), tf.keras.Model(features, network.output)


def check_size(network: tf.keras.Model, base: int, smallest: int, who: str):
    """Refuses a size that a network (None, None, 3) reduces to less than one pixel.

    Args:
        base: the side in pixels that the network's total stride is measured at.
        smallest: the side in pixels to check.
        who: what the network is, for the message.
    """
    maps = [layer.get_output_at(-1) for layer in network.layers]
    maps = [m for m in tf.nest.flatten(maps) if m.shape.rank == 4]
    if not maps:
        return
    probe = tf.function(tf.keras.Model(network.input, maps))

    def sides(size: int) -> list[int]:
        traced = probe.get_concrete_function(tf.TensorSpec((1, size, size, 3)))
        return [min(m.shape[1:3]) for m in tf.nest.flatten(traced.structured_outputs)]

    stride = None
    try:
        stride = base // max(1, sides(base)[-1])
        works = smallest >= stride and min(sides(smallest)) >= 1
    except ValueError:  # a layer that cannot compute so small an output
        works = False
    if not works:
        fold = f" ({stride}-fold)" if stride else ""
        raise ValueError(
            f"Resolution {smallest} is smaller than the {who} can downsample{fold}: give larger "
            "images."
        )
