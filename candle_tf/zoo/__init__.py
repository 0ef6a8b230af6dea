"""Trained students that come with the library, each with its model card.

`list` names them, `load` builds one with its trained weights, and `card` says what it was trained
on, how accurate it is and what it is not for. scripts/maintainers/add_to_zoo.py makes the entries.
"""

import builtins
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf
from candle_tf import students
from candle_tf.students.weights import read_weights
from candle_tf.utils.files import read_json
from candle_tf.utils.names import lookup

PACKAGE = Path(__file__).parents[1]
PLACES = PACKAGE / "zoo" / "files", PACKAGE.parent / "zoo"  # in a wheel, in a clone
REMEDY = "install candle_tf again"


def paths() -> Mapping[str, Path]:
    """Returns the paths of the model cards by the names of their students."""
    folder = next((place for place in PLACES if place.is_dir()), PLACES[0])
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def list() -> "builtins.list[str]":
    """Returns the names of the trained students.

    Example:
        >>> "digits_lt" in ct.zoo.list()
        True
    """
    return [*paths()]


def card(name: str) -> dict:
    """Returns the model card of a trained student.

    Args:
        name: Name of `list`.

    Returns:
        A dict with, among others: `class_names` in class order; `image_size`, the side of the
        images in pixels; `centre_square`, the side of the central square to cut out of a
        photograph, as a fraction of its shorter side; `accuracy` by group, each with `value`,
        `low` and `high` as fractions of 1; `file`, the path of the student's flatbuffer for Larq
        Compute Engine.

    Raises:
        ValueError: If the name is unknown, or the file is damaged.

    Example:
        >>> card = ct.zoo.card("digits_lt")
        >>> card["image_size"], len(card["class_names"]), card["accuracy"]["overall"]["value"] > 0.9
        (24, 10, True)
    """
    path = lookup("student of the zoo", name, paths())
    return {**read_json(path, dict, REMEDY), "file": str(path.with_suffix(".tflite"))}


def load(name: str) -> tf.keras.Model:
    """Returns a trained student, which predicts, can be exported and can be trained further.

    Its binary kernels are the signs of the trained ones. A further training therefore starts from
    kernels of -1 and 1.

    Args:
        name: Name of `list`.

    Returns:
        A functional model (batch, image_size, image_size, 3) -> logits (batch, classes), with the
        pooled embedding in its layer `features`, as from `candle_tf.students.create`.

    Raises:
        ValueError: If the name is unknown, or a file is damaged.

    Example:
        >>> student, card = ct.zoo.load("digits_lt"), ct.zoo.card("digits_lt")
        >>> student(tf.zeros((1, 24, 24, 3))).shape
        TensorShape([1, 10])
        >>> ct.StudentModel(student).export("digits", class_names=card["class_names"])
    """
    return restored(card(name), paths()[name])


def restored(made: Mapping, path: Path) -> tf.keras.Model:
    """Returns the student of a card.

    Args:
        made: Content of the card.
        path: Path of the card; the weights are beside it.

    Raises:
        ValueError: If a file is damaged.
    """
    try:
        student = students.create(
            made["student"],
            num_classes=len(made["class_names"]),
            image_size=made["image_size"],
            **made["arguments"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {REMEDY}.") from error
    weights = path.with_suffix(".npz")
    try:
        student.set_weights(read_weights(weights, [w.shape for w in student.get_weights()]))
    except (ValueError, OSError) as error:
        raise ValueError(f"{weights} is damaged ({error}): {REMEDY}.") from error
    return student


__all__ = ["card", "list", "load"]
