"""The overlap of splits: test images that equal, or nearly equal, a training image."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from candle_tf.data.examples import Examples
from candle_tf.data.own_images.images import THUMB

CLOSE = 2.0  # thumbnails of one image that was saved twice differ by less, on average
CONTRAST = 12.0  # a thumbnail needs this standard deviation to be told from others
NEAREST = 8  # training images that each test image is compared with
BLOCKS = (2, 4, 3, 3)  # a thumbnail as 2 x 3 blocks


@dataclass(frozen=True)
class Overlap:
    """The number of images that two splits or two classes share.

    Attributes:
        counts: Name in metrics.json -> number of images.
        notes: One sentence per count above zero.
    """

    counts: Mapping[str, int]
    notes: tuple[str, ...]


def overlap_of(train: Examples, others: Mapping[str, Examples]) -> Overlap:
    """Counts images of other splits that are also training images, and images in two classes.

    Digests find equal pixels. Among image files, thumbnails also find images that were saved
    again in another size, format or quality.

    Args:
        train: The training images.
        others: "test" and maybe "validation" -> the images of the split.
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
            f"{plural(len(torn), 'training image')} in two classes with equal pixels{some}: "
            "remove the wrong one."
        )
    counts["train_images_twice"] = len(twice) - len(torn)
    if len(twice) > len(torn):
        notes.append(
            f"{plural(len(twice) - len(torn), 'training image')} equal to another of their class."
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
                more = " more" if same else ""
                notes.append(
                    f"{len(close):,}{more} of {len(other):,} {name} images nearly equal a training "
                    f"image ({name_of(other, close[0])}, ...)."
                )
    return Overlap(counts, tuple(notes))


def near(some: np.ndarray, others: np.ndarray) -> list[int]:
    """Returns the indices of thumbnails (n, 8, 9) that nearly equal one of the others (m, 8, 9)."""
    from scipy.spatial import cKDTree  # takes a while to import

    def blocks(thumbs):
        return thumbs.reshape(-1, *BLOCKS).mean(axis=(2, 4)).reshape(len(thumbs), -1)

    clear = np.flatnonzero(some.std(axis=(1, 2)) >= CONTRAST)
    if not len(clear) or not len(others):
        return []
    few = min(NEAREST, len(others))
    width = BLOCKS[0] * BLOCKS[2]
    tree = cKDTree(blocks(others))
    # Thumbnails that differ by at most CLOSE have blocks that differ by at most CLOSE.
    _, at = tree.query(blocks(some[clear]), few, p=1, distance_upper_bound=width * CLOSE + 1e-6)
    at = at.reshape(len(clear), few)
    padded = np.concatenate([others, np.zeros((1, *THUMB), np.uint8)])[at].astype(np.int16)
    difference = np.abs(padded - some[clear, None].astype(np.int16)).mean(axis=(2, 3))
    return clear[((difference <= CLOSE) & (at < len(others))).any(axis=1)].tolist()


def name_of(examples: Examples, i: int) -> str:
    """Returns the name of an image for messages: CLASS/NAME of a file, else its number."""
    if not examples.on_disk:
        return f"image {i}"
    return "/".join(os.fsdecode(examples.images[int(i)].numpy()).split("/")[-2:])


def plural(count: int, what: str) -> str:
    """Returns "1 image is" or "2 images are", the start of a sentence."""
    return f"{count:,} {what} is" if count == 1 else f"{count:,} {what}s are"
