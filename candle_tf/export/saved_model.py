"""The student alone as a SavedModel, and the class names that every export carries."""

import contextlib
import json
import os
from collections.abc import Sequence

import tensorflow as tf
from candle_tf.resolution import resize
from candle_tf.utils.files import directory_beside

NAMES_FILE = "class_names.txt"
PREPROCESSING_FILE = "preprocessing.json"


@contextlib.contextmanager
def writing(path: str | os.PathLike):
    """Turns TensorFlow's errors on the way to `path` into an OSError that names it."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(
            f"{path} cannot be written ({error}): make room or export elsewhere."
        ) from error


def names_text(student: tf.keras.Model, class_names: Sequence[str] | None) -> str:
    """The class names of an export, a name a line; the numbers by default.

    Raises:
        ValueError: if they are not as many as the classes, or one is not a line.
    """
    classes = student.output_shape[-1]
    names = [str(name) for name in (class_names if class_names is not None else range(classes))]
    if len(names) != classes:
        raise ValueError(
            f"class_names has {len(names)} names but the student has {classes} classes."
        )
    for name in names:
        if name.splitlines() != [name]:
            raise ValueError(f"The class name {name!r} is not one line of text: rename the class.")
    return "".join(f"{name}\n" for name in names)


def preprocessing_text(centre_square: float) -> str:
    """What is done to a photograph before the network sees it, as JSON."""
    return json.dumps({"centre_square": centre_square}) + "\n"


def export_saved_model(
    student: tf.keras.Model,
    path: str | os.PathLike,
    image_size: int,
    class_names: Sequence[str] | None = None,
    centre_square: float = 1.0,
):
    """Writes a TensorFlow SavedModel of the student.

    Signatures `serving_default` (float32) and `serving_uint8` (uint8) take `images`, RGB in
    [0, 255], (batch, height, width, 3) of any size, and give `classes` int64 (batch,) and
    `probabilities` float32 (batch, classes). The asset `class_names.txt` holds a name a line, the
    asset `preprocessing.json` the share that is to be cut out of photographs before.

    Args:
        student: Keras model from images (batch, image_size, image_size, 3) to logits.
        path: directory to write; what stands there is replaced once the new one is complete.
        image_size: side in pixels that images are resized to.
        class_names: names in class order; the numbers by default.
        centre_square: side of the central square that is measured of a photograph, as a share of
            its shorter side.

    Raises:
        ValueError: if the names are not as many as the classes.
        OSError: if it cannot be written, or other files stand at `path`, which stay.
    """
    path = os.path.abspath(path)
    if os.path.exists(path) and not os.path.exists(os.path.join(path, "saved_model.pb")):
        if not os.path.isdir(path) or os.listdir(path):
            raise FileExistsError(f"{path} is no SavedModel to replace: export to a new directory.")
    names = names_text(student, class_names)

    def predict(images):
        logits = student(resize(images, image_size), training=False)
        return {"classes": tf.argmax(logits, -1), "probabilities": tf.nn.softmax(logits)}

    def signature(dtype, prepare):
        spec = tf.TensorSpec((None, None, None, 3), dtype, name="images")
        return tf.function(lambda images: predict(prepare(images)), input_signature=[spec])

    with writing(path), directory_beside(path) as written:
        files = {NAMES_FILE: names, PREPROCESSING_FILE: preprocessing_text(centre_square)}
        for name, text in files.items():
            (written / name).write_text(text, encoding="utf-8")
        module = tf.Module()
        # Variables instead of the Keras model: the file needs no Keras and no Larq to load.
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
            os.remove(written / name)  # the asset is a copy of it
