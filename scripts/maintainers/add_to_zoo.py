"""Makes an entry of zoo/ from a finished run: weights, flatbuffer and model card.

    python scripts/maintainers/add_to_zoo.py --workdir=runs/digits --name=digits_lt \
      --data="Handwritten digits of scikit-learn" --data_licence="CC BY 4.0" \
      --teacher="a small network pretrained on rendered letters"

The command measures the student's accuracy and speed, and takes all other numbers of the card from
the run's files. It refuses a student that `candle_tf.zoo.load` would not restore exactly, or that
is no longer as accurate as the run was. It also writes the table of docs/zoo.md. The workdir is
only read.
"""

import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import candle_tf as ct
import larq
import numpy as np
import tensorflow as tf
from absl import flags
from candle_tf import metrics
from candle_tf.cli import run_flags
from candle_tf.export.flatbuffer import to_tflite
from candle_tf.networks.surgery import renewed
from candle_tf.reports.export_report import latencies
from candle_tf.reports.report import read_student
from candle_tf.reports.tables import markdown, percent
from candle_tf.runs.run import Run
from candle_tf.runs.workdir import MOVABLE
from candle_tf.students import at_bits
from candle_tf.students.weights import write_weights
from candle_tf.utils.files import write_text
from candle_tf.utils.run_files import FLAG_FILE
from candle_tf.zoo import restored

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "zoo.md"
GROUPS = ("overall", "class mean", "head", "medium", "tail")
Z = 1.96  # of 95 %
COMPARED = 512  # test images on which the restored student must equal the run's
TOLERATED = 0.01  # difference of accuracy: other versions decode and round differently
CONFUSIONS = 10


def wilson(share: float, n: float) -> dict[str, float]:
    """Returns a share with Wilson's 95 % interval.

    Args:
        share: Fraction of the images that are right.
        n: Number of images.
    """
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {
        name: round(value, 4) for name, value in zip(("value", "low", "high"), (share, low, high))
    }


def accuracy(report: dict, images: np.ndarray, groups: Mapping[str, np.ndarray]) -> dict:
    """Returns the accuracies of a report with their intervals, by group.

    The mean of C classes with n_c images each counts as C^2 / sum(1 / n_c) images, which makes its
    interval wide rather than narrow.

    Args:
        report: Report of `candle_tf.metrics.accuracy_report`.
        images: Test images per class, (classes,).
        groups: Classes of head, medium and tail, by name.
    """
    shares = {"class mean": report["class_mean"], **report["ranks"]}
    members = {"class mean": np.arange(len(images)), **groups}
    found = {"overall": wilson(report["overall"], images.sum())}
    for name, share in shares.items():
        n = images[members[name]]
        n = n[n > 0]
        found[name] = wilson(share, len(n) ** 2 / np.sum(1 / n))
    return found


def confusions(labels: np.ndarray, predictions: np.ndarray, names: list[str]) -> list[dict]:
    """Returns the confusions that are most frequent, overall and within their true class.

    Args:
        labels: True classes, int (n,).
        predictions: Predicted classes, int (n,).
        names: Names in class order.
    """
    classes = len(names)
    pairs = np.bincount(labels * classes + predictions, minlength=classes**2)
    pairs, total = pairs.reshape(classes, classes), np.bincount(labels, minlength=classes)
    np.fill_diagonal(pairs, 0)
    score = pairs**2 / np.maximum(total, 1)[:, None]
    largest = np.argsort(-score, axis=None, kind="stable")[:CONFUSIONS]
    return [
        {
            "true": names[true],
            "predicted": names[predicted],
            "images": int(pairs[true, predicted]),
            "of": int(total[true]),
        }
        for true, predicted in zip(*np.unravel_index(largest, pairs.shape))
        if pairs[true, predicted]
    ]


