"""Benchmarks: one run per method, data set and seed, and one table of all runs."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
from candle_tf.methods import METHODS
from candle_tf.reports.tables import markdown, shares
from candle_tf.runs.build import computing_in
from candle_tf.runs.plan import check_store
from candle_tf.runs.run import Run
from candle_tf.runs.settings import OF_FEATURES, OF_TEACHER, Settings, canonical, first_stage_of
from candle_tf.runs.workdir import identity
from candle_tf.student_model import StudentModel
from candle_tf.utils.files import locked, write_text
from candle_tf.utils.names import lookup, parse_spec
from candle_tf.utils.run_files import HISTORY_FILE, read_results

LOG_FILE = "log.txt"
MARK_OF_TABLE = r"^\|  \| overall \||^Not finished, and left out: "  # in results.md
DATA = (  # a run's images
    "dataset",
    "imbalance_ratio",
    "profile",
    "n_max",
    "validation_split",
    "on_bad_image",
)
STUDENT = ("dataset", "student", "student_bits", "image_size", "resolutions", "method", "precision")
TEACHER = (*OF_TEACHER, "teacher_image_size", "image_size", "resolutions", "precision")
CALIBRATION = (*OF_FEATURES, "calibration", "label_smoothing", "batch_size")
DECIDED = ("workdir", "first_stage", "method", "seed")  # what the benchmark itself decides


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark.

    Attributes:
        dataset: Data set as the table names it.
        method: Method as the table names it; empty for a run that is only a first stage.
        settings: Settings of the run.
        reference: Whether the run trains on other data than its neighbours, and does not compete.
    """

    dataset: str
    method: str
    settings: Settings
    reference: bool = False

    @property
    def name(self) -> str:
        """The data set, the method and the seed, for messages."""
        method = self.method or f"{self.settings.method} (first stage)"
        return f"{self.dataset}, {method}, seed {self.settings.seed}"

    @property
    def results(self) -> dict | None:
        """The results of the run, or None where it is not finished."""
        return read_results(self.settings.workdir)


def plan(
    base: Settings,
    methods: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int | str],
    output: str,
) -> list[Cell]:
    """Returns every cell and the first stages; equal runs share one directory.

    Args:
        base: Settings of every cell.
        methods: Rows "NAME", "NAME:FLAG=VALUE,..." or "LABEL = NAME:FLAG=VALUE,...".
        datasets: Data sets in the same form, such as "ratio 10 = tfds:cifar10:imbalance_ratio=10".
        seeds: Seeds of the repetitions.
        output: Directory that holds the cells.

    Raises:
        ValueError: If a name or setting is unknown, a value is out of range or has another type, or
            a label or seed occurs twice, or rows differ in strategy, on_nan or data_dir alone.
        FileExistsError: If the directory holds results that no benchmark wrote.
    """
    given = {"methods": methods, "datasets": datasets, "seeds": seeds, "output": output}
    if missing := [f"`{name}`" for name, value in given.items() if not value]:
        raise ValueError(f"A benchmark needs {', '.join(missing)}: see its --help.")
    check_output(Path(output))
    if any(not str(seed).strip().isdecimal() for seed in seeds):
        raise ValueError("`seeds` must be whole numbers, such as 0,1,2.")
    seeds = [int(seed) for seed in seeds]
    if len(set(seeds)) < len(seeds):
        raise ValueError("`seeds` names one twice: each seed is one repetition.")
    cells, firsts = [], {}
    for dataset, on_dataset in overrides(base, "dataset", datasets).items():
        for seed in seeds:
            seeded = dataclasses.replace(on_dataset, seed=seed, workdir=output)
            data = canonical(seeded)
            for row, settings in overrides(seeded, "method", methods).items():
                # What the set gives and the method does not read; what the row gives is checked.
                unread = [n for n in settings.unread if getattr(settings, n) == getattr(seeded, n)]
                settings = dataclasses.replace(settings, **{n: getattr(base, n) for n in unread})
                first = first_stage_of(settings)
                settings = placed(f"{dataset}, {row}", settings, output)
                if first:
                    first = placed(f"{dataset}, {row}", first, output)
                    settings = dataclasses.replace(settings, first_stage=first.workdir)
                    firsts.setdefault(first.workdir, Cell(dataset, "", first))
                other_data = any(getattr(settings, n) != getattr(data, n) for n in DATA)
                cells.append(Cell(dataset, row, settings, other_data))
    check_shared(cells)
    rows = {cell.settings.workdir for cell in cells}
    return [*(cell for workdir, cell in firsts.items() if workdir not in rows), *cells]


