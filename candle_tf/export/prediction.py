"""Predictions of an exported student for image files, one after the other."""

import contextlib
import csv
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from candle_tf.data.own_images.layout import scan
from candle_tf.data.own_images.pixels import is_image, open_image
from candle_tf.data.pipeline import centre_square
from candle_tf.export.loaded import Exported
from candle_tf.export.saved_model import check_share
from candle_tf.utils.files import written_beside

OUTPUTS = (".csv", ".json")


@dataclass(frozen=True)
class Prediction:
    """The prediction for one file.

    Attributes:
        path: Path of the file.
        classes: Pairs (class name, probability in [0, 1]), the most probable class first; empty
            for a file that cannot be read.
        error: Reason why the file cannot be read, or None.
    """

    path: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def files_in(names: Iterable[str | os.PathLike]) -> Iterator[tuple[str, int]]:
    """Yields the image files of file names, folders and patterns, in order.

    Args:
        names: Paths of files, of folders (their images at any depth), and patterns such as *.jpg.

    Yields:
        (path, number of files in the folder that are not images). The number comes with the first
        image of a folder and is 0 for the others.
    """
    for name in map(os.fspath, names):
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
        for path in [name] if os.path.exists(name) or not matches else matches:
            if not os.path.isdir(path):
                yield path, 0
                continue
            try:
                folder = scan(path, is_image)
            except OSError as error:
                raise ValueError(
                    f"{error.filename} cannot be read ({error.strerror}): leave the folder out, or "
                    "make it readable."
                ) from error
            images = sorted(folder.every_image())
            others = folder.size() - len(images)
            if not images:
                yield path, others
            for i, image in enumerate(images):
                yield os.path.join(path, image), 0 if i else others


def predict_file(model: Exported, path: str, share: float, top: int) -> Prediction:
    """Predicts the class of the central square of an image file.

    Args:
        model: The exported student.
        path: Path of the file.
        share: Side of the square as a fraction of the shorter side; 1 means the whole image.
        top: Number of classes to return.
    """
    try:
        if os.path.isdir(path):
            raise ValueError(f"{path} is a folder without an image: check the path.")
        image = open_image(path)
    except ValueError as error:
        return Prediction(path, error=str(error))
    if share < 1:
        image = centre_square(image, share)
    probabilities = model.predict(image[None])[0]
    best = probabilities.argsort()[::-1][:top]
    return Prediction(path, tuple((model.class_names[c], float(probabilities[c])) for c in best))


@contextlib.contextmanager
def writing_to(path: str | None, top: int) -> Iterator[Callable[[Prediction], None]]:
    """Yields a function that writes predictions into a CSV or JSON file, one after the other.

    Args:
        path: Path of the file; None writes nothing.
        top: Number of classes per prediction.

    Raises:
        ValueError: If the path ends in neither .csv nor .json.
        OSError: If the file cannot be written.
    """
    if path is None:
        yield lambda prediction: None
        return
    check_output(path)
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    with (
        written_beside(Path(path)) as beside,
        open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="") as f,
    ):
        if path.endswith(".csv"):
            rows = csv.writer(f)
            numbers = ["", *(f"_{i}" for i in range(2, top + 1))]
            columns = [f"{name}{n}" for n in numbers for name in ("class", "probability")]
            rows.writerow(["path", *columns, "error"])

            def write(found: Prediction):
                cells = [cell for name, p in found.classes for cell in (name, f"{p:.6f}")]
                blank = [""] * (len(columns) - len(cells))
                rows.writerow([found.path, *cells, *blank, found.error or ""])

            yield write
            return
        between = "[\n"

        def write(found: Prediction):
            nonlocal between
            classes = [{"class": name, "probability": p} for name, p in found.classes]
            entry = {"path": found.path, "classes": classes}
            f.write(between + json.dumps(entry | ({"error": found.error} if found.error else {})))
            between = ",\n"

        yield write
        f.write("[]\n" if between == "[\n" else "\n]\n")


def check_output(path: str | None):
    """Refuses, before any work, an output file that is neither CSV nor JSON, or a directory."""
    if path is not None and os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory: name a file.")
    if path is not None and not path.endswith(OUTPUTS):
        raise ValueError(f"{path} must end in {' or '.join(OUTPUTS)}: choose one of the formats.")


def predict_files(
    model: Exported,
    names: Iterable[str | os.PathLike],
    output: str | None = None,
    share: float | None = None,
    top: int = 3,
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Predicts, prints and writes the class of each image file, with one image in memory at a time.

    Args:
        model: The exported student.
        names: Files, folders and patterns, as in `files_in`.
        output: CSV or JSON file to write, if any.
        share: Side of the central square, as in `predict_file`; by default the one of the export.
        top: Largest number of classes per file.
        say: Function that prints a line.

    Returns:
        (number of files, number of files that could not be read).

    Raises:
        KeyboardInterrupt: At Ctrl-C; the output holds the files so far.
        ValueError: For an output that is neither CSV nor JSON, a share that is not above 0 and at
            most 1, or a folder that cannot be read.
        OSError: If the output cannot be written.
    """
    if share is not None:
        check_share(share)
    if isinstance(names, str):
        raise ValueError(f"names is the text {names!r}: give a list of names.")
    top = min(top, len(model.class_names))
    if share is None and model.centre_square is None:
        say("The export does not say which part of an image to use: it sees the whole image.")
    share = share or model.centre_square or 1.0
    count, bad, stopped = 0, 0, None
    with writing_to(output, top) as write:
        try:
            for path, others in files_in(names):
                if others:
                    say(f"{os.path.dirname(path) or path}: {others} files are left out: not images")
                found = predict_file(model, path, share, top)
                ranking = ", ".join(f"{name} {100 * p:.1f} %" for name, p in found.classes)
                say(found.error or f"{path}: {ranking}")
                write(found)
                count, bad = count + 1, bad + bool(found.error)
        except KeyboardInterrupt as interrupt:  # what is predicted so far is kept
            stopped = interrupt
    if stopped:
        say(f"Stopped after {count} files{f', which {output} holds' if output else ''}.")
        raise stopped
    return count, bad
