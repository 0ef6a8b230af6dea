"""The data sets by name, and the published facts about each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import tensorflow as tf
from candle_tf.data.examples import Examples
from candle_tf.data.long_tail import draw_per_class, long_tail_subset
from candle_tf.data.own_images.files import ON_BAD_IMAGE
from candle_tf.data.own_images.overlap import overlap_of
from candle_tf.data.pipeline import evaluation_batches, training_batches
from candle_tf.data.sources import below, known, read
from candle_tf.data.summary import summary
from candle_tf.data.views import Augmentation
from candle_tf.utils.files import fingerprint
from candle_tf.utils.names import lookup

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


@dataclass(frozen=True)
class DatasetInfo:
    """The published facts about a data set.

    Attributes:
        classes: Number of classes; any number for None.
        bounds: Ranks at which medium and tail begin, classes sorted by training count; thirds for
            None.
        label_smoothing: Factors (head, tail) of label-aware smoothing, by imbalance ratio.
        mean: Mean of the pixels per channel, divided by 255, if known.
        std: Standard deviation of the pixels per channel, divided by 255, if known.
        augmentation: Random variation of the training images.
        source: Source that `read` takes in place of the name, for files in the data directory.
        where: Files to put into that directory by hand, and their size.

    Example:
        >>> ct.data.info_of("tfds:cifar10").bounds
        (3, 7)
    """

    classes: int | None = None
    bounds: tuple[int, int] | None = None
    label_smoothing: Mapping[float, tuple[float, float]] = field(
        default_factory=lambda: MappingProxyType({10.0: (0.05, 0.1)})
    )
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    augmentation: Augmentation = Augmentation(color_jitter=0.4)
    source: str | None = None
    where: str = ""


CATALOG = {  # the papers' fifteen, and the digits; figures are theirs
    "digits": DatasetInfo(10, augmentation=Augmentation("pad", flip=False)),
    "tfds:caltech101": DatasetInfo(
        102,
        (36, 72),
        {10.0: (0.01, 0.01)},
        (0.5494, 0.5232, 0.4932),
        (0.2463, 0.2461, 0.2460),
    ),
    "tfds:cifar10": DatasetInfo(
        10,
        (3, 7),
        {10.0: (0.07, 0.07), 100.0: (0.05, 0.1)},
        **CIFAR,
        augmentation=Augmentation("pad"),
    ),
    "tfds:cifar100": DatasetInfo(
        100, (36, 71), {10.0: (0.08, 0.36)}, **CIFAR, augmentation=Augmentation("pad")
    ),
    "tfds:caltech_birds2011": DatasetInfo(
        200,
        (72, 142),
        {10.0: (0.04, 0.01)},
        (0.4859, 0.4996, 0.4318),
        (0.1822, 0.1812, 0.1932),
    ),
    "tfds:dtd": DatasetInfo(
        47,
        (14, 33),
        {10.0: (0.01, 0.39)},
        (0.5273, 0.4702, 0.4235),
        (0.1804, 0.1814, 0.1779),
    ),
    "tfds:oxford_flowers102": DatasetInfo(
        102,
        (36, 72),
        {10.0: (0.04, 0.04)},
        (0.4344, 0.3830, 0.2954),
        (0.2617, 0.2130, 0.2236),
    ),
    "tfds:cars196": DatasetInfo(
        196,
        (70, 139),
        {10.0: (0.0, 0.38)},
        (0.4707, 0.4601, 0.4550),
        (0.2667, 0.2658, 0.2706),
    ),
    "tfds:stanford_dogs": DatasetInfo(
        120,
        (43, 85),
        {10.0: (0.0, 0.03)},
        (0.4765, 0.4517, 0.3911),
        (0.2342, 0.2293, 0.2274),
    ),
    "aircraft": DatasetInfo(
        100,
        (36, 71),
        {10.0: (0.0, 0.39)},
        (0.4796, 0.5107, 0.5341),
        (0.1957, 0.1945, 0.2162),
        source="csv:aircraft_train.csv,aircraft_test.csv",
        where="the folder images/ of FGVC-Aircraft (2.75 GB), and aircraft_train.csv and "
        "aircraft_test.csv with the columns path (images/ID.jpg) and label (the variant), from its "
        "images_variant_trainval.txt and images_variant_test.txt",
    ),
    "fruits": DatasetInfo(
        24,
        (7, 14),
        {100.0: (0.0, 0.0)},
        (0.6199, 0.5188, 0.4020),
        (0.2588, 0.2971, 0.3369),
        source="folder:fruits-360",
        where="the folder fruits-360/ with Training/ and Test/ of Fruits-360 in original size",
    ),
    "imagenet_lt": DatasetInfo(
        1000,
        (390, 835),
        {256.0: (0.3, 0.0)},
        **IMAGENET,
        source="list:ImageNet_LT_train.txt,ImageNet_LT_test.txt",
        where="train/ and val/ of ImageNet 2012 (145 GB), and the lists of ImageNet-LT, "
        "ImageNet_LT_train.txt and ImageNet_LT_test.txt",
    ),
    "places_lt": DatasetInfo(
        365,
        (131, 259),
        {996.0: (0.4, 0.1)},
        **IMAGENET,
        source="list:Places_LT_train.txt,Places_LT_test.txt",
        where="the images of Places365-Standard (24 GB at 256 pixels), and the lists of Places-LT, "
        "Places_LT_train.txt and Places_LT_test.txt",
    ),
    "inaturalist2018": DatasetInfo(
        8142,
        (842, 4543),
        {500.0: (0.3, 0.0)},
        (0.466, 0.471, 0.380),
        (0.195, 0.194, 0.192),
        source="list:iNaturalist18_train.txt,iNaturalist18_val.txt",
        where="train_val2018/ of iNaturalist 2018 (120 GB), and its lists iNaturalist18_train.txt "
        "and iNaturalist18_val.txt",
    ),
}


OTHER = DatasetInfo()


def info_of(dataset: str) -> DatasetInfo:
    """Returns the facts about a set, whatever its TFDS splits; the defaults for your own images.

    Example:
        >>> ct.data.info_of("tfds:cifar100,train,test").classes
        100
    """
    return CATALOG.get(dataset.partition(",")[0], OTHER)


@dataclass(frozen=True, repr=False)
class LongTailedData:
    """A long-tailed training set beside a test set.

    Attributes:
        train: Training images.
        validation: Validation split of the set, or images held out before the set was made
            long-tailed, or None.
        test: Test images.
        class_counts: Training images per class, int64 (classes,).
        class_names: One name per class.
        image_size: Side of the images in pixels if all have the same side, else None.
        info: Facts about the set from the catalog.
        label_smoothing: Factors (head, tail) for this imbalance ratio.
        left_out: Number of files that are not read, for a set of files.
        notes: Sentences about decisions, and about faults of the set.
        overlap: Number of images in two splits or two classes, by name.

    Example:
        >>> data = ct.data.load("digits", imbalance_ratio=10)  # doctest: +ELLIPSIS
        10 classes ...
        >>> int(data.class_counts.max()), int(data.class_counts.min())
        (143, 14)
    """

    train: Examples
    validation: Examples | None
    test: Examples
    class_counts: np.ndarray
    class_names: list[str]
    image_size: int | None
    info: DatasetInfo
    label_smoothing: tuple[float, float]
    left_out: int | None = None
    notes: tuple[str, ...] = ()
    overlap: Mapping[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """Returns the line that says what was read."""
        splits = {"validation": self.validation, "test": self.test}
        others = {name: len(part) for name, part in splits.items() if part is not None}
        return summary(self.class_names, self.class_counts, others, self.left_out)

    def training_batches(
        self,
        *,
        batch_size: int,
        image_size: int | None = None,
        sampler: str = "instance_balanced",
        seed: int = 0,
        **stream,
    ) -> tf.data.Dataset:
        """Returns the training images in batches, augmented as the catalog says for this set.

        Args:
            batch_size: Number of images per batch.
            image_size: Side in pixels of the batches' images; the side of the set's images, if all
                have the same, where None.
            sampler: Sampler of the images, a name of `candle_tf.data.SAMPLERS`.
            seed: Seed of the order and of the augmentation.
            **stream: Further arguments of `candle_tf.data.training_batches`, such as `views`.

        Returns:
            A dataset of (images float32 (batch, image_size, image_size, 3) in [0, 255], labels
            int64 (batch,)). Each reading gives the next epoch, as `fit` expects.

        Raises:
            ValueError: For an unknown sampler, or images of different sizes without an image_size.

        Example:
            >>> data = ct.data.load("digits", imbalance_ratio=10)  # doctest: +ELLIPSIS
            10 classes ...
            >>> batches = data.training_batches(batch_size=4, sampler="class_balanced")
            >>> next(iter(batches))[0].shape
            TensorShape([4, 8, 8, 3])
        """
        how = {"augmentation": self.info.augmentation, "sampler": sampler, "seed": seed, **stream}
        return training_batches(self.train, self.side(image_size), batch_size, **how)

    def evaluation_batches(
        self, *, batch_size: int, image_size: int | None = None, split: str = "test"
    ) -> tf.data.Dataset:
        """Returns each image of a split once, in order, in batches.

        Args:
            batch_size: Number of images per batch.
            image_size: Side in pixels, as in `training_batches`.
            split: "test", "validation" or "train".

        Returns:
            A dataset of (images float32 (batch, image_size, image_size, 3) in [0, 255], labels
            int64 (batch,)).

        Raises:
            ValueError: For an unknown split, or one that the set does not have.

        Example:
            >>> data = ct.data.load("digits", imbalance_ratio=10)  # doctest: +ELLIPSIS
            10 classes ...
            >>> images, labels = next(iter(data.evaluation_batches(batch_size=4, image_size=16)))
            >>> images.shape, labels.shape
            (TensorShape([4, 16, 16, 3]), TensorShape([4]))
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        examples = lookup("split", split, splits)
        if examples is None:
            raise ValueError(
                f"This set has no {split} split: load it with a validation_split, such as 0.1."
            )
        size = self.side(image_size)
        return evaluation_batches(examples, size, batch_size, self.info.augmentation)

    def side(self, image_size: int | None) -> int:
        """Returns the side in pixels of batches, the images' own where None.

        Raises:
            ValueError: If None is given and the images have different sizes.
        """
        if image_size is None and self.image_size is None:
            raise ValueError(
                "The images have different sizes: give image_size, the side in pixels of the "
                "batches' images."
            )
        return image_size or self.image_size

    def __repr__(self) -> str:
        ratio = self.class_counts.max() / self.class_counts.min()
        notes = f"{len(self.notes)} notes, first: {self.notes[0]}" if self.notes else "no notes"
        return f"{self.summary()}\nimbalance ratio {ratio:.4g}\n{notes}"

    def fingerprint(self) -> str:
        """Returns a digest of class names and labels, and of the names and sizes of files."""
        parts = [np.array("\0".join(self.class_names).encode())]
        for split in (self.train, self.validation, self.test):
            if split is not None:
                parts.append(split.labels)
                if split.on_disk:
                    parts += split.files()
        return fingerprint(parts)


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
        dataset: Name in `CATALOG`; "tfds:NAME" or "tfds:NAME,TRAIN,TEST" for any image
            classification set of TFDS; or your own images: "list:TRAIN.txt,TEST.txt", "csv:FILE",
            "csv:TRAIN.csv,TEST.csv" or "folder:DIR" (see `candle_tf.data.own_images.files`).
        data_dir: Directory of TFDS, whose default is used for None. For lists and tables, the
            directory that their paths start from; their own directory for None.
        imbalance_ratio: Largest over smallest class count; None keeps the set as published.
        profile: Name in `PROFILES`.
        n_max: Images of the largest class, with a ratio; for None, as many as the profile allows.
        validation_split: Fraction of each class to hold out of the published training images. The
            classes are then as balanced in the validation set as in the published set.
        seed: Seed that chooses the images to keep and to hold out.
        download: Whether TFDS may download and prepare a missing set.
        on_bad_image: "error", or "skip" to leave out files that cannot be read.

    Raises:
        ValueError: For an unknown set or profile, or counts that cannot be met. A fault in your own
            images is named with the first few files and their number.
        FileNotFoundError: If the set is not in `data_dir` and `download` is off.

    Example:
        >>> ct.data.load("digits", imbalance_ratio=10)
        10 classes (579 images; largest 3 143, 1 110, ..., smallest 2 18, 8 14), 400 test images
        10 classes (579 images; largest 3 143, 1 110, ..., smallest 2 18, 8 14), 400 test images
        imbalance ratio 10.21
        no notes
    """
    if not 0 <= validation_split < 1:
        raise ValueError(f"validation_split is a share in [0, 1), not {validation_split:g}.")
    lookup("on_bad_image", on_bad_image, dict.fromkeys(ON_BAD_IMAGE))
    info = info_of(dataset)
    if info is OTHER and ":" not in dataset:
        if os.path.isdir(dataset):
            raise ValueError(
                f"{dataset} is a directory: give `dataset=folder:{dataset}` for images in folders, "
                "one per class."
            )
        lookup("dataset", dataset, dict.fromkeys([*CATALOG, *known()]))
    try:
        name = info.source and below(info.source, data_dir)
        source = read(name or dataset, data_dir, download, on_bad_image)
    except FileNotFoundError as error:
        if not info.where:
            raise
        where = f"`data_dir={data_dir or 'DIR'}`"
        raise FileNotFoundError(f"{error} {where} is to hold {info.where}.") from error
    if info.classes and len(source.class_names) != info.classes:
        raise ValueError(
            f"{dataset} has {len(source.class_names)} classes here but {info.classes} as "
            "published: see that all of it is there."
        )
    available = np.bincount(source.train_labels, minlength=len(source.class_names))
    if (available == 0).any():
        empty = source.class_names[np.argmin(available)]
        raise ValueError(f"{dataset}: class {empty!r} has no training image: leave the class out.")
    if n_max is not None and imbalance_ratio is None:
        raise ValueError("n_max needs a set that is made long-tailed: give imbalance_ratio too.")
    labels = source.train_labels
    held_out_counts = np.floor(validation_split * available + 1e-6).astype(int)
    if validation_split and not held_out_counts.any():
        raise ValueError(
            f"validation_split is {validation_split:g}, less than one of the {available.max()} "
            "images of the largest class: give a larger share, or 0 to hold out none."
        )
    held_out = draw_per_class(labels, held_out_counts, np.random.default_rng([seed, 1]))
    kept = np.setdiff1d(np.arange(len(labels)), held_out)
    if imbalance_ratio is not None:
        kept = kept[long_tail_subset(labels[kept], imbalance_ratio, profile, n_max, seed)]
    needed = np.union1d(kept, held_out)
    images = source.read_train(needed)
    counts = np.bincount(labels[kept])
    reached = counts.max() / counts.min()
    nearest = min(info.label_smoothing, key=lambda ratio: abs(ratio - reached))
    train = images.take(np.searchsorted(needed, kept)) if len(held_out) else images
    validation, notes = source.validation, []
    if len(held_out):
        validation = images.take(np.searchsorted(needed, held_out))
        if source.validation is not None:
            notes.append(
                f"The set's own validation split, {len(source.validation)} images, is left out, as "
                "validation_split holds out another."
            )
    measured = {"validation": validation, "test": source.test}
    measured = {name: part for name, part in measured.items() if part is not None}
    for name, part in measured.items():
        missing = np.setdiff1d(np.arange(len(counts)), part.labels)
        if len(missing):
            some = ", ".join(source.class_names[c] for c in missing[:5])
            notes.append(
                f"{len(missing)} of {len(counts)} classes have no {name} image ({some}"
                f"{', ...' if len(missing) > 5 else ''}): they do not count in that accuracy."
            )
    overlap = overlap_of(train, measured)
    notes += overlap.notes
    for note in notes:
        print(note)
    data = LongTailedData(
        train=train,
        validation=validation,
        test=source.test,
        class_counts=counts,
        class_names=source.class_names,
        image_size=source.image_size,
        info=info,
        label_smoothing=info.label_smoothing[nearest],
        left_out=source.left_out,
        notes=(*source.notes, *notes),
        overlap=overlap.counts,
    )
    if data.summary() != source.said:
        print(data.summary())
    return data