def check_shared(cells: Sequence[Cell]):
    """Refuses cells of one directory that differ in how they train or where their images are."""
    made = {}
    for cell in cells:
        first = made.setdefault(cell.settings.workdir, cell)
        for name in ("data_dir", "on_nan", "strategy"):
            if getattr(first.settings, name) != getattr(cell.settings, name):
                raise ValueError(
                    f"The rows {first.dataset}, {first.method} and {cell.dataset}, {cell.method} "
                    f"differ in `{name}` alone, and would share one run: leave one out."
                )


def placed(name: str, settings: Settings, output: str) -> Settings:
    """Returns canonical settings with a workdir that is named after the run.

    Args:
        name: Name of the cell, for messages.
        settings: Settings of the cell, or of its first stage.
        output: Directory that holds the cells.

    Raises:
        ValueError: If the settings cannot be run; names the cell.
    """
    try:
        made = canonical(settings)
        lines = [*identity(made.to_flags()), *(f"{name} of the images" for name in made.open)]
        digest = hashlib.sha1("\n".join(lines).encode()).hexdigest()[:8]
        workdir = str(Path(output, f"{made.method}_{digest}"))
        dataclasses.replace(settings, workdir=workdir).check()
        if settings.epochs == 0:
            raise ValueError("A benchmark compares students: `epochs` must be at least 1.")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return dataclasses.replace(made, workdir=workdir)


def overrides(base: Settings, what: str, specs: Sequence[str]) -> dict[str, Settings]:
    """Returns the settings that rows "LABEL = NAME:FLAG=VALUE,..." make, by label.

    Args:
        base: Settings that the rows change.
        what: Setting that takes NAME.
        specs: The rows.
    """
    made = {}
    names = dict.fromkeys(field.name for field in dataclasses.fields(base))
    for spec in specs:
        label, equals, changes = spec.rpartition(" = ")
        label = label.strip() if equals else spec
        if not label or set(label) & set("|\n"):
            raise ValueError(f"{spec!r}: a label is not empty and has no | or line break.")
        if label in made:
            raise ValueError(f"Two rows are called {label!r}: write 'LABEL = NAME:FLAG=VALUE'.")
        name, arguments = parse_spec(changes)
        try:
            for argument in arguments:
                lookup("setting", argument, names)
                if argument in (what, *DECIDED):
                    raise ValueError(f"`{argument}` is decided by the benchmark itself.")
            made[label] = dataclasses.replace(base, **{what: name, **arguments})
        except ValueError as error:
            raise ValueError(f"{spec!r}: {error}") from error
    return made


def check_parts(cells: Sequence[Cell]):
    """Makes each data set, teacher and student once, so that no cell is refused after hours.

    Raises:
        ValueError: If a cell cannot be run; names the first one.
    """
    images_of = attrgetter(*DATA, "seed")
    teacher_of, student_of = attrgetter(*TEACHER), attrgetter(*STUDENT)
    teachers, students, stores = {}, set(), {}
    unfinished = [cell for cell in cells if not cell.results]
    for _, group in itertools.groupby(unfinished, lambda cell: images_of(cell.settings)):
        examples = None  # one data set at a time: it may be large
        for cell in group:
            try:
                run = Run(cell.settings)
                examples = run.examples = examples or run.examples
                teacher, student = teacher_of(run.settings), student_of(run.settings)
                if run.settings.calibrates:
                    if teacher not in teachers:
                        teachers[teacher] = run.teacher
                    run.teacher = teachers[teacher]
                if student not in students:
                    students.add(student)
                    with computing_in(run.settings.precision):
                        network = run.build_student(len(examples.class_names))
                    StudentModel(network, resolutions=run.settings.resolutions)
                if run.settings.teacher_views:
                    check_shared_store(run, stores)
                run.check_sampler()
            except (ValueError, OSError) as error:
                raise ValueError(f"{cell.name}: {error}") from error


