"""A student's weights in one file: signs take one bit each, all other values four bytes."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf.utils.files import written_beside


def write_weights(student: tf.keras.Model, path: Path):
    """Writes the weights of a student as a NumPy archive.

    Arrays are numbered in the order of `get_weights`. A kernel whose quantizer leaves -1 and 1 is
    packed into uint8, eight signs per byte; the others are float32.

    Args:
        student: Trained student.
        path: File to write, which ends in `.npz`.

    Raises:
        OSError: If the file cannot be written.
    """
    with lq.context.quantized_scope(True):
        quantized = student.get_weights()
    arrays = {}
    for i, (kept, seen) in enumerate(zip(student.get_weights(), quantized)):
        signs = np.isin(seen, (-1, 1)).all()
        arrays[f"{i:03}"] = np.packbits(seen.ravel() > 0) if signs else kept.astype(np.float32)
    with written_beside(path) as beside:
        np.savez_compressed(beside, **arrays)


def read_weights(path: Path, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Returns the weights that `write_weights` wrote, for `set_weights`.

    Args:
        path: File to read.
        shapes: Shapes of the student's weights, in the order of `get_weights`.

    Raises:
        ValueError: If the file is damaged, or belongs to another student.
        OSError: If the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if len(arrays.files) != len(shapes):
                raise ValueError(f"{len(arrays.files)} arrays for {len(shapes)} weights")
            return [*unpacked(arrays, shapes)]
    except (KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def unpacked(arrays: np.lib.npyio.NpzFile, shapes: Sequence[tuple[int, ...]]) -> Iterator:
    """Yields float32 arrays of these shapes, with signs as -1 and 1."""
    for i, shape in enumerate(shapes):
        array = arrays[f"{i:03}"]
        if array.dtype == np.uint8:
            bits = np.unpackbits(array, count=int(np.prod(shape)))
            array = np.where(bits, 1, -1).astype(np.float32)
        yield array.reshape(shape)
