"""One network definition at any bit width: the quantizers of a built student are exchanged."""

import larq as lq
import tensorflow as tf
from candle_tf.networks.surgery import reconfigured
from candle_tf.utils.names import lookup

KERNELS = ("kernel", "depthwise", "pointwise")  # quantized by Larq's layers beside their input


def dorefa(k_bit: int, mode: str) -> dict:
    """Returns the config of Larq's DoReFa quantizer.

    Args:
        k_bit: Number of bits.
        mode: "activations" or "weights".

    Example:
        >>> dorefa(2, "weights")["config"]
        {'k_bit': 2, 'mode': 'weights'}
    """
    return {"class_name": "DoReFa", "config": {"k_bit": k_bit, "mode": mode}}


def dorefa_pair(k_bit: int) -> dict:
    """Returns the arguments of `requantize` for DoReFa activations and weights of `k_bit` bits.

    Example:
        >>> sorted(dorefa_pair(4))
        ['input_quantizer', 'kernel_constraint', 'kernel_quantizer']
    """
    return {
        "input_quantizer": dorefa(k_bit, "activations"),
        "kernel_quantizer": dorefa(k_bit, "weights"),
        "kernel_constraint": "weight_clip",
    }


# The changes to a student by the name of its width.
BITS = {
    "1": {},  # the network as it was defined
    "ternary": {
        "input_quantizer": "ste_tern",
        # Its threshold is 0.7 times the mean magnitude of the weights (Ternary Weight Networks).
        "kernel_quantizer": {"class_name": "SteTern", "config": {"ternary_weight_networks": True}},
        "kernel_constraint": "weight_clip",
    },
    "2": dorefa_pair(2),
    "4": dorefa_pair(4),
    "32": dict.fromkeys(("input_quantizer", "kernel_quantizer", "kernel_constraint")),
}


def at_bits(student: tf.keras.Model, bits: str) -> tf.keras.Model:
    """Returns the student with weights and activations of another width.

    Args:
        student: Student as it was defined.
        bits: Name of the width in `BITS`: "1", "ternary", "2", "4" or "32".

    Raises:
        ValueError: For an unknown width.

    Example:
        >>> student = ct.students.resnet_e(num_classes=10, image_size=32, blocks=(1,))
        >>> ct.students.at_bits(student, "4").count_params() == student.count_params()
        True
    """
    changes = lookup("student_bits", bits, BITS)
    return requantize(student, **changes) if changes else student


def requantize(student: tf.keras.Model, **changes) -> tf.keras.Model:
    """Returns the same network and weights with other quantizers, wherever the student has any.

    Start from the student as it was defined: a layer without quantizers stays without.

    Args:
        student: Student with quantizers.
        changes: Any of input_quantizer, kernel_quantizer and kernel_constraint, as in
            `larq.layers.QuantConv2D`; those of depthwise and pointwise kernels change alike.

    Returns:
        A model of new layers: the student and its weights stay as they are.

    Raises:
        TypeError: For another name.

    Example:
        >>> student = ct.students.resnet_e(num_classes=10, image_size=32, blocks=(1,))
        >>> real = ct.students.requantize(student, kernel_quantizer=None)
        >>> real.output_shape
        (None, 10)
    """
    if unknown := changes.keys() - {"input_quantizer", "kernel_quantizer", "kernel_constraint"}:
        raise TypeError(f"requantize() knows no {', '.join(sorted(unknown))}.")

    def change(config: dict):
        for kind, new in changes.items():
            role, _, what = kind.partition("_")
            roles = (role,) if role == "input" else KERNELS
            for name in (f"{role}_{what}" for role in roles):
                if config.get(name) is not None:
                    config[name] = replaced(config[name], new)
                    if role == "input" and "pad_values" in config and not is_binary(new):
                        config["pad_values"] = 0.0

    return reconfigured(student, change)


def replaced(old, new):
    """Returns the new quantizer or constraint, within the RSign that held the old one.

    Args:
        old: Config of the quantizer or constraint that is replaced.
        new: Config, name or object in its place.

    Example:
        >>> replaced("ste_sign", None) is None
        True
    """
    inner = old.get("config") if isinstance(old, dict) else None
    if isinstance(inner, dict) and "quantizer" in inner:
        return {**old, "config": {**inner, "quantizer": new}}
    return new


def is_binary(quantizer) -> bool:
    """Returns whether a quantizer, given as an object, a name or a config, leaves one bit.

    Example:
        >>> is_binary("ste_sign"), is_binary("ste_tern"), is_binary(None)
        (True, False, False)
    """
    quantizer = lq.quantizers.get(quantizer)
    no_op = isinstance(quantizer, lq.quantizers.NoOp)  # claims a precision, changes nothing
    return getattr(quantizer, "precision", None) == 1 and not no_op


def pad_value(input_quantizer) -> float:
    """Returns the padding of a convolution's quantized input: 1 beside -1 and 1, else 0.

    Beside -1 and 1, zero would be a third value.

    Example:
        >>> pad_value("ste_sign"), pad_value(None)
        (1.0, 0.0)
    """
    return 1.0 if is_binary(input_quantizer) else 0.0
