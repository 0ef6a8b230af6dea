"""Markdown tables of accuracy in %, from finished runs."""

import os
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from candle_tf.metrics import SHIFTS
from candle_tf.utils.run_files import METRICS_FILE, read_results

GROUPS = {"shots": ("many", "medium", "few"), "ranks": ("head", "medium", "tail")}


def comparison_table(workdirs: Sequence[str], split: str = "test", per_class: bool = False) -> str:
    """Returns a table with one row per calibrated teacher and student of finished runs.

    Args:
        workdirs: Directories of the runs.
        split: "test" or "validation".
        per_class: Whether to show one column per class, instead of overall and groups.

    Raises:
        FileNotFoundError: If a directory holds no finished run.
        ValueError: If a run has no such split, or other classes than the first run.
    """
    paths = [os.path.abspath(workdir) for workdir in workdirs]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    runs = {os.path.relpath(path, shared): read_metrics(path, split) for path in paths}
    class_names = next(iter(runs.values()))["class_names"]
    teachers, students = {}, {}
    for name, run in runs.items():
        if run["class_names"] != class_names:
            raise ValueError(
                f"{name} has other classes than the first run: compare runs of one set."
            )
        if "teacher" in run and run["teacher"] not in teachers.values():
            teachers["calibrated teacher" + (f" of {name}" if teachers else "")] = run["teacher"]
        if "student" in run:
            students[f"{name} ({run['method']})"] = run["student"]
    rows = {**teachers, **students}
    reports = {name: row[split] for name, row in rows.items()}
    if per_class:
        return per_class_table(reports, class_names)
    return accuracy_table(reports, weights_column(rows))


def summary_table(workdir: str | os.PathLike, split: str = "test") -> str:
    """Returns a run's accuracies in % overall and for head, medium and tail, and weights in kB.

    Args:
        workdir: Directory of a finished run.
        split: "test" or "validation".

    Raises:
        FileNotFoundError: If the run is not finished.
        ValueError: If the run has no such split.
    """
    run = read_metrics(workdir, split)
    names = {"teacher": "calibrated teacher", "student": f"student ({run['method']})"}
    rows = {name: run[who] for who, name in names.items() if who in run}
    columns = {"overall": {name: percent(row[split]["overall"]) for name, row in rows.items()}}
    for group in GROUPS["ranks"]:
        columns[group] = {
            name: percent(row[split]["ranks"].get(group)) for name, row in rows.items()
        }
    return markdown({**columns, **weights_column(rows)}, rows)


def weights_column(rows: Mapping[str, dict]) -> dict[str, dict[str, str]]:
    """Returns the column of the weights' size, which differs from that of an exported file.

    Args:
        rows: Results of a teacher or student in metrics.json, by row name.
    """
    return {"kB of weights": {name: f"{row['kilobytes']:.0f}" for name, row in rows.items()}}


def read_metrics(workdir: str, split: str) -> dict:
    """Returns the results of a finished run with accuracies on a split."""
    run = read_results(workdir)
    if run is None:
        raise FileNotFoundError(f"{workdir} holds no finished run ({METRICS_FILE} is missing).")
    if not {"method", "class_names"} <= run.keys():
        raise ValueError(
            f"{workdir}/{METRICS_FILE} is damaged, without method or class_names: delete it, and "
            "the run's command writes it again."
        )
    if any(split not in run[who] for who in ("teacher", "student") if who in run):
        raise ValueError(f"{workdir} was not evaluated on {split}: it ran without such a split.")
    return run


def accuracy_table(
    reports: Mapping[str, dict], extra: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """Returns a table of overall accuracy and accuracy by group, one row per report.

    Args:
        reports: Reports of `candle_tf.metrics.accuracy_report` by row name.
        extra: Cells of further columns, by column name and row name.
    """
    return markdown({**accuracy_columns(reports), **(extra or {})}, reports)


def accuracy_columns(reports: Mapping[str, dict]) -> dict[str, dict[str, str]]:
    """Returns the cells of `accuracy_table`, by column name and row name."""
    return {
        title: {name: percent(share) for name, share in column.items()}
        for title, column in shares(reports).items()
    }


def shares(reports: Mapping[Hashable, dict]) -> dict[str, dict[Hashable, float | None]]:
    """Returns accuracies from 0 to 1 by column name and row name, None where a group is missing.

    The mean of the classes has a column where it differs from the overall accuracy.
    """
    columns = {
        title: {name: report[key] for name, report in reports.items()}
        for title, key in (("overall", "overall"), ("class mean", "class_mean"))
    }
    if all(np.isclose(report["overall"], report["class_mean"]) for report in reports.values()):
        del columns["class mean"]
    for kind, groups in GROUPS.items():
        for group in groups:
            column = {name: report[kind].get(group) for name, report in reports.items()}
            if any(share is not None for share in column.values()):
                columns[f"{group} ({kind})" if group == "medium" else group] = column
    return columns


def per_class_table(reports: Mapping[str, dict], class_names: Sequence[str]) -> str:
    """Returns a table of the accuracy of each class, one row per report."""
    columns = {
        class_name: {name: percent(report["per_class"][c]) for name, report in reports.items()}
        for c, class_name in enumerate(class_names)
    }
    return markdown(columns, reports)


def shifted_columns(reports: Mapping[str, dict]) -> dict[str, dict[str, str]]:
    """Returns the cells of a table of accuracies under shifted class priors.

    Args:
        reports: Reports of `candle_tf.metrics.accuracy_report` by row name. In those of earlier
            versions the shifted accuracies are missing.
    """
    return {
        shift: {name: percent(r.get("shifted", {}).get(shift)) for name, r in reports.items()}
        for shift in SHIFTS
    }


def percent(share: float | None) -> str:
    """Formats a fraction in percent; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def markdown(columns: Mapping[str, Mapping[str, str]], rows: Sequence[str]) -> str:
    """Returns a Markdown table.

    Args:
        columns: Cells by column name and row name.
        rows: Names of the rows, in order.
    """
    lines = [["", *columns], ["---", *("---:" for _ in columns)]]
    lines += [[row, *(cells[row] for cells in columns.values())] for row in rows]
    escaped = ([str(cell).replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
