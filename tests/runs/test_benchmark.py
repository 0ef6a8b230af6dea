import csv
import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
from candle_tf.runs import benchmark
from candle_tf.runs.settings import Settings
from candle_tf.utils.files import locked

BASE = Settings(dataset="digits", imbalance_ratio=10, epochs=1, steps_per_epoch=3)
TRAIN = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "train.py")]


def plan(methods, output="out", datasets=("digits",), seeds=(0,)) -> list[benchmark.Cell]:
    return benchmark.plan(BASE, methods, datasets, seeds, str(output))


def test_a_first_stage_is_shared():
    cells = plan(["crt", "ncm", "cross_entropy", "crt on all = crt:sampler='class_balanced'"])
    assert {cell.method for cell in cells} == {"", "crt", "crt on all", "cross_entropy", "ncm"}
    assert len(cells) == 5
    by_name = {cell.method: cell.settings for cell in cells}
    assert by_name["crt"].first_stage == by_name["ncm"].first_stage
    assert by_name["crt"].first_stage == by_name["cross_entropy"].workdir
    assert by_name["crt on all"].first_stage == by_name[""].workdir
    assert by_name[""].sampler == "class_balanced" and by_name[""].method == "cross_entropy"


def test_rows_that_are_one_run_share_it():
    rows = ["crt", "crt:sampler='instance_balanced'", "candle", "candle:temperature=2"]
    crt, same, candle, too = (c.settings for c in plan(rows) if c.method)
    assert crt == same and candle == too
    cells = plan(
        ["ceiling = cross_entropy:imbalance_ratio=1"],
        datasets=["a = digits:imbalance_ratio=5", "digits"],
    )
    assert cells[0].settings == cells[1].settings and all(cell.reference for cell in cells)
    assert [cell.dataset for cell in cells] == ["a", "digits"]


@pytest.mark.parametrize("name, value", [("strategy", "mirrored"), ("on_nan", "skip")])
def test_rows_that_would_share_a_run_by_mistake_are_refused(name, value):
    with pytest.raises(ValueError, match=f"digits, focal and digits, b differ in `{name}` alone"):
        plan(["focal", f"b = focal:{name}={value!r}"])


def test_every_cell_has_a_directory_of_its_own():
    datasets = ["ten = digits:imbalance_ratio=10", "five = digits:imbalance_ratio=5"]
    cells = plan(["a = cross_entropy", "balanced_softmax"], datasets=datasets, seeds=[0, "1"])
    assert len({cell.settings.workdir for cell in cells}) == len(cells) == 8
    assert {(c.settings.imbalance_ratio, c.settings.seed) for c in cells} == {
        (10, 0),
        (10, 1),
        (5, 0),
        (5, 1),
    }


@pytest.mark.parametrize(
    "seeds, problem",
    [(["0", "x"], "`seeds` must be whole numbers"), (["1", "01"], "names one twice")],
)
def test_seeds_are_different_whole_numbers(seeds, problem):
    with pytest.raises(ValueError, match=problem):
        plan(["crt"], seeds=seeds)


@pytest.mark.parametrize(
    "change, reference",
    [
        ("imbalance_ratio=1", True),
        ("imbalance_ratio=10", False),
        ("dataset='tfds:cifar10'", True),
        ("profile='step'", True),
        ("validation_split=0.5", True),
        ("learning_rate=1", False),
    ],
)
def test_a_row_on_other_data_is_a_reference(change, reference):
    (cell,) = plan([f"cross_entropy:{change}"])
    assert cell.reference == reference


def test_a_data_set_cannot_choose_the_method():
    with pytest.raises(ValueError, match="`method` is decided"):
        plan(["crt"], datasets=["digits:method='crt'"])


def test_a_set_may_have_settings_for_some_of_the_methods(tmp_path):
    datasets = [f"digits:teacher_store={str(tmp_path)!r}"]
    candle, alone = plan(["candle", "balanced_softmax"], datasets=datasets)
    assert candle.settings.teacher_store == str(tmp_path)
    assert alone.settings.teacher_store is None
    with pytest.raises(ValueError, match="needs a method with a teacher"):
        plan([f"balanced_softmax:teacher_store={str(tmp_path)!r}"])
    with pytest.raises(ValueError, match="needs a method with a teacher"):
        plan(["balanced_softmax:teacher_store='other'"], datasets=datasets)


