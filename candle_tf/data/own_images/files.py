"""A user's own images: lists of paths, folders of classes, CSV files."""

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
from candle_tf.data.own_images.images import Look, is_image, look_at_files
from candle_tf.data.own_images.layout import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
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
from candle_tf.data.summary import summary

ON_BAD_IMAGE = ("error", "skip")


@dataclass(frozen=True)
class Files:
    """Image files of a split.

    Attributes:
        paths: relative to the image root, with slashes.
        classes: the name of each one's class.
        where: what named each, for messages: "FILE, line 3" or the path itself.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    where: Sequence[str]

    def take(self, indices: Iterable[int]) -> "Files":
        """Those at `indices`."""
        chosen = list(indices)
        columns = (self.paths, self.classes, self.where)
        return Files(*([column[i] for i in chosen] for column in columns))


@dataclass(frozen=True)
class OwnFiles:
    """A set as it was found.

    Attributes:
        splits: "train", and maybe "validation" and "test".
        root: the directory that the paths are relative to.
        left_out: how many files were found and are not read.
        notes: sentences about what was decided.
    """

    splits: Mapping[str, Files]
    root: str
    left_out: int = 0
    notes: Sequence[str] = field(default_factory=list)


def read_list(train: str, test: str, root: str | None) -> OwnFiles:
    """Reads text lists of "relative/path label" lines, as ImageNet-LT and iNaturalist have.

    Labels are 0 to the number of classes - 1. Backslashes are slashes, 007 is 7, and an absolute
    path below the root is below the root.

    Args:
        train, test: the lists.
        root: the image root; the directory of TRAIN where None.
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

    Labels are names of classes; other columns do not matter. Without a TEST file and without a
    row of another split than train there is no test split.

    Args:
        train, test: the files; both splits are in the first where the second is None.
        root: the image root; the directory of TRAIN where None.
    """
    image_root = root or os.path.dirname(os.path.abspath(found(train, root)))
    tables, notes = [], []
    for name in filter(None, (train, test)):
        paths, labels, where, splits, said = table_rows(found(name, root))
        tables.append((Files(below_root(paths, image_root), labels, where), splits))
        notes += said
    if test:
        if any(splits for _, splits in tables):
            notes.append("The column 'split' does not count, as there are two files.")
        return OwnFiles({TRAIN: tables[0][0], TEST: tables[1][0]}, image_root, notes=notes)
    every, splits = tables[0]
    if splits is None:
        return OwnFiles({TRAIN: every}, image_root, notes=notes)
    kinds = splits_of(splits, every.where)
    chosen = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in SPLITS}
    chosen = {kind: every.take(i) for kind, i in chosen.items() if i or kind == TRAIN}
    if VALIDATION in chosen and TEST not in chosen:
        chosen[TEST] = chosen.pop(VALIDATION)
        notes.append("No test split: the validation split is measured on in its place.")
    return OwnFiles(chosen, image_root, notes=notes)


def read_folder(directory: str) -> OwnFiles:
    """Reads DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE, or DIR/CLASS/IMAGE.

    See `candle_tf.data.own_images.layout`. Images are in the order of their own names, whatever
    their class.

    Args:
        directory: DIR, or a folder that holds it.
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
    """As given; or where there is no test split, a fifth of each class, drawn once and for all.

    Raises:
        ValueError: for a class of which nothing would be left to train on.
    """
    train = own.splits[TRAIN]
    if TEST in own.splits or not len(train.paths):
        return own
    names, labels, counts = np.unique(train.classes, return_inverse=True, return_counts=True)
    refuse(
        [str(name) for name in names[counts < 2]],
        "a single image, and there is no test split",
        "give the class another image, or the set a test split",
        of="classes",
    )
    held_out = draw_per_class(labels, np.maximum(1, counts // 5), np.random.default_rng(0))
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    note = (
        f"No test split: {len(held_out)} of {len(labels)} images, a fifth of each class, are held "
        "out as the test split."
    )
    splits = {**own.splits, TRAIN: train.take(rest), TEST: train.take(held_out)}
    return replace(own, splits=splits, notes=[*own.notes, note])


def load(
    own: OwnFiles, on_bad_image: str = "error", cache: str | None = None
) -> tuple[OwnFiles, dict[str, Examples], str]:
    """Checks what was found, says it, and decodes every image once.

    Args:
        own: the set as it was found.
        on_bad_image: "error", or "skip" to leave out images that cannot be read.
        cache: as in `candle_tf.data.own_images.images.look_at_files`.

    Returns:
        The set without what is skipped, its examples by split, and the line that was printed.

    Raises:
        ValueError: as `check` and `look`.
    """
    own = with_test_split(own)
    check(own)
    line = said(own)
    print(*own.notes, line, sep="\n")  # before the look, which may take long
    own, looks = look(own, on_bad_image, cache)
    return own, to_examples(own, looks), line


def class_names(own: OwnFiles) -> list[str]:
    """The class names in order: by number where all are numbers, else by name."""
    names = sorted(set(own.splits[TRAIN].classes))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    return names


def check(own: OwnFiles):
    """Refuses what can be seen without opening an image.

    Raises:
        ValueError: for paths that leave the root or are listed twice, an image root that is not
            theirs, classes without training images or that differ in case, and names that are not
            UTF-8; with the first few and how many there are.
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
                f"{files.paths[0]}): name the directory that the paths begin at (--data_dir)."
            )


def look(
    own: OwnFiles, on_bad_image: str = "error", cache: str | None = None
) -> tuple[OwnFiles, dict[str, Look]]:
    """Decodes every image once.

    Args:
        own: the set, as `check` passes it.
        on_bad_image: "error", or "skip" to leave out images that cannot be read.
        cache: as in `candle_tf.data.own_images.images.look_at_files`.

    Returns:
        The set without what is skipped, and by split what was found in its images.

    Raises:
        ValueError: for images that cannot be read, or a class of which none is left.
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
                "mend or remove them, or skip them (on_bad_image='skip', --on_bad_image=skip)",
                of=f"{name} images below {own.root}",
            )
        elif bad:
            of_class = Counter(files.classes[i] for i in bad)
            skipped.append(
                f"Skipped {len(bad)} of {len(files.paths)} {name} images: "
                f"{', '.join(f'{n} of class {c}' for c, n in of_class.items())}; the first: "
                f"{described[0]}."
            )
            print(skipped[-1])
        good = [i for i, why in enumerate(seen.problems) if not why]
        splits[name], looks[name] = files.take(good), seen.take(good)
    count = sum(map(bool, every.problems))
    left = replace(own, splits=splits, left_out=own.left_out + count, notes=[*own.notes, *skipped])
    if count:
        check(left)
    return left, looks


def to_examples(own: OwnFiles, looks: Mapping[str, Look]) -> dict[str, Examples]:
    """The examples of each split, labels numbered as `class_names` has them."""
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
    """The line that says what was found."""
    names, counts = class_names(own), Counter(own.splits[TRAIN].classes)
    others = {n: len(own.splits[n].paths) for n in (VALIDATION, TEST) if n in own.splits}
    return summary(names, [counts[name] for name in names], others, own.left_out)


def check_paths(splits: Mapping[str, Files]):
    """Refuses paths that leave the image root, are not UTF-8, or are listed twice.

    By their text: links below the root are the user's own.
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
        "give paths below it, or name the directory that all are below (--data_dir)",
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
    refuse(two_labels, "an image that is listed twice, with two labels", "leave the right line")
    refuse(twice, "an image that is listed twice", "leave one of the two lines")


def check_classes(own: OwnFiles):
    """Refuses a single class, one without training images, or two that differ in case alone."""
    names = class_names(own)
    others = {name for files in own.splits.values() for name in files.classes} - set(names)
    lower: dict[str, str] = {}
    every = [*names, *sorted(others)]
    refuse(
        [f"{lower[n.lower()]} and {n}" for n in every if lower.setdefault(n.lower(), n) != n],
        "names that differ in case alone",
        "rename one, or put their images together",
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
            f"All training images below {own.root} are of one class, {names[0]!r}: give images of "
            "at least two, each class in a folder or with a label of its own."
        )


def as_on_disk(root: str, path: str) -> str:
    """The file at a path below the root, in the Unicode form that its name has on disk."""
    full = os.path.join(root, path)
    if path.isascii() or os.path.exists(full):
        return full
    forms = (os.path.join(root, unicodedata.normalize(form, path)) for form in ("NFC", "NFD"))
    return next(filter(os.path.exists, forms), full)


def found(name: str, root: str | None, what: str = "file") -> str:
    """A file or directory as named, or where images are, also if it was moved there since."""
    there = os.path.isdir if what == "directory" else os.path.isfile
    last = os.path.basename(os.path.normpath(name))
    below = [os.path.join(root, n) for n in (name, last)] if root else []
    for path in (name, *below):
        if there(path):
            return path
    nor = f" nor in {root}" if root else ""
    raise FileNotFoundError(f"{name} is not there{nor}: give the path of the {what}.")


def is_text(name: str) -> bool:
    try:
        name.encode()
        return True
    except UnicodeEncodeError:  # bytes of another encoding
        return False
