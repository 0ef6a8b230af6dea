"""Networks of Keras and larq-zoo by name, with weights from ImageNet, from a file, or random."""

import os
from collections.abc import Callable
from types import ModuleType

import tensorflow as tf


def networks_of(module: ModuleType) -> dict[str, Callable[..., tf.keras.Model]]:
    """Returns the network factories of a module by name."""
    return {name: f for name, f in vars(module).items() if name[0].isupper() and callable(f)}


def zoo_networks() -> dict[str, Callable[..., tf.keras.Model]]:
    """Returns the network factories of larq-zoo by name."""
    import larq_zoo

    return {**networks_of(larq_zoo.literature), **networks_of(larq_zoo.sota)}


def build_encoder(
    network: Callable[..., tf.keras.Model],
    weights: str | None,
    input_shape: tuple[int | None, int | None, int],
    arguments: dict,
) -> tf.keras.Model:
    """Builds a network without its top.

    Args:
        network: A factory of Keras or larq-zoo.
        weights: "imagenet", the path of a weights file, or None for random weights.
        input_shape: (height, width, 3), where None means any size.
        arguments: Other arguments of the factory.

    Raises:
        OSError: If the weights cannot be downloaded, or their file is missing.
        ValueError: If the file holds the weights of another network.
    """

    def build(weights: str | None) -> tf.keras.Model:
        return network(weights=weights, include_top=False, input_shape=input_shape, **arguments)

    if weights is None:
        return build(None)
    if weights == "imagenet":
        try:
            return build(weights)
        except Exception as error:
            if "fetch" not in str(error):  # Keras raises a bare Exception when it cannot download
                raise
            raise OSError(
                f"ImageNet weights cannot be downloaded ({error}): fetch this file on a machine "
                "with internet access, and pass it as weights (`teacher_weights=FILE`; for a "
                "student weights='FILE' after its name). A file with a whole Keras network is "
                "`teacher=FILE`."
            ) from error
    if network.__name__.startswith("EfficientNetB"):
        raise ValueError(
            f"{network.__name__} cannot take its weights from a file, because Keras scales its "
            "inputs correctly only for weights='imagenet': on a machine with internet access, save "
            f"tf.keras.applications.{network.__name__}(include_top=False), and give that file as "
            "the network (`teacher=FILE` with `teacher_preprocessing=none`)."
        )
    encoder = build(None)
    load_weights(encoder, weights, lambda: network(weights=None, include_top=True, **arguments))
    return encoder


def load_weights(encoder: tf.keras.Model, path: str, build_with_top):
    """Loads a weights file of the encoder, or of the whole network with its top.

    Args:
        encoder: The network without its top; its weights are set.
        path: Path of the weights file.
        build_with_top: Function that builds the whole network.

    Raises:
        OSError: If the file is missing.
        ValueError: If the file holds the weights of another network.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"Weights {path} do not exist: check the path.")
    try:
        encoder.load_weights(path)
    except (ValueError, OSError) as without_top:
        whole = build_with_top()
        try:
            whole.load_weights(path)
        except (ValueError, OSError):
            raise ValueError(
                f"{path} does not hold weights of {encoder.name!r} ({without_top}): check the "
                "network's name and its arguments. A file with a whole Keras network is the "
                "teacher itself (`teacher=FILE`)."
            ) from without_top
        encoder.set_weights(whole.get_weights()[: len(encoder.weights)])
