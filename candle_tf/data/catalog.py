"""The data sets by name, and what is known of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from candle_tf.data.examples import Examples
from candle_tf.data.long_tail import draw_per_class, long_tail_subset
from candle_tf.data.sources import read
from candle_tf.data.views import Augmentation


@dataclass(frozen=True)
class DatasetInfo:
    """What is declared of a data set.

    Attributes:
        bounds: ranks at which medium and tail begin, classes sorted by training count; thirds
            where None.
        label_smoothing: imbalance ratio -> (head, tail) factors of label-aware smoothing.
        augmentation: how its training images vary.
    """

    bounds: tuple[int, int] | None = None
    label_smoothing: Mapping[float, tuple[float, float]] = field(
        default_factory=lambda: MappingProxyType({10.0: (0.05, 0.1)})
    )
    augmentation: Augmentation = Augmentation(color_jitter=0.4)


CATALOG = {
    "digits": DatasetInfo(augmentation=Augmentation("pad", flip=False)),
    "tfds:cifar10": DatasetInfo(
        (3, 7), {10.0: (0.07, 0.07), 100.0: (0.05, 0.1)}, Augmentation("pad")
    ),
    "tfds:cifar100": DatasetInfo((36, 71), {10.0: (0.08, 0.36)}, Augmentation("pad")),
}


@dataclass(frozen=True)
class LongTailedData:
    """A long-tailed training set beside a test set.

    Attributes:
        train, test: examples.
        validation: examples held out of the set before it was made long-tailed, or None.
        class_counts: int64 (classes,), images per class in `train`.
        class_names: a name a class.
        image_size: the side of the images where all have the same, else None.
        info: what the catalog declares of the set.
        label_smoothing: (head, tail) factors for this imbalance ratio.
    """

    train: Examples
    validation: Examples | None
    test: Examples
    class_counts: np.ndarray
    class_names: list[str]
    image_size: int | None
    info: DatasetInfo
    label_smoothing: tuple[float, float]


def load(
    dataset: str,
    data_dir: str | None = None,
    imbalance_ratio: float | None = None,
    profile: str = "exponential",
    n_max: int | None = None,
    validation_split: float = 0.0,
    seed: int = 0,
    download: bool = False,
    on_bad_image: str = "error",
) -> LongTailedData:
    """Reads a data set and makes its training images long-tailed.

    Args:
        dataset: "digits"; "tfds:NAME" for any image classification set of TFDS; or images of one's
            own: "list:TRAIN.txt,TEST.txt", "csv:FILE", "csv:TRAIN.csv,TEST.csv" or "folder:DIR",
            see `candle_tf.data.own_files`.
        data_dir: where TFDS keeps its sets, its own default where None; the image root of lists and
            CSV files, where they lie where None.
        imbalance_ratio: largest over smallest class count; None leaves the set as published.
        profile: a name of `PROFILES`.
        n_max: images of the largest class, with a ratio; the most that every class can follow
            where None.
        validation_split: the share of each class to hold out of the published training images, so
            that classes which are equal there are equal in the validation set.
        seed: which images are kept and held out.
        download: let TFDS download and prepare a set that is not there.
        on_bad_image: "error", or "skip" to go on without files that cannot be read.

    Raises:
        ValueError: for an unknown set or profile, or counts that cannot be met.
            A fault in images of one's own is named with the first few and their number.
        FileNotFoundError: if the set is not in `data_dir` and `download` is off.
    """
    if not 0 <= validation_split < 1:
        raise ValueError(f"validation_split is a share in [0, 1), not {validation_split:g}.")
    source = read(dataset, data_dir, download, on_bad_image)
    available = np.bincount(source.train_labels, minlength=len(source.class_names))
    if (available == 0).any():
        raise ValueError(
            f"{dataset}: class {np.argmin(available)} has no training image: leave the class out."
        )
    if n_max is not None and imbalance_ratio is None:
        raise ValueError("n_max is of a set that is made long-tailed: give imbalance_ratio too.")
    labels = source.train_labels
    held_out_counts = np.floor(validation_split * available).astype(int)
    held_out = draw_per_class(labels, held_out_counts, np.random.default_rng([seed, 1]))
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    if imbalance_ratio is not None:
        kept = kept[long_tail_subset(labels[kept], imbalance_ratio, profile, n_max, seed)]
    needed = np.union1d(kept, held_out)
    images = source.read_train(needed)
    counts = np.bincount(labels[kept])
    info = CATALOG.get(dataset, DatasetInfo())
    reached = counts.max() / counts.min()
    nearest = min(info.label_smoothing, key=lambda ratio: abs(ratio - reached))
    return LongTailedData(
        train=images.take(np.searchsorted(needed, kept)) if len(held_out) else images,
        validation=images.take(np.searchsorted(needed, held_out)) if len(held_out) else None,
        test=source.test,
        class_counts=counts,
        class_names=source.class_names,
        image_size=source.image_size,
        info=info,
        label_smoothing=info.label_smoothing[nearest],
    )
