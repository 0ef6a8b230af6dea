"""A file of decoded images, mapped into memory: for images that are slow to decode."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.utils.files import check_room, locked, written_beside
from candle_tf.utils.progress import progress

PIXELS, SHAPES = "pixels.bin", "shapes.npy"
SAMPLE = 256  # images that the total size is estimated from


@dataclass(frozen=True)
class PixelFile:
    """Images of any size, one after the other in a file, read at random.

    Attributes:
        pixels: The pixels of all images, uint8.
        starts: Index in `pixels` at which each image starts, int64 (n,).
        shapes: Height and width of each image in pixels, int64 (n, 2).
    """

    pixels: np.ndarray
    starts: np.ndarray
    shapes: np.ndarray

    def take(self, indices: np.ndarray) -> "PixelFile":
        """Returns the images at `indices`, on the same file."""
        return replace(self, starts=self.starts[indices], shapes=self.shapes[indices])

    def image(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the image at a scalar index, uint8 (height, width, 3)."""

        def read(i) -> np.ndarray:
            height, width = self.shapes[i]
            start = self.starts[i]
            flat = self.pixels[start : start + 3 * height * width]
            return np.array(flat).reshape(height, width, 3)

        return tf.ensure_shape(tf.numpy_function(read, [index], tf.uint8), (None, None, 3))

    @classmethod
    def of(
        cls, image: Callable[[tf.Tensor], tf.Tensor], count: int, directory: Path
    ) -> "PixelFile":
        """Opens the file in `directory`; writes `image(0)` to `image(count - 1)` if it is missing.

        An interrupted write starts from the first image again.

        Raises:
            ValueError: If another process is writing the file, or if the file is damaged.
            OSError: If there is no room for the file.
        """
        path = directory / PIXELS
        if not (directory / SHAPES).exists():
            with locked(directory):
                if not (directory / SHAPES).exists():  # still: another may have made it since
                    write(image, count, directory)
        try:
            shapes = np.load(directory / SHAPES)
            ends = np.cumsum(3 * shapes.prod(axis=1))
            whole = path.stat().st_size == ends[-1] and len(shapes) == count
        except (EOFError, IndexError, OSError, TypeError, ValueError):
            whole = False
        if not whole:
            raise ValueError(
                f"{path} is damaged: delete {directory}, and the same command writes it again."
            )
        return cls(np.memmap(path, np.uint8, mode="r"), np.append(0, ends[:-1]), shapes)


def write(image: Callable[[tf.Tensor], tf.Tensor], count: int, directory: Path):
    """Writes all pixels first, then the shapes, whose presence says that the file is complete."""

    def decoded(indices: np.ndarray) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(indices).map(image, tf.data.AUTOTUNE)

    some = np.unique(np.linspace(0, count - 1, SAMPLE).astype(np.int64))
    sizes = [pixels.nbytes for pixels in decoded(some).as_numpy_iterator()]
    nbytes = int(np.mean(sizes) * count)
    check_room(directory, nbytes)
    print(f"Decoding {count:,} images, about {nbytes / 1e6:,.0f} MB, into {directory}")
    shapes = []
    try:
        with open(directory / PIXELS, "wb") as file:
            every = decoded(np.arange(count)).as_numpy_iterator()
            for pixels in progress(every, "Decoding images", count, "images"):
                file.write(pixels.tobytes())
                shapes.append(pixels.shape[:2])
    except OSError as error:
        raise OSError(
            f"{directory / PIXELS} cannot be written ({error}): make room, and start the same "
            "command again."
        ) from error
    with written_beside(directory / SHAPES) as beside:
        np.save(beside, np.array(shapes, np.int64))
