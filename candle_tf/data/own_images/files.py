"""The user's own images: lists of paths, folders of classes, CSV files."""

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf
from candle_tf.data.examples import Examples
from candle_tf.data.long_tail import draw_per_class
from candle_tf.data.own_images.images import Look, look_at_files
from candle_tf.data.own_images.layout import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    first_few,
    read_layout,
    refuse,
    said_of,
)
from candle_tf.data.own_images.listings import (
    below_root,
    check_numbers,
    list_lines,
    splits_of,
    table_rows,
)
from candle_tf.data.own_images.pixels import is_image
from candle_tf.data.summary import summary
from candle_tf.utils.names import one_line

ON_BAD_IMAGE = ("error", "skip")
MOST_NAMED = 20  # skipped files


@dataclass(frozen=True)
class Files:
    """Image files of a split.

    Attributes:
        paths: Path of each image relative to the image root, with slashes.
        classes: Class name of each image.
        where: Place that names each image, for messages: "FILE, line 3" or the path itself.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    where: Sequence[str]

    def take(self, indices: Iterable[int]) -> "Files":
        """Returns the files at `indices`."""
        chosen = list(indices)
        columns = (self.paths, self.classes, self.where)
        return Files(*([column[i] for i in chosen] for column in columns))


@dataclass(frozen=True)
class OwnFiles:
    """A data set as it was found on disk.

    Attributes:
        splits: "train", and maybe "validation" and "test" -> the files of the split.
        root: Image root, the directory that all paths are relative to.
        left_out: Number of files that were found and are not read.
        notes: Sentences about what the reader decided.
    """

    splits: Mapping[str, Files]
    root: str
    left_out: int = 0
    notes: Sequence[str] = field(default_factory=list)


def read_list(train: str, test: str, root: str | None) -> OwnFiles:
    """Reads text lists of "relative/path label" lines, the format of ImageNet-LT and iNaturalist.

    Labels are 0 to the number of classes - 1. A backslash is read as a slash, 007 as 7, and an
    absolute path below the root as a relative one.

    Args:
        train: Path of the training list.
        test: Path of the test list.
        root: Image root; by default the directory of the training list.

    Raises:
        ValueError: For lines that cannot be read, labels that are not class numbers, or no lines.
        FileNotFoundError: If a list is not there.
    """
    image_root = root or os.path.dirname(os.path.abspath(found(train, root)))
    splits, notes = {}, []
    for kind, name in ((TRAIN, train), (TEST, test)):
        paths, labels, where, said = list_lines(found(name, root))
        splits[kind] = Files(below_root(paths, image_root), labels, where)
        notes += said
    check_numbers([(files.classes, files.where) for files in splits.values()])
    return OwnFiles(splits, image_root, notes=notes)


def read_csv(train: str, test: str | None, root: str | None) -> OwnFiles:
    """Reads CSV files with the columns `path` and `label`, and maybe `split`.

    Labels are class names. Other columns are ignored. Without a test file and without test or
    validation rows, there is no test split.

    Args:
        train: Path of the table of training images, or of the only table.
        test: Path of the table of test images; None if the only table holds all splits.
        root: Image root; by default the directory of the first table.

    Raises:
        ValueError: For a table that cannot be read, or a split that is none.
        FileNotFoundError: If a table is not there.
    """
    image_root = root or os.path.dirname(os.path.abspath(found(train, root)))
    tables, notes = [], []
    for name in filter(None, (train, test)):
        paths, labels, where, splits, said = table_rows(found(name, root))
        tables.append((Files(below_root(paths, image_root), labels, where), splits))
        notes += said
    if test:
        if any(splits for _, splits in tables):
            notes.append("The column 'split' is ignored, as there are two files.")
        return OwnFiles({TRAIN: tables[0][0], TEST: tables[1][0]}, image_root, notes=notes)
    every, splits = tables[0]
    if splits is None:
        return OwnFiles({TRAIN: every}, image_root, notes=notes)
    kinds = splits_of(splits, every.where)
    chosen = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in SPLITS}
    chosen = {kind: every.take(i) for kind, i in chosen.items() if i or kind == TRAIN}
    if VALIDATION in chosen and TEST not in chosen:
        chosen[TEST] = chosen.pop(VALIDATION)
        notes.append("No test split: the validation split is used as the test split.")
    return OwnFiles(chosen, image_root, notes=notes)


def read_folder(directory: str) -> OwnFiles:
    """Reads DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE, or DIR/CLASS/IMAGE.

    Images are sorted by their file names, not by class. `candle_tf.data.own_images.layout` finds
    the splits and classes.

    Args:
        directory: DIR, or a folder that holds it.

    Raises:
        ValueError: For a tree that can be read in no way, or in several.
    """
    layout = read_layout(directory, is_image)
    splits = {}
    for kind, classes in layout.splits.items():
        rows = [(posixpath.basename(p), name, p) for name, paths in classes.items() for p in paths]
        rows.sort()
        paths = [path for *_, path in rows]
        splits[kind] = Files(paths, [name for _, name, _ in rows], paths)
    notes = [*layout.notes, *said_of(layout.left_out)]
    return OwnFiles(splits, directory, sum(each.files for each in layout.left_out), notes)


def with_test_split(own: OwnFiles) -> OwnFiles:
    """Returns the set with a test split: its own, or else one fifth of each class.

    The draw is the same in every run. The image of a class with a single one is for training.

    Raises:
        ValueError: If no class has two images.
    """
    train = own.splits[TRAIN]
    if TEST in own.splits or not len(train.paths):
        return own
    names, labels, counts = np.unique(train.classes, return_inverse=True, return_counts=True)
    single = [str(name) for name in names[counts == 1]]
    if len(single) == len(names):
        raise ValueError(
            "No class has two images, and there is no test split: add images, or a test split."
        )
    fifths = np.where(counts == 1, 0, np.maximum(1, counts // 5))
    held_out = draw_per_class(labels, fifths, np.random.default_rng(0))
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    note = (
        f"No test split: {len(held_out)} of {len(labels)} images, one fifth of each class, are "
        "held out as the test split."
    )
    if few := int(np.sum(fifths == 1)):
        note += f" {few} of {len(names)} classes: one test image each."
    if single:
        note += f" {len(single)} of {len(names)} classes ({first_few(single)}): one image, "
        note += "for training."
    splits = {**own.splits, TRAIN: train.take(rest), TEST: train.take(held_out)}
    return replace(own, splits=splits, notes=[*own.notes, note])


def load(
    own: OwnFiles, on_bad_image: str = "error", cache: str | None = None
) -> tuple[OwnFiles, dict[str, Examples], str]:
    """Checks the set, prints a line about it, and decodes every image once.

    Args:
        own: The set as it was found.
        on_bad_image: "error", or "skip" to leave out images that cannot be read.
        cache: Directory of earlier results, as in `look_at_files` of `images.py`.

    Returns:
        The set without skipped images, its examples by split, and the line that was printed.

    Raises:
        ValueError: As `check` and `look`.
    """
    printed = 0
    if on_bad_image == "skip" and TEST not in own.splits:  # the only good image is for training
        check(own)
        for note in own.notes:
            print(note)
        own, _ = look(own, on_bad_image, cache)  # prints what it skips, and is quick next time
        printed = len(own.notes)
    own = with_test_split(own)
    check(own)
    line = said(own)
    print(*own.notes[printed:], line, sep="\n")  # before `look`, which may take long
    left, looks = look(own, on_bad_image, cache)
    if left.left_out > own.left_out:
        check(left)  # a class may have no image left
    return left, to_examples(left, looks), line


def class_names(own: OwnFiles) -> list[str]:
    """Returns the class names in order: by number if all are numbers, else by name."""
    names = sorted(set(own.splits[TRAIN].classes))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    return names


def check(own: OwnFiles):
    """Refuses what is wrong with the paths and classes, without opening an image.

    Raises:
        ValueError: For paths that leave the root, are listed twice or are not UTF-8. For an image
            root that holds none of the images. For classes without training images, or whose names
            differ in case alone. The message shows the first few and says how many there are.
    """
    for name, files in own.splits.items():
        if not len(files.paths):
            raise ValueError(f"The {name} split below {own.root} has no image that can be read.")
    check_paths(own.splits)
    check_classes(own)
    for name, files in own.splits.items():
        if not any(os.path.exists(as_on_disk(own.root, path)) for path in files.paths):
            raise ValueError(
                f"None of the {len(files.paths)} {name} images is below {own.root} (the first is "
                f"{files.paths[0]}): name the directory that the paths start from (`data_dir`)."
            )


def look(
    own: OwnFiles, on_bad_image: str = "error", cache: str | None = None
) -> tuple[OwnFiles, dict[str, Look]]:
    """Decodes every image once.

    Args:
        own: A set that passed `check`.
        on_bad_image: "error", or "skip" to leave out images that cannot be read.
        cache: Directory of earlier results, as in `look_at_files` of `images.py`.

    Returns:
        The set without skipped images, and by split the result of the look at its images.

    Raises:
        ValueError: For images that cannot be read.
    """
    paths = {name: [as_on_disk(own.root, p) for p in f.paths] for name, f in own.splits.items()}
    every = look_at_files([path for some in paths.values() for path in some], cache)
    splits, looks, skipped, start = {}, {}, [], 0
    for name, files in own.splits.items():
        seen, start = every.take(range(start, start + len(files.paths))), start + len(files.paths)
        bad = [i for i, why in enumerate(seen.problems) if why]
        described = [f"{files.paths[i]} {seen.problems[i]}" for i in bad]
        if on_bad_image == "error":
            refuse(
                described,
                "a fault",
                "mend or remove them, or skip them (`on_bad_image=skip`)",
                of=f"{name} images below {own.root}",
            )
        elif bad:
            of_class = Counter(files.classes[i] for i in bad)
            named = first_few(described, MOST_NAMED, between="; ")
            skipped.append(
                f"Skipped {len(bad)} of {len(files.paths)} {name} images: "
                f"{', '.join(f'{n} of class {c}' for c, n in of_class.items())} ({named})."
            )
            print(skipped[-1])
        good = [i for i, why in enumerate(seen.problems) if not why]
        splits[name], looks[name] = files.take(good), seen.take(good)
    count = sum(map(bool, every.problems))
    left = replace(own, splits=splits, left_out=own.left_out + count, notes=[*own.notes, *skipped])
    return left, looks


def to_examples(own: OwnFiles, looks: Mapping[str, Look]) -> dict[str, Examples]:
    """Returns the examples of each split, with labels numbered in the order of `class_names`."""
    number = {name: i for i, name in enumerate(class_names(own))}
    return {
        name: Examples(
            tf.constant([as_on_disk(own.root, path) for path in files.paths]),
            np.array([number[c] for c in files.classes], np.int64),
            on_disk=True,
            marks=looks[name].marks,
        )
        for name, files in own.splits.items()
    }


def said(own: OwnFiles) -> str:
    """Returns the line that sums up the set."""
    names, counts = class_names(own), Counter(own.splits[TRAIN].classes)
    others = {n: len(own.splits[n].paths) for n in (VALIDATION, TEST) if n in own.splits}
    return summary(names, [counts[name] for name in names], others, own.left_out)


def check_paths(splits: Mapping[str, Files]):
    """Refuses paths that leave the image root, are not UTF-8, or are listed twice.

    Only the text of a path counts: a link below the root may lead anywhere.
    """
    listed = [row for f in splits.values() for row in zip(f.paths, f.where, f.classes)]
    refuse(
        [ascii(where) for path, where, _ in listed if not is_text(path)],
        "a name that is not UTF-8",
        "rename them",
    )
    normal = [posixpath.normpath(path) for path, _, _ in listed]
    outside = [
        n.startswith(("/", "../")) or n == ".." or "\0" in n or n[1:3] == ":/" for n in normal
    ]
    refuse(
        [f"{where}: {path}" for (path, where, _), out in zip(listed, outside) if out],
        "a path that leaves the image root",
        "give paths below it, or name the directory that all are below (`data_dir`)",
    )
    seen: dict[str, str] = {}
    twice, two_labels = [], []
    for (path, where, label), name in zip(listed, normal):
        if name not in seen:
            seen[name] = label
        elif seen[name] == label:
            twice.append(f"{where}: {path}")
        else:
            two_labels.append(f"{where}: {path}, {seen[name]} and {label}")
    refuse(two_labels, "an image listed twice, with two labels", "keep the right line only")
    refuse(twice, "an image listed twice", "keep one of the two lines")


def check_classes(own: OwnFiles):
    """Refuses a single class, classes without training images, and names that cannot be used.

    Exports hold one name per line, and some disks take names that differ in case alone for one.
    """
    names = class_names(own)
    others = {name for files in own.splits.values() for name in files.classes} - set(names)
    refuse(
        [repr(name) for name in names if not one_line(name)],
        "names that are not one line of text",
        "rename the class",
        of="classes",
    )
    lower: dict[str, str] = {}
    every = [*names, *sorted(others)]
    refuse(
        [f"{lower[n.lower()]} and {n}" for n in every if lower.setdefault(n.lower(), n) != n],
        "names that differ in case alone",
        "rename one, or merge the two classes",
        of="classes",
    )
    refuse(
        sorted(others),
        "test images but no training image that can be read",
        "add some, or leave the class out",
        of="classes",
    )
    if len(names) == 1:
        raise ValueError(
            f"All training images below {own.root} have one class, {names[0]!r}: give images of "
            "at least two classes, each with its own folder or label."
        )


def as_on_disk(root: str, path: str) -> str:
    """Returns the file at a path below the root, in the Unicode form that its name has on disk."""
    full = os.path.join(root, path)
    if path.isascii() or os.path.exists(full):
        return full
    forms = (os.path.join(root, unicodedata.normalize(form, path)) for form in ("NFC", "NFD"))
    return next(filter(os.path.exists, forms), full)


def places_below(root: str, name: str) -> list[str]:
    """Returns where `found` looks below a root: at the path, and at its last name."""
    return [os.path.join(root, n) for n in (name, os.path.basename(os.path.normpath(name)))]


def found(name: str, root: str | None, what: str = "file") -> str:
    """Finds a file or directory by its path, or else by its path or last name below the root.

    Raises:
        FileNotFoundError: If it is at none of these places.
    """
    there = os.path.isdir if what == "directory" else os.path.isfile
    below = places_below(root, name) if root else []
    for path in map(os.path.expanduser, (name, *below)):
        if there(path):
            return path
    nor = f" nor in {root}" if root else ""
    raise FileNotFoundError(f"{name} is not there{nor}: give the path of the {what}.")


def is_text(name: str) -> bool:
    """Returns whether a file's name is valid Unicode, not bytes of another encoding."""
    try:
        name.encode()
        return True
    except UnicodeEncodeError:  # bytes of another encoding
        return False
