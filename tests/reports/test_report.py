import base64
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from candle_tf.reports.report import write_report
from candle_tf.runs import job
from candle_tf.runs.run import Run
from matplotlib.figure import Figure
from tiny_runs import TINY

pytestmark = pytest.mark.long
SETTINGS = dataclasses.replace(TINY, resolutions=(12, 16, 20))
FIGURES = {
    "training_distribution.png",
    "accuracy_by_training_images.png",
    "confusion_of_the_student.png",
    "course_of_training.png",
    "classifier_weight_norms.png",
    "reliability_of_the_student.png",
    "worst_tail_images.png",
}
DRAWN = np.array([12, 16, 20, 16, 16, 12])


@pytest.fixture(scope="module")
def examples():
    return Run(dataclasses.replace(SETTINGS, workdir="unused")).examples


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on the digits: its workdir and metrics."""
    workdir = tmp_path_factory.mktemp("runs") / "candle"
    return workdir, job.run(dataclasses.replace(SETTINGS, workdir=str(workdir)))


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """Copies the run, with changes to its metrics, for reports whose figures nobody looks at."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, format: file.write(b""))

    def copy(name, **changes):
        workdir, metrics = tmp_path / name, json.loads(json.dumps(finished[1]))
        workdir.mkdir()
        for kept in ("flags.cfg", "history.csv", "predictions.npz"):
            shutil.copy(finished[0] / kept, workdir)
        metrics["student"].update(changes.pop("student", {}))
        metrics = {name: value for name, value in {**metrics, **changes}.items() if value}
        (workdir / "metrics.json").write_text(json.dumps(metrics))
        return workdir

    return copy


def figures_of(path):
    return {png.name for png in path.parent.glob("*.png")}


@pytest.mark.long
def test_a_run_ends_with_a_page_that_needs_nothing_beside_it(finished):
    workdir, metrics = finished
    page = (workdir / "report" / "report.html").read_text()
    inlined = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    files = {path.name: path.read_bytes() for path in (workdir / "report").glob("*.png")}
    assert files.keys() == FIGURES
    assert {base64.b64decode(image) for image in inlined} == set(files.values())
    assert page.count("src=") == len(FIGURES) and "http" not in page and "<link" not in page
    assert (workdir / "flags.cfg").read_text() in page
    for network in ("student", "teacher"):
        report = metrics[network]["test"]
        assert f"<td>{100 * report['overall']:.1f}</td>" in page
        shifted = "".join(f"<td>{100 * share:.1f}</td>" for share in report["shifted"].values())
        assert f"</th>{shifted}</tr>" in page
    assert "6 updates" in page and "imbalance ratio 10" in page
    assert not (workdir / "report.tmp").exists()


def test_compared_runs_have_a_row_each(copy, examples):
    run, alone = copy("run"), copy("alone", method="cross_entropy", teacher=None)
    full = copy("full", method="focal", student={"kilobytes": 1234.0, "macs": {"32": 9}})
    page = write_report(run, examples, DRAWN, alone, full).read_text()
    rows = re.findall(r"<tr><th>(.+?)</th>.*<td>(\d+)</td></tr>", page)
    assert [name for name, _ in rows] == [
        "this run: candle",
        "from scratch: cross_entropy",
        "full precision: focal",
        "calibrated teacher",
    ]
    assert rows[2][1] == "1234"


def test_the_gap_is_taken_to_the_full_precision_run(finished, copy, examples, monkeypatch):
    _, metrics = finished
    asked = []
    monkeypatch.setattr(
        "candle_tf.reports.figures.weight_norms", lambda *args: asked.append(args) or ""
    )
    run, full = (
        copy("run"),
        copy("full", student={"classifier_norms": [1.0] * 10, "macs": {"32": 9}}),
    )
    write_report(run, examples, DRAWN, full_precision=full)
    write_report(run, examples, DRAWN)
    assert [args[3] for args in asked] == ["full precision: candle", "calibrated teacher"]
    own, other, teacher = asked[0][0].items()
    assert own == ("this run: candle", metrics["student"]["classifier_norms"])
    assert other == ("full precision: candle", [1.0] * 10)
    assert teacher == ("calibrated teacher", metrics["teacher"]["classifier_norms"])


