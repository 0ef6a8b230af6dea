"""Keras networks taken apart: at any input size, and at the features."""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

FOLDABLE = (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D, tf.keras.layers.Dense)


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
    """New layers of the same weights; `change` changes the config of each in place.

    Those of a network within the network too.
    """

    def nested(config: dict) -> Iterator[dict]:
        yield config
        for layer in config.get("layers", ()):
            if layer["class_name"] != "InputLayer":  # a placeholder, which computes nothing
                yield from nested(layer["config"])

    def clone(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        config = layer.get_config()
        for each in nested(config):
            change(each)
        return layer.from_config(config)

    again = tf.keras.models.clone_model(network, clone_function=clone)
    again.set_weights(network.get_weights())
    return again


def at_policy(network: tf.keras.Model, policy: str) -> tf.keras.Model:
    """The same network and weights in new layers that compute by a Keras mixed-precision policy.

    Raises:
        ValueError: for a network with layers that cannot be made again from their configs.
    """

    def change(config: dict):
        if "dtype" in config:
            config["dtype"] = policy

    try:
        return reconfigured(network, change)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"The network {network.name!r} cannot be made again in {policy} ({error}): leave "
            "--precision out."
        ) from error


def renewed(network: tf.keras.Model) -> tf.keras.Model:
    """The same network and weights in new layers, which are in no other network."""
    return reconfigured(network, lambda config: None)


def with_synchronized_batch_norm(network: tf.keras.Model) -> tf.keras.Model:
    """New layers of the same weights, whose batch norm takes its moments over all replicas."""

    def change(config: dict):
        if "moving_mean_initializer" in config:
            config["synchronized"] = True

    return reconfigured(network, change)


def synchronizes(network: tf.keras.Model) -> bool:
    """Whether it has batch norm that takes its moments over all replicas."""
    return any(getattr(part, "synchronized", False) for part in network.submodules)


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


def fold_batch_norm(network: tf.keras.Model) -> tf.keras.Model:
    """The same function in new layers, each batch norm inside the convolution before it.

    W <- W s and b <- (b - mean) s + beta, with s = gamma / sqrt(variance + epsilon), where nothing
    but the norm sees what the convolution gives. For a network that is not trained any more; one
    whose layers cannot be made again from their configs stays as it is.
    """
    try:
        fresh = renewed(network)
    except (NotImplementedError, TypeError, ValueError):
        return network
    norms = {}  # by the name of the convolution
    for norm in fresh.layers:
        if type(norm) is tf.keras.layers.BatchNormalization and len(norm.inbound_nodes) == 1:
            before = norm.inbound_nodes[0].inbound_layers
            if (
                type(before) in FOLDABLE
                and before.activation is tf.keras.activations.linear
                and len(before.inbound_nodes) == len(before.outbound_nodes) == 1
                and before not in (fresh.get_layer(name) for name in fresh.output_names)
                and list(norm.axis) == [len(norm.input_shape) - 1]
            ):
                norms[before.name] = norm
    if not norms:
        return network
    folded = {norm.name for norm in norms.values()}

    def clone(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        if layer.name in folded:
            return tf.keras.layers.Activation("linear", name=layer.name)
        with_bias = {"use_bias": True} if layer.name in norms else {}
        return layer.from_config({**layer.get_config(), **with_bias})

    again = tf.keras.models.clone_model(fresh, clone_function=clone)
    for layer in fresh.layers:
        if layer.name in norms:
            again.get_layer(layer.name).set_weights(folded_weights(layer, norms[layer.name]))
        elif layer.name not in folded:
            again.get_layer(layer.name).set_weights(layer.get_weights())
    return again


def folded_weights(
    layer: tf.keras.layers.Layer, norm: tf.keras.layers.BatchNormalization
) -> list[np.ndarray]:
    """Kernel and bias of a layer that does what it and the batch norm after it did."""
    kernel, *bias = (weights.astype(np.float64) for weights in layer.get_weights())
    scale = 1.0 / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    if norm.scale:
        scale = scale * norm.gamma.numpy()
    shift = (sum(bias) - norm.moving_mean.numpy()) * scale
    if norm.center:
        shift = shift + norm.beta.numpy()
    depthwise = isinstance(layer, tf.keras.layers.DepthwiseConv2D)
    return [kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale), shift]
