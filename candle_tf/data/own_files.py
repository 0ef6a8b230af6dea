"""A user's own images: lists of paths, folders of classes, CSV files."""

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.data.examples import Examples
from candle_tf.data.images import problems_of
from candle_tf.data.long_tail import draw_per_class

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
TRAIN, TEST = ("train", "training"), ("test", "testing")
VALIDATION = ("val", "valid", "validation")  # measured on where there is no test split
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


def read_list(train: str, test: str, root: str | None) -> tuple[Files, Files, str]:
    """Text lists of "relative/path label" lines, as ImageNet-LT, Places-LT and iNaturalist have.

    Labels are 0 to the number of classes - 1.

    Returns:
        (training files, test files, the image root): the root is `root`, or where TRAIN lies.
    """
    files = []
    for name in (train, test):
        path = found(name, root)
        # A path may hold blanks: the label is what follows the last one.
        lines = [(i, line.rsplit(None, 1)) for i, line in enumerate(lines_of(path), 1)]
        lines = [(i, parts) for i, parts in lines if parts]
        refuse(
            [f"{path}, line {i}" for i, parts in lines if len(parts) < 2],
            "no label",
            "write 'relative/path label' in each line",
        )
        paths, labels = zip(*(parts for _, parts in lines)) if lines else ((), ())
        files.append(Files(paths, labels, [f"{path}, line {i}" for i, _ in lines]))
    check_numbers(*files)
    return *files, root or os.path.dirname(os.path.abspath(found(train, root)))


def check_numbers(train: Files, test: Files):
    """Refuses labels that are not 0 to the number of training classes - 1."""
    classes = set(train.classes)
    known = {str(i) for i in range(len(classes))}
    for split in (train, test):
        wrong = [i for i, name in enumerate(split.classes) if name not in known]
        refuse(
            [f"{split.where[i]}: {split.classes[i]}" for i in wrong],
            f"a label that is not in 0 to {len(known) - 1}, the {len(known)} classes that "
            "have training images",
            "number the classes from 0 without a gap",
        )


def read_csv(train: str, test: str | None, root: str | None) -> tuple[Files, Files | None, str]:
    """CSV files with the columns `path` and `label`, and maybe `split`: train or test.

    Labels are names of classes; other columns do not matter. Without a TEST file or a column
    `split` there is no test split.

    Returns:
        As `read_list`.
    """
    files = [csv_rows(found(name, root)) for name in (train, test) if name]
    root = root or os.path.dirname(os.path.abspath(found(train, root)))
    if test:
        return files[0][0], files[1][0], root
    every, splits = files[0]
    if splits is None:
        return every, None, root
    wrong = [i for i, split in enumerate(splits) if split not in TRAIN + TEST + VALIDATION]
    refuse(
        [f"{every.where[i]}: {splits[i]!r}" for i in wrong],
        "no split",
        "write train or test in the column 'split'",
    )
    chosen = [
        [i for i, s in enumerate(splits) if s in names] for names in (TRAIN, measured(splits))
    ]
    return *(every.take(indices) for indices in chosen), root


def measured(splits: Iterable[str]) -> tuple[str, ...]:
    """The names of the split to measure on; says which is left out where there are two."""
    kinds = {kind for kind in (TEST, VALIDATION) if set(kind) & set(splits)}
    if len(kinds) == 2:
        print("The test split is measured on; the validation split beside it is left out.")
    return VALIDATION if kinds == {VALIDATION} else TEST


def csv_rows(path: str) -> tuple[Files, list[str] | None]:
    reader = csv.DictReader(lines_of(path))
    try:
        columns = reader.fieldnames or []
        numbered = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: no CSV ({error}).") from error
    if not {"path", "label"} <= set(columns):
        raise ValueError(
            f"{path} has the columns {', '.join(map(str, columns)) or '(none)'}: its first line "
            "must name the columns path and label."
        )
    where, rows = [f"{path}, line {i}" for i, _ in numbered], [row for _, row in numbered]
    refuse(
        [name for name, row in zip(where, rows) if not row["path"] or not row["label"]],
        "no path or no label",
        "fill both columns",
    )
    files = Files([row["path"] for row in rows], [row["label"] for row in rows], where)
    splits = [(row["split"] or "").lower() for row in rows] if "split" in columns else None
    return files, splits


def read_folder(directory: str) -> tuple[Files, Files | None, str]:
    """DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE, or DIR/CLASS/IMAGE without a test split.

    Images count in the order of their own names, whatever their class.

    Returns:
        As `read_list`.
    """
    by_name = {name.lower(): name for name in subfolders(directory)}
    both = (TRAIN, measured(by_name))
    splits = [next((by_name[n] for n in names if n in by_name), None) for names in both]
    if splits[0] and not splits[1] and len(by_name) == 1:
        raise ValueError(
            f"{directory} has {splits[0]}/ but no test/ beside it: add one, or put the class "
            f"folders into {directory} itself."
        )
    if not all(splits):
        return files_below(directory, ""), None, directory
    return *(files_below(directory, split) for split in splits), directory


def files_below(root: str, split: str) -> Files:
    base = os.path.join(root, split)
    found = []  # (file's own name, class, path)
    for name in subfolders(base):
        for folder, _, names in sorted(os.walk(os.path.join(base, name))):
            below = os.path.relpath(folder, root).replace(os.sep, "/")
            if "/." in below:  # hidden, as what editors keep
                continue
            images = (n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))
            found += [(each, name, f"{below}/{each}") for each in images]
    with_images = {name for _, name, _ in found}
    refuse(
        [os.path.join(base, name) for name in subfolders(base) if name not in with_images],
        "no image",
        "delete the folder, or fill it",
    )
    found.sort()
    paths = [path for *_, path in found]
    return Files(paths, [name for _, name, _ in found], paths)


