"""The sources of data sets: scikit-learn's digits, TFDS, and a user's own files."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.data.checks import check_labels
from candle_tf.data.examples import Examples
from candle_tf.data.long_tail import draw_per_class
from candle_tf.data.own_images import files
from candle_tf.data.own_images.images import stamp_of
from candle_tf.utils.files import cache_directory, fingerprint, written_beside
from candle_tf.utils.names import lookup
from candle_tf.utils.progress import progress


def of_lists(names: str, data_dir: str | None):
    """Reads "TRAIN.txt,TEST.txt", the names of two lists."""
    train, _, test = names.partition(",")
    if not test:
        raise ValueError(f"list:{names} names only one list: give list:TRAIN.txt,TEST.txt.")
    return files.read_list(train, test, data_dir)


def of_csv(names: str, data_dir: str | None):
    """Reads "FILE" or "TRAIN.csv,TEST.csv", the names of one or two tables."""
    train, _, test = names.partition(",")
    return files.read_csv(train, test or None, data_dir)


def of_folder(name: str, data_dir: str | None):
    """Reads a directory, found by its own path or below `data_dir`."""
    return files.read_folder(files.found(name, data_dir, "directory"))


OWN = {  # kind -> (what follows the colon, the image root) -> OwnFiles
    "list": of_lists,
    "csv": of_csv,
    "folder": of_folder,
}
SMALL = 64  # pixels per side: up to this size all images are decoded once and kept in memory


@dataclass(frozen=True)
class Source:
    """A data set as its authors publish it, before any draw.

    Attributes:
        train_labels: Labels of all training images, int64 (n,).
        read_train: A function from indices to the training examples at these indices.
        test: The test examples.
        class_names: One name per class.
        image_size: Side of the images in pixels if all have the same, else None.
        validation: The validation examples, if the set has any.
        left_out: Number of files that are not read, if the set is made of files.
        notes: Printed sentences about what the reader decided.
        said: The printed line that sums up the set, if one was printed.
    """

    train_labels: np.ndarray
    read_train: Callable[[np.ndarray], Examples]
    test: Examples
    class_names: list[str]
    image_size: int | None
    validation: Examples | None = None
    left_out: int | None = None
    notes: Sequence[str] = field(default_factory=list)
    said: str | None = None


def known() -> list[str]:
    """Returns the names that `read` takes, for messages."""
    import tensorflow_datasets as tfds

    own = ["folder:DIR", "csv:FILE", "list:TRAIN.txt,TEST.txt"]
    return [*own, *(f"tfds:{name}" for name in tfds.list_builders())]


def read(
    dataset: str, data_dir: str | None, download: bool = False, on_bad_image: str = "error"
) -> Source:
    """Reads the data set of a name; see `candle_tf.data.load`.

    Args:
        dataset: Name, such as "digits", "tfds:cifar10" or "folder:photos".
        data_dir: Directory of TFDS, or the image root of lists and tables.
        download: Whether TFDS may download a set that is missing.
        on_bad_image: "error", or "skip" to leave out images that cannot be read.

    Raises:
        ValueError: For an unknown name, or files that cannot be used.
        OSError: If the set is not there or cannot be prepared.
    """
    kind, _, name = dataset.partition(":")
    if dataset == "digits":
        return read_digits()
    if kind in OWN and name:
        own, examples, said = files.load(OWN[kind](name, data_dir), on_bad_image)
        train, validation = examples["train"], examples.get("validation")
        return Source(
            train.labels,
            train.take,
            examples["test"],
            files.class_names(own),
            None,
            validation,
            own.left_out,
            own.notes,
            said,
        )
    return read_tfds(dataset, data_dir, download)


def absolute(dataset: str) -> str:
    """Returns the name of the same set, with absolute paths for files in the working directory.

    Args:
        dataset: Name of a set, as in `load`.

    Example:
        >>> os.mkdir("photos")
        >>> ct.data.absolute("folder:photos") == f"folder:{os.path.abspath('photos')}"
        True
        >>> ct.data.absolute("tfds:cifar10")
        'tfds:cifar10'
    """
    kind, _, names = dataset.partition(":")
    if kind not in OWN:
        return dataset
    names = [names] if kind == "folder" else names.split(",")
    names = (os.path.abspath(n) if os.path.exists(n) else n for n in names)
    return f"{kind}:{','.join(names)}"


def below(dataset: str, data_dir: str | None) -> str:
    """Returns the name of the same set, with paths that start with `data_dir`."""
    kind, _, names = dataset.partition(":")
    return f"{kind}:{','.join(os.path.join(data_dir or '', name) for name in names.split(','))}"


def read_digits() -> Source:
    """Reads scikit-learn's 1,797 scans of 8x8 pixels; the same 40 per digit are always the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.uint8(np.round(digits.images * (255 / 16)))[..., None].repeat(3, axis=-1)
    every = Examples(tf.constant(grey), digits.target.astype(np.int64))
    test = draw_per_class(every.labels, [40] * 10, np.random.default_rng(0))
    pool = every.take(np.setdiff1d(np.arange(len(every)), test))
    return Source(pool.labels, pool.take, every.take(test), [str(d) for d in range(10)], 8)


