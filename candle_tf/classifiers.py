"""Classifiers on fixed features, (batch, width) -> logits (batch, classes)."""

import tensorflow as tf


@tf.keras.saving.register_keras_serializable("candle_tf")
class LearnableWeightScaling(tf.keras.layers.Layer):
    """f_c * z_c: one learned factor a class (Kang et al., ICLR 2020; MiSLAS, stage 2)."""

    def build(self, input_shape):
        self.scale = self.add_weight("scale", shape=(input_shape[-1],), initializer="ones")
        super().build(input_shape)

    def call(self, logits):
        return logits * self.scale


def linear(width: int, num_classes: int, seed: int = 0) -> tf.keras.Sequential:
    """W x + b on features (batch, width)."""
    initializer = tf.keras.initializers.GlorotUniform(seed)
    return tf.keras.Sequential(
        [
            tf.keras.Input((width,)),
            tf.keras.layers.Dense(num_classes, kernel_initializer=initializer, name="linear"),
        ],
        name="classifier",
    )


def scaled_linear(width: int, num_classes: int, seed: int = 0) -> tf.keras.Sequential:
    """f * (W x + b): a linear classifier with learnable weight scaling."""
    classifier = linear(width, num_classes, seed)
    classifier.add(LearnableWeightScaling())
    return classifier
