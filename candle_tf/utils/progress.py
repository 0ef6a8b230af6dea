"""Progress of long work: a bar on a terminal, which disappears, or two lines in a file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
DELAY = 2.0  # seconds after which work is long


@contextlib.contextmanager
def counted(
    what: str,
    total: int | None = None,
    unit: str = "items",
    show: bool = True,
) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the number of items that were just done.

    Short work shows nothing. Where standard error is no terminal, long work writes one line when
    it is known to be long, and one at its end.

    Args:
        what: The work as a phrase, such as "Looking at images".
        total: Number of items, if it is known.
        unit: Noun for several items, such as "images".
        show: Whether anything may appear.

    Example:
        >>> with counted("Resting", total=2) as add:
        ...     add(2)
    """
    began, done, told = time.monotonic(), 0, False
    file = sys.stderr
    lines = show and not file.isatty()
    with tqdm(
        desc=what,
        total=total,
        unit=f" {unit}",
        leave=False,
        delay=DELAY,
        disable=lines or not show,
    ) as bar:

        def add(count: int):
            nonlocal done, told
            done += count
            bar.update(count)
            if lines and not told and time.monotonic() - began >= DELAY:
                told = True
                of = f" of {total:,}" if total else ""
                print(f"{what}: {done:,}{of} {unit} so far", file=file, flush=True)

        yield add
    if told:
        took = duration(time.monotonic() - began)
        print(f"{what}: {done:,} {unit} in {took}", file=file, flush=True)


def progress(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    unit: str = "items",
    show: bool = True,
) -> Iterator[T]:
    """Yields the same items, and shows the progress as `counted` does.

    Args:
        items: Items to work through.
        what: The work as a phrase, such as "Looking at images".
        total: Number of items, if `len` does not tell it.
        unit: Noun for several items, such as "images".
        show: Whether anything may appear.

    Example:
        >>> list(progress("abc", "Reading"))
        ['a', 'b', 'c']
    """
    total = total or length_hint(items) or None
    with counted(what, total, unit, show) as add:
        for item in items:
            yield item
            add(1)


def duration(seconds: float) -> str:
    """Returns a duration in words.

    Example:
        >>> duration(90), duration(600)
        ('90 s', '10 minutes')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