def test_what_does_not_apply_is_left_out_and_said(copy, examples):
    run = copy("run")
    (run / "history.csv").write_text("epoch,loss\n0,1.5\n")
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["student"]["classifier_norms"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    path = write_report(run, examples, DRAWN)
    assert figures_of(path) == FIGURES - {"course_of_training.png", "classifier_weight_norms.png"}
    assert "Left out: The method has no λ." in path.read_text()
    assert "Left out: The student&#x27;s classifier is not a linear one." in path.read_text()
    (run / "history.csv").unlink()
    assert "kept no history.csv" in write_report(run, examples, DRAWN).read_text()


def test_the_run_of_an_earlier_version_has_no_shifted_accuracies(finished, copy, examples):
    test = {k: v for k, v in finished[1]["student"]["test"].items() if k != "shifted"}
    page = write_report(copy("run", student={"test": test}), examples, DRAWN).read_text()
    assert "<th>this run: candle</th>" + 4 * "<td>-</td>" in page


def test_a_second_report_leaves_nothing_of_the_first(copy, examples):
    run = copy("run")
    first = figures_of(write_report(run, examples, DRAWN))
    (run / "history.csv").unlink()
    (run / "report" / "mine.txt").write_text("kept")
    assert first - figures_of(write_report(run, examples, DRAWN)) == {"course_of_training.png"}
    assert (run / "report" / "mine.txt").read_text() == "kept"


def test_the_same_command_writes_a_report_that_is_not_there(copy, examples, capsys):
    run = copy("run")
    (run / "report").mkdir()  # a run may be killed while it draws the figures
    for _ in range(2):
        job.run(dataclasses.replace(SETTINGS, workdir=str(run)))
    assert (run / "report" / "report.html").exists()
    assert capsys.readouterr().out.count("Wrote") == 1


def test_names_are_escaped(copy, examples):
    names = [f"<img src=x> {c}" for c in range(10)]
    run = copy("run", class_names=names, method="<b>", dataset="<script>")
    (run / "flags.cfg").write_text("--teacher=<i>\n")
    page = write_report(run, examples, DRAWN).read_text()
    assert not set(re.findall("<b>|<script>|<i>|<img src=x>", page))
    assert "this run: &lt;b&gt;" in page and "--teacher=&lt;i&gt;" in page


def test_the_worst_tail_images_are_shown(copy, examples, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "candle_tf.reports.figures.image_grid", lambda *args: asked.append(args) or ""
    )
    run = copy("run")
    write_report(run, examples, DRAWN)
    ((images, captions),) = asked
    kept = np.load(run / "predictions.npz")
    rarest = set(np.argsort(examples.class_counts)[:3])
    tail = [i for i, label in enumerate(kept["labels"]) if label in rarest]
    worst = sorted(tail, key=lambda i: kept["true_probability"][i])[: len(images)]
    assert len(images) == 15 and images[0].shape == (8, 8, 3)
    for i, (true, predicted) in zip(worst, captions):
        assert true.startswith(f"true: {kept['labels'][i]} (")
        assert predicted.startswith(f"predicted: {kept['predictions'][i]} (")


@pytest.mark.parametrize("changes", [{"class_counts": [1] * 10}, {"dataset": "tfds:mnist"}])
def test_runs_on_other_data_are_not_compared(changes, copy, examples):
    with pytest.raises(ValueError, match="other training images than this run"):
        write_report(copy("run"), examples, DRAWN, copy("other", **changes))


def test_a_binary_run_is_no_full_precision_reference(copy, examples):
    with pytest.raises(ValueError, match="holds no full-precision student"):
        write_report(copy("run"), examples, DRAWN, full_precision=copy("binary"))


def test_a_student_with_a_teacher_or_real_values_is_not_one_from_scratch(copy, examples):
    run = copy("run")
    with pytest.raises(ValueError, match="had a teacher, by candle: give a run without one"):
        write_report(run, examples, DRAWN, from_scratch=copy("distilled"))
    real = copy("real", method="focal", teacher=None, student={"macs": {"32": 9}})
    with pytest.raises(ValueError, match="other bits: give a run with this run's `student_bits`"):
        write_report(run, examples, DRAWN, from_scratch=real)


def test_a_run_without_a_student_has_no_report(finished, examples, tmp_path):
    metrics = {name: value for name, value in finished[1].items() if name != "student"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="trained no student"):
        write_report(tmp_path, examples, DRAWN)
    with pytest.raises(ValueError, match="trained no student"):
        write_report(finished[0], examples, DRAWN, from_scratch=tmp_path)


def test_what_is_missing_is_named(copy, examples, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        write_report(tmp_path, examples, DRAWN)
    run = copy("run")
    shuffled = dataclasses.replace(examples, test=examples.test.take(np.arange(400)[::-1]))
    with pytest.raises(ValueError, match="test images are not those of"):
        write_report(run, shuffled, DRAWN)
    (run / "predictions.npz").write_bytes((run / "predictions.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match="predictions.npz is damaged .* start the run's command"):
        write_report(run, examples, DRAWN)
    (run / "predictions.npz").unlink()
    with pytest.raises(FileNotFoundError, match="start the run's command again"):
        write_report(run, examples, DRAWN)