def recipe(workdir: Path) -> list[str]:
    """Returns the flags of a run without the directories of its machine."""
    lines = (workdir / FLAG_FILE).read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith((*MOVABLE, "--workdir="))]
    return [re.sub(r"(?<=[=:,])/[^,]*/", "", line) for line in kept]


def processor() -> str:
    """Returns the name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", path.read_text(), re.M) if path.exists() else None
    return found[1] if found else platform.processor()


def check_restored(run: Run, student: tf.keras.Model):
    """Refuses an entry that differs from the student of its run.

    Args:
        run: Finished run.
        student: Student of the entry.

    Raises:
        ValueError: If a logit differs.
    """
    model, test = ct.StudentModel(student), run.examples.test
    some = test.take(np.arange(min(COMPARED, len(test))))
    batches = [images for images, _ in run.evaluation_batches(some)]
    mine = np.concatenate([run.student(images) for images in batches])
    theirs = np.concatenate([model(images) for images in batches])
    if not np.array_equal(mine, theirs):
        raise ValueError(
            f"The entry differs from its run by up to {np.abs(mine - theirs).max():.1e}: the zoo "
            "holds binary students as `candle_tf.students.create` builds them."
        )


def measured(run: Run) -> tuple[dict, np.ndarray, np.ndarray]:
    """Returns the student's accuracy on the test images now, and their labels and predictions.

    Raises:
        ValueError: If the accuracy is not the one that the run measured.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "predictions.npz"
        report = run.measure(run.student, file)["test"]
        with np.load(file) as predicted:
            labels, predictions = predicted["labels"], predicted["predictions"]
    now, then = report["overall"], read_student(run.workdir)["student"]["test"]["overall"]
    print(f"Accuracy {percent(now)} % now, {percent(then)} % in the run")
    if abs(now - then) > TOLERATED:
        raise ValueError(f"{run.workdir} is not as accurate as its run: give the run's own data.")
    return report, labels, predictions


