"""A small, smooth student: its loss is differentiable wherever a step may go."""

import numpy as np
import pytest
import tensorflow as tf

layers = tf.keras.layers
SIZE, CLASSES = 12, 4


@pytest.fixture
def smooth_student():
    """Builds a student without quantizers and batch norm, whatever was built before."""

    def build(classes: int = CLASSES) -> tf.keras.Model:
        tf.keras.utils.set_random_seed(1)
        images = tf.keras.Input((SIZE, SIZE, 3))
        x = layers.Rescaling(1 / 127.5, -1.0)(images)
        x = layers.Conv2D(5, 3, 2, "same", activation="tanh")(x)
        x = layers.Conv2D(6, 3, padding="same", activation="tanh")(x)
        x = layers.GlobalAveragePooling2D(name="features")(x)
        return tf.keras.Model(images, layers.Dense(classes, name="logits")(x))

    return build


@pytest.fixture
def images():
    """Eight images of different colours, float32 in [0, 255]."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(0, 255, (8, 1, 1, 3)) * rng.uniform(0.5, 1, (8, SIZE, SIZE, 3))
    return colours.astype(np.float32)


@pytest.fixture
def labels():
    return np.array([0, 1, 2, 3, 0, 1, 2, 0])
