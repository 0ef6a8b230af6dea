"""Surgery on Keras networks: another input size, a cut at the features, changed layers."""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

FOLDABLE = (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D, tf.keras.layers.Dense)


def rewire(
    network: tf.keras.Model,
    input_shape: tuple[int | None, ...],
    replace: Callable[[tf.keras.layers.Layer], tf.keras.layers.Layer] = lambda layer: layer,
) -> tf.keras.Model:
    """Returns the same layers and weights on a new input.

    Args:
        network: A functional Keras model.
        input_shape: Shape of the new input without the batch, where None means any size.
        replace: Function from a layer to the layer to use in its place.
    """
    return tf.keras.models.clone_model(
        network, input_tensors=tf.keras.Input(input_shape), clone_function=replace
    )


def reconfigured(network: tf.keras.Model, change: Callable[[dict], None]) -> tf.keras.Model:
    """Returns a copy of a network with changed layers and the same weights.

    Args:
        network: A functional Keras model.
        change: Function that changes the config of a layer in place. It is called for each layer,
            also inside nested networks.
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
    """Returns a copy of a network that computes by a Keras mixed-precision policy.

    Raises:
        ValueError: For a network with a layer that cannot be rebuilt from its config.
    """

    def change(config: dict):
        if "dtype" in config:
            config["dtype"] = policy

    try:
        return reconfigured(network, change)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"The network {network.name!r} cannot be rebuilt in {policy} ({error}): leave "
            "`precision` out."
        ) from error


def renewed(network: tf.keras.Model) -> tf.keras.Model:
    """Returns a copy of a network with the same weights in new layers."""
    return reconfigured(network, lambda config: None)


def with_synchronized_batch_norm(network: tf.keras.Model) -> tf.keras.Model:
    """Returns a copy of a network with batch norm that takes its moments over all replicas."""

    def change(config: dict):
        if "moving_mean_initializer" in config:
            config["synchronized"] = True

    return reconfigured(network, change)


def synchronizes(network: tf.keras.Model) -> bool:
    """Returns whether a network has batch norm that takes its moments over all replicas."""
    return any(getattr(part, "synchronized", False) for part in network.submodules)


def any_size(network: tf.keras.Model) -> tf.keras.Model:
    """Returns the same layers and weights on an input of any size, (None, None, 3).

    Raises:
        ValueError: For a network that works only at its own size, such as one that flattens a map.
    """
    try:
        rewired = rewire(network, (None, None, 3))
        if own := network.input_shape[1]:
            # A layer that accepts an unknown size may still refuse a different one.
            other = tf.TensorSpec((1, 2 * own, 2 * own, 3))
            tf.function(rewired).get_concrete_function(other)
        return rewired
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The network {network.name!r} works only at its own size, not with images of any "
            "size: end its feature map with global pooling instead of flattening it."
        ) from error


def split_at_features(
    student: tf.keras.Model, own_size_only: bool = False
) -> tuple[tf.keras.Model, tf.keras.Model]:
    """Cuts a student at its layer `features`.

    Args:
        student: A functional Keras model with a layer `features`.
        own_size_only: Whether the parts work only at the student's input size, not at any size.

    Returns:
        (encoder, classifier), which share the student's layers.

    Raises:
        ValueError: If the layer is missing, or the network cannot work at any size.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> encoder, classifier = split_at_features(student)
        >>> encoder.output_shape, classifier.output_shape
        ((None, 8), (None, 3))
    """
    if "features" not in {layer.name for layer in student.layers}:
        raise ValueError(
            f"The student {student.name!r} has no layer named 'features': give that name to the "
            "layer that outputs the pooled embedding before the classifier."
        )
    network = rewire(student, student.input_shape[1:]) if own_size_only else any_size(student)
    # A shared layer has one node per network: the last one belongs to `network`.
    features = network.get_layer("features").get_output_at(-1)
    return tf.keras.Model(network.input, features), tf.keras.Model(features, network.output)


def check_size(network: tf.keras.Model, base: int, smallest: int, who: str):
    """Refuses an image size that a network would downsample to less than one pixel.

    Args:
        network: A network with an input of (None, None, 3).
        base: Side in pixels at which the network's total stride is measured.
        smallest: Side in pixels to check.
        who: Noun for the network, for the message.

    Raises:
        ValueError: If `smallest` is too small.
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
    """Returns a network that computes the same with its batch norms folded into convolutions.

        W <- W s,    b <- (b - mean) s + beta,    s = gamma / sqrt(variance + epsilon)

    A norm is folded if it alone reads the output of the convolution. The network must not be
    trained any more. A network is returned unchanged if its layers cannot be rebuilt from their
    configs.
    """
    try:
        fresh = renewed(network)
    except (NotImplementedError, TypeError, ValueError):
        return network
    norms = {}  # name of the convolution -> the norm after it
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
            policy = layer.dtype_policy  # the network's own, not the global one
            return tf.keras.layers.Activation("linear", name=layer.name, dtype=policy)
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
    """Returns the kernel and bias with which a layer also does the work of its batch norm."""
    kernel, *bias = (weights.astype(np.float64) for weights in layer.get_weights())
    scale = 1.0 / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    if norm.scale:
        scale = scale * norm.gamma.numpy()
    shift = (sum(bias) - norm.moving_mean.numpy()) * scale
    if norm.center:
        shift = shift + norm.beta.numpy()
    depthwise = isinstance(layer, tf.keras.layers.DepthwiseConv2D)
    return [kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale), shift]
