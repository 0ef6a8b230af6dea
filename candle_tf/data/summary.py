"""The line that sums up a data set once it is read."""

from collections.abc import Mapping, Sequence

SHOWN = 6  # classes at most that the line names one by one


def summary(
    names: Sequence[str],
    counts: Sequence[int],
    others: Mapping[str, int],
    left_out: int | None = None,
) -> str:
    """Returns a line with the classes, their training images and the sizes of the other splits.

    Args:
        names: Names of the classes.
        counts: Training images per class.
        others: Name of each other split -> its number of images.
        left_out: Number of files that are not read, if the set is made of files.

    Example:
        >>> summary(["cat", "dog"], [9, 3], {"test": 4}, 0)
        '2 classes (cat 9, dog 3), 4 test images, 0 files left out'
    """
    each = [f"{name} {count:,}" for name, count in zip(names, counts)]
    if len(each) > SHOWN:
        order = sorted(range(len(each)), key=lambda c: -counts[c])
        largest, smallest = ([each[c] for c in part] for part in (order[:2], order[-2:]))
        each = [f"{sum(counts):,} images; largest {largest[0]}", largest[1], "..."]
        each += [f"smallest {smallest[0]}", smallest[1]]
    parts = [f"{len(names):,} classes ({', '.join(each)})"]
    parts += [f"{count:,} {name} image{'s' * (count != 1)}" for name, count in others.items()]
    if left_out is not None:
        parts.append(f"{left_out:,} file{'s' * (left_out != 1)} left out")
    return ", ".join(parts)
