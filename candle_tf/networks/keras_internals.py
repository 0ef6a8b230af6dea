"""Everything that the library uses of Keras beyond its documented interface, in one place.

`tests/networks/test_keras_internals.py` says which tf-keras version each function holds for.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import larq as lq
import numpy as np
import tensorflow as tf
from tf_keras.protobuf import saved_metadata_pb2  # noqa: F401  for networks.safe_load
from tf_keras.src.layers.core import SlicingOpLambda, TFOpLambda

OPERATIONS = (TFOpLambda, SlicingOpLambda)  # layers that wrap a function of TensorFlow


@dataclass(frozen=True)
class Untracked:
    """A holder whose value Keras neither tracks nor saves a second time.

    Keras looks into every layer, list and dict that a model gets as an attribute, but not into a
    dataclass.

    Attributes:
        value: Object to hold.

    Example:
        >>> model = tf.keras.Sequential()
        >>> model.helper = Untracked(tf.keras.layers.Dense(2))
        >>> model.layers
        []
    """

    value: Any


def start_built(model: tf.keras.Model):
    """Marks a subclassed model as built, once its parts have their variables.

    Keras then saves, loads and summarises the model before the first call.

    Example:
        >>> model = tf.keras.Sequential()
        >>> start_built(model)
        >>> model.built
        True
    """
    model.built = True


def log_of_first_replica(model: tf.keras.Model):
    """Has `fit` report the first replica's logs, where Keras would add up those of all workers.

    The logs are results of metrics, which are the same on all replicas.

    Example:
        >>> model = tf.keras.Sequential()
        >>> log_of_first_replica(model)
        >>> model.distribute_reduction_method
        'first'
    """
    model.distribute_reduction_method = "first"


def called_within_fit(arguments: Mapping[str, Any]) -> bool:
    """Returns whether `evaluate` got these keyword arguments from `fit`, for validation.

    Example:
        >>> called_within_fit({"_use_cached_eval_dataset": True}), called_within_fit({})
        (True, False)
    """
    return bool(arguments.get("_use_cached_eval_dataset"))


def constants_of(network: tf.keras.Model) -> list[dict]:
    """Returns the constant arguments of a network's operations, such as the 255 of `images / 255`.

    Keras keeps them with the connections of a network, not in the configs of its layers.

    Example:
        >>> images = tf.keras.Input((8, 8, 3))
        >>> constants_of(tf.keras.Model(images, images / 255.0))
        [{'x': 'tensor', 'y': 255.0}]
    """
    operations = [layer for layer in flat_layers(network) if isinstance(layer, OPERATIONS)]
    # Where the network was called again, the constants are the same.
    return [arguments_of_call(x.function, node) for x in operations for node in x.inbound_nodes[:1]]


def arguments_of_call(function: Callable, node: Any) -> dict:
    """Returns the arguments of a call by name, in the types of JSON; a tensor of Keras is "tensor".

    A network that was saved and loaded gives the same: Keras then passes other arguments by name,
    writes arrays as lists, and leaves out some that are None.

    Args:
        function: Function that was called.
        node: Node of Keras that holds the call.
    """
    given = inspect.signature(function).bind(*node.call_args, **node.call_kwargs).arguments

    def plain(value):
        if isinstance(value, Mapping):
            return {key: plain(v) for key, v in sorted(value.items())}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (np.ndarray, np.generic, tf.Tensor, tf.Variable)):
            return np.asarray(value).tolist()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, tf.DType):
            return value.name
        return "tensor" if tf.keras.backend.is_keras_tensor(value) else type(value).__name__

    return {
        name: plain(value)
        for name, value in sorted(given.items())
        if name != "name" and value is not None
    }


def flat_layers(network: tf.keras.Model) -> list[tf.keras.layers.Layer]:
    """Returns the layers of a network and those of the networks within it.

    Example:
        >>> inner = tf.keras.Sequential([tf.keras.layers.ReLU(name="inside")])
        >>> [layer.name for layer in flat_layers(tf.keras.Sequential([inner]))][-1]
        'inside'
    """
    return list(network._flatten_layers(include_self=False))


def made_by(tensor) -> tuple[tf.keras.layers.Layer, Any]:
    """Returns the layer that gives a symbolic tensor, and the first tensor that it takes.

    The latter is None for an input of the network.

    Example:
        >>> images = tf.keras.Input((4,), name="images")
        >>> layer, before = made_by(tf.keras.layers.Dense(2, name="logits")(images))
        >>> layer.name, before is images
        ('logits', True)
    """
    node = tensor.node
    return node.layer, node.keras_inputs[0] if node.keras_inputs else None


def pad_in_convolution_op(layer: tf.keras.layers.Conv2D):
    """Has a built Larq convolution leave its padding to `convolution_op`; see `left_padding`.

    Example:
        >>> layer = lq.layers.QuantConv2D(4, 3, padding="same", pad_values=1.0)
        >>> layer.build((None, 8, 8, 3))
        >>> pad_in_convolution_op(layer)
        >>> left_padding(layer, tf.zeros((1, 8, 8, 3)))
        [[0, 0], (1, 1), (1, 1), [0, 0]]
    """
    if isinstance(layer, lq.layers.QuantConv2D):
        layer._is_native_padding = True


def left_padding(layer: tf.keras.layers.Conv2D, inputs: tf.Tensor) -> list | None:
    """Returns the paddings, as `tf.pad` takes them, with the `pad_values` of a Larq convolution.

    None if the convolution pads with zeros, or not at all.

    Args:
        layer: Layer of `pad_in_convolution_op`.
        inputs: Inputs (batch, height, width, channels), not padded yet.
    """
    if layer.padding == "same" and getattr(layer, "pad_values", 0.0) != 0.0:
        return layer._get_padding_same(inputs)
    return None


def create_slots(optimizer, variables: list[tf.Variable]):
    """Creates an optimizer's slots now, so that a saved state finds them.

    Legacy optimizers restore their slots later by themselves.

    Example:
        >>> optimizer = tf.keras.optimizers.SGD(momentum=0.9)
        >>> create_slots(optimizer, [tf.Variable([1.0, 2.0])])
        >>> [slot.shape.as_list() for slot in optimizer.momentums]
        [[2]]
    """
    if isinstance(optimizer, tf.keras.optimizers.Optimizer):
        optimizer.build(variables)


def create_metrics(model: tf.keras.Model, num_classes: int):
    """Creates the variables of the compiled metrics now, so that the first step is traced once.

    TensorFlow traces a function again whose first call has created variables.

    Args:
        model: Compiled model from images to logits.
        num_classes: Number of logits.

    Example:
        >>> model = tf.keras.Sequential([tf.keras.layers.Dense(3)])
        >>> model.compile(metrics=["accuracy"])
        >>> create_metrics(model, 3)
        >>> [metric.name for metric in model.metrics]
        ['accuracy']
    """
    model.compiled_metrics.build(tf.zeros((1, num_classes)), tf.zeros((1,), tf.int64))


def iterations(optimizer) -> tf.Variable:
    """Returns the number of updates so far, as the innermost optimizer counts them.

    Example:
        >>> int(iterations(tf.keras.optimizers.Adam()))
        0
    """
    if scales_loss(optimizer):
        optimizer = optimizer.inner_optimizer
    while isinstance(optimizer, lq.optimizers.CaseOptimizer):
        optimizer = optimizer.default
    return optimizer.iterations


def scales_loss(optimizer) -> bool:
    """Returns whether an optimizer scales the loss, as Keras has it do under mixed_float16.

    Example:
        >>> scales_loss(tf.keras.optimizers.Adam())
        False
    """
    return isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)


def gradients(
    tape: tf.GradientTape, loss: tf.Tensor, variables: list[tf.Variable], optimizer
) -> list[tf.Tensor]:
    """Returns the gradients of a loss, scaled on their way where the optimizer scales the loss.

    Args:
        tape: Persistent tape that recorded the loss.
        loss: Loss, float32 ().
        variables: Variables to differentiate by.
        optimizer: Optimizer that will apply the gradients.

    Example:
        >>> x = tf.Variable(3.0)
        >>> with tf.GradientTape(persistent=True) as tape:
        ...     loss = x * x
        >>> [float(g) for g in gradients(tape, loss, [x], tf.keras.optimizers.SGD())]
        [6.0]
    """
    if not scales_loss(optimizer):
        return tape.gradient(loss, variables)
    scale = optimizer.get_scaled_loss(tf.ones_like(loss))
    return optimizer.get_unscaled_gradients(tape.gradient(loss, variables, output_gradients=scale))


def skipped_with(
    followers: list[tf.Tensor], leaders: list[tf.Tensor | None], optimizer
) -> list[tf.Tensor]:
    """Returns the followers' gradients; NaN, which is skipped, where the leaders' overflow.

    A loss-scaling optimizer skips an update with gradients that are not finite. Both sides of one
    step then skip it together.

    Args:
        followers: Gradients of the one side.
        leaders: Gradients of the other side; None for a variable without any.
        optimizer: Optimizer of the leaders.

    Example:
        >>> scaled = tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.SGD())
        >>> overflown = tf.constant(float("inf"))
        >>> [float(g) for g in skipped_with([tf.constant(1.0)], [overflown], scaled)]
        [nan]
    """
    if not scales_loss(optimizer):
        return followers
    given = [gradient for gradient in leaders if gradient is not None]
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in given])
    return [tf.where(finite, gradient, float("nan")) for gradient in followers]
