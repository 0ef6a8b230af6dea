"""Images that a measurement should not share with the training: equal or nearly equal ones."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from candle_tf.data.examples import Examples
from candle_tf.data.own_images.images import THUMB

CLOSE = 2.0  # mean difference of thumbnails of one image, saved twice
CONTRAST = 12.0  # standard deviation of a thumbnail that can be recognised
NEAREST = 8  # training images that each other one is compared with
BLOCKS = (2, 4, 3, 3)  # a thumbnail as 2 x 3 blocks


@dataclass(frozen=True)
class Overlap:
    """How many images are where they should not be.

    Attributes:
        counts: by a name for metrics.json.
        notes: a sentence for each count that is not zero.
    """

    counts: Mapping[str, int]
    notes: tuple[str, ...]


def overlap_of(train: Examples, others: Mapping[str, Examples]) -> Overlap:
    """Counts images of other splits that are in the training split, and images of two classes.

    Equal pixels are found by their digests. Of files, images that were saved twice (in another
    size, format or quality) are found by thumbnails.

    Args:
        train: the training images.
        others: "test" and maybe "validation".
    """
    counts, notes = {}, []
    marks = train.recognised_by()
    first: dict[int, int] = {}
    for i, digest in enumerate(marks["content"].tolist()):
        first.setdefault(digest, i)
    before = np.array([first[digest] for digest in marks["content"].tolist()], int)
    twice = np.flatnonzero(before != np.arange(len(train)))
    torn = twice[train.labels[twice] != train.labels[before[twice]]]
    counts["train_images_in_two_classes"] = len(torn)
    if len(torn):
        some = f" ({name_of(train, before[torn[0]])} and {name_of(train, torn[0])})"
        notes.append(
            f"{plural(len(torn), 'training image')} in one class and, equal, in another{some}: "
            "remove the wrong one."
        )
    counts["train_images_twice"] = len(twice) - len(torn)
    if len(twice) > len(torn):
        notes.append(
            f"{plural(len(twice) - len(torn), 'training image')} equal to another of the class."
        )
    for name, other in others.items():
        theirs = other.recognised_by()
        same = [i for i, d in enumerate(theirs["content"].tolist()) if d in first]
        counts[f"{name}_images_in_train"] = len(same)
        if same:
            pair = name_of(other, same[0]), name_of(train, first[int(theirs["content"][same[0]])])
            some = f" ({pair[0]} is {pair[1]})" if train.on_disk else ""
            notes.append(
                f"{len(same):,} of {len(other):,} {name} images equal a training image{some}: "
                f"accuracy on the {name} split is too high by that."
            )
        if train.on_disk and other.on_disk:
            close = [i for i in near(theirs["thumb"], marks["thumb"]) if i not in set(same)]
            counts[f"{name}_images_nearly_in_train"] = len(close)
            if close:
                notes.append(
                    f"{len(close):,} more of the {name} images nearly equal a training image "
                    f"({name_of(other, close[0])}, ...)."
                )
    return Overlap(counts, tuple(notes))


def near(some: np.ndarray, others: np.ndarray) -> list[int]:
    """Which thumbnails (n, 8, 9) are close to one of the others (m, 8, 9)."""
    from scipy.spatial import cKDTree  # takes a while to import

    def blocks(thumbs):
        return thumbs.reshape(-1, *BLOCKS).mean(axis=(2, 4)).reshape(len(thumbs), -1)

    clear = np.flatnonzero(some.std(axis=(1, 2)) >= CONTRAST)
    if not len(clear) or not len(others):
        return []
    few = min(NEAREST, len(others))
    width = BLOCKS[0] * BLOCKS[2]
    tree = cKDTree(blocks(others))
    # The blocks of what is close differ by no more than CLOSE on average.
    _, at = tree.query(blocks(some[clear]), few, p=1, distance_upper_bound=width * CLOSE + 1e-6)
    at = at.reshape(len(clear), few)
    padded = np.concatenate([others, np.zeros((1, *THUMB), np.uint8)])[at].astype(np.int16)
    difference = np.abs(padded - some[clear, None].astype(np.int16)).mean(axis=(2, 3))
    return clear[((difference <= CLOSE) & (at < len(others))).any(axis=1)].tolist()


def name_of(examples: Examples, i: int) -> str:
    """A file as CLASS/NAME, or the number of an image."""
    if not examples.on_disk:
        return f"image {i}"
    return "/".join(os.fsdecode(examples.images[int(i)].numpy()).split("/")[-2:])


def plural(count: int, what: str) -> str:
    return f"{count:,} {what} is" if count == 1 else f"{count:,} {what}s are"
