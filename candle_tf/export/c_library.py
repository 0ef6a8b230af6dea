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
    """Returns the command of the system's C compiler: what CC names, or cc, gcc or clang.

    Raises:
        ImportError: If there is none.
    """
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    raise ImportError(
        "No C compiler is installed, which a C source needs here: install gcc (apt-get install "
        "gcc), or export with format='lce' or 'tflite'."
    )


def load_c(
    path: str | os.PathLike,
) -> tuple[list[str], int, float, Callable[[np.ndarray], np.ndarray]]:
    """Compiles what `export_c` wrote and loads it: only ever load sources that you trust.

    Args:
        path: The directory.

    Returns:
        The class names, the side of the images in pixels, the share of a photograph's shorter side
        to cut out before, and a function from images uint8 (batch, side, side, 3) to probabilities
        float32 (batch, classes).

    Raises:
        ImportError: If there is no C compiler.
        ValueError: If the source does not compile.

    Example:
        >>> names, size, share, predict = load_c("export/digits")
        >>> names[predict(images)[0].argmax()]
        '7'
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
        loaded = ctypes.PyDLL(library)  # which lets one thread in at a time
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
