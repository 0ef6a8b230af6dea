"""The data sets by name, and what is known of each."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import tensorflow as tf
from candle_tf.data.long_tail import draw_per_class, long_tail_subset
from candle_tf.data.pipeline import Examples
from candle_tf.data.views import Augmentation
from candle_tf.registry import lookup

SMALL = 64  # pixels a side: such images are decoded once and held so


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
) -> LongTailedData:
    """Reads a data set and makes its training images long-tailed.

    Args:
        dataset: "digits", or "tfds:NAME" for any image classification set of TFDS.
        data_dir: where TFDS keeps its sets; its own default where None.
        imbalance_ratio: largest over smallest class count; None leaves the set as published.
        profile: a name of `PROFILES`.
        n_max: images of the largest class, with a ratio; the most that every class can follow
            where None.
        validation_split: the share of each class to hold out of the published training images, so
            that classes which are equal there are equal in the validation set.
        seed: which images are kept and held out.
        download: let TFDS download and prepare a set that is not there.

    Raises:
        ValueError: for an unknown set or profile, or counts that cannot be met.
        FileNotFoundError: if the set is not in `data_dir` and `download` is off.
    """
    if not 0 <= validation_split < 1:
        raise ValueError(f"validation_split is a share in [0, 1), not {validation_split:g}.")
    source = read_digits() if dataset == "digits" else read_tfds(dataset, data_dir, download)
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
    read = np.union1d(kept, held_out)
    images = source.read_train(read)
    counts = np.bincount(labels[kept])
    info = CATALOG.get(dataset, DatasetInfo())
    reached = counts.max() / counts.min()
    nearest = min(info.label_smoothing, key=lambda ratio: abs(ratio - reached))
    return LongTailedData(
        train=images.take(np.searchsorted(read, kept)) if len(held_out) else images,
        validation=images.take(np.searchsorted(read, held_out)) if len(held_out) else None,
        test=source.test,
        class_counts=counts,
        class_names=source.class_names,
        image_size=source.image_size,
        info=info,
        label_smoothing=info.label_smoothing[nearest],
    )


@dataclass(frozen=True)
class Source:
    """A set as it is published: the training labels, and its images on demand."""

    train_labels: np.ndarray
    read_train: Callable[[np.ndarray], Examples]
    test: Examples
    class_names: list[str]
    image_size: int | None


def read_digits() -> Source:
    """scikit-learn's 1,797 scans of 8x8 pixels; 40 of each digit, drawn once, are the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.uint8(np.round(digits.images * (255 / 16)))[..., None].repeat(3, axis=-1)
    every = Examples(tf.constant(grey), digits.target.astype(np.int64))
    test = draw_per_class(every.labels, [40] * 10, np.random.default_rng(0))
    pool = every.take(np.setdiff1d(np.arange(len(every)), test))
    return Source(pool.labels, pool.take, every.take(test), [str(d) for d in range(10)], 8)


def read_tfds(dataset: str, data_dir: str | None, download: bool) -> Source:
    """Any TFDS set with one image and one class label; only the kept images' bytes are held."""
    import tensorflow_datasets as tfds

    kind, _, name = dataset.partition(":")
    if kind != "tfds" or re.split("[/:]", name)[0] not in tfds.list_builders():
        known = [*CATALOG, *(f"tfds:{name}" for name in tfds.list_builders())]
        lookup("dataset", dataset, dict.fromkeys(known))
    builder = tfds.builder(name, data_dir=data_dir)
    if download:
        builder.download_and_prepare()
    elif not tf.io.gfile.exists(f"{builder.data_dir}/dataset_info.json"):
        raise FileNotFoundError(
            f"{dataset} is not in {builder.data_dir}: pass --data_dir=DIR, the directory that "
            f"holds {name!r}, or --download to let TFDS fetch and prepare it there."
        )
    image_key, label_key = (builder.info.supervised_keys or ("", ""))[:2]
    features = dict(builder.info.features.items())
    image, classes = features.get(image_key), features.get(label_key)
    if not (
        isinstance(image, tfds.features.Image) and isinstance(classes, tfds.features.ClassLabel)
    ):
        raise ValueError(f"{dataset} declares no image with a class label: choose another set.")

    side = image.shape[0] if image.shape[0] == image.shape[1] else None

    def labels_of(split: str) -> np.ndarray:
        decoders = tfds.decode.PartialDecoding({label_key: classes})
        batches = builder.as_dataset(split=split, decoders=decoders).batch(10_000)
        return np.concatenate([batch[label_key].numpy() for batch in batches])

    def read(split: str, kept: np.ndarray, labels: np.ndarray) -> Examples:
        mask = np.zeros(len(labels), bool)
        mask[kept] = True
        encoded = builder.as_dataset(
            split=split, decoders={image_key: tfds.decode.SkipDecoding()}
        ).map(lambda example: example[image_key])
        chosen = encoded.enumerate().filter(lambda i, _: tf.gather(mask, i))
        batches = chosen.map(lambda _, image: image).batch(10_000)
        examples = Examples(tf.concat(list(batches), axis=0), labels[kept])
        return examples.decoded() if side and side <= SMALL else examples

    measured = [split for split in ("test", "validation") if split in builder.info.splits]
    labels = {split: labels_of(split) for split in ("train", *measured)}
    # Some sets publish their test images without labels: all -1.
    measured = [split for split in measured if labels[split].max() >= 0]
    if not measured:
        raise ValueError(f"{dataset} has no labelled test or validation split to measure on.")
    test = measured[0]
    for split in ("train", test):
        check_labels(labels[split], classes.num_classes, f"{dataset} {split}")
    return Source(
        labels["train"],
        lambda kept: read("train", kept, labels["train"]),
        read(test, np.arange(len(labels[test])), labels[test]),
        classes.names,
        side,
    )


def check_labels(labels: np.ndarray, num_classes: int, where: str, first: int = 0):
    """Refuses labels outside [0, num_classes), naming the first by its index plus `first`."""
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise ValueError(
            f"{where}: example {first + bad[0]} has label {labels[bad[0]]}, but labels go from 0 "
            f"to {num_classes - 1} ({len(bad)} such examples); correct the labels or the classes."
        )
