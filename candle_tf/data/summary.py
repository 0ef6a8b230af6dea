"""The line that says what was read."""

from collections.abc import Mapping, Sequence

SHOWN = 6  # classes that are all named


def summary(
    names: Sequence[str],
    counts: Sequence[int],
    others: Mapping[str, int],
    left_out: int | None = None,
) -> str:
    """Classes with their training images, and how much else there is.

    Args:
        names: of the classes.
        counts: training images per class.
        others: images of each other split, by its name.
        left_out: files that are not read, where the set is made of files.

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