def test_a_cells_directory_is_that_of_what_it_runs():
    def directories(methods, **changes):
        base = dataclasses.replace(BASE, **changes)
        cells = benchmark.plan(base, methods, ["a = digits"], [0], "out")
        return [cell.settings.workdir for cell in cells]

    first, crt = directories(["crt"])
    assert directories([".. = cross_entropy", "crt"]) == [first, crt]
    moved = {"data_dir": "/elsewhere", "download": True, "teacher": "keras:MobileNet"}
    assert directories(["crt"], **moved) == [first, crt]
    assert not {first, crt} & set(directories(["crt"], learning_rate=0.1))
    assert Path(first).parent == Path("out")


@pytest.mark.long
@pytest.mark.parametrize(
    "change, problem",
    [
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"dataset": "tfds:cifar10", "data_dir": "/nowhere"}, "is not in /nowhere"),
        ({"method": "candle", "teacher": "nowhere.h5"}, "nowhere.h5"),
        ({"student": "resnet_e:widht=1"}, "widht"),
        ({"resolutions": (24, 28)}, "below and above 32"),
        ({"sampler": "progressively_balanced"}, "train for more updates"),
    ],
)
def test_what_cannot_be_made_is_named_before_anything_runs(change, problem, tmp_path):
    settings = dataclasses.replace(BASE, method="cross_entropy", workdir=str(tmp_path))
    good = benchmark.Cell("digits", "good", settings)
    bad = benchmark.Cell("digits", "bad", dataclasses.replace(settings, **change))
    benchmark.check_parts([good])
    with pytest.raises(ValueError, match=f"digits, bad, seed 0: .*{problem}"):
        benchmark.check_parts([good, bad])


@pytest.mark.long
def test_a_store_beside_the_cells_serves_those_of_one_calibration(tmp_path):
    base = dataclasses.replace(BASE, teacher_views=2, teacher_store=str(tmp_path / "store"))
    candle, kl, other = benchmark.plan(
        base, ["candle", "candle_kl", "candle_uncalibrated"], ["digits"], [0], str(tmp_path)
    )
    benchmark.check_parts([candle, kl])
    with pytest.raises(ValueError, match="candle_uncalibrated, seed 0: .*or calibrations too"):
        benchmark.check_parts([candle, other])


