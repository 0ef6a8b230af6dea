"""A full-precision MobileNetV2 (arXiv 1801.04381): what a user would ship in 8-bit integers."""

from collections.abc import Sequence

import tensorflow as tf
from candle_tf.students.inputs import HALF, standardize


def mobilenet_v2(
    num_classes: int,
    image_size: int = 224,
    *,
    alpha: float = 1.0,
    norm_momentum: float = 0.9,
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> tf.keras.Model:
    """Builds Keras' MobileNetV2 with random weights, as a rival of the binary students.

    Images below 64 pixels are doubled first, so that the map after the stem keeps their size.

    Args:
        num_classes: Width of the classifier.
        image_size: Side of the input in pixels.
        alpha: Factor on the channels.
        norm_momentum: Momentum of the moving averages of batch norm. Keras' 0.999 needs many
            thousand updates to forget the start.
        mean: Mean of the pixels by channel, as fractions of 255.
        std: Standard deviation of the pixels by channel, as fractions of 255.

    Returns:
        A functional model (batch, image_size, image_size, 3) -> logits (batch, num_classes), with
        the pooled embedding in its layer `features`.

    Example:
        >>> ct.students.mobilenet_v2(num_classes=10, image_size=32, alpha=0.1).output_shape
        (None, 10)
    """
    images = tf.keras.Input((image_size, image_size, 3), name="images")
    x = standardize(images, mean, std)
    if image_size < 64:
        x = tf.keras.layers.UpSampling2D(2)(x)
    x = tf.keras.applications.MobileNetV2(
        input_tensor=x, alpha=alpha, include_top=False, weights=None
    ).output
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    logits = tf.keras.layers.Dense(num_classes, name="logits", dtype="float32")(x)
    network = tf.keras.Model(images, logits, name="mobilenet_v2")
    for layer in network.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = norm_momentum
    return network
