import json

import add_to_zoo
import candle_tf as ct
import numpy as np
import pytest
from candle_tf import zoo
from candle_tf.cli.run_flags import run_of


@pytest.mark.parametrize(
    "share, n, low, high",
    [(0.5, 100, 0.4038, 0.5962), (1.0, 40, 0.9124, 1.0), (0.0, 40, 0.0, 0.0876)],
)
def test_intervals_are_wilson_s(share, n, low, high):
    assert add_to_zoo.wilson(share, n) == {"value": share, "low": low, "high": high}


def test_a_mean_of_classes_has_the_interval_of_its_images():
    report = {"overall": 0.5, "class_mean": 0.5, "ranks": {"head": 0.5}}
    groups = {"head": np.array([0, 1])}
    found = add_to_zoo.accuracy(report, np.array([50, 50, 0]), groups)
    assert found["class mean"] == found["head"] == found["overall"]
    few = add_to_zoo.accuracy(report, np.array([1, 99, 0]), groups)
    assert few["head"]["low"] < found["head"]["low"]


def test_confusions_are_sorted_by_number_and_fraction():
    labels = np.array([0] * 10 + [1] * 4 + [2] * 10)
    predictions = np.array([0] * 7 + [2] * 3 + [0] * 3 + [1] + [2] * 10)
    found = add_to_zoo.confusions(labels, predictions, ["a", "b", "c"])
    assert [(each["true"], each["predicted"]) for each in found] == [("b", "a"), ("a", "c")]
    assert (found[0]["images"], found[0]["of"]) == (3, 4)


def test_a_recipe_names_no_directory(tmp_path):
    (tmp_path / "flags.cfg").write_text(
        "--dataset=list:/data/a/train.txt,/data/a/test.txt\n--data_dir=/data\n--epochs=3\n"
        "--teacher=/weights/cut.h5\n"
    )
    assert add_to_zoo.recipe(tmp_path) == [
        "--dataset=list:train.txt,test.txt",
        "--epochs=3",
        "--teacher=cut.h5",
    ]


@pytest.mark.long
def test_an_entry_is_made_from_a_run(finished, tmp_path, monkeypatch):
    """The card has the run's accuracy, and the entry loads."""
    monkeypatch.setattr(zoo, "PLACES", (tmp_path,))
    monkeypatch.setattr(add_to_zoo, "latencies", lambda *_: {"LCE": 1.0})  # seconds of measuring
    workdir, _ = finished
    run, about = run_of(str(workdir)), {"data": "x", "data_licence": "not stated", "teacher": ""}
    add_to_zoo.add_entry(run, "tiny", about, tmp_path)
    card = ct.zoo.card("tiny")
    results = json.loads((run.workdir / "metrics.json").read_text())["student"]["test"]
    assert card["accuracy"]["overall"]["value"] == pytest.approx(results["overall"], abs=1e-4)
    assert "ask a lawyer" in (tmp_path / "tiny.md").read_text()
    assert ct.zoo.load("tiny").output_shape == (None, 10)
