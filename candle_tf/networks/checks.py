"""Checks of a user's network before its use: its last layer, and its own scaling of images."""

import os

import tensorflow as tf
from candle_tf.networks.keras_internals import OPERATIONS, made_by

PASSING = (  # layers that may follow a classifier without being one
    "Activation Dropout Flatten GlobalAveragePooling2D GlobalMaxPooling2D Reshape SpatialDropout2D"
).split()
CLASSIFIERS = ("logit", "predict", "classif", "fc1000", "top", "head", "output", "probs")
ARITHMETIC = ("math.", "__operators__.", "truediv", "subtract", "multiply", "add")
WIDTHS = 64  # a linear layer whose width is a multiple of this counts as an embedding


def operation_of(layer: tf.keras.layers.Layer) -> str:
    """Returns the name of the TensorFlow function that a layer wraps, or "" for other layers."""
    wraps = isinstance(layer, OPERATIONS)
    return str(layer.get_config().get("function", "")) if wraps else ""


def makes_probabilities(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether a layer ends in a softmax."""
    activation = getattr(layer, "activation", None)
    return (
        isinstance(layer, tf.keras.layers.Softmax)
        or getattr(activation, "__name__", "") in ("softmax", "log_softmax")
        or operation_of(layer).endswith("softmax")
    )


def last_of(network: tf.keras.Model) -> tf.keras.layers.Layer:
    """The layer that gives a network's output, in the networks that are its layers too."""
    layer, _ = made_by(network.outputs[0])
    return last_of(layer) if isinstance(layer, tf.keras.Model) and layer.outputs else layer


def check_from_images(network: tf.keras.Model, role: str):
    """Refuses a model that is not a graph from one batch of RGB images to one tensor.

    Args:
        network: The model.
        role: What it is to be, for messages: "encoder" or "student".

    Raises:
        ValueError: Says what the model takes or returns instead.
    """
    if not getattr(network, "inputs", None) or not getattr(network, "outputs", None):
        raise ValueError(
            f"The {role} {network.name!r} has no graph of layers: pass a functional one, "
            "tf.keras.Model(inputs, outputs), or a Sequential that starts with tf.keras.Input."
        )
    shapes = [tuple(tensor.shape) for tensor in network.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][-1] != 3:
        raise ValueError(
            f"The {role} {network.name!r} takes {' and '.join(map(str, shapes))}: pass a model "
            "that takes one batch of RGB images, (batch, height, width, 3)."
        )
    if len(network.outputs) != 1:
        raise ValueError(
            f"The {role} {network.name!r} has {len(network.outputs)} outputs: keep one of them, by "
            "tf.keras.Model(model.input, model.outputs[0])."
        )


def check_student(student: tf.keras.Model):
    """Refuses an object that is not a Keras model from images to logits.

    Raises:
        ValueError: For a class, a teacher, another object, or a model that gives probabilities.
            The message says what to pass instead.
    """
    if isinstance(student, type):
        raise ValueError(
            f"The student is the class {student.__name__}: pass an instance of the class."
        )
    if hasattr(student, "check_calibrated"):
        raise ValueError("The student is a Teacher: pass the teacher first, then the student.")
    if not isinstance(student, tf.keras.Model):
        raise ValueError(
            f"The student is a {type(student).__name__}: pass a functional Keras model from images "
            "to logits."
        )
    check_from_images(student, "student")
    last = last_of(student)
    sigmoid = getattr(getattr(last, "activation", None), "__name__", "") == "sigmoid"
    if makes_probabilities(last) or sigmoid:
        kind = "sigmoid" if sigmoid else "softmax"
        raise ValueError(
            f"The student {student.name!r} ends in a {kind} (layer {last.name!r}), but its losses "
            f"take logits: end it in Dense({student.output_shape[-1]}) without an activation."
        )


def check_file(path: str | os.PathLike):
    """Refuses a path to save a whole model to that does not end in .keras.

    Keras would write a SavedModel, which it loads as a model of another class, with another
    objective.

    Raises:
        ValueError: Names the formats of `save` and of `export`.
    """
    if not os.fspath(path).endswith(".keras"):
        raise ValueError(
            f"{path} does not end in .keras: `save` writes the model to such a file, to train it "
            "further, and `export` writes the student for deployment."
        )


def check_teacher(teacher):
    """Refuses an object that is not a `Teacher`.

    Raises:
        ValueError: Says what the object is and how to make a teacher.
    """
    of_class = isinstance(teacher, type)
    if of_class or not hasattr(teacher, "check_calibrated"):
        what = f"the class {teacher.__name__}" if of_class else f"a {type(teacher).__name__}"
        raise ValueError(
            f"The teacher is {what}, not a Teacher: pass the teacher first, then the student. Make "
            "a teacher from a Keras network by Teacher(network, image_size)."
        )


def without_classifier(
    network: tf.keras.Model, linear: bool = True, softmax: bool = False
) -> tuple[tf.keras.Model, str | None]:
    """Cuts the classifier off a network that ends in one.

    Args:
        network: A functional Keras model.
        linear: Whether a last linear layer also counts as a classifier if its name or width says
            so.
        softmax: Whether a softmax follows the network.

    Returns:
        (the network without its classifier, the name of its new last layer), or (the network
        itself, None).
    """
    tensor = network.outputs[0]
    while tensor is not None:
        layer, before = made_by(tensor)
        if isinstance(layer, tf.keras.Model):
            inner, cut = without_classifier(layer, linear, softmax)
            return (tf.keras.Model(network.inputs, inner(before)), cut) if cut else (network, None)
        if is_classifier(layer, softmax, linear):
            while type(made_by(before)[0]).__name__ in ("Dropout", "SpatialDropout2D"):
                before = made_by(before)[1]
            return tf.keras.Model(network.inputs, before), made_by(before)[0].name
        softmax = softmax or makes_probabilities(layer)
        pools = type(layer).__name__.startswith("Global")
        passing = type(layer).__name__ in PASSING or operation_of(layer).endswith("reshape")
        if not (makes_probabilities(layer) or (passing and (softmax or not pools))):
            return network, None
        tensor = before
    return network, None


def is_classifier(layer: tf.keras.layers.Layer, softmax: bool, linear: bool) -> bool:
    """Returns whether a layer gives one number per class.

    Args:
        layer: The last layer with weights.
        softmax: Whether a softmax follows the layer.
        linear: Whether a linear layer counts if its name or width says so.
    """
    if isinstance(layer, tf.keras.layers.Dense):
        width = layer.units
    elif isinstance(layer, tf.keras.layers.Conv2D) and set(layer.kernel_size) == {1}:
        width = layer.filters if softmax else 0
    else:
        return False
    if softmax or makes_probabilities(layer):
        return True
    activation = getattr(layer.activation, "__name__", "")
    named = any(word in layer.name.lower() for word in CLASSIFIERS)
    plain = activation in ("linear", "sigmoid")
    return linear and bool(width) and plain and (named or bool(width % WIDTHS))


def own_scaling(network: tf.keras.Model) -> str | None:
    """Returns the name of the layer that scales images in [0, 255], or None if there is none.

    Raises:
        ValueError: For a network that expects images in [0, 1].
    """
    for layer in network.layers:
        if isinstance(layer, tf.keras.Model):
            return own_scaling(layer)
        kind = type(layer).__name__
        if kind == "Rescaling":
            scale = max(abs(s) for s in tf.nest.flatten(layer.get_config()["scale"]))
            if scale * 255 > 20 and scale != 1:
                raise ValueError(
                    f"Layer {layer.name!r} of the network scales images by {scale:g}, as for "
                    "images in [0, 1], but images here are in [0, 255]: save the network with "
                    f"that scale divided by 255, {scale / 255:.4g}."
                )
            if scale != 1:
                return layer.name
        elif kind == "Preprocessing":
            return layer.name if layer.mode != "none" else None
        elif kind == "Normalization" or operation_of(layer).startswith(ARITHMETIC):
            return layer.name
        elif isinstance(layer, tf.keras.layers.BatchNormalization):
            # A large mean says that the network was trained on images in [0, 255].
            return layer.name if float(tf.reduce_max(layer.moving_mean)) > 4 else None
        elif getattr(layer, "kernel", None) is not None or hasattr(layer, "depthwise_kernel"):
            return None
    return None
