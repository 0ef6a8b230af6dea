"""Files that stay whole when a process is killed."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")
ROWS, NOTE = "rows.bin", "made_of.json"
LARGEST_TEXT = 64 * 2**20  # bytes
LOCK_FILE = "lock"  # held by the process that is working in a directory


@contextlib.contextmanager
def locked(directory: str | os.PathLike) -> Iterator[Path]:
    """Creates a directory and keeps other processes out of it.

    Raises:
        ValueError: If another process is working in the directory.
        OSError: If the directory cannot be written.
    """
    path = Path(directory)
    with contextlib.ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path / LOCK_FILE, "a+", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # the text is only a hint, and a disk may be full
                lock.truncate(0)
                os.write(lock.fileno(), f"pid {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError as error:
            lock.seek(0)
            raise ValueError(
                f"Another process is at work in {path} ({lock.read(100)}): wait for it, or name "
                "another directory."
            ) from error
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error}): name another directory.") from error
        yield path


def cache_directory() -> Path:
    """Returns the directory that keeps facts about the user's data; you can delete it any time."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "candle_tf")


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yields a path to write to and renames it to `path` in the end: no reader sees half a file.

    A link at `path` stays, and leads to the new file.

    Raises:
        OSError: If the file cannot be written. The message says what to do.
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(f"{os.getpid()}_{path.name}")  # the same suffix, which NumPy checks
    try:
        yield beside
        os.replace(beside, target)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error}): make room or make it writable, and start the "
            "same command again."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str):
    """Writes a whole text file at once, by `written_beside`."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def directory_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a directory to fill, which replaces the one at `path` once it is complete.

    A link at `path` stays, and leads to the new directory.
    """
    path = os.path.realpath(path)
    written = Path(f"{path}.{os.getpid()}.tmp")
    old = f"{written}.old"
    shutil.rmtree(written, ignore_errors=True)  # left by a killed process of the same number
    os.makedirs(written)
    try:
        yield written
        if os.path.isdir(path):
            os.replace(path, old)
        try:
            os.replace(written, path)
        except OSError:
            if os.path.isdir(old):
                os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def read_text(path: Path) -> str:
    """Reads a text file, unless it is too large to be one that this library wrote.

    Raises:
        ValueError: If the file is over `LARGEST_TEXT` bytes, or not UTF-8.
        OSError: If the file cannot be read.
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise ValueError(f"{path} is over {LARGEST_TEXT:,} bytes")
    return path.read_text(encoding="utf-8")


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """Reads a JSON file.

    Args:
        path: Path of the file.
        kind: Expected type of its content.
        remedy: What the user can do about a damaged or missing file, the end of the message.

    Raises:
        ValueError: If the file is damaged, too large or holds another type.
        OSError: If the file cannot be read.
    """
    try:
        value = json.loads(read_text(path))
        if not isinstance(value, kind):
            raise ValueError(f"{type(value).__name__}, not {kind.__name__}")
        return value
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: {remedy}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}.") from error


class Rows:
    """A file of records of one size, written in order and read at random through a memory map.

    After an interruption the first records are complete, and writing continues after them. A note
    beside the file says what the records were made of. They are never mixed with other records.

    Args:
        directory: Directory of the file; it is created if it is missing.
        dtype: Dtype of a record, with named fields. `Rows.dtype` has a checksum as its last field.
        made_of: Name -> value of everything that the records depend on, in JSON's types.

    Raises:
        ValueError: If the directory holds records that were made of something else.
    """

    def __init__(self, directory: str | os.PathLike, dtype: np.dtype, made_of: Mapping):
        self.directory, self.made_of = Path(directory), dict(made_of)
        self.dtype = np.dtype([*np.dtype(dtype).descr, ("checksum", np.uint32)])
        self.check()

    @property
    def path(self) -> Path:
        """Path of the file in the directory."""
        return self.directory / ROWS

    def __len__(self) -> int:
        """Returns the number of complete records."""
        return self.path.stat().st_size // self.dtype.itemsize if self.path.exists() else 0

    def check(self):
        """Refuses a directory with records that were made of something else."""
        check_made_of(self.directory, self.made_of)

    def claim(self, total: int):
        """Prepares a `locked` directory for `total` records, before the first `append`.

        Raises:
            OSError: If the disk has no room for them.
        """
        self.check()
        check_room(self.directory, (total - len(self)) * self.dtype.itemsize)
        write_text(self.directory / NOTE, json.dumps(self.made_of, indent=1) + "\n")

    def append(self, records: np.ndarray):
        """Writes records after the complete ones, over a part of one that an interruption left.

        Args:
            records: Records of `dtype`; this method fills in their checksums.

        Raises:
            OSError: If the file cannot be written. The message says what to do.
        """
        records["checksum"] = checksums(records)
        end = len(self)
        try:
            with open(self.path, "r+b" if self.path.exists() else "wb") as file:
                file.truncate(end * self.dtype.itemsize)
                file.seek(end * self.dtype.itemsize)
                file.write(records.tobytes())
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be written ({error}): make room, and start the same command "
                f"again; it continues from record {end}."
            ) from error

    def read(self) -> np.ndarray:
        """Returns all records, (n,), mapped into memory without reading them."""
        self.check()
        if not len(self):
            return np.zeros(0, self.dtype)  # an empty file cannot be mapped
        return np.memmap(self.path, self.dtype, mode="r", shape=(len(self),))

    def verify(self):
        """Reads all records and compares their checksums.

        Raises:
            ValueError: If a record is damaged.
        """
        records = self.read()
        for start in range(0, len(records), 1024):
            some = np.array(records[start : start + 1024])
            wrong = np.flatnonzero(some["checksum"] != checksums(some))
            if len(wrong):
                raise ValueError(
                    f"{self.path} is damaged at record {start + wrong[0]}: delete the file, and "
                    "the same command writes it again."
                )


def checksums(records: np.ndarray) -> list[int]:
    """Returns the checksum of each record, without its last field of 4 bytes, the checksum."""
    content = records.view(np.uint8).reshape(len(records), -1)[:, :-4]
    return [zlib.crc32(record) for record in np.ascontiguousarray(content)]


def check_room(directory: str | os.PathLike, nbytes: int):
    """Refuses to write `nbytes` bytes to a disk without room for them.

    Raises:
        OSError: Says how many bytes are needed and how many are free.
    """
    path = Path(directory).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    needed, free = nbytes / 1e6, shutil.disk_usage(there).free / 1e6
    if needed > free:
        raise OSError(
            f"{directory} has no room for {needed:,.1f} MB ({free:,.1f} MB are free): make room, "
            "or name a directory on another disk."
        )


def check_made_of(directory: str | os.PathLike, made_of: Mapping):
    """Refuses a directory with `Rows` that were made of something else than `made_of`.

    Raises:
        ValueError: Names the first difference.
    """
    path = Path(directory) / NOTE
    if not path.exists():
        if (Path(directory) / ROWS).exists():
            raise ValueError(f"{directory} holds records of unknown origin: delete it.")
        return
    there = read_json(path, dict, f"delete {directory}")
    here = json.loads(json.dumps(dict(made_of)))
    for name in here:
        if there.get(name) != here[name]:
            raise ValueError(
                f"{directory} was made of another {name} ({there.get(name)}, here {here[name]}): "
                "name another directory, or delete this one."
            )


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """Returns a digest of arrays, which depends on their values, dtypes, shapes and order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        if array.dtype == object:  # an array of files as bytes
            for item in array:
                digest.update(hashlib.sha256(item).digest())
        else:
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]
