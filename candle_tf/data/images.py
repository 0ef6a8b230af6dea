"""Pixels of images: held in memory, of encoded bytes, or of files that Pillow reads."""

import contextlib
import hashlib
import itertools
import json
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.utils.files import cache_directory, read_json, write_text
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "GIF")
SIDES = 1, 20_000  # pixels
MOST_PIXELS = 100_000_000  # more in one image is taken for a decompression bomb
END_OF_JPEG = b"\xff\xd9"  # found near its end, where it is whole
FAULTS = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
RULES = 2  # of `problem_of`: what other rules found is found anew


def decode(image: tf.Tensor) -> tf.Tensor:
    """A file's bytes, or pixels, as uint8 RGB (..., height, width, 3)."""
    if image.dtype == tf.string:
        image = tf.io.decode_image(image, channels=3, expand_animations=False)
        image = tf.ensure_shape(image, (None, None, 3))
    return image


def read_image(path: tf.Tensor) -> tf.Tensor:
    """The image file at a scalar path, as uint8 RGB (height, width, 3)."""

    def read(name) -> np.ndarray:
        return open_image(os.fsdecode(np.asarray(name).item()))

    return tf.ensure_shape(tf.numpy_function(read, [path], tf.uint8), (None, None, 3))


def open_image(path: str) -> np.ndarray:
    """An image file as uint8 RGB (height, width, 3): upright by its EXIF, a GIF's first frame.

    Gray, palette, 16-bit and CMYK images become RGB; transparent pixels keep their color.

    Raises:
        ValueError: which names the file, if it cannot be decoded.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except FAULTS as error:
        raise ValueError(f"{path} cannot be decoded ({error}).") from error


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip to 8
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.uint8(np.clip(values / 257, 0, 255) + 0.5))
    return image.convert("RGB")


UNREADABLE = "cannot be read"


def problem_of(path: str) -> str | None:
    """What keeps an image file from being read.

    Of a JPEG head and tail are looked at, others are decoded.
    """
    try:
        if not os.path.getsize(path):
            return "is empty"
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if not SIDES[0] <= min(width, height) <= max(width, height) <= SIDES[1]:
                return f"has {width} x {height} pixels; sides go from {SIDES[0]} to {SIDES[1]}"
            if width * height > MOST_PIXELS:
                return f"has {width} x {height} pixels, more than {MOST_PIXELS:,}"
            file.seek(max(-4096, -os.path.getsize(path)), os.SEEK_END)
            whole = image.format == "JPEG" and END_OF_JPEG in file.read()
        return None if whole else undecodable(path)
    except FileNotFoundError:
        return "does not exist"
    except Image.DecompressionBombError as error:
        return f"is too large ({error})"
    except UnidentifiedImageError:
        return f"is no image in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    except FAULTS as error:
        return f"{UNREADABLE} ({error})"


def undecodable(path: str) -> str | None:
    try:
        open_image(path)
    except ValueError:
        return "is truncated or damaged"


def problems_of(paths: Sequence[str], cache: str | os.PathLike | None = None) -> dict[int, str]:
    """The files that cannot be read: index -> why.

    Files that were looked at before, and have the size and time of change they had then, are not
    opened again.

    Args:
        paths: of the files.
        cache: directory of what was found; that of `files.cache_directory` by default.
    """
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        parts = np.array_split(np.array(paths, object), 64)
        stamps = pool.map(stamp_of, parts)
        state = hashlib.sha256("\0".join((str(RULES), *paths)).encode("utf-8", "surrogateescape"))
        state.update(np.concatenate(list(stamps)).tobytes())
        found = Path(cache or cache_directory()) / f"images_{state.hexdigest()[:16]}.json"
        # Not there, or damaged.
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
            there = read_json(found, dict, "delete it")["problems"]
            return {int(i): str(why) for i, why in there.items()}
        every = itertools.chain(*pool.map(lambda part: list(map(problem_of, part)), parts))
        problems = {i: why for i, why in enumerate(every) if why}
    # What could not be opened may be so for a moment.
    if not any(why.startswith(UNREADABLE) for why in problems.values()):
        with contextlib.suppress(OSError):  # a cache that cannot be written is no fault
            found.parent.mkdir(parents=True, exist_ok=True)
            write_text(found, json.dumps({"problems": problems}))
    return problems


def stamp_of(paths: Sequence[str]) -> np.ndarray:
    """Size and times of change of each file, int64 (n, 3); -1 where there is none."""

    def of(path: str) -> tuple[int, int, int]:
        try:
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns, status.st_ctime_ns
        except OSError:
            return -1, -1, -1

    return np.array([of(path) for path in paths], np.int64).reshape(-1, 3)