def subfolders(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    return sorted(names)


def with_test_split(train: Files, test: Files | None) -> tuple[Files, Files]:
    """As given; or where there is no test split, a fifth of each class, drawn once and for all.

    Raises:
        ValueError: for a class of which nothing would be left to train on.
    """
    if test is not None or not len(train.paths):
        return train, test or train
    names, labels, counts = np.unique(train.classes, return_inverse=True, return_counts=True)
    refuse(
        [str(name) for name in names[counts < 2]],
        "a single image, and there is no test split",
        "give the class another image, or the set a test split",
        of="classes",
    )
    held_out = draw_per_class(labels, np.maximum(1, counts // 5), np.random.default_rng(0))
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    print(f"No test split: {len(held_out)} of {len(labels)} images, a fifth of each class, are it.")
    return train.take(rest), train.take(held_out)


def to_examples(
    train: Files, test: Files, root: str, on_bad_image: str = "error", cache: str | None = None
) -> tuple[Examples, Examples, list[str]]:
    """(training examples, test examples, class names), after everything has been looked at.

    Args:
        root: what the paths are relative to; none may leave it.
        on_bad_image: "error", or "skip" to go on without images that cannot be read.
        cache: as in `candle_tf.data.images.problems_of`.

    Raises:
        ValueError: for paths that leave the root or stand twice, classes without training images or
            that differ in case, names that are not UTF-8, and images that cannot be read; with the
            first few and how many there are.
    """
    splits = {"train": train, "test": test}
    check_not_empty(splits, root)
    check_paths(train, test)
    names = check_classes(train, test)
    for name, files in splits.items():
        problems = problems_of([os.path.join(root, path) for path in files.paths], cache)
        described = [f"{files.paths[i]} {why}" for i, why in problems.items()]
        if on_bad_image == "error":
            refuse(
                described,
                "a fault",
                "mend or remove them, or skip them by --on_bad_image=skip",
                of=f"{name} images below {root}",
            )
        elif problems:
            of_class = Counter(files.classes[i] for i in problems)
            print(
                f"Skipped {len(problems)} of {len(files.paths)} {name} images: "
                f"{', '.join(f'{n} of class {c}' for c, n in of_class.items())}; the first: "
                f"{described[0]}."
            )
            splits[name] = files.take(i for i in range(len(files.paths)) if i not in problems)
    check_not_empty(splits, root)
    check_classes(*splits.values())
    number = {name: i for i, name in enumerate(names)}
    train, test = (
        Examples(
            tf.constant([os.path.join(root, path) for path in files.paths]),
            np.array([number[name] for name in files.classes], np.int64),
            on_disk=True,
        )
        for files in splits.values()
    )
    return train, test, names


def check_not_empty(splits: Mapping[str, Files], root: str):
    for name, files in splits.items():
        if not len(files.paths):
            raise ValueError(f"The {name} split below {root} has no image that can be read.")


def check_paths(train: Files, test: Files):
    """Refuses paths that leave the image root, are not UTF-8, or stand twice.

    By their text: links below the root are the user's own.
    """
    both = [*zip(train.paths, train.where), *zip(test.paths, test.where)]
    refuse(
        [ascii(where) for path, where in both if not is_text(path)],
        "a name that is not UTF-8",
        "rename them",
    )
    normal = [posixpath.normpath(path.replace("\\", "/")) for path, _ in both]
    outside = [n.startswith(("/", "../")) or n == ".." or "\0" in n for n in normal]
    refuse(
        [f"{where}: {path}" for (path, where), out in zip(both, outside) if out],
        "a path that leaves the image root",
        "give paths below it",
    )
    seen: set[str] = set()
    twice = [
        f"{where}: {path}"
        for (path, where), name in zip(both, normal)
        if name in seen or seen.add(name)
    ]
    refuse(twice, "an image that stands before already", "leave one of the two lines")


def check_classes(train: Files, test: Files) -> list[str]:
    """The class names in order: by number where all are numbers, else by name.

    Raises:
        ValueError: for a class without training images, or two that differ in case alone.
    """
    names = sorted(set(train.classes))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    refuse(
        sorted(set(test.classes) - set(names)),
        "test images but no training image that can be read",
        "add some, or leave the class out",
        of="classes",
    )
    lower: dict[str, str] = {}
    refuse(
        [f"{lower[n.lower()]} and {n}" for n in names if lower.setdefault(n.lower(), n) != n],
        "names that differ in case alone",
        "rename one, or put their images together",
        of="classes",
    )
    return names


def is_text(name: str) -> bool:
    try:
        name.encode()
        return True
    except UnicodeEncodeError:  # bytes of another encoding
        return False


def found(name: str, root: str | None, what: str = "file") -> str:
    """A file or directory as named, or where images lie, also if it was moved there since."""
    there = os.path.isdir if what == "directory" else os.path.isfile
    last = os.path.basename(os.path.normpath(name))
    below = [os.path.join(root, n) for n in (name, last)] if root else []
    for path in (name, *below):
        if there(path):
            return path
    nor = f" nor in {root}" if root else ""
    raise FileNotFoundError(f"{name} is not there{nor}: give the path of the {what}.")


def lines_of(path: str) -> Iterator[str]:
    try:
        yield from Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save it as UTF-8.") from error


def refuse(offenders: Sequence[str], what: str, remedy: str, of: str = "lines or images"):
    """One sentence for all that is wrong in one way, with the first few and their number."""
    if offenders:
        first = "; ".join(offenders[:3]) + ("; ..." if len(offenders) > 3 else "")
        raise ValueError(f"{len(offenders)} {of} with {what} ({first}): {remedy}.")
