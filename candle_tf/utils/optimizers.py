"""Optimizers of binary networks, by name."""

import larq as lq
import tensorflow as tf
from candle_tf.utils.names import arguments_of, lookup, parse_spec


def adam(learning_rate) -> tf.keras.optimizers.Optimizer:
    """Returns Adam, which trains the real-valued weights behind the binary ones."""
    return tf.keras.optimizers.Adam(learning_rate)


def bop(learning_rate, **arguments) -> tf.keras.optimizers.legacy.Optimizer:
    """Returns Bop for the binary weights (Helwegen et al., arXiv 1906.02107), Adam for the rest."""
    return lq.optimizers.CaseOptimizer(
        (lq.optimizers.Bop.is_binary_variable, lq.optimizers.Bop(**arguments)),
        default_optimizer=tf.keras.optimizers.legacy.Adam(learning_rate),
    )


BINARY_OPTIMIZERS = {"adam": adam, "bop": bop}


def build_optimizer(spec: str, learning_rate):
    """Builds the optimizer "NAME:ARGUMENT=VALUE,...".

    Args:
        spec: Name and arguments, such as "adam" or "bop:threshold=1e-7".
        learning_rate: Learning rate of Adam, a number or a Keras schedule.

    Raises:
        ValueError: For an unknown name, or arguments that the optimizer does not have.
    """
    name, arguments = parse_spec(spec)
    build = lookup("binary_optimizer", name, BINARY_OPTIMIZERS)
    with arguments_of("binary_optimizer", spec):
        return build(learning_rate, **arguments)
