"""Strangers' networks looked at before they are used: what they end in, what they do to images."""

import tensorflow as tf
from candle_tf.networks.keras_internals import made_by

PASSING = (  # layers between a classifier and the output that compute nothing of their own
    "Activation Dropout Flatten GlobalAveragePooling2D GlobalMaxPooling2D Reshape SpatialDropout2D"
).split()
CLASSIFIERS = ("logit", "predict", "classif", "fc1000", "top", "head", "output", "probs")
ARITHMETIC = ("math.", "__operators__.", "truediv", "subtract", "multiply", "add")
WIDTHS = 64  # a linear layer that is as wide as a multiple of it is taken for an embedding


def operation_of(layer: tf.keras.layers.Layer) -> str:
    """The TensorFlow function of a layer that was made of one; "" for others."""
    name = type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda")
    return str(layer.get_config().get("function", "")) if name else ""


def makes_probabilities(layer: tf.keras.layers.Layer) -> bool:
    """Whether a layer ends in a softmax."""
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


def check_student(student: tf.keras.Model):
    """Refuses what is no student: another object, a teacher, or a network of probabilities.

    Raises:
        ValueError: which says what it is and what to pass.
    """
    if isinstance(student, type):
        raise ValueError(f"The student is the class {student.__name__}: pass a network made of it.")
    if hasattr(student, "check_calibrated"):
        raise ValueError("The student is a Teacher: pass the teacher first, then the student.")
    if not isinstance(student, tf.keras.Model) or not getattr(student, "outputs", None):
        raise ValueError(
            f"The student is a {type(student).__name__}: pass a functional Keras model from images "
            "to logits."
        )
    last = last_of(student)
    sigmoid = getattr(getattr(last, "activation", None), "__name__", "") == "sigmoid"
    if makes_probabilities(last) or sigmoid:
        kind = "sigmoid" if sigmoid else "softmax"
        raise ValueError(
            f"The student {student.name!r} ends in a {kind} (layer {last.name!r}), but its losses "
            f"take logits: end it in Dense({student.output_shape[-1]}) without an activation."
        )


def check_teacher(teacher):
    """Refuses what is no `Teacher`."""
    of_class = isinstance(teacher, type)
    if of_class or not hasattr(teacher, "check_calibrated"):
        what = f"the class {teacher.__name__}" if of_class else f"a {type(teacher).__name__}"
        raise ValueError(
            f"The teacher is {what}, not a Teacher: pass the teacher first, then the student; a "
            "Keras network becomes one by Teacher(network, image_size)."
        )


def without_classifier(
    network: tf.keras.Model, linear: bool = True, softmax: bool = False
) -> tuple[tf.keras.Model, str | None]:
    """A network up to its features, where it ends in a classifier.

    Args:
        network: a functional Keras model.
        linear: whether a last linear layer is a classifier too, where its name or width says so.
        softmax: whether a softmax comes after it.

    Returns:
        (the network without its classifier, the name of the layer that it now ends in), or the
        network itself and None.
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
    """Whether a layer gives one number per class.

    Args:
        layer: the last one that has weights.
        softmax: whether a softmax comes after it.
        linear: whether a linear layer is one, where its name or width says so.
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
    """The name of the layer by which a network scales images in [0, 255] itself, if it does.

    Raises:
        ValueError: for one that takes images in [0, 1], which none are here.
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
            # It saw images in [0, 255] in its training, where its mean says so.
            return layer.name if float(tf.reduce_max(layer.moving_mean)) > 4 else None
        elif getattr(layer, "kernel", None) is not None or hasattr(layer, "depthwise_kernel"):
            return None
    return None
