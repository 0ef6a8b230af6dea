import subprocess

import check_versions
import pytest

PAIRS = (("3.10", "2.9"), ("3.10", "2.16"), ("3.11", "2.19"), ("3.12", "2.18"), ("3.12", "2.19"))


def result(python, tensorflow, outcome="works"):
    return {"python": python, "tensorflow": tensorflow, "outcome": outcome}


def test_the_table_has_a_row_per_python_and_names_each_failure():
    results = [
        result("3.9", "2.16"),
        result("3.10", "2.9", "failed: pip install tensorflow==2.9.*"),
        result("3.10", "2.16", "excluded"),
    ]
    assert check_versions.table(results).splitlines() == [
        "| TensorFlow | 2.9 | 2.16 |",
        "| --- | --- | --- |",
        "| Python 3.9 | not run | works |",
        "| Python 3.10 | failed | excluded |",
        "",
        "Python 3.10, TensorFlow 2.9 failed: pip install tensorflow==2.9.*",
    ]


def test_a_requirement_may_depend_on_the_python():
    asked = [
        "numpy<2",
        "tensorflow>=2.16,<2.20",
        "tensorflow>=2.19; python_version >= '3.12'",
        "tensorflow<2; extra == 'old'",
    ]
    admitted = [check_versions.admits(asked, *pair) for pair in PAIRS]
    assert admitted == [False, True, True, False, True]


def test_a_pair_has_a_file_of_its_own():
    names = {check_versions.name_of("3.10", tensorflow) for tensorflow in ("2.16", "2.17")}
    assert len(names) == 2


def test_an_interpreter_has_the_version_asked_for():
    path = check_versions.interpreter("3.11")
    done = subprocess.run([path, "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("Python 3.11.")


def test_a_missing_version_is_named():
    with pytest.raises(FileNotFoundError, match="Python 9.9 is not here"):
        check_versions.interpreter("9.9")
