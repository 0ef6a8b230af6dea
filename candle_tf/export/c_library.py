"""The C source of a student, compiled and called on this machine."""

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

FLAGS = ("-O3", "-std=c99", "-shared", "-fPIC")


def c_compiler() -> str:
    """Returns the command of the system's C compiler: the one in CC, or cc, gcc or clang.

    Raises:
        ImportError: If there is none.
    """
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    raise ImportError(
        "No C compiler is installed, but C source needs one here: install gcc (apt-get install "
        "gcc), or export with format='lce' or 'tflite'."
    )


def load_c(
    path: str | os.PathLike,
) -> tuple[list[str], int, float, Callable[[np.ndarray], np.ndarray]]:
    """Compiles and loads C source written by `export_c`. Load only source that you trust.

    Args:
        path: Directory of the source.

    Returns:
        (class names, side of the images in pixels, side of the central square to cut out of a
        photograph as a fraction of its shorter side, function from images to probabilities). The
        function takes uint8 (batch, side, side, 3) and returns float32 (batch, classes).

    Raises:
        ImportError: If there is no C compiler.
        ValueError: If the source does not compile.

    Example:
        >>> pixels = tf.keras.Input((16, 16, 3))
        >>> logits = tf.keras.layers.Dense(3)(tf.keras.layers.GlobalAveragePooling2D()(pixels))
        >>> student = tf.keras.Model(pixels, logits)
        >>> ct.export.export_c(student, "export/pets", image_size=16)
        >>> names, size, centre_square, predict = ct.export.load_c("export/pets")
        >>> names, predict(np.zeros((2, size, size, 3), np.uint8)).shape
        (['0', '1', '2'], (2, 3))
    """
    (header,) = Path(path).glob("*.h")
    constants = dict(re.findall(r"^#define [A-Z]\w*_([A-Z]+) (\d+)$", header.read_text(), re.M))
    size, classes, name = int(constants["HEIGHT"]), int(constants["CLASSES"]), header.stem
    with tempfile.TemporaryDirectory() as directory:
        library = f"{directory}/{name}.so"
        command = [c_compiler(), *FLAGS, f"{header.parent / name}.c", "-o", library]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{name}.c does not compile: {done.stderr.strip()[:500]}")
        loaded = ctypes.PyDLL(library)  # runs only one call at a time
    names = (ctypes.c_char_p * classes).in_dll(loaded, f"{name}_class_names")
    function = loaded[f"{name}_predict"]
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def predict(images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"The C source takes uint8 images (batch, {size}, {size}, 3), not {images.dtype} "
                f"{images.shape}."
            )
        images = np.ascontiguousarray(images)
        probabilities = np.empty((len(images), classes), np.float32)
        for image, row in zip(images, probabilities):
            function(image.ctypes.data, row.ctypes.data)
        return probabilities

    return [text.decode() for text in names], size, int(constants["CENTRE"]) / 1000, predict
