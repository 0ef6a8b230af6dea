"""The description of a data set: counts, groups, pixels and some of its images."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from candle_tf import data, metrics
from candle_tf.reports import figures
from candle_tf.utils.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED_IMAGES = 2000  # whose pixels give mean and standard deviation
LARGEST = 400  # side in pixels of an image on the sheet
SHEET = 5  # classes at each end, and images of each


def describe(examples: data.LongTailedData) -> str:
    """Returns counts, imbalance, groups of classes and pixels as lines of text."""
    counts = examples.class_counts
    order = metrics.head_to_tail(counts)
    ends = [f"{examples.class_names[c]} ({counts[c]:,} images)" for c in order[[0, -1]]]
    mean, std, sides = pixels(examples.train)
    held_out = len(examples.validation) if examples.validation else 0
    low, high = ("x".join(map(str, side)) for side in sides)
    return "\n".join(
        [
            f"{len(counts):,} classes, {len(examples.train):,} training, {held_out:,} validation "
            f"and {len(examples.test):,} test images",
            f"imbalance ratio {counts.max() / counts.min():.4g}: from {ends[0]} to {ends[1]}",
            f"by rank: {sizes(metrics.rank_groups(counts, examples.info.bounds), counts)}",
            f"by shots: {sizes(metrics.shot_groups(counts), counts)}",
            f"height x width from {low} to {high}; pixels by channel, as shares of 255: "
            f"mean {', '.join(f'{m:.4f}' for m in mean)}; std {', '.join(f'{s:.4f}' for s in std)}",
        ]
    )


def sizes(groups: Mapping[str, np.ndarray], counts: np.ndarray) -> str:
    """Returns the number of classes and images of each group, as one line."""
    return ", ".join(
        f"{name} {len(members):,} classes ({counts[members].sum():,} images)"
        for name, members in groups.items()
    )


def pixels(examples: data.Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean and standard deviation by channel, (3,), and the range of sizes, (2, 2).

    The sizes are the least and the largest (height, width). `MEASURED_IMAGES` images are measured,
    spread evenly over the set, with equal weights; the first two results are fractions of 255.
    """
    chosen = np.unique(np.linspace(0, len(examples) - 1, MEASURED_IMAGES).astype(int))
    moments, sides = [], []
    for i in progress(chosen, "Measuring pixels", unit="images"):
        image = examples.image(i).numpy() / 255
        sides.append(image.shape[:2])
        moments.append([image.mean(axis=(0, 1)), (image**2).mean(axis=(0, 1))])
    mean, square = np.mean(moments, axis=0)
    return mean, np.sqrt(square - mean**2), np.array([np.min(sides, axis=0), np.max(sides, axis=0)])


def contact_sheet(examples: data.LongTailedData) -> "Figure":
    """Returns a figure of images of the largest and the smallest classes, one row per class."""
    order = metrics.head_to_tail(examples.class_counts)
    images, captions = [], []
    for c in dict.fromkeys([*order[:SHEET], *order[-SHEET:]]):
        members = np.flatnonzero(examples.train.labels == c)[:SHEET]
        name = figures.short(examples.class_names[c])
        for place in range(SHEET):
            if place < len(members):
                image = examples.train.image(members[place]).numpy()
                step = -(-max(image.shape) // LARGEST)  # photographs are not held whole
                images.append(image[::step, ::step].copy())
                captions.append((f"{name} ({examples.class_counts[c]:,})",))
            else:
                images.append(np.full((8, 8, 3), 255, np.uint8))
                captions.append(())
    return figures.image_grid(images, captions, SHEET)


def picture_paths(directory: str | os.PathLike) -> tuple[Path, Path]:
    """Makes the directory of the pictures, and returns their paths.

    Raises:
        OSError: If the directory cannot be made, or holds a file of these names that is no figure
            of Matplotlib.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a directory.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "distribution.png", folder / "images.png"
    for path in paths:
        if path.exists() and b"Matplotlib version" not in path.read_bytes()[:200]:
            raise FileExistsError(f"{path} is not an earlier picture: name another directory.")
    return paths


def write_pictures(examples: data.LongTailedData, directory: str | os.PathLike) -> list[Path]:
    """Writes distribution.png, the counts by class, and images.png, images of head and tail.

    Raises:
        ImportError: If matplotlib is not installed.
        OSError: As `picture_paths`.
    """
    distribution, images = picture_paths(directory)
    counts, names, bounds = examples.class_counts, examples.class_names, examples.info.bounds
    figures.class_distribution(counts, names, bounds).savefig(distribution)
    contact_sheet(examples).savefig(images)
    return [distribution, images]
