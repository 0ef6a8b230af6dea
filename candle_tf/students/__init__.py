"""Binary students in Larq: images (batch, height, width, 3) in [0, 255] to logits."""

from collections.abc import Callable
from functools import partial

import tensorflow as tf
from candle_tf.networks.pretrained import zoo_networks
from candle_tf.students.bits import BITS, at_bits, requantize
from candle_tf.students.quantizers import FusedApproxSign
from candle_tf.students.reactnet import RPReLU, RSign, reactnet_a
from candle_tf.students.resnet_e import resnet_e
from candle_tf.students.zoo import larq_zoo
from candle_tf.utils.names import lookup

STUDENTS = {"resnet_e": resnet_e, "reactnet_a": reactnet_a}


def find(name: str) -> Callable[..., tf.keras.Model]:
    """The factory (num_classes, image_size, ...) of a student: ours, or "larq_zoo:NAME".

    Raises:
        ValueError: for an unknown name.
    """
    if name in STUDENTS:
        return STUDENTS[name]
    zoo = {f"larq_zoo:{network}": partial(larq_zoo, network) for network in zoo_networks()}
    return lookup("student", name, {**STUDENTS, **zoo})


__all__ = [
    "BITS",
    "STUDENTS",
    "FusedApproxSign",
    "RPReLU",
    "RSign",
    "at_bits",
    "find",
    "larq_zoo",
    "reactnet_a",
    "requantize",
    "resnet_e",
]