def read_tfds(dataset: str, data_dir: str | None, download: bool) -> Source:
    """Reads any TFDS set with one image and one label per example; holds only the kept images.

    Raises:
        ValueError: For an unknown set, or one without labelled images to train and measure on.
        OSError: If the set is not in `data_dir`, or TFDS cannot prepare it.
    """
    import tensorflow_datasets as tfds

    kind, _, name = dataset.partition(":")
    name, *splits = name.split(",")
    if kind != "tfds" or re.split("[/:]", name)[0] not in tfds.list_builders():
        lookup("dataset", dataset, dict.fromkeys(known()))
    builder = tfds.builder(name, data_dir=data_dir)
    if download:
        try:
            builder.download_and_prepare()
        except Exception as error:  # TFDS raises those of its own, and AssertionError
            reason = " ".join(str(error).split())
            raise OSError(f"{dataset} cannot be prepared: {reason}") from error
    features = dict(builder.info.features.items())
    kinds = tfds.features.Image, tfds.features.ClassLabel
    only = [[n for n, feature in features.items() if type(feature) is kind] for kind in kinds]
    only = tuple(names[0] if len(names) == 1 else "" for names in only)
    image_key, label_key = (builder.info.supervised_keys or only)[:2]
    image, classes = features.get(image_key), features.get(label_key)
    if not (
        isinstance(image, tfds.features.Image) and isinstance(classes, tfds.features.ClassLabel)
    ):
        raise ValueError(f"{dataset} declares no image with a class label: choose another set.")

    side = image.shape[0] if image.shape[0] == image.shape[1] else None

    def labels_of(split: str) -> np.ndarray:
        cached = cache_directory() / f"labels_{state_of(builder.data_dir, split)}.npy"
        prepared = os.path.isdir(builder.data_dir)  # not where TFDS mocks it
        if prepared:
            with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged
                return np.load(cached)
        decoders = tfds.decode.PartialDecoding({label_key: classes})
        try:
            batches = builder.as_dataset(split=split, decoders=decoders).batch(10_000)
        except AssertionError as error:  # TFDS' way to say that a set is missing
            raise FileNotFoundError(
                f"{dataset} is not in {builder.data_dir}: pass `data_dir=DIR`, the directory that "
                f"holds {name!r}, or `download=True` to let TFDS fetch and prepare it there."
            ) from error
        batches = progress(batches, f"Reading labels of {split}", unit="batches")
        labels = np.concatenate([batch[label_key].numpy() for batch in batches])
        if prepared:
            with contextlib.suppress(OSError):  # the labels are known even if nobody can cache them
                cached.parent.mkdir(parents=True, exist_ok=True)
                with written_beside(cached) as beside:
                    np.save(beside, labels)
        return labels

    def read(split: str, kept: np.ndarray, labels: np.ndarray) -> Examples:
        mask = np.zeros(len(labels), bool)
        mask[kept] = True
        encoded = builder.as_dataset(
            split=split, decoders={image_key: tfds.decode.SkipDecoding()}
        ).map(lambda example: example[image_key])
        chosen = encoded.enumerate().filter(lambda i, _: tf.gather(mask, i))
        batches = chosen.map(lambda _, image: image).batch(10_000)
        batches = list(progress(batches, f"Reading {split}", unit="batches"))
        examples = Examples(tf.concat(batches, axis=0), labels[kept])
        return examples.decoded() if side and side <= SMALL else examples

    if splits and len(splits) != 2:
        raise ValueError(
            f"{dataset} names {len(splits)} splits but needs two: give tfds:{name},train,test."
        )
    train, *measured = splits or ("train", "test", "validation")
    if not splits:
        measured = [split for split in measured if split in builder.info.splits]
    labels = {split: labels_of(split) for split in (train, *measured)}
    # Some sets publish their test images without labels: all -1.
    measured = [split for split in measured if labels[split].max() >= 0]
    if not measured:
        raise ValueError(f"{dataset} has no labelled test or validation split to measure on.")
    test = measured[0]
    check_apart(builder.info.splits, train, test, dataset)
    for split in (train, test):
        check_labels(labels[split], classes.num_classes, f"{dataset} {split}")
    return Source(
        labels[train],
        lambda kept: read(train, kept, labels[train]),
        read(test, np.arange(len(labels[test])), labels[test]),
        classes.names,
        side,
    )


def check_apart(splits, train: str, test: str, dataset: str):
    """Refuses two splits of a TFDS set that share examples.

    Raises:
        ValueError: Says how many examples are in both splits.
    """
    import tensorflow_datasets as tfds

    ranges = []
    for split in (train, test):
        found = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
        ends = [splits[r.splitname].num_examples if r.to is None else r.to for r in found]
        ranges.append([(r.splitname, r.from_ or 0, end) for r, end in zip(found, ends)])
    shared = sum(
        max(0, min(end, last) - max(start, first))
        for name, start, end in ranges[0]
        for other, first, last in ranges[1]
        if name == other
    )
    if shared:
        raise ValueError(
            f"{dataset}: the splits {train} and {test} have {shared:,} images in common: name "
            "splits without overlap, such as train[:80%],train[80%:]."
        )


def state_of(directory: str, split: str) -> str:
    """Returns a digest of a split's name and of the names, sizes and times of its set's files."""
    paths = sorted(map(str, Path(directory).absolute().glob("*")))
    return fingerprint([np.array(repr((directory, split, paths)).encode()), stamp_of(paths)])
