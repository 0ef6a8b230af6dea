"""One network definition at any bit width: the quantizers of a built student, exchanged."""

import larq as lq
import tensorflow as tf
from candle_tf.networks.surgery import reconfigured
from candle_tf.utils.names import lookup

KERNELS = ("kernel", "depthwise", "pointwise")  # what Larq's layers quantize beside their input


def dorefa(k_bit: int, mode: str) -> dict:
    return {"class_name": "DoReFa", "config": {"k_bit": k_bit, "mode": mode}}


def dorefa_pair(k_bit: int) -> dict:
    return {
        "input_quantizer": dorefa(k_bit, "activations"),
        "kernel_quantizer": dorefa(k_bit, "weights"),
        "kernel_constraint": "weight_clip",
    }


# What `--student_bits` stands for.
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
    """The student with weights and activations of another width: a name of `BITS`.

    Raises:
        ValueError: for an unknown width.
    """
    changes = lookup("student_bits", bits, BITS)
    return requantize(student, **changes) if changes else student


def requantize(student: tf.keras.Model, **changes) -> tf.keras.Model:
    """The same network and weights with other quantizers, wherever the student has any.

    Start from the student as it was defined: a layer without quantizers stays without.

    Args:
        changes: any of input_quantizer, kernel_quantizer and kernel_constraint, as in
            `larq.layers.QuantConv2D`; those of depthwise and pointwise kernels change alike.

    Returns:
        A model of new layers: the student and its weights stay as they are.

    Raises:
        TypeError: for another name.
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
    """The new quantizer or constraint, within the RSign that held the old one."""
    inner = old.get("config") if isinstance(old, dict) else None
    if isinstance(inner, dict) and "quantizer" in inner:
        return {**old, "config": {**inner, "quantizer": new}}
    return new


def is_binary(quantizer) -> bool:
    """Whether a quantizer, or what names it, leaves one bit."""
    quantizer = lq.quantizers.get(quantizer)
    no_op = isinstance(quantizer, lq.quantizers.NoOp)  # claims a precision, changes nothing
    return getattr(quantizer, "precision", None) == 1 and not no_op


def pad_value(input_quantizer) -> float:
    """What to pad a convolution's quantized input with: beside -1 and 1, zero is a third value."""
    return 1.0 if is_binary(input_quantizer) else 0.0
