"""ReActNet-A (Liu et al., ECCV 2020, arXiv 2003.03488), the paper's student, and its layers."""

from collections.abc import Sequence

import larq as lq
import tensorflow as tf
from candle_tf.students.bits import pad_value
from candle_tf.students.inputs import HALF, standardize

CHANNELS = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)


@lq.utils.register_keras_custom_object  # by its bare name, as Larq looks quantizers up
class RSign(lq.quantizers.Quantizer):
    """q(x - alpha), with alpha learned per channel: the input quantizer of ReActNet (eq. 1).

    Inputs and outputs are float (..., channels).

    Args:
        quantizer: Quantizer q of Larq, or its name; None only shifts.

    Example:
        >>> ct.students.RSign()(tf.constant([[0.5, -0.5]])).numpy()
        array([[ 1., -1.]], dtype=float32)
    """

    def __init__(self, quantizer="fused_approx_sign", **kwargs):
        super().__init__(**kwargs)
        self.quantizer = lq.quantizers.get(quantizer)
        self.precision = getattr(self.quantizer, "precision", None)

    def build(self, input_shape):
        """Creates alpha, 0 at first."""
        # By name a bias, as it is one: else Larq counts it as multiply-accumulates.
        self.alpha = self.add_weight("alpha_bias", (input_shape[-1],), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs):
        """Returns the quantized inputs."""
        shifted = inputs - self.alpha
        return shifted if self.quantizer is None else self.quantizer(shifted)

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        return {**super().get_config(), "quantizer": lq.quantizers.serialize(self.quantizer)}


@tf.keras.saving.register_keras_serializable("candle_tf")
class RPReLU(tf.keras.layers.Layer):
    """PReLU(x - gamma) + zeta, with slope, gamma and zeta learned per channel (eq. 2).

    Inputs and outputs are float (batch, height, width, channels).

    Example:
        >>> ct.students.RPReLU()(tf.constant([[[[4.0, -4.0]]]])).numpy().ravel()
        array([ 4., -1.], dtype=float32)
    """

    def build(self, input_shape):
        """Creates gamma and zeta, 0 at first, and the slope, 0.25 at first."""
        channels = input_shape[-1]
        self.gamma = self.add_weight("gamma", (channels,), initializer="zeros")
        # As Keras's PReLU holds and uses it: so the TFLite converters see one operation.
        quarter = tf.constant_initializer(0.25)
        self.slope = self.add_weight("slope", (1, 1, channels), initializer=quarter)
        self.zeta = self.add_weight("zeta", (channels,), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs):
        """Returns the activations."""
        x = inputs - self.gamma
        return tf.nn.relu(x) + -self.slope * tf.nn.relu(-x) + self.zeta


def reactnet_a(
    num_classes: int,
    image_size: int = 224,
    *,
    width: float = 1.0,
    input_quantizer="fused_approx_sign",
    kernel_quantizer="ste_sign",
    kernel_constraint="weight_clip",
    norm_momentum: float = 0.9,
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> tf.keras.Model:
    """Builds MobileNetV1's plan in binary: blocks of a 3x3 and a 1x1 convolution with shortcuts.

    Where the channels double, the paper has two 1x1 convolutions side by side on the same input,
    each with its own batch norm and shortcut. All of that is per channel. So it equals one
    convolution of twice the filters, with the input beside itself as its shortcut, as built here.

    Args:
        num_classes: Width of the classifier.
        image_size: Side of the input in pixels; below 64 the stem does not stride.
        width: Factor on the channels.
        input_quantizer: Quantizer q of the `RSign` in front of each convolution.
        kernel_quantizer: Quantizer of the kernels, as in `larq.layers.QuantConv2D`.
        kernel_constraint: Constraint of the kernels, as in `larq.layers.QuantConv2D`.
        norm_momentum: Momentum of the moving averages of batch norm.
        mean: Mean of the pixels by channel, as fractions of 255.
        std: Standard deviation of the pixels by channel, as fractions of 255.

    Returns:
        A functional model (batch, image_size, image_size, 3) -> logits (batch, num_classes), with
        the pooled embedding in its layer `features`.

    Raises:
        ValueError: If `width` leaves no channels.

    Example:
        >>> ct.students.reactnet_a(num_classes=10, image_size=32, width=0.0625).output_shape
        (None, 10)
    """

    def norm(x):
        return tf.keras.layers.BatchNormalization(momentum=norm_momentum, epsilon=1e-5)(x)

    def unit(x, filters, kernel_size, strides=1):
        """RSign -> binary convolution -> batch norm -> shortcut -> RPReLU."""
        shortcut = x
        if strides > 1:
            shortcut = tf.keras.layers.AveragePooling2D(strides, padding="same")(x)
        if filters > x.shape[-1]:
            shortcut = tf.keras.layers.Concatenate()([shortcut, shortcut])
        x = lq.layers.QuantConv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            pad_values=pad_value(input_quantizer),
            use_bias=False,
            input_quantizer=RSign(input_quantizer),
            kernel_quantizer=kernel_quantizer,
            kernel_constraint=kernel_constraint,
        )(x)
        return RPReLU()(tf.keras.layers.add([norm(x), shortcut]))

    stem = int(32 * width)
    channels = [stem, *(stem * c // 32 for c in CHANNELS)]
    if stem < 1:
        raise ValueError(f"width {width} leaves the network without channels.")
    images = tf.keras.Input((image_size, image_size, 3), name="images")
    x = standardize(images, mean, std)
    strides = 2 if image_size >= 64 else 1
    x = tf.keras.layers.Conv2D(stem, 3, strides=strides, padding="same", use_bias=False)(x)
    x = norm(x)
    for before, after in zip(channels, channels[1:]):
        # As in MobileNetV1: strides where the channels double, but for the first block.
        strides = 2 if after > before and before > stem else 1
        x = unit(x, before, 3, strides)
        x = unit(x, after, 1)
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    logits = tf.keras.layers.Dense(num_classes, name="logits", dtype="float32")(x)
    return tf.keras.Model(images, logits, name="reactnet_a")
