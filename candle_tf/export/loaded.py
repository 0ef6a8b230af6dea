"""Loading of exports: a SavedModel, a flatbuffer and C source are used in the same way."""

import contextlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.data.checks import check_pixels
from candle_tf.export.c_library import load_c
from candle_tf.export.c_source import is_c_export
from candle_tf.export.flatbuffer import operations
from candle_tf.export.interpreters import lce_interpreter
from candle_tf.export.saved_model import (
    NAMES_FILE,
    PREPROCESSING_FILE,
    check_share,
    preprocessing_text,
)
from candle_tf.networks.lite import tflite_interpreter
from candle_tf.resolution import resize
from candle_tf.utils.files import LARGEST_TEXT, read_text
from candle_tf.utils.progress import progress


class Exported:
    """An exported student with its class names, ready to `predict`.

    Args:
        path: A SavedModel directory, a `.tflite` file or a directory of C source that `export`
            wrote. C source is compiled and run, so load only source that you trust.

    Attributes:
        class_names: Names in class order.
        centre_square: Side of the central square to cut out of a photograph, as a fraction of its
            shorter side; 1.0 for the whole image. None if an older export does not say.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If the export is broken or of another kind.
        ImportError: For a binary flatbuffer without Larq Compute Engine, or C source without a C
            compiler.

    Example:
        >>> pixels = tf.keras.Input((16, 16, 3))
        >>> logits = tf.keras.layers.Dense(3)(tf.keras.layers.GlobalAveragePooling2D()(pixels))
        >>> student = tf.keras.Model(pixels, logits)
        >>> ct.export.export_saved_model(student, "pets", 16, ["cat", "dog", "hen"])
        >>> exported = ct.export.Exported("pets")
        >>> exported.class_names, exported.predict(np.zeros((2, 16, 16, 3), np.uint8)).shape
        (['cat', 'dog', 'hen'], (2, 3))
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"No exported model at {path}: check the path.")
        try:
            load = self._load_saved_model if path.is_dir() else self._load_flatbuffer
            if is_c_export(path):
                load = self._load_c
            names, preprocessing = load(path)
            self.class_names = names.splitlines()
            self.centre_square = preprocessing and float(json.loads(preprocessing)["centre_square"])
            if self.centre_square is not None:
                check_share(self.centre_square)
        except ImportError:
            raise
        except Exception as error:  # each parser of a damaged file fails in its own ways
            raise ValueError(
                f"{path} is not an export, a SavedModel directory, a .tflite file or a directory "
                f"of C source ({error}): export the student again."
            ) from error

    def _load_saved_model(self, path: Path) -> tuple[str, str | None]:
        self.model = tf.saved_model.load(str(path))  # keeps the signature's variables alive
        signature = self.model.signatures["serving_default"]
        self.predict_batch = lambda images: signature(images=images)["probabilities"].numpy()
        preprocessing = path / "assets" / PREPROCESSING_FILE
        return read_text(path / "assets" / NAMES_FILE), (
            read_text(preprocessing) if preprocessing.exists() else None
        )

    def _load_c(self, path: Path) -> tuple[str, str]:
        names, size, share, run = load_c(path)

        def predict_batch(images: tf.Tensor) -> np.ndarray:
            images = resize(images, size).numpy()
            if not np.all(np.isfinite(images)):
                raise ValueError("An image holds NaN or Inf: give RGB in [0, 255].")
            return run(np.clip(np.rint(images), 0, 255).astype(np.uint8))

        self.predict_batch = predict_batch
        return "\n".join(names), preprocessing_text(share)

    def _load_flatbuffer(self, path: Path) -> tuple[str, str | None]:
        with zipfile.ZipFile(path) as archive:

            def text(name: str) -> str:
                if archive.getinfo(name).file_size > LARGEST_TEXT:
                    raise ValueError(f"its {name} is over {LARGEST_TEXT:,} bytes")
                return archive.read(name).decode()

            names, preprocessing = text(NAMES_FILE), None
            with contextlib.suppress(KeyError):  # an older export
                preprocessing = text(PREPROCESSING_FILE)
        flatbuffer = path.read_bytes()
        make = lce_interpreter if any(operations(flatbuffer)) else tflite_interpreter
        size, run = make(flatbuffer)
        self.predict_batch = lambda images: np.concatenate(
            [run(image[None]) for image in resize(images, size).numpy()]
        )
        return names, preprocessing

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities, float32 (batch, classes), of images in [0, 255].

        Args:
            images: RGB images, uint8 or float32 (batch, height, width, 3), of any size.

        Raises:
            ValueError: For images of another shape, dtype or range.
        """
        check_pixels(images, "predict")
        return self.predict_batch(tf.cast(images, tf.float32))


def agreement(exported: Exported, model: tf.keras.Model, batches: tf.data.Dataset) -> str:
    """Compares an export with its student, and returns a sentence about equal classes.

    Args:
        exported: The exported student.
        model: The student, from images to logits.
        batches: Batches of (images, labels); the labels are ignored.

    Example:
        >>> pixels = tf.keras.Input((16, 16, 3))
        >>> logits = tf.keras.layers.Dense(3)(tf.keras.layers.GlobalAveragePooling2D()(pixels))
        >>> student = tf.keras.Model(pixels, logits)
        >>> ct.export.export_saved_model(student, "pets", image_size=16)
        >>> images = np.zeros((4, 16, 16, 3), np.uint8)
        >>> batches = tf.data.Dataset.from_tensors((images, np.zeros(4)))
        >>> ct.export.agreement(ct.export.Exported("pets"), student, batches)
        "4 of 4 classes equal the Keras student's; largest difference of a probability ..."
    """
    same = images = 0
    largest = 0.0
    for batch, _ in progress(batches, "Comparing", unit="batches"):
        mine = tf.nn.softmax(model.predict_on_batch(batch)).numpy()
        theirs = exported.predict(batch)
        same += int(np.sum(mine.argmax(-1) == theirs.argmax(-1)))
        images += len(mine)
        largest = max(largest, float(np.abs(mine - theirs).max()))
    return (
        f"{same} of {images} classes equal the Keras student's; largest difference of a "
        f"probability {largest:.1e}"
    )
