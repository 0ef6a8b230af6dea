"""A binary residual network after ResNetE (Bethge et al., Back to Simplicity, arXiv 1906.08637)."""

import math
from collections.abc import Sequence

import larq as lq
import tensorflow as tf
from candle_tf.students.bits import pad_value
from candle_tf.students.inputs import HALF, standardize


def resnet_e(
    num_classes: int,
    image_size: int = 32,
    *,
    width: float = 1.0,
    blocks: Sequence[int] = (1, 1, 1),
    halvings: int | None = None,
    separable_stem: bool = True,
    input_quantizer="fused_approx_sign",
    kernel_quantizer="ste_sign",
    kernel_constraint="weight_clip",
    norm_momentum: float = 0.9,
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> tf.keras.Model:
    """Builds a full-precision stem and classifier around binary 3x3 convolutions with shortcuts.

    The stem has two convolutions or more, to 16 channels and to 64: a single one is the bottleneck
    of small images (docs/lab/choices.md). Those to 64 are depthwise and pointwise. The stages have
    64, 128 and 256 channels. A stage that strides averages its shortcut and doubles the channels by
    concatenation, so that every convolution after the stem is binary.

    Args:
        num_classes: Width of the classifier.
        image_size: Side of the input in pixels.
        width: Factor on the channels.
        blocks: Number of convolutions per stage.
        halvings: How often the stem halves the side, at least once. By default it does so once, and
            again while the side is above 32. Twice at 64 pixels costs as much as once at 32.
        separable_stem: False for plain convolutions that stride: a little more accurate, for 31 kB.
        input_quantizer: Quantizer of the inputs, as in `larq.layers.QuantConv2D`.
        kernel_quantizer: Quantizer of the kernels, as in `larq.layers.QuantConv2D`.
        kernel_constraint: Constraint of the kernels, as in `larq.layers.QuantConv2D`.
        norm_momentum: Momentum of the moving averages of batch norm.
        mean: Mean of the pixels by channel, as fractions of 255.
        std: Standard deviation of the pixels by channel, as fractions of 255.

    Returns:
        A functional model (batch, image_size, image_size, 3) -> logits (batch, num_classes), with
        the pooled embedding in its layer `features`.

    Raises:
        ValueError: If a stage has no channels or no blocks, or the stem does not halve the side.

    Example:
        >>> ct.students.resnet_e(num_classes=10, image_size=32, width=0.125).output_shape
        (None, 10)
    """

    def norm(x):
        return tf.keras.layers.BatchNormalization(momentum=norm_momentum, epsilon=1e-5)(x)

    def activation(x):
        slope = tf.keras.initializers.Constant(0.25)
        return tf.keras.layers.PReLU(alpha_initializer=slope, shared_axes=[1, 2])(x)

    def block(x, channels, strides):
        shortcut = x
        if strides > 1:
            shortcut = tf.keras.layers.AveragePooling2D(strides, padding="same")(x)
            shortcut = tf.keras.layers.Concatenate()([shortcut, shortcut])
        x = lq.layers.QuantConv2D(
            channels,
            3,
            strides=strides,
            padding="same",
            pad_values=pad_value(input_quantizer),
            use_bias=False,
            input_quantizer=input_quantizer,
            kernel_quantizer=kernel_quantizer,
            kernel_constraint=kernel_constraint,
        )(x)
        return activation(tf.keras.layers.add([norm(x), shortcut]))

    channels = int(64 * width)
    if channels < 1 or min(blocks, default=0) < 1:
        raise ValueError(
            f"width {width} and blocks {blocks} leave a stage without channels or blocks."
        )
    if halvings is None:
        halvings = max(1, math.ceil(math.log2(image_size / 32)))
    if not isinstance(halvings, int) or not 1 <= halvings <= math.log2(image_size):
        raise ValueError(
            f"halvings is {halvings!r} but must be a whole number of at least 1 that leaves a "
            f"pixel of {image_size}."
        )
    images = tf.keras.Input((image_size, image_size, 3), name="images")
    x = standardize(images, mean, std)
    same = {"padding": "same", "use_bias": False}
    strides = 1 if halvings == 1 else 2
    x = tf.keras.layers.Conv2D(max(1, channels // 4), 3, strides, **same)(x)
    x = activation(norm(x))
    for _ in range(max(1, halvings - 1)):
        if separable_stem:
            x = norm(tf.keras.layers.DepthwiseConv2D(3, 2, **same)(x))
            x = tf.keras.layers.Conv2D(channels, 1, **same)(x)
        else:
            x = tf.keras.layers.Conv2D(channels, 3, 2, **same)(x)
        x = activation(norm(x))
    for stage, count in enumerate(blocks):
        for i in range(count):
            x = block(x, channels * 2**stage, strides=2 if stage and not i else 1)
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    logits = tf.keras.layers.Dense(num_classes, name="logits", dtype="float32")(x)
    return tf.keras.Model(images, logits, name="resnet_e")
