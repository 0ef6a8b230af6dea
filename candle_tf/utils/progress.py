"""Progress bars of long work."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
OFTEN, SELDOM = 0.2, 10.0  # seconds between two states of a bar: on a terminal, in a file


def progress(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "it", show: bool = True
) -> Iterable[T]:
    """The same items, with a bar on standard error once they take longer than two seconds.

    Args:
        items: what is worked through.
        what: what is done with them, as "Looking at images".
        total: how many there are, where their number cannot be asked for.
        unit: what one of them is.
        show: whether there is a bar at all.
    """
    between = OFTEN if sys.stderr.isatty() else SELDOM
    return tqdm(
        items, what, total, unit=f" {unit}", delay=2.0, mininterval=between, disable=not show
    )
