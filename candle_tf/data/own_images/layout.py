"""Trees of folders: finds which folder is a split, which is a class, and which is neither."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "trainval": TRAIN,
    "trn": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "development": VALIDATION,
    "test": TEST,
    "testing": TEST,
    "tst": TEST,
    "eval": TEST,
    "evaluation": TEST,
    "holdout": TEST,
}
# Words that may join such a word: seg_train, train_images, ILSVRC2012_img_val, testSet.
FILLERS = set(
    "data dataset datasets files folder folders ilsvrc images image imgs img jpeg jpegs jpg lt "
    "mini part photos pics pictures png raw samples seg set small split splits subset".split()
)
# Folders that people keep beside class folders, but that are never classes.
NO_CLASSES = set(
    "annotation annotations bbox bboxes gt groundtruth image images img imgs label labels mask "
    "masks pred preds prediction predictions unlabeled unlabelled".split()
)
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
READ = (
    "DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE, or DIR/CLASS/IMAGE without a test split, are "
    "read"
)
HIDDEN, NO_IMAGE, BESIDE = "hidden", "no image", "beside the class folders"


def clean(name: str) -> str:
    """Returns a name for comparison: in one Unicode form, without blanks around it."""
    return unicodedata.normalize("NFC", name).strip().strip(INVISIBLE).strip()


def split_of(name: str) -> str | None:
    """Returns the split in a name such as "Train", "seg_train", "testSet" or " val ", or None.

    Example:
        >>> split_of("seg_train"), split_of("Test Set"), split_of("train_station")
        ('train', 'test', None)
    """
    said, others = split_words(name)
    return said[0] if len(said) == 1 and not others else None


def split_words(name: str) -> tuple[list[str], tuple[str, ...]]:
    """Returns (the splits that words of a name mean, its other words except fillers)."""
    words = [w.lower() for w in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+", clean(name))]
    words = "_".join(words).replace("hold_out", "holdout").split("_")
    for filler in sorted(FILLERS, key=len, reverse=True):  # trainset, testdata
        words = [w.removesuffix(filler) if w.removesuffix(filler) in WORDS else w for w in words]
    said = [WORDS[w] for w in words if w in WORDS]
    others = [w for w in words if w not in WORDS and w not in FILLERS and not w.isdecimal()]
    return said, tuple(others)


@dataclass(frozen=True)
class Folder:
    """A folder and its contents.

    Attributes:
        path: Path below the root, with a slash at the end; "" for the root itself.
        images: Names of the image files directly in the folder.
        folders: The folders in it, sorted by name.
        others: Name of each other file or link -> (why it is left out, its number of files).
    """

    path: str
    images: list[str] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)
    others: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    def every_image(self) -> Iterator[str]:
        """Yields the paths of the images in the folder, at any depth."""
        yield from (self.path + name for name in self.images)
        for folder in self.folders:
            yield from folder.every_image()

    def has_images(self) -> bool:
        """Returns whether the folder holds an image at any depth."""
        return next(self.every_image(), None) is not None

    def size(self) -> int:
        """Returns the number of files in the folder, at any depth."""
        others = sum(count for _, count in self.others.values())
        return len(self.images) + others + sum(folder.size() for folder in self.folders)

    def with_images(self) -> list["Folder"]:
        """Returns the folders directly in it that hold images at any depth."""
        return [folder for folder in self.folders if folder.has_images()]


@dataclass(frozen=True)
class LeftOut:
    """A file, or a folder of files, that is left out."""

    path: str
    files: int
    why: str
    class_name: str | None = None


@dataclass(frozen=True)
class Layout:
    """The splits and classes of a tree of folders.

    Attributes:
        splits: "train", and maybe "test" and "validation" -> class -> paths of its images.
        left_out: Files and folders that are not read.
        notes: Sentences about what the reader decided.
    """

    splits: Mapping[str, Mapping[str, Sequence[str]]]
    left_out: Sequence[LeftOut]
    notes: Sequence[str]


def scan(root: str, is_image: Callable[[str], bool]) -> Folder:
    """Returns the tree below a directory; a directory that several links lead to appears once.

    Args:
        root: Path of the directory.
        is_image: Function that returns whether the file at a path is an image.
    """
    real_root = os.path.realpath(root)
    entered = {real_root}

    def enter(directory: str, path: str) -> Folder:
        folder = Folder(path)
        with os.scandir(directory) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini"):
                folder.others[name] = HIDDEN, files_below(entry.path)
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                below = os.path.commonpath([real, real_root]) == real_root
                if (entry.is_symlink() and below) or real in entered:
                    folder.others[name] = "a link to a folder that is read anyway", 1
                    continue
                entered.add(real)
                folder.folders.append(enter(entry.path, f"{path}{name}/"))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                folder.others[name] = "a link to nothing", 1
            elif entry.is_file() and is_image(entry.path):
                folder.images.append(name)
            else:
                folder.others[name] = NO_IMAGE, 1
        return folder

    return enter(root, "")


def files_below(path: str) -> int:
    """Returns the number of files at a path: 1 for a file, all files below for a folder."""
    if os.path.islink(path) or not os.path.isdir(path):
        return 1
    return sum(len(names) for _, _, names in os.walk(path))


def read_layout(root: str, is_image: Callable[[str], bool]) -> Layout:
    """Finds the splits and classes of a tree of folders.

    A folder that only wraps another one is skipped. Without a test split, the validation split is
    used as the test split.

    Args:
        root: Path of the directory.
        is_image: Function that returns whether the file at a path is an image.

    Raises:
        ValueError: For a tree that can be read in several ways, or in none. The message names what
            was found and which trees can be read.
    """
    top = scan(root, is_image)
    return Reader(root, top).layout()


class Reader:
    """Reader of one tree; it keeps the decisions that it takes on the way."""

    def __init__(self, root: str, top: Folder):
        self.root, self.top = root, top
        self.notes: list[str] = []
        self.dropped: dict[str, str] = {}  # path of a folder -> why it is left out
        self.class_of: dict[str, str] = {}  # path of a folder -> its class

    def refuse(self, found: str, remedy: str = ""):
        """Raises the sentence that names what was found and which trees can be read."""
        raise ValueError(f"{self.root}: {found}. {READ}{': ' if remedy else ''}{remedy}.")

    def shown(self, folder: Folder) -> str:
        """Returns a folder's path for messages, also for the root."""
        return folder.path or f"{os.path.basename(os.path.abspath(self.root))}/"

    def layout(self) -> Layout:
        """Finds the splits first, then the classes in each, and keeps a note of each decision."""
        if not self.top.has_images():
            raise ValueError(f"{self.root} has no image that can be read: check the path.")
        folder, splits = self.top, self.splits_in(self.top)
        while not splits and (inner := self.wrapped(folder)):
            folder = inner
            splits = self.splits_in(folder)
        if not splits:
            self.say_place({"its classes": folder})
            return self.result({TRAIN: self.classes(folder)})
        for other in folder.folders:
            if other not in splits.values():
                self.dropped[other.path] = f"beside {' and '.join(splits)}"
        if TRAIN not in splits:
            names = ", ".join(split.path for split in splits.values())
            self.refuse(f"there is {names} but no train/", "add it")
        roots = {kind: self.class_root(kind, split) for kind, split in splits.items()}
        for kind in (TEST, VALIDATION):
            unlabelled = kind in roots and all(map(no_class, roots[kind].with_images()))
            if unlabelled:
                self.dropped[splits[kind].path] = "without class folders, so without labels"
                del roots[kind]
        self.say_place({kind: at for kind, at in roots.items() if at.path != f"{kind}/"})
        classes = {kind: self.classes(at) for kind, at in roots.items()}
        if VALIDATION in classes and TEST not in classes:
            self.notes.append(
                f"No test split: {splits[VALIDATION].path} is used as the test split."
            )
            classes[TEST] = classes.pop(VALIDATION)
        return self.result(classes)

    def say_place(self, places: Mapping[str, Folder]):
        """Notes the folders that splits or classes are read from, unless they are obvious."""
        read = ", ".join(f"{what} from {at.path}" for what, at in places.items() if at.path)
        if read:
            self.notes.append(f"Read {read}")

    def splits_in(self, folder: Folder) -> dict[str, Folder]:
        """Returns the folders of splits directly in a folder, if there are any."""
        found = [(split_of(each.name), each) for each in folder.with_images()]
        splits = [(kind, each) for kind, each in found if kind]
        others = [each for kind, each in found if not kind and no_class(each) is None]
        if len(splits) == 1 and others and all(each.images for each in others):
            _, alone = splits[0]
            if alone.images and not alone.with_images():  # "train" may be a means of transport
                self.notes.append(f"{alone.path} is read as a class, because it is beside classes.")
                return {}
        for kind in SPLITS:
            same = [each.path for k, each in splits if k == kind]
            if len(same) > 1:
                self.refuse(f"{' and '.join(same)} are both a {kind} split", "keep one of them")
        order = {kind: each for kind, each in splits} or self.named_alike(folder)
        return {kind: order[kind] for kind in SPLITS if kind in order}

    def named_alike(self, folder: Folder) -> dict[str, Folder]:
        """Returns folders that differ only in the split, such as Final_Training and Final_Test."""
        groups: dict[tuple[str, ...], dict[str, Folder]] = {}
        for each in folder.with_images():
            said, others = split_words(each.name)
            if len(said) == 1:
                groups.setdefault(others, {}).setdefault(said[0], each)
        alike = [group for group in groups.values() if TRAIN in group and len(group) > 1]
        if len(alike) > 1:
            names = ", ".join(each.path for group in alike for each in group.values())
            self.refuse(f"{names} are several sets of splits", "give only one set")
        return alike[0] if alike else {}

    def wrapped(self, folder: Folder) -> Folder | None:
        """Returns the only folder in a folder that has nothing else, or None."""
        inner = folder.with_images()
        only = len(inner) == 1 and not inner[0].images
        return inner[0] if only else None

    def class_root(self, kind: str, split: Folder) -> Folder:
        """Returns the folder that holds a split's classes, below folders that only wrap it."""
        while inner := self.wrapped(split):
            split = inner
        named = [each for each in split.with_images() if split_of(each.name)]
        if len(named) == 1 == len(split.with_images()) and not named[0].with_images():
            split = named[0]  # images right in train/train
        if len({split_of(each.name) for each in named}) > 1:
            names = " and ".join(each.path for each in named)
            self.refuse(f"{self.shown(split)} holds {names} itself", "keep one level of splits")
        if kind == TRAIN and not split.with_images():
            self.refuse_flat(split)
        return split

    def refuse_flat(self, folder: Folder):
        """Refuses images that are not in a folder per class."""
        some = ", ".join(sorted(folder.images)[:3])
        self.refuse(
            f"{len(folder.images)} images are directly in {self.shown(folder)} ({some}, ...), not "
            "in a folder per class",
            "give each class its folder, or write their names into a CSV file (`dataset=csv:FILE`)",
        )

    def classes(self, folder: Folder) -> dict[str, list[str]]:
        """Returns class -> paths of its images, where each folder in the folder is a class."""
        members = folder.with_images()
        if not members:
            self.refuse_flat(folder)
        for each in members:
            inner = [i for i in each.with_images() if split_of(i.name)]
            if inner and not each.images and len(inner) == len(each.with_images()):
                names = " and ".join(i.path for i in inner)
                beside = [other.path for other in members if other is not each]
                self.refuse(
                    f"{names} are splits inside {each.path}, beside {', '.join(beside[:3])}",
                    "put the splits above the classes, or name the one folder that holds train/",
                )
        self.refuse_levels(members)
        wrong = [each.path for each in members if no_class(each)]
        if wrong:
            self.refuse(
                f"{', '.join(wrong)} is where class folders are, but is no class",
                "move it elsewhere",
            )
        empty = [each for each in folder.folders if not each.has_images()]
        self.dropped |= {each.path: "without an image" for each in empty if no_class(each)}
        without = [each.path.rstrip("/") for each in empty if not no_class(each)]
        refuse(
            [os.path.join(self.root, path) for path in without],
            "no image",
            "delete the folder, or fill it",
            of="class folders",
        )
        by_name: dict[str, list[Folder]] = {}
        for each in members:
            by_name.setdefault(clean(each.name), []).append(each)
            self.class_of[each.path] = clean(each.name)
        for name, same in by_name.items():
            if len(same) > 1:
                self.notes.append(
                    f"{len(same)} folders are the class {name!r}: their names differ only in "
                    "blanks or Unicode form."
                )
        nested = [each for each in members if each.with_images()]
        if nested:
            inner = [i.path for each in nested for i in each.with_images()]
            self.notes.append(
                f"Images in {len(inner)} subfolders belong to the class above: {first_few(inner)}"
            )
        return {
            name: [path for each in same for path in each.every_image()]
            for name, same in by_name.items()
        }

    def refuse_levels(self, members: Sequence[Folder]):
        """Refuses folders that all hold the same folder names: either level may be the classes."""
        if len(members) < 2 or any(each.images for each in members):
            return
        holders = [self.wrapped(each) or each for each in members]
        inner = [{clean(i.name) for i in each.with_images()} for each in holders]
        shared = set.intersection(*inner)
        if len(shared) > 1:
            self.refuse(
                f"each of {', '.join(each.path for each in members[:3])} holds the folders "
                f"{', '.join(sorted(shared)[:3])}, so they seem not to be classes",
                "name splits train and test, or give one of the folders as DIR",
            )

    def result(self, splits: Mapping[str, Mapping[str, Sequence[str]]]) -> Layout:
        """Returns the layout of the splits, with all that is left out."""
        return Layout(splits, list(self.left_out(self.top, None)), self.notes)

    def left_out(self, folder: Folder, class_name: str | None) -> Iterator[LeftOut]:
        """Yields the files and folders of a folder that are not read, in order."""
        if folder.path in self.dropped:
            yield LeftOut(folder.path, folder.size(), self.dropped[folder.path])
            return
        class_name = class_name or self.class_of.get(folder.path)
        for name, (why, count) in folder.others.items():
            yield LeftOut(folder.path + name, count, why, class_name)
        if class_name is None:
            yield from (LeftOut(folder.path + name, 1, BESIDE) for name in folder.images)
        for inner in folder.folders:
            yield from self.left_out(inner, class_name)