def check_shared_store(run: Run, stores: dict[Path, dict]):
    """Refuses a teacher store that another cell fills with other contents.

    Args:
        run: Run of a cell.
        stores: The sources of each cell's store by directory, which this function adds to.
    """
    made_of = check_store(run) | {name: getattr(run.settings, name) for name in CALIBRATION}
    directory = run.store_directory
    if stores.setdefault(directory, made_of) != made_of:
        raise ValueError(
            f"`teacher_store={directory}` would serve cells of other images, seeds, teachers "
            "or calibrations too: leave it out, so that each has its own."
        )


def run(
    cells: Sequence[Cell],
    train: Sequence[str],
    output: str,
    show: Callable[[Mapping[Cell, str]], None],
    interval: float = 2.0,
) -> dict[Cell, str]:
    """Runs the cells that are not finished, first stages first, and writes the results after each.

    Args:
        cells: Cells of the benchmark.
        train: Command that takes a run's flags.
        output: Directory of the cells, of `results.csv` and of `results.md`.
        show: Function that is called with the state of every cell.
        interval: Seconds between two such calls.

    Returns:
        The last state of every cell. A failed cell stops only the cells that start from it, and its
        state says why.

    Raises:
        ValueError: If another benchmark is at work in the directory.
    """
    with locked(output):
        cells_of: dict[str, list[Cell]] = {}  # a run may have several rows
        for cell in cells:
            cells_of.setdefault(cell.settings.workdir, []).append(cell)
        states = {cell: "finished" if cell.results else "waiting" for cell in cells}
        write_results(cells, output)
        show(states)
        pairs = ((cell.settings.first_stage, cell.settings.workdir) for cell in cells)
        for workdir in dict.fromkeys(each for pair in pairs for each in pair if each in cells_of):
            same = cells_of[workdir]
            cell = same[0]
            if states[cell] == "finished":
                continue
            first = cells_of.get(cell.settings.first_stage)
            if first and states[first[0]].startswith("failed"):
                states |= dict.fromkeys(same, "failed: its first stage did")
            else:
                with contextlib.closing(run_cell(cell, train, interval)) as course:
                    for state in course:
                        states |= dict.fromkeys(same, state)
                        show(states)
                write_results(cells, output)
        show(states)
    return states


