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
    width: float = 1.0,
    blocks: Sequence[int] = (1, 1, 1),
    separable_stem: bool = True,
    input_quantizer="fused_approx_sign",
    kernel_quantizer="ste_sign",
    kernel_constraint="weight_clip",
    norm_momentum: float = 0.9,
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> tf.keras.Model:
    """Full-precision stem and classifier, binary 3x3 convolutions each with its own shortcut.

    A stem of two convolutions or more, to 16 channels and to 64, for a single one is the bottleneck
    of small images (docs/results.md); those to 64 are depthwise and pointwise. Stages of 64,
    128 and 256 channels; a stage that strides averages its shortcut and doubles the channels by
    concatenation, so that every convolution after the stem is binary.

    Args:
        num_classes: width of the classifier.
        image_size: side of the input in pixels; the stem halves it once, and again while the side
            is above 32.
        width: factor on the channels.
        blocks: convolutions a stage.
        separable_stem: False for plain convolutions that stride: a little more accurate, for 31 kB.
        input_quantizer, kernel_quantizer, kernel_constraint: as in `larq.layers.QuantConv2D`.
        norm_momentum: of the moving averages of batch norm.
        mean, std: of the pixels by channel, as shares of 255.

    Returns:
        A functional model (batch, image_size, image_size, 3) -> logits (batch, num_classes), with
        the pooled embedding in its layer `features`.
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
    images = tf.keras.Input((image_size, image_size, 3), name="images")
    x = standardize(images, mean, std)
    halvings = max(1, math.ceil(math.log2(image_size / 32)))
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