def no_class(folder: Folder) -> str | None:
    """Returns the folder's name if that name, such as "masks", is never a class, else None."""
    name = clean(folder.name).lower()
    return name if name in NO_CLASSES or name.rpartition("_")[2] in NO_CLASSES else None


def said_of(left_out: Sequence[LeftOut]) -> list[str]:
    """Returns one sentence per reason with the number of files left out and the first few."""
    sentences = []
    for why in dict.fromkeys(each.why for each in left_out):
        same = [each for each in left_out if each.why == why]
        files = sum(each.files for each in same)
        some = first_few([each.path for each in same])
        by_class = Counter(each.class_name for each in same if each.class_name)
        of = ", ".join(f"{n} of class {name}" for name, n in by_class.most_common(5))
        of = f"; {of}{', ...' if len(by_class) > 5 else ''}" if of and why == NO_IMAGE else ""
        sentences.append(f"Left out, {why}: {files} files ({some}{of})")
    return sentences


def refuse(offenders: Sequence[str], what: str, remedy: str, of: str = "lines or images"):
    """Raises one sentence for all offenders, with their number and the first few.

    Args:
        offenders: What is wrong, such as "train.txt, line 3"; nothing is raised if it is empty.
        what: The fault that they share, as a noun.
        remedy: What the user can do, as an imperative.
        of: Plural noun for the offenders.

    Raises:
        ValueError: If there are offenders.
    """
    if offenders:
        first = first_few(offenders, between="; ")
        raise ValueError(f"{len(offenders)} {of} with {what} ({first}): {remedy}.")


def first_few(texts: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """Returns the first few texts as one, with dots for the others.

    Example:
        >>> first_few(["a", "b", "c", "d"])
        'a, b, c, ...'
    """
    shown = between.join(texts[:most])
    return f"{shown}{between}..." if len(texts) > most else shown
