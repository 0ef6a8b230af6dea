"""Images without labels, for a pretraining."""

import dataclasses

import numpy as np
from candle_tf.data.catalog import LongTailedData, info_of, load
from candle_tf.data.examples import Examples
from candle_tf.data.own_images import files
from candle_tf.data.own_images.layout import TRAIN, scan
from candle_tf.data.own_images.pixels import is_image
from candle_tf.utils.run_files import UNLABELLED

HELD_OUT_EVERY = 50


def load_unlabelled(
    dataset: str,
    data_dir: str | None = None,
    download: bool = False,
    on_bad_image: str = "error",
) -> LongTailedData:
    """Reads images without their labels.

    Args:
        dataset: "folder:DIR" for all images below a folder, test images too; or a set with labels,
            which are not used, as in `candle_tf.data.load`. Its test images are left out.
        data_dir: Directory of TFDS, or the image root of lists and tables.
        download: Whether TFDS may download a set that is missing.
        on_bad_image: "error", or "skip" to leave out files that cannot be read.

    Returns:
        The images as a set of one class. Every 50th image is the test split.

    Raises:
        ValueError: For files that cannot be read, or fewer than two images.
        FileNotFoundError: If the folder or the set is not there.

    Example:
        >>> len(load_unlabelled("digits").train)  # doctest: +ELLIPSIS
        10 classes ...
        1,369 images without their labels, and 28 held out
        1369
    """
    kind, _, name = dataset.partition(":")
    info, image_size, left_out, notes = info_of(dataset), None, None, ()
    if kind == "folder":
        examples, left_out = images_below(files.found(name, data_dir, "directory"), on_bad_image)
    else:
        data = load(dataset, data_dir, download=download, on_bad_image=on_bad_image)
        examples, image_size, left_out = data.train, data.image_size, data.left_out
        notes = data.notes
    if len(examples) < 2:
        raise ValueError(f"{dataset} holds {len(examples)} images: a pretraining needs thousands.")
    examples = dataclasses.replace(examples, labels=np.zeros(len(examples), np.int64))
    test = np.arange(0, len(examples), HELD_OUT_EVERY)
    train = examples.take(np.setdiff1d(np.arange(len(examples)), test))
    print(f"{len(train):,} images without their labels, and {len(test):,} held out")
    return LongTailedData(
        train=train,
        validation=None,
        test=examples.take(test),
        class_counts=np.array([len(train)]),
        class_names=[UNLABELLED],
        image_size=image_size,
        info=info,
        label_smoothing=(0.0, 0.0),
        left_out=left_out,
        notes=notes,
    )


def images_below(directory: str, on_bad_image: str) -> tuple[Examples, int]:
    """Returns all images below a directory in random order, and the number of files left out."""
    folder = scan(directory, is_image)
    paths = sorted(folder.every_image())
    if not paths:
        raise ValueError(f"No image is below {directory}: name a folder that holds some.")
    np.random.default_rng(0).shuffle(paths)
    found = files.Files(paths, [UNLABELLED] * len(paths), paths)
    own = files.OwnFiles({TRAIN: found}, directory, folder.size() - len(paths))
    files.check_paths(own.splits)
    print(f"{len(paths):,} images below {directory}, {own.left_out:,} other files left out")
    own, looks = files.look(own, on_bad_image)
    return files.to_examples(own, looks)[TRAIN], own.left_out
