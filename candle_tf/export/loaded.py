"""What `export` wrote, loaded again: a SavedModel or a flatbuffer, used alike."""

import os
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.export.flatbuffer import operations
from candle_tf.export.interpreters import lce_interpreter, tflite_interpreter
from candle_tf.export.saved_model import NAMES_FILE
from candle_tf.resolution import resize
from candle_tf.utils.files import LARGEST_TEXT, read_text


class Exported:
    """An exported student: `predict` images, look up `class_names`.

    Args:
        path: a SavedModel directory or a `.tflite` file that `export` wrote.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is neither, or broken.
        ImportError: for a binary flatbuffer where Larq Compute Engine is not installed.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"No exported model at {path}: check the path.")
        try:
            load = self._load_saved_model if path.is_dir() else self._load_flatbuffer
            self.class_names = load(path).splitlines()
        except ImportError:
            raise
        except Exception as error:  # each parser of a damaged file fails in its own ways
            raise ValueError(
                f"{path} is not what export writes, a SavedModel directory or a .tflite file "
                f"({error})."
            ) from error

    def _load_saved_model(self, path: Path) -> str:
        self.model = tf.saved_model.load(str(path))  # keeps the signature's variables alive
        signature = self.model.signatures["serving_default"]
        self.predict_batch = lambda images: signature(images=images)["probabilities"].numpy()
        return read_text(path / "assets" / NAMES_FILE)

    def _load_flatbuffer(self, path: Path) -> str:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(NAMES_FILE).file_size > LARGEST_TEXT:
                raise ValueError(f"{NAMES_FILE} in it is over {LARGEST_TEXT:,} bytes")
            names = archive.read(NAMES_FILE).decode()
        flatbuffer = path.read_bytes()
        make = lce_interpreter if any(operations(flatbuffer)) else tflite_interpreter
        size, run = make(flatbuffer)
        self.predict_batch = lambda images: np.concatenate(
            [run(image[None]) for image in resize(images, size).numpy()]
        )
        return names

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Images (batch, height, width, 3) in [0, 255] to probabilities (batch, classes)."""
        return self.predict_batch(tf.cast(images, tf.float32))


def agreement(exported: Exported, model: tf.keras.Model, batches: tf.data.Dataset) -> str:
    """How often an export gives the class that the student does, and how far they differ.

    Args:
        model: gives the student's logits.
        batches: of (images, labels).
    """
    same = images = 0
    largest = 0.0
    for batch, _ in batches:
        mine = tf.nn.softmax(model.predict_on_batch(batch)).numpy()
        theirs = exported.predict(batch)
        same += int(np.sum(mine.argmax(-1) == theirs.argmax(-1)))
        images += len(mine)
        largest = max(largest, float(np.abs(mine - theirs).max()))
    return (
        f"{same} of {images} classes equal the Keras student's; largest difference of a "
        f"probability {largest:.1e}"
    )
