import json

import pytest
from candle_tf.reports.tables import accuracy_table, comparison_table, per_class_table

REPORT = {
    "overall": 0.5,
    "class_mean": 0.5,
    "shots": {"many": 0.75, "medium": 0.25},
    "ranks": {"head": 1.0, "medium": 0.5, "tail": 0.0},
    "per_class": [1.0, 0.5, None],
}
TEACHER = {"test": {**REPORT, "overall": 0.625, "class_mean": 0.625}, "kilobytes": 335.2}


def write_run(root, name, **metrics):
    (root / name).mkdir()
    written = {"method": name, "class_names": ["cat", "dog", "eel"], **metrics}
    (root / name / "metrics.json").write_text(json.dumps(written))
    return str(root / name)


def test_an_empty_group_has_no_column():
    assert accuracy_table({"a": REPORT}).splitlines() == [
        "|  | overall | many | medium (shots) | head | medium (ranks) | tail |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| a | 50.0 | 75.0 | 25.0 | 100.0 | 50.0 | 0.0 |",
    ]


def test_the_class_mean_stands_where_classes_differ_in_size():
    table = accuracy_table({"a": {**REPORT, "class_mean": 0.25}})
    assert table.splitlines()[0].startswith("|  | overall | class mean | many |")
    assert table.splitlines()[2].startswith("| a | 50.0 | 25.0 | 75.0 |")


def test_a_class_without_an_example_is_a_dash():
    table = per_class_table({"a": REPORT}, ["cat", "dog", "eel"])
    assert table.splitlines()[0] == "|  | cat | dog | eel |"
    assert table.splitlines()[2] == "| a | 100.0 | 50.0 | - |"


def test_runs_side_by_side_name_a_teacher_once(tmp_path):
    student = {"test": REPORT, "kilobytes": 74.0}
    runs = [
        write_run(tmp_path, "alone", student=student),
        write_run(tmp_path, "candle", student=student, teacher=TEACHER),
        write_run(tmp_path, "candle_2", student=student, teacher=TEACHER),
    ]
    rows = [line.split(" | ") for line in comparison_table(runs).splitlines()[2:]]
    names = ["calibrated teacher", "alone (alone)", "candle (candle)", "candle_2 (candle_2)"]
    assert [row[0].strip("| ") for row in rows] == names
    assert comparison_table(runs, per_class=True).startswith("|  | cat | dog | eel |")
    assert rows[0][1] == "62.5" and rows[0][-1] == "335 |" and rows[1][-1] == "74 |"


def test_runs_on_other_classes_are_refused(tmp_path):
    student = {"test": REPORT, "kilobytes": 74.0}
    runs = [
        write_run(tmp_path, "a", student=student),
        write_run(tmp_path, "b", student=student, class_names=["x"]),
    ]
    with pytest.raises(ValueError, match="b has other classes"):
        comparison_table(runs)


def test_unfinished_run_and_missing_split(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        comparison_table([str(tmp_path)])
    run = write_run(tmp_path, "candle", teacher=TEACHER)
    with pytest.raises(ValueError, match="not evaluated on validation"):
        comparison_table([run], "validation")


def test_runs_of_one_name_stay_apart(tmp_path):
    runs = []
    for seed in ("seed0", "seed1"):
        (tmp_path / seed).mkdir()
        runs.append(write_run(tmp_path / seed, "candle", student={"test": REPORT, "kilobytes": 1}))
    table = comparison_table(runs)
    assert "| seed0/candle (candle) |" in table and "| seed1/candle (candle) |" in table