@pytest.mark.parametrize(
    "methods, problem",
    [
        (["crossentropy"], "did you mean 'cross_entropy'"),
        (["crt:batches=3"], "'crt:batches=3': Unknown setting 'batches'"),
        (["crt:seed=3"], "`seed` is decided by the benchmark itself"),
        (["crt:method='ncm'"], "`method` is decided"),
        (["crt:workdir='here'"], "`workdir` is decided"),
        (["crt:epochs=-3"], "`epochs` is -3"),
        (["crt:epochs=0"], "`epochs` must be at least 1"),
        (["crt:epochs='many'"], "crt:epochs='many'.*`epochs` cannot be 'many'"),
        (["crt:temperature=4"], "`method=crt` has none"),
        (["mislas:sampler='reversd'"], "did you mean 'reversed'"),
        (["crt", "crt"], "Two rows are called 'crt'"),
        (["crt:0"], "an argument without a name"),
        ([" = crt"], "a label is not empty"),
        (["a | b = crt"], "no | or line break"),
        (["crt:epochs=1,epochs=2"], "an argument twice"),
        (["crt:imbalance_ratio=0.5"], "`imbalance_ratio` is 0.5"),
        (["crt:validation_split=1"], "`validation_split` is 1 "),
        ([], "needs `methods`"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(methods, problem):
    with pytest.raises(ValueError, match=problem):
        plan(methods)


def finish(cell: benchmark.Cell, overall: float, per_class=(0.5, 0.3), validation=None):
    """Writes what the cell's run would have."""
    report = {
        "overall": overall,
        "class_mean": overall,
        "shots": {"many": per_class[0]},
        "ranks": {"head": per_class[0], "tail": per_class[1]},
    }
    results = {
        "updates": 3,
        "student": {"test": report, "kilobytes": 74.0},
        "seconds": {"train": 9},
    }
    if validation is not None:
        results["student"]["validation"] = {**report, "class_mean": validation}
    Path(cell.settings.workdir).mkdir(parents=True)
    (Path(cell.settings.workdir) / "metrics.json").write_text(json.dumps(results))


def test_the_table_has_mean_spread_best_and_gap(tmp_path):
    methods = ["cross_entropy", "candle", "ceiling = cross_entropy:imbalance_ratio=1"]
    cells = plan([*methods, "balanced_softmax"], tmp_path, seeds=[0, 1, 2])
    shares = {
        "cross_entropy": (0.30, 0.32, 0.31),
        "candle": (0.4, 0.5, 0.6),
        methods[2]: (0.9,) * 3,
    }
    shares["ceiling"] = shares.pop(methods[2])
    for cell in cells:
        if cell.method in shares:
            finish(cell, shares[cell.method][cell.settings.seed])
    rows = [
        line.split(" | ") for line in benchmark.results_table(cells).splitlines() if "| " in line
    ]
    overall = {row[0].strip("| "): row[1] for row in rows}
    assert overall["cross_entropy"] == "31.0 ± 1.0"
    assert overall["candle"] == "**50.0 ± 10.0**"
    assert overall["ceiling"] == "90.0 ± 0.0"  # other data: it does not compete
    assert "balanced_softmax" not in overall  # not finished
    gap = "candle is 19.0 points above cross_entropy, the best prior method here by the mean of"
    assert gap in benchmark.results_table(cells)


def test_the_gap_is_between_rows_chosen_on_held_out_images(tmp_path):
    ceiling = "ceiling = cross_entropy:imbalance_ratio=1,validation_split=0"
    cells = plan(["candle", "candle_kl", "cross_entropy", "focal", ceiling], tmp_path)
    accuracy = {"candle": (0.5, 0.6), "candle_kl": (0.6, 0.5)}  # test, validation
    accuracy |= {"cross_entropy": (0.3, 0.4), "focal": (0.55, 0.3), "ceiling": (0.9, None)}
    for cell in cells:
        test, validation = accuracy[cell.method]
        finish(cell, test, validation=validation)
    sentence = benchmark.results_table(cells).splitlines()[-1]
    assert sentence.startswith("Overall, candle is 20.0 points above cross_entropy")
    assert sentence.endswith("on the validation images.")


def test_the_csv_has_a_line_a_finished_cell(tmp_path):
    cells = plan(["crt", "candle"], tmp_path)
    for cell in cells:
        finish(cell, 0.25, validation=0.25 if cell.method == "candle" else 0.3)
    lines = list(csv.DictReader(io.StringIO(benchmark.results_csv(cells))))
    assert [line["method"] for line in lines] == ["crt", "candle"]  # no line for a first stage
    assert [line["updates"] for line in lines] == ["6", "3"]  # but its updates and seconds count
    assert [line["seconds"] for line in lines] == ["18", "9"]
    assert lines[0]["test overall"] == "0.25" and lines[0]["test tail"] == "0.3"
    assert [line["validation class mean"] for line in lines] == ["0.3", "0.25"]


FAKE = """
import json, os, pathlib, signal, sys
flags = dict(flag[2:].split("=", 1) for flag in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
with open(workdir.parent / "order", "a") as file:
    print(flags["method"], file=file)
if flags["method"] == "focal":
    os.kill(os.getpid(), signal.SIGKILL)
if flags["method"] == "balanced_softmax" and not (workdir / "mended").exists():
    sys.exit("ValueError: This cell cannot run.")
report = {"overall": 0.5, "class_mean": 0.5, "shots": {}, "ranks": {}}
results = {"updates": 3, "student": {"test": report, "kilobytes": 1}, "seconds": {}}
(workdir / "metrics.json").write_text(json.dumps(results))
"""


def test_a_failing_cell_stops_no_other_and_is_tried_again(tmp_path):
    cells = plan(["balanced_softmax", "cross_entropy", "focal"], tmp_path)
    command, shown = [sys.executable, "-c", FAKE], []
    states = benchmark.run(cells, command, str(tmp_path), lambda s: shown.append(dict(s)), 0.01)
    failed, killed = "failed: ValueError: This cell cannot run.", "failed: killed by signal 9"
    assert list(states.values()) == [failed, "finished", killed] == list(shown[-1].values())
    assert {state for states in shown for state in states.values()} >= {"waiting", "epoch 0 of 1"}
    table = (tmp_path / "results.md").read_text()
    assert "| cross_entropy | " in table
    assert "left out: digits, balanced_softmax, seed 0; digits, focal, seed 0." in table
    Path(cells[0].settings.workdir, "mended").touch()
    states = benchmark.run(cells[:2], command, str(tmp_path), lambda s: None, 0.01)
    assert list(states.values()) == ["finished", "finished"]
    order = (tmp_path / "order").read_text().split()
    assert order == ["balanced_softmax", "cross_entropy", "focal", "balanced_softmax"]


def test_a_run_of_several_rows_is_tried_once(tmp_path):
    datasets = ["a = digits:imbalance_ratio=5", "digits"]
    cells = plan(["same = balanced_softmax:imbalance_ratio=1", "dive"], tmp_path, datasets)
    shown = []
    run = benchmark.run(
        cells, [sys.executable, "-c", FAKE], str(tmp_path), lambda s: shown.append(dict(s)), 0.01
    )
    failed = "failed: ValueError: This cell cannot run."
    states = [state for cell, state in run.items() if cell.method == "same"]
    assert states == [failed, failed] and shown[-1] == run
    assert (tmp_path / "order").read_text().split() == ["balanced_softmax"] * 3


def test_what_starts_from_a_failed_run_is_not_tried(tmp_path):
    cells = plan(["oltr", "dive"], tmp_path)
    states = benchmark.run(cells, [sys.executable, "-c", FAKE], str(tmp_path), lambda s: None, 0.01)
    by_name = {cell.name: state for cell, state in states.items()}
    assert by_name["digits, oltr, seed 0"] == "finished"
    first = by_name["digits, balanced_softmax (first stage), seed 0"]
    assert first == "failed: ValueError: This cell cannot run."
    assert by_name["digits, dive, seed 0"] == "failed: its first stage did"
    order = (tmp_path / "order").read_text().split()
    assert order == ["cross_entropy", "balanced_softmax", "oltr"]


def test_one_benchmark_at_a_time(tmp_path):
    with locked(str(tmp_path)), pytest.raises(ValueError, match="Another process is at work in"):
        benchmark.run(plan(["crt"], tmp_path), [], str(tmp_path), lambda s: None)


def test_a_damaged_result_is_named(tmp_path):
    (cell,) = plan(["cross_entropy"], tmp_path)
    finish(cell, 0.5)
    path = Path(cell.settings.workdir, "metrics.json")
    path.write_text(path.read_text()[:20])
    with pytest.raises(ValueError, match=f"{path} is damaged .* delete it"):
        benchmark.check_parts([cell])


@pytest.mark.parametrize("name", ["results.csv", "results.md"])
def test_results_of_ones_own_are_not_replaced(name, tmp_path):
    (tmp_path / name).write_text("my own")
    with pytest.raises(FileExistsError, match=f"{name} is no benchmark's"):
        plan(["cross_entropy"], tmp_path)
    (tmp_path / name).unlink()
    benchmark.write_results(plan(["cross_entropy"], tmp_path), str(tmp_path))
    plan(["cross_entropy"], tmp_path)
    (tmp_path / "results.csv").unlink()
    plan(["cross_entropy"], tmp_path)


def test_a_run_keeps_its_directory_in_later_versions():
    """A benchmark finds its finished runs by these names."""
    rows = [
        "candle:crop='pad',teacher_views=10,sampler='square_root'",
        "cross_entropy:crop='pad',flip=False,precision='mixed_bfloat16'",
        "crt",
    ]
    names = {Path(cell.settings.workdir).name for cell in plan(rows)}
    assert names == {
        "candle_a1f4b50b",
        "cross_entropy_02dc062a",
        "cross_entropy_9e9a3d2e",
        "crt_5e424a04",
    }
