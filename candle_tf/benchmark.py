"""Methods x data sets x seeds: a run each, in a directory each, and one table of them all."""

import csv
import dataclasses
import hashlib
import io
import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from candle_tf.methods import METHODS
from candle_tf.registry import parse_spec
from candle_tf.settings import Settings, first_stage, resolved
from candle_tf.tables import markdown, shares
from candle_tf.workdir import HISTORY_FILE, METRICS_FILE, write_text

LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark.

    Attributes:
        dataset, method: as the table names them; the method of a run that only serves as another's
            first stage is empty.
        settings: of the run.
        reference: whether it trains on other data than its neighbours, and so does not compete.
    """

    dataset: str
    method: str
    settings: Settings
    reference: bool = False

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.method or self.settings.method}, seed {self.settings.seed}"

    @property
    def results(self) -> dict | None:
        """What the run wrote, once it is finished."""
        path = Path(self.settings.workdir) / METRICS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def plan(
    base: Settings,
    methods: Sequence[str],
    datasets: Sequence[str],
    seeds: Sequence[int],
    output: str,
) -> list[Cell]:
    """Every cell, and the runs that they start from; cells that start alike share one.

    Args:
        base: settings of every cell.
        methods: "NAME", "NAME:FLAG=VALUE,..." or "LABEL = NAME:FLAG=VALUE,...".
        datasets: the same of data sets, such as "ratio 10 = tfds:cifar10:imbalance_ratio=10".
        seeds: of the repetitions.
        output: the directory that holds the cells.

    Raises:
        ValueError: for an unknown name or flag, a value out of range, or one label twice.
    """
    if not (methods and datasets and seeds):
        raise ValueError("A benchmark needs rows, data sets and seeds: no --methods, or the like.")
    if any(not str(seed).strip().isdecimal() for seed in seeds):
        raise ValueError("--seeds are whole numbers, such as 0,1,2.")
    cells: list[Cell] = []
    workdirs: dict[Settings, str] = {}  # by what is run there
    for dataset, on_dataset in overrides(base, "dataset", datasets).items():
        for seed in map(int, seeds):
            seeded = dataclasses.replace(on_dataset, seed=seed, workdir=output)
            rows = overrides(seeded, "method", methods)
            for row, settings in rows.items():
                try:
                    resolved(settings).check()
                except TypeError as error:
                    raise ValueError(f"{row!r} has a value of the wrong type: {error}.") from error
                workdirs.setdefault(settings, place(output, dataset, row, f"seed {seed}"))
            firsts = {
                row: dataclasses.replace(first, workdir=output)
                for row, settings in rows.items()
                if (first := first_stage(settings))
            }
            for first in firsts.values():
                if first not in workdirs:
                    digest = hashlib.sha1(first.to_flags().encode()).hexdigest()[:8]
                    name = f"first {first.method} {digest}"
                    workdirs[first] = place(output, dataset, name, f"seed {seed}")
                    settings = dataclasses.replace(first, workdir=workdirs[first])
                    cells.append(Cell(dataset, "", settings))
            for row, settings in rows.items():
                settings = dataclasses.replace(
                    settings,
                    workdir=workdirs[settings],
                    first_stage=workdirs[firsts[row]] if row in firsts else None,
                )
                other_data = settings.imbalance_ratio != seeded.imbalance_ratio
                cells.append(Cell(dataset, row, settings, other_data))
    if len(set(workdirs.values())) < len(workdirs):
        raise ValueError("Two labels differ in punctuation alone: their cells need other names.")
    return cells


def place(output: str, *parts: str) -> str:
    """A directory that is named after the parts."""
    return str(Path(output, *(re.sub(r"[^\w.=-]+", "_", part) for part in parts)))


def overrides(base: Settings, what: str, specs: Sequence[str]) -> dict[str, Settings]:
    """Label -> the settings with what "LABEL = NAME:FLAG=VALUE,..." changes.

    Args:
        what: the setting that NAME is of.
    """
    made = {}
    known = {field.name for field in dataclasses.fields(base)}
    for spec in specs:
        label, equals, changes = spec.rpartition(" = ")
        name, arguments = parse_spec(changes)
        if unknown := arguments.keys() - known:
            raise ValueError(f"{spec!r}: there is no flag --{min(unknown)}.")
        label = label if equals else spec
        if label in made:
            raise ValueError(f"Two rows are called {label!r}: write 'LABEL = NAME:FLAG=VALUE'.")
        made[label] = dataclasses.replace(base, **{what: name, **arguments})
    return made


def run(
    cells: Sequence[Cell],
    train: Sequence[str],
    output: str,
    show: Callable[[Mapping[Cell, str]], None],
    interval: float = 2.0,
) -> dict[Cell, str]:
    """Runs the cells that are not finished, one after the other, and writes the results after each.

    Each after the one that it starts from.

    Args:
        train: the command that takes a run's flags.
        output: the directory of `results.csv` and `results.md`.
        show: called with the state of every cell, every `interval` seconds.

    Returns:
        The last states. A cell that fails does not stop the others: its state says why.
    """
    states = {cell: "finished" if cell.results else "waiting" for cell in cells}
    write_results(cells, output)
    made_in = {cell.settings.workdir: cell for cell in cells}
    pairs = ((made_in.get(cell.settings.first_stage, cell), cell) for cell in cells)
    for cell in dict.fromkeys(cell for pair in pairs for cell in pair):
        if cell.results:  # earlier, or a moment ago for another row
            states[cell] = "finished"
            continue
        workdir = Path(cell.settings.workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        flags = [*cell.settings.to_flags().splitlines(), f"--workdir={workdir}"]
        with open(workdir / LOG_FILE, "a", encoding="utf-8") as log:
            process = subprocess.Popen([*train, *flags], stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                states[cell] = f"epoch {epochs_done(workdir)} of {cell.settings.epochs}"
                show(states)
                time.sleep(interval)
        finally:
            process.terminate()
            process.wait()
        states[cell] = "finished" if cell.results else f"failed: {last_line(workdir / LOG_FILE)}"
        show(states)
        write_results(cells, output)
    return states


def epochs_done(workdir: Path) -> int:
    path = workdir / HISTORY_FILE
    return max(0, len(path.read_text(encoding="utf-8").splitlines()) - 1) if path.exists() else 0


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "without a word")


def write_results(cells: Sequence[Cell], output: str):
    Path(output).mkdir(parents=True, exist_ok=True)
    write_text(Path(output) / "results.csv", results_csv(cells))
    write_text(Path(output) / "results.md", results_table(cells) + "\n")


def finished(cells: Sequence[Cell]) -> dict[Cell, dict]:
    """The rows that are finished, with their results."""
    return {cell: results for cell in cells if cell.method and (results := cell.results)}


def results_csv(cells: Sequence[Cell]) -> str:
    """A line a finished cell: labels, seed, updates, kilobytes, seconds, accuracies as shares."""
    lines = []
    for cell, results in finished(cells).items():
        line = {
            "dataset": cell.dataset,
            "method": cell.method,
            "seed": cell.settings.seed,
            "updates": results["updates"],
            "kilobytes": results["student"]["kilobytes"],
            "seconds": sum(results["seconds"].values()),
        }
        for split in ("validation", "test"):
            if split in results["student"]:
                columns = shares({"": results["student"][split]})
                line |= {f"{split} {name}": column[""] for name, column in columns.items()}
        lines.append(line)
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def results_table(cells: Sequence[Cell], split: str = "test") -> str:
    """A Markdown table a data set: accuracy in %, mean and standard deviation over the seeds.

    The best of each column is bold. Below stands what CANDLE's best row has over the best prior
    method's. References take part in neither.
    """
    done = finished(cells)
    tables = []
    for dataset in dict.fromkeys(cell.dataset for cell in done):
        ours = {cell: results for cell, results in done.items() if cell.dataset == dataset}
        tables.append(f"{dataset}:\n\n{dataset_table(ours, split)}")
    return "\n\n".join(tables)


def dataset_table(cells: Mapping[Cell, dict], split: str) -> str:
    reports = {
        (cell.method, cell.settings.seed): results["student"][split]
        for cell, results in cells.items()
    }
    competing = {cell.method for cell in cells if not cell.reference}
    candle = {cell.method for cell in cells if METHODS[cell.settings.method].distills}
    columns, overall = {}, {}
    for title, column in shares(reports).items():
        of: dict[str, list[float]] = {}
        for (method, _), share in column.items():
            of.setdefault(method, []).extend([] if share is None else [100 * share])
        means = {method: np.mean(values) for method, values in of.items() if values}
        best = max((mean for method, mean in means.items() if method in competing), default=None)
        columns[title] = {
            method: spread(values, method in competing and means.get(method) == best)
            for method, values in of.items()
        }
        overall = overall or means
    text = markdown(columns, overall)
    if (mine := candle & competing) and (prior := competing - candle):
        mine, prior = (max(methods, key=overall.get) for methods in (mine, prior))
        gap = overall[mine] - overall[prior]
        text += (
            f"\n\nOverall, {mine} is {gap:+.1f} points from {prior}, the best prior method here."
        )
    return text


def spread(values: Sequence[float], bold: bool) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "-"
    text = f"{np.mean(values):.1f}"
    text += f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"**{text}**" if bold else text
