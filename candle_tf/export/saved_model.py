"""The student as a SavedModel, and the class names that each export contains."""

import contextlib
import json
import os
from collections.abc import Sequence

import tensorflow as tf
from candle_tf.resolution import resize
from candle_tf.utils.files import directory_beside
from candle_tf.utils.names import one_line

NAMES_FILE = "class_names.txt"
PREPROCESSING_FILE = "preprocessing.json"
SAVED_MODEL_FILES = {"saved_model.pb", "fingerprint.pb", "variables", "assets"}


@contextlib.contextmanager
def writing(path: str | os.PathLike):
    """Turns errors of writing in its block into an OSError that names `path`."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise OSError(
            f"{path} cannot be written ({error}): make room or export elsewhere."
        ) from error


def check_target(path: str | os.PathLike):
    """Refuses a path where a SavedModel would replace other files.

    Raises:
        FileExistsError: Names a file that is not part of an earlier SavedModel.
    """
    if not os.path.exists(path):
        return
    there = set(os.listdir(path)) if os.path.isdir(path) else {os.fspath(path)}
    others = there - SAVED_MODEL_FILES if "saved_model.pb" in there else there
    if others:
        raise FileExistsError(
            f"{path} is not an earlier SavedModel alone, but holds {min(others)}: move that away, "
            "or export to a new directory."
        )


def names_text(student: tf.keras.Model, class_names: Sequence[str] | None) -> str:
    """Returns the class names of an export, one per line; by default the class numbers.

    Raises:
        ValueError: If the numbers of names and classes differ, or a name has a line break.
    """
    classes = student.output_shape[-1]
    names = [str(name) for name in (class_names if class_names is not None else range(classes))]
    if len(names) != classes:
        raise ValueError(
            f"class_names has {len(names)} names but the student has {classes} classes."
        )
    for name in names:
        if not one_line(name):
            raise ValueError(f"The class name {name!r} is not one line of text: rename the class.")
    return "".join(f"{name}\n" for name in names)


def check_share(centre_square: float):
    """Refuses a side of the central square that is no fraction of the shorter side.

    Raises:
        ValueError: Unless the fraction is above 0 and at most 1.
    """
    if not 0 < centre_square <= 1:
        raise ValueError(f"centre_square is {centre_square} but must be above 0 and at most 1.")


def preprocessing_text(centre_square: float) -> str:
    """Returns the content of `preprocessing.json`: the part of a photograph to cut out."""
    check_share(centre_square)
    return json.dumps({"centre_square": centre_square}) + "\n"


def export_saved_model(
    student: tf.keras.Model,
    path: str | os.PathLike,
    image_size: int,
    class_names: Sequence[str] | None = None,
    centre_square: float = 1.0,
):
    """Writes a TensorFlow SavedModel of the student.

    The signatures `serving_default` (float32) and `serving_uint8` (uint8) take `images`: RGB in
    [0, 255], (batch, height, width, 3), of any size. They give `classes`, int64 (batch,), and
    `probabilities`, float32 (batch, classes).

    The asset `class_names.txt` has one name per line. The asset `preprocessing.json` holds
    `centre_square`.

    Args:
        student: Keras model from images (batch, image_size, image_size, 3) to logits.
        path: Directory to write. An earlier SavedModel there is replaced once the new one is
            complete.
        image_size: Side in pixels to which the SavedModel resizes images.
        class_names: Names in class order; by default the class numbers.
        centre_square: Side of the central square to cut out of a photograph, as a fraction of its
            shorter side. Callers of the SavedModel cut it out.

    Raises:
        ValueError: If the numbers of names and classes differ.
        OSError: If the directory cannot be written, or holds other files, which are kept.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> ct.export.export_saved_model(student, "pets", 16, class_names=["cat", "dog", "hen"])
        >>> serve = tf.saved_model.load("pets").signatures["serving_uint8"]
        >>> serve(images=tf.zeros((2, 20, 24, 3), tf.uint8))["probabilities"].shape
        TensorShape([2, 3])
    """
    path = os.path.abspath(path)
    check_target(path)
    names = names_text(student, class_names)
    files = {NAMES_FILE: names, PREPROCESSING_FILE: preprocessing_text(centre_square)}

    def predict(images):
        logits = student(resize(images, image_size), training=False)
        return {"classes": tf.argmax(logits, -1), "probabilities": tf.nn.softmax(logits)}

    def signature(dtype, prepare):
        spec = tf.TensorSpec((None, None, None, 3), dtype, name="images")
        return tf.function(lambda images: predict(prepare(images)), input_signature=[spec])

    with writing(path), directory_beside(path) as written:
        for name, text in files.items():
            (written / name).write_text(text, encoding="utf-8")
        module = tf.Module()
        # The module holds variables, not the Keras model, so loading needs neither Keras nor Larq.
        module.parameters = student.variables
        module.class_names, module.preprocessing = (
            tf.saved_model.Asset(str(written / name)) for name in files
        )
        module.serving_default = signature(tf.float32, tf.identity)
        module.serving_uint8 = signature(tf.uint8, lambda images: tf.cast(images, tf.float32))
        tf.saved_model.save(
            module,
            str(written),
            signatures={
                "serving_default": module.serving_default,
                "serving_uint8": module.serving_uint8,
            },
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
        for name in files:
            os.remove(written / name)  # the SavedModel has its own copy
