"""The first look at image files: which can be read, and the marks by which they are recognised."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from candle_tf.data.own_images.pixels import FAULTS, FORMATS, open_plain
from candle_tf.utils.files import cache_directory, written_beside
from candle_tf.utils.progress import progress
from PIL import Image, UnidentifiedImageError

SIDES = 1, 20_000  # pixels
MOST_PIXELS = 100_000_000  # an image with more pixels counts as a decompression bomb
RULES = 4  # version of the rules in `look_at`: a change makes all earlier results invalid
THUMB = (8, 9)  # height and width of the thumbnails that are compared
MARK = np.dtype([("content", np.uint64), ("thumb", np.uint8, THUMB), ("plain", np.int64)])
UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class Look:
    """The result of decoding image files once.

    Attributes:
        problems: Reason why each file cannot be read, or None.
        marks: Digest and thumbnail of each file's pixels, and its hash if it is plain (see
            `open_plain`), else 0; dtype `MARK`, (n,).
    """

    problems: Sequence[str | None]
    marks: np.ndarray

    def take(self, indices: Iterable[int]) -> "Look":
        """Returns the result for the files at `indices`."""
        chosen = np.asarray(list(indices), int)
        return Look([self.problems[i] for i in chosen], self.marks[chosen])


def look_at(path: str) -> tuple[str | None, np.ndarray]:
    """Decodes an image file as training does, and returns (its problem or None, its mark)."""
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
        return f"is not in a known format ({', '.join(FORMATS[:7])}, ...)", nothing
    except FAULTS as error:
        return f"{UNREADABLE} ({error})", nothing
    try:
        pixels, plain = open_plain(path)
    except ValueError as error:
        why = " ".join(str(error.__cause__).split())
        return f"is truncated or damaged ({why})", nothing
    return None, mark_of(pixels, plain)


def mark_of(pixels: np.ndarray, plain: int = 0) -> np.ndarray:
    """Returns the mark of uint8 RGB pixels (height, width, 3) and a plain file's hash."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels))
    small = Image.fromarray(pixels).resize(THUMB[::-1], Image.Resampling.BOX).convert("L")
    return np.array((int.from_bytes(digest.digest(), "little"), np.asarray(small), plain), MARK)


def problem_of(path: str) -> str | None:
    """Returns the reason why an image file cannot be read, or None."""
    return look_at(path)[0]


def look_at_files(paths: Sequence[str], cache: str | os.PathLike | None = None) -> Look:
    """Decodes each image file once, on all processors.

    Results are kept, also after an interruption. A file is opened again only if its size or times
    of change differ from those of the last look.

    Args:
        paths: Paths of the files.
        cache: Directory of earlier results; by default the user's cache directory.
    """
    if not len(paths):
        return Look([], np.zeros(0, MARK))
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        parts = np.array_split(np.array(paths, object), 64)
        stamps = np.concatenate(list(pool.map(stamp_of, parts)))
        absolute = list(map(os.path.abspath, paths))
        keys = [key_of(path, stamp) for path, stamp in zip(absolute, stamps)]
        place = digest_of(os.path.commonpath(set(map(os.path.dirname, absolute))))
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
            looked = progress(found, "Looking at images", len(todo), "images")
            for (problem, mark), i in zip(looked, todo):
                problems[i], marks[i] = problem, mark
                # A file that could not be opened may be readable the next time.
                if not (problem or "").startswith(UNREADABLE):
                    kept.found[keys[i]] = problem, mark
        finally:
            pool.shutdown(cancel_futures=True)
            if todo:
                kept.write()
    return Look(problems, marks)


def digest_of(text: str) -> str:
    """Returns a short digest of a text, for the name of a file."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def key_of(path: str, stamp: np.ndarray) -> bytes:
    """Returns the key of a file's result: 16 bytes for its path, 8 for its size and times."""
    path = hashlib.sha256(f"{RULES}{path}".encode("utf-8", "surrogateescape"))
    return path.digest()[:16] + hashlib.sha256(stamp.tobytes()).digest()[:8]


class Kept:
    """Results of earlier looks at files, by `key_of`.

    Args:
        path: Path of the file of results; a missing or damaged one counts as empty.
    """

    def __init__(self, path: Path):
        self.path, self.found = path, {}
        with contextlib.suppress(Exception):  # the file may be damaged in any way
            with np.load(path) as there:
                keys, marks = there["keys"], there["marks"]
                problems = json.loads(there["problems"].tobytes())
                if len(keys) == len(marks) == len(problems) and marks.dtype == MARK:
                    self.found = dict(zip(map(bytes, keys), zip(problems, marks)))

    def write(self):
        """Writes the results, the last one per path."""
        if not self.found:
            return
        last = {key[:16]: key for key in self.found}
        problems, marks = zip(*(self.found[key] for key in last.values()))
        keys = np.frombuffer(b"".join(last.values()), np.uint8).reshape(-1, 24)
        text = np.frombuffer(json.dumps(problems).encode(), np.uint8)
        with contextlib.suppress(OSError):  # the results are known even if nobody can cache them
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_beside(self.path) as beside:
                np.savez(beside, keys=keys, marks=np.stack(marks), problems=text)


def stamp_of(paths: Sequence[str]) -> np.ndarray:
    """Returns size and times of change of each file, int64 (n, 3); -1 for a missing file."""

    def of(path: str) -> tuple[int, int, int]:
        try:
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns, status.st_ctime_ns
        except OSError:
            return -1, -1, -1

    return np.array([of(path) for path in paths], np.int64).reshape(-1, 3)
