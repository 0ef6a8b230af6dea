"""Progress bars of long work."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


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
    return tqdm(items, what, total, unit=f" {unit}", delay=2.0, leave=True, disable=not show)
