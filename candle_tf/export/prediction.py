"""What an exported student makes of people's image files, one after the other."""

import contextlib
import csv
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from candle_tf.data.own_images.images import is_image, open_image
from candle_tf.data.own_images.layout import scan
from candle_tf.data.pipeline import centre_square
from candle_tf.export.loaded import Exported
from candle_tf.utils.files import written_beside

OUTPUTS = (".csv", ".json")


@dataclass(frozen=True)
class Prediction:
    """What was predicted of a file.

    Attributes:
        path: of the file.
        classes: (class name, probability in [0, 1]), the most probable first; none for a bad file.
        error: what keeps the file from being read, or None.
    """

    path: str
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def files_in(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """The image files that names stand for, in order.

    Args:
        names: files, folders, whose images are taken at any depth, and patterns such as *.jpg.

    Yields:
        (path, how many files of its folder are no images: told with the folder's first image).
    """
    for name in names:
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
        for path in [name] if os.path.exists(name) or not matches else matches:
            if not os.path.isdir(path):
                yield path, 0
                continue
            folder = scan(path, is_image)
            images = sorted(folder.every_image())
            others = folder.size() - len(images)
            if not images:
                yield path, others
            for i, image in enumerate(images):
                yield os.path.join(path, image), 0 if i else others


def predict_file(model: Exported, path: str, share: float, top: int) -> Prediction:
    """What the model makes of the central square of an image file.

    Args:
        model: the exported student.
        path: of the file.
        share: side of the square, as a share of the image's shorter side; 1 for the whole image.
        top: how many classes to give.
    """
    try:
        if os.path.isdir(path):
            raise ValueError(f"{path} is a folder without an image.")
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
    """A function that writes predictions into a CSV or JSON file as they come.

    Args:
        path: of the file; nothing is written where None.
        top: how many classes each has.

    Raises:
        ValueError: if its name ends in neither.
        OSError: if it cannot be written.
    """
    if path is None:
        yield lambda prediction: None
        return
    check_output(path)
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    with written_beside(Path(path)) as beside, open(beside, "w", encoding="utf-8", newline="") as f:
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
    """Refuses, before any work, a file that is neither CSV nor JSON."""
    if path is not None and not path.endswith(OUTPUTS):
        raise ValueError(f"{path} is to end in {' or '.join(OUTPUTS)}: that is how it is written.")


def predict_files(
    model: Exported,
    names: Iterable[str],
    output: str | None = None,
    share: float | None = None,
    top: int = 3,
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Predicts the class of each image file, says it, and writes it; one image is held at a time.

    Args:
        model: the exported student.
        names: as in `files_in`.
        output: a CSV or JSON file to write too, if any.
        share: as in `predict_file`; what the export says where None.
        top: how many classes to give; all where there are fewer.
        say: what shows a line.

    Returns:
        How many files there were, and how many of them could not be read.

    Raises:
        ValueError, OSError: for an output that cannot be written.
    """
    top = min(top, len(model.class_names))
    if share is None and model.centre_square is None:
        say("The export does not say which part of an image it was measured on: the whole is seen.")
    share = share or model.centre_square or 1.0
    count = bad = 0
    with writing_to(output, top) as write:
        for path, others in files_in(names):
            if others:
                say(f"{os.path.dirname(path) or path}: {others} files are left out, no images")
            found = predict_file(model, path, share, top)
            ranking = ", ".join(f"{name} {100 * p:.1f} %" for name, p in found.classes)
            say(found.error or f"{path}: {ranking}")
            write(found)
            count, bad = count + 1, bad + bool(found.error)
    return count, bad
