"""Pixels of images: held in memory, of encoded bytes, or of files that Pillow reads."""

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.utils.files import cache_directory, written_beside
from candle_tf.utils.progress import progress
from PIL import Image, ImageOps, UnidentifiedImageError

Image.init()
# All that Pillow reads by itself and that has one picture; no EPS or WMF, which run programs.
FORMATS = tuple(
    name
    for name in "JPEG PNG BMP DIB GIF WEBP TIFF PPM AVIF JPEG2000 ICO TGA PCX SGI QOI PSD".split()
    if name in Image.OPEN
)
SUFFIXES = {
    suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")
}
SIDES = 1, 20_000  # pixels
MOST_PIXELS = 100_000_000  # more in one image is taken for a decompression bomb
FAULTS = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    Image.DecompressionBombError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    EOFError,
)  # a damaged file fails in its parser's own ways
RULES = 3  # of `look_at`: what other rules found is found anew
THUMB = (8, 9)  # pixels that images are compared by
MARK = np.dtype([("content", np.uint64), ("thumb", np.uint8, THUMB)])


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
    """An image file as uint8 RGB (height, width, 3): upright by its EXIF, the first of its frames.

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
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip to 8
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.uint8(np.clip(values / 257, 0, 255) + 0.5))
    return image.convert("RGB")


def is_image(path: str) -> bool:
    """Whether a file is an image by its suffix, or by its content where it has another."""
    if os.path.splitext(path)[1].lower() in SUFFIXES:
        return True
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except FAULTS:
        return False


UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class Look:
    """What was found in image files.

    Attributes:
        problems: of each file, what keeps it from being read, or None.
        marks: of each file, a digest and a thumbnail of its pixels, of `MARK` (n,).
    """

    problems: Sequence[str | None]
    marks: np.ndarray

    def take(self, indices: Iterable[int]) -> "Look":
        """Those at `indices`."""
        chosen = np.asarray(list(indices), int)
        return Look([self.problems[i] for i in chosen], self.marks[chosen])


def look_at(path: str) -> tuple[str | None, np.ndarray]:
    """Decodes an image file as training does: (what keeps it from being read, its mark)."""
    nothing = np.zeros((), MARK)
    try:
        if not os.path.getsize(path):
            return "is empty", nothing
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
        if not SIDES[0] <= min(width, height) <= max(width, height) <= SIDES[1]:
            return f"has {width} x {height} pixels; sides go from {SIDES[0]} to {SIDES[1]}", nothing
        if width * height > MOST_PIXELS:
            return f"has {width} x {height} pixels, more than {MOST_PIXELS:,}", nothing
    except FileNotFoundError:
        return "does not exist", nothing
    except Image.DecompressionBombError as error:
        return f"is too large ({error})", nothing
    except UnidentifiedImageError:
        return f"is no image that is read ({', '.join(FORMATS[:7])}, ...)", nothing
    except FAULTS as error:
        return f"{UNREADABLE} ({error})", nothing
    try:
        return None, mark_of(open_image(path))
    except ValueError as error:
        why = " ".join(str(error.__cause__).split())
        return f"is truncated or damaged ({why})", nothing


def mark_of(pixels: np.ndarray) -> np.ndarray:
    """What uint8 RGB pixels (height, width, 3) are recognised by: a record of `MARK`."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels))
    small = Image.fromarray(pixels).resize(THUMB[::-1], Image.Resampling.BOX).convert("L")
    return np.array((int.from_bytes(digest.digest(), "little"), np.asarray(small)), MARK)


def problem_of(path: str) -> str | None:
    """What keeps an image file from being read."""
    return look_at(path)[0]


def look_at_files(paths: Sequence[str], cache: str | os.PathLike | None = None) -> Look:
    """Decodes each image file once, by all processors.

    Files that were looked at before, and have the size and times of change they had then, are not
    opened again. What was found is kept also where the look is interrupted.

    Args:
        paths: of the files.
        cache: directory of what was found; that of `files.cache_directory` by default.
    """
    if not len(paths):
        return Look([], np.zeros(0, MARK))
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        parts = np.array_split(np.array(paths, object), 64)
        stamps = np.concatenate(list(pool.map(stamp_of, parts)))
        keys = [key_of(path, stamp) for path, stamp in zip(paths, stamps)]
        place = digest_of(os.path.commonpath([os.path.abspath(path) for path in paths]))
        kept = Kept(Path(cache or cache_directory()) / f"looked_at_{place}.npz")
        problems, marks = [None] * len(paths), np.zeros(len(paths), MARK)
        todo = []
        for i, key in enumerate(keys):
            if key in kept.found:
                problems[i], marks[i] = kept.found[key]
            else:
                todo.append(i)
        found = pool.map(look_at, [paths[i] for i in todo])
        try:
            for i, (problem, mark) in zip(todo, progress(found, "Looking at images", len(todo))):
                problems[i], marks[i] = problem, mark
                # What could not be opened may be so for a moment.
                if not (problem or "").startswith(UNREADABLE):
                    kept.found[keys[i]] = problem, mark
        finally:
            pool.shutdown(cancel_futures=True)
            if todo:
                kept.write()
    return Look(problems, marks)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def key_of(path: str, stamp: np.ndarray) -> bytes:
    """What the look at a file is kept under: 16 bytes of its path, 8 of its size and times."""
    path = hashlib.sha256(f"{RULES}{os.path.abspath(path)}".encode("utf-8", "surrogateescape"))
    return path.digest()[:16] + hashlib.sha256(stamp.tobytes()).digest()[:8]


class Kept:
    """What was found in files before, by `key_of`.

    Args:
        path: of the file that holds it; nothing is known where it is missing or damaged.
    """

    def __init__(self, path: Path):
        self.path, self.found = path, {}
        with contextlib.suppress(Exception):  # damaged in any way
            with np.load(path) as there:
                keys, marks = there["keys"], there["marks"]
                problems = json.loads(there["problems"].tobytes())
                if len(keys) == len(marks) == len(problems) and marks.dtype == MARK:
                    self.found = dict(zip(map(bytes, keys), zip(problems, marks)))

    def write(self):
        """Writes what is known; of each path the last."""
        if not self.found:
            return
        last = {key[:16]: key for key in self.found}
        problems, marks = zip(*(self.found[key] for key in last.values()))
        keys = np.frombuffer(b"".join(last.values()), np.uint8).reshape(-1, 24)
        text = np.frombuffer(json.dumps(problems).encode(), np.uint8)
        with contextlib.suppress(OSError):  # a cache that cannot be written is no fault
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_beside(self.path) as beside:
                np.savez(beside, keys=keys, marks=np.stack(marks), problems=text)


def stamp_of(paths: Sequence[str]) -> np.ndarray:
    """Size and times of change of each file, int64 (n, 3); -1 where there is none."""

    def of(path: str) -> tuple[int, int, int]:
        try:
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns, status.st_ctime_ns
        except OSError:
            return -1, -1, -1

    return np.array([of(path) for path in paths], np.int64).reshape(-1, 3)
