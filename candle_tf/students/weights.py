"""A student's weights in one file: all of them, or those of its encoder, from which others start.

A trained student's binary kernels are kept as signs, one bit each. An encoder keeps the real-valued
kernels behind the signs, which training changes, in half precision.
"""

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf.networks.surgery import split_at_features
from candle_tf.utils.files import written_beside

# Of resnet_e with halvings=2 at 64 pixels: docs/pretraining.md.
GENERIC = Path(__file__).parents[1] / "assets" / "generic_encoder.npz"


def write_weights(student: tf.keras.Model, path: Path):
    """Writes the weights of a trained student.

    A kernel whose quantizer leaves -1 and 1 is packed into uint8, eight signs per byte; the others
    are float32.

    Args:
        student: Trained student.
        path: File to write, which ends in `.npz`.

    Raises:
        OSError: If the file cannot be written.
    """
    with lq.context.quantized_scope(True):
        quantized = student.get_weights()
    pairs = zip(student.get_weights(), quantized)
    arrays = (
        np.packbits(seen.ravel() > 0) if np.isin(seen, (-1, 1)).all() else kept.astype(np.float32)
        for kept, seen in pairs
    )
    write_arrays(arrays, path)


def write_encoder(student: tf.keras.Model, path: Path):
    """Writes the weights of a student's encoder, from which other students start.

    Kernels are float16; the others, such as the moments of batch norm, are float32.

    Args:
        student: Student, with the pooled embedding in its layer `features`.
        path: File to write, which ends in `.npz`.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> write_encoder(student, Path("encoder.npz"))  # doctest: +SKIP
        >>> ct.students.create("resnet_e", num_classes=5, weights="encoder.npz")  # doctest: +SKIP
    """
    encoder, _ = split_at_features(student, own_size_only=True)
    weights = encoder.get_weights()
    write_arrays((w.astype(np.float16 if w.ndim > 1 else np.float32) for w in weights), path)


def write_arrays(arrays: Iterable[np.ndarray], path: Path):
    """Writes a NumPy archive of arrays that are numbered in the order of `get_weights`."""
    numbered = {f"{i:03}": array for i, array in enumerate(arrays)}
    with written_beside(path) as beside:
        np.savez_compressed(beside, **numbered)


def load_encoder(student: tf.keras.Model, path: str | os.PathLike):
    """Gives the encoder of a student pretrained weights; the classifier keeps its own.

    Args:
        student: Student, whose weights are set.
        path: File of `write_encoder`, or "generic" for the one that candle_tf contains.

    Raises:
        ValueError: If the file is damaged, or belongs to another network.
        FileNotFoundError: If the file does not exist.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(
            f"weights is {path!r}: name a file, such as the encoder.npz of a pretraining, or "
            "'generic'."
        )
    file = GENERIC if path == "generic" else Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(f"Weights {file} do not exist: check the path.")
    encoder, _ = split_at_features(student, own_size_only=True)
    try:
        encoder.set_weights(read_weights(file, [w.shape for w in encoder.get_weights()]))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} has no weights for this {student.name} ({error}): name the encoder.npz of a "
            "pretraining, and build the student with the same arguments, such as width and blocks. "
            "'generic' fits resnet_e with its default ones."
        ) from error


def read_weights(path: Path, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Returns the weights of a file, float32, for `set_weights`.

    Args:
        path: File to read.
        shapes: Shapes of the network's weights, in the order of `get_weights`.

    Raises:
        ValueError: If the file is damaged, or belongs to another network.
        OSError: If the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
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
            array = np.where(bits, 1, -1).reshape(shape)
        if array.shape != tuple(shape) or array.dtype.kind not in "fi":
            raise ValueError(f"array {i} is {array.dtype} {array.shape}, not float {tuple(shape)}")
        yield array.astype(np.float32)
