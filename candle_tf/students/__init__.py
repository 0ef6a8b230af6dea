"""Binary students in Larq: images (batch, height, width, 3) in [0, 255] to logits."""

from candle_tf.students.resnet_e import resnet_e

STUDENTS = {"resnet_e": resnet_e}

__all__ = ["STUDENTS", "resnet_e"]
