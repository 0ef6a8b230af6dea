"""Files that a killed process leaves whole."""

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
LOCK_FILE = "lock"  # held by the process that works in a directory


@contextlib.contextmanager
def locked(directory: str | os.PathLike) -> Iterator[Path]:
    """Makes the directory, and keeps other processes out of it.

    Raises:
        ValueError: if another process is at work in it.
        OSError: if it cannot be written.
    """
    path = Path(directory)
    with contextlib.ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path / LOCK_FILE, "a+", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # a hint: a disk may be full
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
    """Where what was found out about a user's data is kept; it may be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "candle_tf")


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` in the end: a reader never sees half of it.

    Raises:
        OSError: if it cannot be written, which says what to do.
    """
    beside = path.with_name(f"{os.getpid()}_{path.name}")  # with its suffix, which NumPy looks at
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error}): make room or make it writable, and start the "
            "same command again."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str):
    """Writes a file `written_beside` it."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def directory_beside(path: str | os.PathLike) -> Iterator[Path]:
    """A directory to fill, renamed to `path` in the end; what stood there goes only then."""
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
    """A text file of ours, which nobody has made huge.

    Raises:
        ValueError: if it is over `LARGEST_TEXT` bytes, or not UTF-8.
        OSError: if it cannot be read.
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise ValueError(f"{path} is over {LARGEST_TEXT:,} bytes")
    return path.read_text(encoding="utf-8")


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """What `write_text` wrote as JSON.

    Raises:
        ValueError: if it is damaged, too large or of another kind; ends with the remedy.
        OSError: if it cannot be read.
    """
    try:
        value = json.loads(read_text(path))
        if not isinstance(value, kind):
            raise ValueError(f"{type(value).__name__}, not {kind.__name__}")
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}.") from error


class Rows:
    """Records of one size in a file: written in order, read at random through a memory map.

    What was interrupted holds its first records whole and goes on after them. It lies in a
    directory beside a note of what the records were made of, and is of nothing else.

    Args:
        directory: of the file, made if it is not there.
        dtype: of a record, with named fields. `Rows.dtype` has a checksum after them.
        made_of: what the records follow from, by name; values that JSON keeps.

    Raises:
        ValueError: if the directory holds records of something else.
    """

    def __init__(self, directory: str | os.PathLike, dtype: np.dtype, made_of: Mapping):
        self.directory, self.made_of = Path(directory), dict(made_of)
        self.dtype = np.dtype([*np.dtype(dtype).descr, ("checksum", np.uint32)])
        self.check()

    @property
    def path(self) -> Path:
        return self.directory / ROWS

    def __len__(self) -> int:
        """How many records are there, whole."""
        return self.path.stat().st_size // self.dtype.itemsize if self.path.exists() else 0

    def check(self):
        """Refuses a directory that has come to hold something else."""
        check_made_of(self.directory, self.made_of)

    def claim(self, total: int):
        """Before the first `append`, in a `locked` directory: that `total` records are to be there.

        Raises:
            OSError: if there is no room for them.
        """
        self.check()
        check_room(self.directory, (total - len(self)) * self.dtype.itemsize)
        write_text(self.directory / NOTE, json.dumps(self.made_of, indent=1) + "\n")

    def append(self, records: np.ndarray):
        """Writes records after those that are there, over what an interruption left of one.

        Args:
            records: of `dtype`; their checksums are filled in.

        Raises:
            OSError: which says what to do.
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
                f"again; it goes on from record {end}."
            ) from error

    def read(self) -> np.ndarray:
        """All records, (n,), mapped into memory, not read."""
        self.check()
        if not len(self):
            return np.zeros(0, self.dtype)  # nothing cannot be mapped
        return np.memmap(self.path, self.dtype, mode="r", shape=(len(self),))

    def verify(self):
        """Reads all records.

        Raises:
            ValueError: if one is damaged.
        """
        records = self.read()
        for start in range(0, len(records), 1024):
            some = np.array(records[start : start + 1024])
            wrong = np.flatnonzero(some["checksum"] != checksums(some))
            if len(wrong):
                raise ValueError(
                    f"{self.path} is damaged at record {start + wrong[0]}: delete it, and the same "
                    "command makes it again."
                )


def checksums(records: np.ndarray) -> list[int]:
    """Of records whose last field, 4 bytes, is their checksum."""
    content = records.view(np.uint8).reshape(len(records), -1)[:, :-4]
    return [zlib.crc32(record) for record in np.ascontiguousarray(content)]


def check_room(directory: str | os.PathLike, nbytes: int):
    """Refuses to write so much where there is no room for it, before any of it is written.

    Raises:
        OSError: which says how much is missing.
    """
    path = Path(directory).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    needed, free = nbytes / 1e6, shutil.disk_usage(there).free / 1e6
    if needed > free:
        raise OSError(
            f"{directory} has no room for {needed:,.1f} MB ({free:,.1f} MB are free): make room, "
            "or name a directory elsewhere."
        )


def check_made_of(directory: str | os.PathLike, made_of: Mapping):
    """Refuses a directory whose `Rows` were made of something else than `made_of` says.

    Raises:
        ValueError: which names the first difference.
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
                "name another directory, or delete that one."
            )


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """A digest of arrays: of their values, shapes and order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        if array.dtype == object:  # the bytes of files
            for item in array:
                digest.update(hashlib.sha256(item).digest())
        else:
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]