def made_card(run: Run, name: str, about: Mapping[str, str], folder: Path) -> dict:
    """Returns the card of a run's student, whose weights and flatbuffer are written.

    Args:
        run: Finished run.
        name: Name of the entry.
        about: What no file of the run says: `data`, `data_licence` and `teacher`.
        folder: Directory with the weights, to write the flatbuffer to.
    """
    results, names = read_student(run.workdir), run.class_names
    report, labels, predictions = measured(run)
    counts, images = results["class_counts"], np.bincount(labels, minlength=len(names))
    groups = metrics.rank_groups(counts, run.examples.info.bounds)
    flatbuffer = folder / f"{name}.tflite"
    run.export(flatbuffer, format="lce")
    size, student = run.resolution.base, renewed(run.student.student)
    plain = to_tflite(at_bits(student, "32"), size)
    network, arguments = run.student_arguments(pretrained=False)
    return {
        "name": name,
        "student": network,
        "arguments": arguments,
        "image_size": size,
        "centre_square": run.augmentation.centre_square,
        "class_names": names,
        **about,
        "training_images": sum(counts),
        "largest_class": max(counts),
        "smallest_class": min(counts),
        "test_images": len(labels),
        "notes": results.get("notes", []),
        "method": results["method"],
        "updates": results["updates"],
        "seed": run.settings.seed,
        "recipe": recipe(run.workdir),
        "accuracy": accuracy(report, images, groups),
        "accuracy_of_the_run": results["student"]["test"]["overall"],
        "teacher_accuracy": accuracy(results["teacher"]["test"], images, groups)
        if "teacher" in results
        else {},
        "never_right": [names[c] for c, share in enumerate(report["per_class"]) if share == 0],
        "confusions": confusions(labels, predictions, names),
        "kilobytes": results["student"]["kilobytes"],
        "flatbuffer_kilobytes": flatbuffer.stat().st_size / 1000,
        "archive_kilobytes": (folder / f"{name}.npz").stat().st_size / 1000,
        "milliseconds": {
            engine: round(took, 3)
            for engine, took in latencies(flatbuffer.read_bytes(), plain, size).items()
        },
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {
            "candle_tf": ct.__version__,
            "larq": larq.__version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
    }


def interval(share: Mapping[str, float]) -> str:
    """Returns an accuracy in % with its interval."""
    return f"{percent(share['value'])} ({percent(share['low'])} to {percent(share['high'])})"


def page(card: dict) -> str:
    """Returns a card as a Markdown page."""
    rows = {"student": card["accuracy"], "calibrated teacher": card["teacher_accuracy"]}
    rows = {who: found for who, found in rows.items() if found}
    columns = {
        group: {who: interval(found[group]) for who, found in rows.items()}
        for group in GROUPS
        if group in card["accuracy"]
    }
    pairs = {str(i + 1): each for i, each in enumerate(card["confusions"])}
    confused = {
        "true class": {i: each["true"] for i, each in pairs.items()},
        "predicted as": {i: each["predicted"] for i, each in pairs.items()},
        "test images": {i: f"{each['images']} of {each['of']}" for i, each in pairs.items()},
    }
    size, engines = card["image_size"], card["milliseconds"]
    machine = f"{card['processor']}, {card['cores']} cores, load {card['load']}"
    now, then = percent(card["accuracy"]["overall"]["value"]), percent(card["accuracy_of_the_run"])
    speed = ", ".join(f"{took:.2f} ms with {engine}" for engine, took in engines.items())
    square = "the whole image"
    if card["centre_square"] < 1:
        part = percent(card["centre_square"])
        square = f"a central square whose side is {part} % of the image's shorter side"
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    teacher = f"\n- Teacher: {card['teacher']}" if card["teacher"] else ""
    notes = "".join(f"\n- {note}" for note in card["notes"])
    return f"""# {card["name"]}

A binary `{card["student"]}` for {len(card["class_names"])} classes, trained by `{card["method"]}`.

```python
import candle_tf as ct  # before tensorflow

student, card = ct.zoo.load("{card["name"]}"), ct.zoo.card("{card["name"]}")
```

The student takes RGB images in [0, 255] of {size}x{size} pixels, made from {square}.

## Data

- Images: {card["data"]}
- Licence of the images: {card["data_licence"]}
- Training: {card["training_images"]:,} images, {card["largest_class"]:,} of the largest class and \
{card["smallest_class"]:,} of the smallest
- Test: {card["test_images"]:,} images{teacher}{notes}

## Accuracy

Test accuracy in % of one seed, with 95 % intervals for the choice of the test images. Another seed
can differ by more. The intervals are Wilson's. A mean of C classes with n_c images each counts as
C²/Σ(1/n_c) images.

{markdown(columns, rows)}

The student was measured again for this card: {now} % overall, where the run had {then} %. The
teacher's numbers are those of the run.

{never_right(card)}The most frequent confusions:

{markdown(confused, pairs)}

## Size and speed

- Weights: {card["kilobytes"]:.0f} kB at their own widths. `{card["name"]}.tflite`: \
{card["flatbuffer_kilobytes"]:.0f} kB. `{card["name"]}.npz`: {card["archive_kilobytes"]:.0f} kB.
- Speed: {speed}. These are medians for one image on one thread
  ({machine}). The engines took turns for five seconds. LCE's optimised kernels are for 64-bit ARM.

## What it must not be used for

{not_for(card)}

## Recipe

{card["updates"]:,} updates, seed {card["seed"]}. `train.py` takes these flags, with the files and
directories of your machine:

```
{chr(10).join(card["recipe"])}
```

The entry was made with {versions}.
"""


def never_right(card: dict) -> str:
    """Returns a paragraph on the classes that the student never predicts rightly, or nothing."""
    names = card["never_right"]
    if not names:
        return ""
    return f"No test image of {len(names)} classes is classified correctly: {', '.join(names)}.\n\n"


def not_for(card: dict) -> str:
    """Returns sentences on the limits of a student, which follow from its accuracy and its data."""
    found = card["accuracy"]
    overall, tail = (percent(found[group]["value"]) for group in ("overall", "tail"))
    said = [
        f"The student is a demonstration. It is right for {overall} % of the test images, and in "
        f"the tail for {tail} % (mean of the classes).",
        "Do not use it for decisions about people, safety, health, law or money, or where nobody "
        "checks its answer.",
        f"It answers one of its {len(card['class_names'])} classes for every image, also for an "
        "image of something else. Its probability does not tell the difference.",
        f"Its accuracy holds for images like the test images, at {card['image_size']} pixels. "
        "Measure it on your own images first.",
    ]
    if "not stated" in card["data_licence"]:
        said.append(
            "No licence of the images is stated: ask a lawyer before any use beyond research."
        )
    return "\n".join(f"- {each}" for each in said)


def table(cards: list[dict]) -> str:
    """Returns the table of docs/zoo.md, with one row per student."""
    rows = [f"`{card['name']}`" for card in cards]
    columns = {
        "classes": [f"{len(card['class_names'])}" for card in cards],
        "pixels": [f"{card['image_size']}" for card in cards],
        **{
            group: [percent(card["accuracy"][group]["value"]) for card in cards] for group in GROUPS
        },
        "kB of the file": [f"{card['flatbuffer_kilobytes']:.0f}" for card in cards],
    }
    return markdown({name: dict(zip(rows, cells)) for name, cells in columns.items()}, rows)


def add_entry(run: Run, name: str, about: Mapping[str, str], folder: Path):
    """Writes the four files of an entry, once the student restored from them equals the run's.

    Args:
        run: Finished run.
        name: Name of the entry.
        about: What no file of the run says: `data`, `data_licence` and `teacher`.
        folder: Directory of the entries.
    """
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory)
        write_weights(run.student.student, made / f"{name}.npz")
        card = made_card(run, name, about, made)
        write_text(made / f"{name}.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
        write_text(made / f"{name}.md", page(card))
        check_restored(run, restored(card, made / f"{name}.json"))
        for path in made.iterdir():
            shutil.copy(path, folder)


def add():
    """Adds the entry of the flags, and writes the table of docs/zoo.md."""
    given = flags.FLAGS
    run = run_flags.run_of(given.workdir, given.data_dir)
    if given.classes:
        names = Path(given.classes).read_text(encoding="utf-8").splitlines()
        run.class_names = [names[int(number)] for number in run.class_names]
    about = {"data": given.data, "data_licence": given.data_licence, "teacher": given.teacher or ""}
    add_entry(run, given.name, about, ROOT / "zoo")
    write_table()


def write_table():
    """Writes the table of docs/zoo.md from all cards."""
    rows = table([ct.zoo.card(name) for name in ct.zoo.list()])
    text = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, re.sub(r"^\|.*\|$\n(?:\|.*\|$\n)*", f"{rows}\n", text, count=1, flags=re.M))


def main():
    """Defines the flags and adds the entry."""
    flags.DEFINE_string("workdir", None, "Directory of the finished run.", required=True)
    flags.DEFINE_string("data_dir", None, "Present directory of the run's data.")
    flags.DEFINE_string("name", None, "Name of the entry.", required=True)
    flags.DEFINE_string("data", None, "The data set as a phrase, with its source.", required=True)
    flags.DEFINE_string(
        "data_licence", None, "The licence of the data, or 'not stated'.", required=True
    )
    flags.DEFINE_string(
        "classes",
        None,
        "Text file with a name per line, for a run whose classes are numbered from 0.",
    )
    flags.DEFINE_string("teacher", None, "The teacher as a phrase, with what it was pretrained on.")
    run_flags.start(add)


if __name__ == "__main__":
    main()
