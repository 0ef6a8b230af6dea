"""A finished run on one page: WORKDIR/report/report.html, and its figures as PNG."""

import base64
import csv
import html
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from candle_tf import data, metrics
from candle_tf.reports import figures
from candle_tf.reports.tables import accuracy_columns, read_metrics, shifted_columns, weights_column
from candle_tf.utils.files import write_text, written_beside
from candle_tf.utils.run_files import FLAG_FILE, HISTORY_FILE, PREDICTIONS_FILE, REPORT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEACHER = "calibrated teacher"
WORST_IMAGES = 15

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; font-size: 0.9em; }}
th, td {{ padding: 0.2em 0.6em; border-bottom: 1px solid #ccc; text-align: right; }}
tbody th {{ text-align: left; }}
img {{ max-width: 100%; }}
pre {{ overflow-x: auto; background: #f4f4f4; padding: 1em; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{notes}
<h2>Test accuracy (%)</h2>
{table}
<h2>Accuracy to expect where the class frequencies are long-tailed (%)</h2>
<p>Forward 50: the largest training class is 50 times as frequent as the smallest one. Backward:
the reverse.</p>
{shifted}
{sections}
<h2>Flags</h2>
<pre>{flags}</pre>
</html>
"""


def write_report(
    workdir: str,
    examples: data.LongTailedData,
    drawn: np.ndarray,
    from_scratch: str | None = None,
    full_precision: str | None = None,
) -> Path:
    """Writes WORKDIR/report: report.html, which needs no other file, and each figure as PNG.

    Args:
        workdir: Directory of a finished run.
        examples: Data of the run.
        drawn: Size in pixels of the student's images at each update, int (updates,).
        from_scratch: Directory of a run of the same binary student, trained without a teacher.
        full_precision: Directory of a run of the same student at 32 bits, the reference of the
            Binary-FP gap; the calibrated teacher is the reference by default.

    Returns:
        The path of report.html.

    Raises:
        ImportError: If matplotlib is not installed.
        FileNotFoundError: If a directory holds no finished run.
        ValueError: If the data are not the run's, the run trained no student, or a run to compare
            has other data or other bits than its role demands.
    """
    run = read_student(workdir)
    predicted = read_predictions(workdir, examples)
    networks, reference = {f"this run: {run['method']}": run["student"]}, TEACHER
    for role, other in {"from scratch": from_scratch, "full precision": full_precision}.items():
        if other is not None:
            name, networks[name] = student_of(other, role, run)
            reference = name if role == "full precision" else reference
    if "teacher" in run:
        networks[TEACHER] = run["teacher"]

    classes = run["class_counts"], run["class_names"]
    labels, predictions = predicted["labels"], predicted["predictions"]
    accuracies = {name: network["test"]["per_class"] for name, network in networks.items()}
    sections = {
        "Training distribution": figures.class_distribution(*classes, examples.info.bounds),
        "Accuracy by training images": figures.accuracy_by_count(accuracies, *classes),
        "Confusion of the student": figures.confusion_matrix(labels, predictions, *classes),
        "Course of training": course(workdir, drawn),
        "Classifier weight norms": norms(networks, *classes, reference),
        "Reliability of the student": figures.reliability_diagram(
            predicted["confidence"], labels == predictions
        ),
        "Worst tail images": worst_tail_images(predicted, examples),
    }
    return write_page(Path(workdir), run, networks, sections)


def read_predictions(workdir: str, examples: data.LongTailedData) -> Mapping[str, np.ndarray]:
    """Returns the student's predictions on the test images, by name."""
    path = Path(workdir) / PREDICTIONS_FILE
    remedy = (
        "delete metrics.json beside it and start the run's command again, which then only evaluates"
    )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {remedy}.")
    try:
        predicted = dict(np.load(path))
        labels = predicted["labels"]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}.") from error
    if not np.array_equal(labels, examples.test.labels):
        raise ValueError(f"The test images are not those of {workdir}: give the run's own data.")
    return predicted


def read_student(workdir: str) -> dict:
    """Returns the results of a finished run that trained a student."""
    run = read_metrics(workdir, "test")
    if "student" not in run:
        raise ValueError(f"{workdir} trained no student: give a run of at least one epoch.")
    return run


def student_of(workdir: str, role: str, run: dict) -> tuple[str, dict]:
    """Returns name and results of the student of another run on the same data."""
    other = read_student(workdir)
    if any(other[key] != run[key] for key in ("dataset", "class_names", "class_counts")):
        raise ValueError(
            f"{workdir} has other training images than this run: compare runs on one data set at "
            "one imbalance ratio."
        )
    widths = other["student"]["macs"].keys()
    if role == "full precision" and widths != {"32"}:
        raise ValueError(
            f"{workdir} holds no full-precision student: give a run with `student_bits=32`."
        )
    if role == "from scratch" and "teacher" in other:
        raise ValueError(
            f"{workdir} had a teacher, by {other['method']}: give a run without one, such as "
            "`method=cross_entropy`."
        )
    if role == "from scratch" and widths != run["student"]["macs"].keys():
        raise ValueError(
            f"{workdir} holds a student of other bits: give a run with this run's `student_bits`."
        )
    return f"{role}: {other['method']}", other["student"]


def course(workdir: str, drawn: np.ndarray) -> "Figure | str":
    """Returns the figure of the run's history, or the reason why there is none."""
    path = Path(workdir) / HISTORY_FILE
    if not path.is_file():
        return f"The run kept no {HISTORY_FILE}."
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("epoch", "lambda", "kl", "feature")
    if not rows or not rows[0].keys() >= set(columns):
        return "The method has no λ."
    history = {name: np.array([float(row[name]) for row in rows]) for name in columns}
    return figures.training_course(history, drawn)


def norms(
    networks: Mapping[str, dict],
    class_counts: Sequence[int],
    class_names: Sequence[str],
    reference: str,
) -> "Figure | str":
    """Returns the figure of the linear classifiers, or the reason why there is none."""
    own, *_ = networks
    linear = {
        name: network["classifier_norms"]
        for name, network in networks.items()
        if "classifier_norms" in network
    }
    if own not in linear:
        return "The student's classifier is not a linear one."
    reference = reference if reference in linear else None
    return figures.weight_norms(linear, class_counts, class_names, reference)


def worst_tail_images(
    predicted: Mapping[str, np.ndarray], examples: data.LongTailedData
) -> "Figure | str":
    """Returns a figure of the tail's images with the least probable true classes, or a reason."""
    groups = metrics.rank_groups(examples.class_counts, examples.info.bounds)
    tail = np.flatnonzero(np.isin(predicted["labels"], groups.get("tail", [])))
    if not len(tail):
        return "No test image belongs to a tail class."
    worst = tail[np.argsort(predicted["true_probability"][tail], kind="stable")[:WORST_IMAGES]]
    images = [examples.test.image(i).numpy() for i in worst]
    names = [figures.short(name) for name in examples.class_names]
    captions = [
        (
            f"true: {names[label]} ({100 * true:.1f} %)",
            f"predicted: {names[prediction]} ({100 * confidence:.0f} %)",
        )
        for label, prediction, confidence, true in zip(
            *(
                predicted[key][worst]
                for key in ("labels", "predictions", "confidence", "true_probability")
            )
        )
    ]
    return figures.image_grid(images, captions)


def table(columns: Mapping[str, Mapping[str, str]], rows: Iterable[str]) -> str:
    """Returns an HTML table of cells by column name and row name."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *columns))
    lines = ""
    for name in rows:
        cells = "".join(f"<td>{column[name]}</td>" for column in columns.values())
        lines += f"<tr><th>{html.escape(name)}</th>{cells}</tr>\n"
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>"


def notes_of(run: dict) -> str:
    """Returns decisions on the run's data, and faults in them, as HTML."""
    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in run.get("notes", ()))
    left_out = run.get("files_left_out")
    count = "" if left_out is None else f"<p>{left_out:,} files of the data are left out.</p>\n"
    return f"<h2>Notes on the data</h2>\n{count}<ul>\n{notes}</ul>" if notes or left_out else ""


def write_page(
    workdir: Path,
    run: dict,
    networks: Mapping[str, dict],
    sections: Mapping[str, "Figure | str"],
) -> Path:
    """Writes the page and its figures into WORKDIR/report, and keeps other files there."""
    path = workdir / REPORT
    path.parent.mkdir(exist_ok=True)
    reports = {name: network["test"] for name, network in networks.items()}
    parts = []
    for title, section in sections.items():
        image = path.with_name(f"{title.lower().replace(' ', '_')}.png")
        if isinstance(section, str):
            image.unlink(missing_ok=True)  # an earlier report may have had the figure
            shown = f"<p>Left out: {html.escape(section)}</p>"
        else:
            png = io.BytesIO()
            section.savefig(png, format="png")
            with written_beside(image) as beside:
                beside.write_bytes(png.getvalue())
            inlined = base64.b64encode(png.getvalue()).decode()
            shown = f'<img alt="{title}" src="data:image/png;base64,{inlined}">'
        parts.append(f"<h2>{title}</h2>\n{shown}")
    counts = run["class_counts"]
    trained = (
        f"{run['updates']:,} updates"
        if run["updates"]
        else "A new classifier on a finished run's features,"
    )
    page = PAGE.format(
        title=html.escape(f"{run['method']} on {run['dataset']}"),
        summary=f"{trained} on {sum(counts):,} images of {len(counts)} classes, "
        f"imbalance ratio {run['imbalance_ratio']:.4g}; {run['test_images']:,} test images.",
        notes=notes_of(run),
        table=table({**accuracy_columns(reports), **weights_column(networks)}, reports),
        shifted=table(shifted_columns(reports), reports),
        sections="\n".join(parts),
        flags=html.escape((workdir / FLAG_FILE).read_text(encoding="utf-8")),
    )
    write_text(path, page)
    return path
