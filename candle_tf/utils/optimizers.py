"""What trains a binary network, by name."""

import larq as lq
import tensorflow as tf
from candle_tf.utils.names import arguments_of, lookup, parse_spec


def adam(learning_rate) -> tf.keras.optimizers.Optimizer:
    return tf.keras.optimizers.Adam(learning_rate)


def bop(learning_rate, **arguments) -> tf.keras.optimizers.legacy.Optimizer:
    """Bop flips the binary weights (Helwegen et al., arXiv 1906.02107), Adam trains the others."""
    return lq.optimizers.CaseOptimizer(
        (lq.optimizers.Bop.is_binary_variable, lq.optimizers.Bop(**arguments)),
        default_optimizer=tf.keras.optimizers.legacy.Adam(learning_rate),
    )


BINARY_OPTIMIZERS = {"adam": adam, "bop": bop}


def build_optimizer(spec: str, learning_rate):
    """The optimizer that "NAME:ARGUMENT=VALUE,..." stands for.

    Raises:
        ValueError: for an unknown name, or arguments that do not fit.
    """
    name, arguments = parse_spec(spec)
    build = lookup("binary_optimizer", name, BINARY_OPTIMIZERS)
    with arguments_of("binary_optimizer", spec):
        return build(learning_rate, **arguments)