def run_cell(cell: Cell, train: Sequence[str], interval: float) -> Iterator[str]:
    """Runs a cell in a process of its own; yields its state repeatedly, and at last its end."""
    workdir = Path(cell.settings.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    flags = [*cell.settings.to_flags().splitlines(), f"--workdir={workdir}"]
    with open(workdir / LOG_FILE, "a", encoding="utf-8") as log:
        process = subprocess.Popen([*train, *flags], stdout=log, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            of = f" of {cell.settings.epochs}" if cell.settings.epochs else ""
            done = f"epoch {epochs_done(workdir)}{of}"
            yield "at work" if METHODS[cell.settings.method].second_stage else done
            time.sleep(interval)
    finally:
        process.terminate()
        process.wait()
    if cell.results:
        yield "finished"
    elif process.returncode < 0:
        yield f"failed: killed by signal {-process.returncode}"
    else:
        yield f"failed: {last_line(workdir / LOG_FILE)}"


def epochs_done(workdir: Path) -> int:
    """Counts the epochs in the history of a run."""
    path = workdir / HISTORY_FILE
    return max(0, len(path.read_text(encoding="utf-8").splitlines()) - 1) if path.exists() else 0


def last_line(path: Path) -> str:
    """Returns the last line that a run has printed."""
    lines = re.split("[\n\r\b]", path.read_text(encoding="utf-8", errors="replace"))
    return next((line for line in reversed(lines) if line.strip()), "without a message")


def check_output(output: Path):
    """Refuses a directory whose results.csv or results.md no benchmark wrote.

    Raises:
        FileExistsError: Names the file.
    """
    for name, mark in (("results.csv", r"dataset,method,seed,"), ("results.md", MARK_OF_TABLE)):
        path = output / name
        text = path.read_text(errors="replace").strip() if path.exists() else ""
        if text and not re.search(mark, text, re.MULTILINE):
            raise FileExistsError(
                f"{path} is no benchmark's: move it away, or name another `output`."
            )


def write_results(cells: Sequence[Cell], output: str):
    """Writes results.csv and results.md."""
    write_text(Path(output) / "results.csv", results_csv(cells))
    write_text(Path(output) / "results.md", results_table(cells) + "\n")


def finished(cells: Sequence[Cell]) -> dict[Cell, dict]:
    """Returns the results of the finished rows."""
    return {cell: results for cell in cells if cell.method and (results := cell.results)}


def results_csv(cells: Sequence[Cell]) -> str:
    """Returns one CSV line per finished cell, with accuracies from 0 to 1.

    Updates and seconds include those of a first stage.
    """
    lines, done = {}, finished(cells)
    for cell, results in done.items():
        first = cell.settings.first_stage and read_results(cell.settings.first_stage)
        stages = [results, first] if first else [results]
        lines[cell] = {
            "dataset": cell.dataset,
            "method": cell.method,
            "seed": cell.settings.seed,
            "workdir": Path(cell.settings.workdir).name,
            "updates": sum(stage["updates"] for stage in stages),
            "kilobytes": results["student"]["kilobytes"],
            "seconds": sum(sum(stage["seconds"].values()) for stage in stages),
        }
    students = {cell: results["student"] for cell, results in done.items()}
    for split in ("validation", "test"):
        reports = {cell: student[split] for cell, student in students.items() if split in student}
        for title, column in shares(reports).items():
            for cell, share in column.items():
                lines[cell][f"{split} {title}"] = share
    names = dict.fromkeys(name for line in lines.values() for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines.values())
    return text.getvalue()


def results_table(cells: Sequence[Cell]) -> str:
    """Returns one Markdown table per data set: test accuracy in %, mean and deviation by seed.

    The best of each column is bold; references do not compete. Cells that are not finished are left
    out, and named below.
    """
    done = finished(cells)
    parts = []
    for dataset in dict.fromkeys(cell.dataset for cell in done):
        ours = {cell: results for cell, results in done.items() if cell.dataset == dataset}
        parts += [f"{dataset}:", dataset_table(ours), *gap(ours)]
    if left_out := [cell.name for cell in cells if cell.method and cell not in done]:
        parts.append(f"Not finished, and left out: {'; '.join(left_out)}.")
    return "\n\n".join(parts)


def dataset_table(cells: Mapping[Cell, dict]) -> str:
    """Returns the Markdown table of one data set."""
    competing = {cell.method for cell in cells if not cell.reference}
    reports = {cell: results["student"]["test"] for cell, results in cells.items()}
    columns = {}
    for title, column in shares(reports).items():
        of: dict[str, list[float]] = {cell.method: [] for cell in cells}
        for cell, share in column.items():
            of[cell.method] += [] if share is None else [100 * share]
        best = max((np.mean(of[method]) for method in competing if of[method]), default=None)
        columns[title] = {
            method: spread(values, method in competing and values and np.mean(values) == best)
            for method, values in of.items()
        }
    return markdown(columns, columns["overall"])


def gap(cells: Mapping[Cell, dict]) -> list[str]:
    """Returns a sentence on the gap between CANDLE's best row and the best prior method's.

    Both rows are chosen by the mean of the classes, on held-out images where every row has some,
    else on the test set. References do not compete. Without a row of each there is no sentence.
    """
    students = {cell: results["student"] for cell, results in cells.items() if not cell.reference}
    held_out = all("validation" in student for student in students.values())
    split = "validation" if held_out else "test"
    accuracy = {}  # a row -> of each seed, what it is chosen by and what is reported
    for cell, student in students.items():
        pair = student[split]["class_mean"], student["test"]["overall"]
        accuracy.setdefault(cell.method, []).append(pair)
    means = {row: np.mean(pairs, axis=0) for row, pairs in accuracy.items()}
    candle = {cell.method for cell in cells if METHODS[cell.settings.method].distills}
    rows = [row for row in means if row in candle], [row for row in means if row not in candle]
    if not all(rows):
        return []
    ours, prior = (max(some, key=lambda row: means[row][0]) for some in rows)
    points = 100 * (means[ours][1] - means[prior][1])
    return [
        f"Overall, {ours} is {abs(points):.1f} points {'below' if points < 0 else 'above'} "
        f"{prior}, the best prior method here by the mean of the classes on the {split} images."
    ]


def spread(values: Sequence[float], bold: bool) -> str:
    """Returns the mean and, of several values, the standard deviation."""
    if not values:
        return "-"
    text = f"{np.mean(values):.1f}"
    text += f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"**{text}**" if bold else text
