"""Progress bars for long work."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
OFTEN, SELDOM = 0.2, 10.0  # seconds between two updates of a bar: on a terminal, in a file


def progress(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "it", show: bool = True
) -> Iterable[T]:
    """Returns the same items with a progress bar, which appears after two seconds.

    Args:
        items: Items to work through.
        what: The work as a phrase, such as "Looking at images".
        total: Number of items, if `len` does not tell it.
        unit: Noun for one item.
        show: Whether a bar may appear at all.
    """
    between = OFTEN if sys.stderr.isatty() else SELDOM
    return tqdm(
        items, what, total, unit=f" {unit}", delay=2.0, mininterval=between, disable=not show
    )
