"""Students, binary ones in Larq: images (batch, height, width, 3) in [0, 255] to logits.

`create` builds a student by name, and `list` names all of them, those of larq-zoo included.
"""

import builtins
from collections.abc import Callable
from functools import partial

import tensorflow as tf
from candle_tf.networks.pretrained import zoo_networks
from candle_tf.students.bits import BITS, at_bits, requantize
from candle_tf.students.mobilenet_v2 import mobilenet_v2
from candle_tf.students.quantizers import FusedApproxSign
from candle_tf.students.reactnet import RPReLU, RSign, reactnet_a
from candle_tf.students.resnet_e import resnet_e
from candle_tf.students.weights import load_encoder
from candle_tf.students.zoo import larq_zoo
from candle_tf.utils.names import lookup, parse_spec

STUDENTS = {"resnet_e": resnet_e, "reactnet_a": reactnet_a, "mobilenet_v2": mobilenet_v2}


def create(
    spec: str, *, num_classes: int, image_size: int | None = None, **arguments
) -> tf.keras.Model:
    """Builds a student by name, with arguments in the name or beside it.

    Args:
        spec: Name of `list`, alone or with arguments as on the command line, for instance
            "resnet_e:width=0.5,blocks=(2,2,2)" or "larq_zoo:QuickNet".
        num_classes: Width of the classifier.
        image_size: Side of the input in pixels; the student's own default where None.
        **arguments: Further arguments of the student's function, such as `width` of `resnet_e`.
            `weights` names weights to start from, in place of random ones: the `encoder.npz` of a
            pretraining, or "generic" for one that candle_tf contains; for larq-zoo also "imagenet"
            or a weights file.

    Returns:
        A functional model (batch, image_size, image_size, 3) -> logits (batch, num_classes), with
        the pooled embedding in its layer `features`.

    Raises:
        ValueError: For an unknown name, or a value that cannot work.
        TypeError: For an argument that the student's function does not have.

    Example:
        >>> student = ct.students.create("resnet_e", num_classes=10, width=0.5, blocks=(1,))
        >>> student.output_shape
        (None, 10)
        >>> ct.students.create("resnet_e:blocks=(1,)", num_classes=3, image_size=64).input_shape
        (None, 64, 64, 3)
    """
    name, in_spec = parse(spec)
    beside = {**arguments, "num_classes": num_classes}
    if image_size is not None:
        beside["image_size"] = image_size
    for twice in in_spec.keys() & beside.keys():
        raise ValueError(f"{twice} is given beside {spec!r} and in it: leave it out of one.")
    given = {**in_spec, **beside}
    weights = given.get("weights")
    if name in STUDENTS or str(weights).endswith(".npz"):
        given.pop("weights", None)
    student = factories(name)[name](**given)
    if weights and "weights" not in given:  # larq-zoo loads others itself
        load_encoder(student, weights)
    return student


def list() -> "builtins.list[str]":
    """Returns the names of all students.

    Example:
        >>> "resnet_e" in ct.students.list(), "larq_zoo:QuickNet" in ct.students.list()
        (True, True)
    """
    return [*factories("")]


def parse(spec: str) -> tuple[str, dict]:
    """Returns the name and the arguments in "NAME:ARGUMENT=VALUE,...", and checks the name.

    Raises:
        ValueError: For an unknown name, or arguments that cannot be read.

    Example:
        >>> ct.students.parse("resnet_e:width=0.5")
        ('resnet_e', {'width': 0.5})
    """
    name, arguments = parse_spec(spec)
    lookup("student", name, factories(name))
    return name, arguments


def factories(name: str) -> dict[str, Callable[..., tf.keras.Model]]:
    """Returns the functions that build students, by name.

    Args:
        name: Name to look for. larq-zoo, which takes seconds to import, is left out if the name is
            ours.

    Example:
        >>> sorted(factories("resnet_e"))
        ['mobilenet_v2', 'reactnet_a', 'resnet_e']
    """
    if name in STUDENTS:
        return STUDENTS
    zoo = {f"larq_zoo:{network}": partial(larq_zoo, network) for network in zoo_networks()}
    return {**STUDENTS, **zoo}


__all__ = [
    "BITS",
    "STUDENTS",
    "FusedApproxSign",
    "RPReLU",
    "RSign",
    "at_bits",
    "create",
    "larq_zoo",
    "list",
    "mobilenet_v2",
    "parse",
    "reactnet_a",
    "requantize",
    "resnet_e",
]
