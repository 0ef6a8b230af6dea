"""Markdown tables of accuracy in %, from finished runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

GROUPS = {"shots": ("many", "medium", "few"), "ranks": ("head", "medium", "tail")}


def comparison_table(workdirs: Sequence[str], split: str = "test") -> str:
    """The calibrated teachers and the students of finished runs, a row each.

    Args:
        workdirs: directories of runs.
        split: "test" or "validation".

    Raises:
        FileNotFoundError: for a directory without a finished run.
        ValueError: for a run without that split.
    """
    teachers, students = {}, {}
    for workdir in workdirs:
        run = read_metrics(workdir, split)
        if "teacher" in run and run["teacher"] not in teachers.values():
            where = f" of {Path(workdir).name}" if teachers else ""
            teachers[f"calibrated teacher{where}"] = run["teacher"]
        if "student" in run:
            students[f"{Path(workdir).name} ({run['method']})"] = run["student"]
    rows = {**teachers, **students}
    sizes = {name: f"{row['kilobytes']:.0f}" for name, row in rows.items()}
    return accuracy_table({name: row[split] for name, row in rows.items()}, {"kB": sizes})


def read_metrics(workdir: str, split: str) -> dict:
    """metrics.json of a finished run that has accuracies on `split`."""
    path = Path(workdir) / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} holds no finished run ({path.name} is missing).")
    run = json.loads(path.read_text())
    if any(split not in run[who] for who in ("teacher", "student") if who in run):
        raise ValueError(f"{workdir} was not evaluated on {split}: it ran without such a split.")
    return run


def accuracy_table(
    reports: Mapping[str, dict], extra: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """Overall accuracy and that of each group, a row a report of `metrics.accuracy_report`.

    The mean of the classes stands beside the overall accuracy where the two differ.

    Args:
        reports: row name -> report.
        extra: further columns, column name -> row name -> cell.
    """
    columns = {
        title: {name: percent(report[key]) for name, report in reports.items()}
        for title, key in (("overall", "overall"), ("class mean", "class_mean"))
    }
    if columns["overall"] == columns["class mean"]:
        del columns["class mean"]
    for kind, groups in GROUPS.items():
        for group in groups:
            cells = {name: percent(report[kind].get(group)) for name, report in reports.items()}
            if any(cell != "-" for cell in cells.values()):
                columns[f"{group} ({kind})" if group == "medium" else group] = cells
    return markdown({**columns, **(extra or {})}, reports)


def per_class_table(reports: Mapping[str, dict], class_names: Sequence[str]) -> str:
    """Accuracy of each class, a row a report."""
    columns = {
        class_name: {name: percent(report["per_class"][c]) for name, report in reports.items()}
        for c, class_name in enumerate(class_names)
    }
    return markdown(columns, reports)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def markdown(columns: Mapping[str, Mapping[str, str]], rows: Sequence[str]) -> str:
    """A Markdown table; columns are column name -> row name -> cell."""
    lines = [["", *columns], ["---", *("---:" for _ in columns)]]
    lines += [[row, *(cells[row] for cells in columns.values())] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
