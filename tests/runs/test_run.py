import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.calibration import CrossValidation
from candle_tf.classifiers import linear
from candle_tf.methods import METHODS
from candle_tf.runs import evaluate as evaluation
from candle_tf.runs import job
from candle_tf.runs.run import Run
from candle_tf.runs.workdir import claimed_workdir
from candle_tf.teacher import Teacher
from candle_tf.teacher_store import TeacherStore
from tiny_runs import assert_same, history, kill, tiny, weights

pytestmark = pytest.mark.usefixtures("no_report")


def test_the_workdir_holds_what_the_readme_says(finished):
    workdir, results = finished
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"flags.cfg", "metrics.json", "checkpoints", "saved_model", "tensorboard"}
    assert names >= {"history.csv", "predictions.npz", "report"}
    assert json.loads((workdir / "metrics.json").read_text()) == results
    assert results["updates"] == 6
    student = Run(tiny("x")).build_student(10)  # in the run it also serves other sizes
    assert results["student"]["macs"] == evaluation.student_size(student)["macs"]
    assert results["student"]["macs"]["1"] > 0
    phases = {"data", "calibrate", "evaluate_teacher", "train", "evaluate", "export"}
    assert set(results["seconds"]) == phases
    for who in ("teacher", "student"):
        report = results[who]["test"]
        np.testing.assert_allclose(report["overall"], np.mean(report["per_class"]))
        assert set(report["ranks"]) == {"head", "medium", "tail"}


def own_images(directory, numbers) -> dict:
    """Settings of a set of noise in three classes, the images of these numbers written."""
    rng = np.random.default_rng(0)
    for n in numbers:
        path = directory / "abc"[n % 3] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(rng.integers(0, 256, (20, 24, 3), np.uint8)).numpy())
    return {"dataset": f"folder:{directory}", "imbalance_ratio": None, "batch_size": 8}


@pytest.mark.slow
def test_cached_images_give_the_same_run(tmp_path):
    own = own_images(tmp_path / "images", range(24))
    for name, cache in (("read", None), ("cached", str(tmp_path / "cache"))):
        job.run(tiny(tmp_path / name, **own, cache=cache, method="cross_entropy"))
    assert list((tmp_path / "cache").glob("pixels_*/pixels.bin"))
    assert_same(tmp_path / "read", tmp_path / "cached")


VIEWS = {"teacher_views": 4, "mixup": 0.5}


@pytest.fixture(scope="module")
def with_views(tmp_path_factory, no_report):
    """A run whose teacher store lies outside of it."""
    root = tmp_path_factory.mktemp("views")
    settings = tiny(root / "run", teacher_store=str(root / "store"), **VIEWS)
    return settings, job.run(settings)


def counted(take, calls: list):
    def wrapped(self, *arguments):
        calls.append(self)
        return take(self, *arguments)

    return wrapped


@pytest.mark.long
def test_a_run_from_a_teacher_store_shows_each_view_once(with_views, tmp_path, monkeypatch):
    settings, results = with_views
    assert results["seconds"]["teacher_views"] > 0 and 0 < results["student"]["test"]["overall"]
    shown = []
    monkeypatch.setattr(TeacherStore, "take", counted(TeacherStore.take, shown))
    job.run(dataclasses.replace(settings, workdir=str(tmp_path)))  # takes up the store
    assert_same(settings.workdir, tmp_path)
    (store,) = shown  # to read its batches, not to show the teacher any
    assert store.records().shape == (len(store),) == (4 * len(store.examples),)


@pytest.mark.long
def test_an_interrupted_run_from_a_teacher_store_ends_the_same(with_views, tmp_path, monkeypatch):
    settings = tiny(tmp_path, **VIEWS)
    kill(settings, monkeypatch, 0)
    job.run(settings)
    assert_same(with_views[0].workdir, tmp_path)
    assert {"teacher_store", "teacher_classifier.keras"} <= {p.name for p in tmp_path.iterdir()}
    assert not (tmp_path / "calibration").exists()  # the features have served


@pytest.mark.long
@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "images .set, ratio, split or seed."),
        ({"color_jitter": 0.1}, "augmentation"),
        ({"resolutions": (12, 16, 20)}, "resolutions"),
    ],
)
def test_the_store_of_another_run_is_refused_before_the_calibration(
    with_views, change, named, tmp_path, monkeypatch
):
    monkeypatch.setattr(tf.keras.Model, "fit", lambda *a, **k: pytest.fail("it trained"))
    settings = dataclasses.replace(with_views[0], workdir=str(tmp_path / "run"), **change)
    with pytest.raises(ValueError, match=f"was made of another {named}"):
        job.run(settings)
    assert not (tmp_path / "run").exists()


def test_the_report_is_told_the_sizes_that_were_drawn(finished, monkeypatch):
    workdir, _ = finished
    told = []
    monkeypatch.setattr(job, "write_report", lambda workdir, data, drawn: told.append(drawn))
    settings = tiny(workdir, resolutions=(12, 16, 20))
    job.report(Run(settings))
    header, *rows = (line.split(",") for line in history(workdir))
    means = [float(row[header.index("resolution")]) for row in rows]
    np.testing.assert_allclose(np.reshape(told, (2, 3)).mean(axis=1), means, rtol=1e-6)
    assert len(set(np.ravel(told))) > 1


@pytest.mark.long
def test_a_run_does_not_fail_for_want_of_a_report(finished, monkeypatch, capsys):
    def fail(*args):
        raise ImportError("matplotlib is not installed: here is how.")

    monkeypatch.setattr(job, "write_report", fail)
    workdir, results = finished
    (workdir / "metrics.json").unlink()
    again = job.run(tiny(workdir, resolutions=(12, 16, 20)))
    assert again["student"] == results["student"]
    assert "No report was written: matplotlib is not installed" in capsys.readouterr().out


@pytest.mark.slow
def test_two_step_training_begins_with_real_weights(tmp_path, monkeypatch):
    quantizers = []
    build = job.build_model

    def watched(run, student, *args, **given):
        layer = next(x for x in student.layers if "quant_conv2d" in x.name)
        quantizers.append((layer.input_quantizer is None, layer.kernel_quantizer is None))
        return build(run, student, *args, **given)

    monkeypatch.setattr(job, "build_model", watched)
    settings = tiny(tmp_path, two_step=True, binary_optimizer="bop", epochs=2)
    results = job.run(settings)
    assert quantizers == [(False, False), (False, True)]
    assert [row.split(",")[0] for row in history(tmp_path)] == ["epoch", "0", "1"]
    assert {"first_step", "train"} <= set(results["seconds"])


def test_each_step_turns_to_the_second_branch(monkeypatch):
    models = []
    monkeypatch.setattr(job, "fit", lambda run, model, *args: models.append(model) or 0.0)
    run = Run(tiny("x", method="bbn", two_step=True, epochs=3))
    job.train_student(run, run.build_student(10), job.set_up(run), {})
    assert [model.total_steps for model in models] == [3, 6]


@pytest.mark.long
def test_the_second_step_goes_on_from_all_that_the_first_learned(tmp_path, monkeypatch):
    models = []
    monkeypatch.setattr(job, "fit", lambda run, model, *args: models.append(model) or 0.0)
    run = Run(tiny(tmp_path, two_step=True, epochs=2))
    job.calibrate(run)
    second = job.train_student(run, run.build_student(10), job.set_up(run), {})
    first, last = models
    assert last is second and first.adapter is not second.adapter
    for part in ("student", "adapter", "balancer"):
        for a, b in zip(getattr(first, part).get_weights(), getattr(second, part).get_weights()):
            np.testing.assert_array_equal(a, b)


@pytest.mark.long
@pytest.mark.parametrize("given, expected", [((), (0.05, 0.1)), ((0.3, 0.0), (0.3, 0.0))])
def test_factors_of_label_aware_smoothing(given, expected, finished, tmp_path, monkeypatch):
    told = []

    def second_stage(first):
        told.append(first.label_smoothing)
        return first.kernel, first.bias

    monkeypatch.setitem(job.SECOND_STAGES, "mislas", second_stage)
    run = Run(tiny(tmp_path, method="mislas", label_smoothing=given))
    run.method = dataclasses.replace(run.method, batch_norm_shift=False)
    run.first_stage = Run(tiny(finished[0], resolutions=(12, 16, 20)))
    job.retrain_classifier(run)
    assert told == [expected]


def test_a_teacher_is_calibrated_by_the_same_factors(tmp_path, monkeypatch):
    told = []

    def calibrate(self, *args, **given):
        told.append(given)
        return CrossValidation(0.3, [1.0], [1])

    monkeypatch.setattr(Teacher, "calibrate", calibrate)
    smoothing = {"calibration": "label_aware_smoothing", "label_smoothing": (0.3, 0.0)}
    run = Run(tiny(tmp_path, **smoothing))
    run.teacher.classifier = linear(run.teacher.width, 10)
    job.calibrate(run)
    assert told[0]["label_smoothing"] == (0.3, 0.0)


def test_a_finished_run_is_not_made_again(finished):
    metrics_file = finished[0] / "metrics.json"
    before, time = json.loads(metrics_file.read_text()), metrics_file.stat().st_mtime_ns
    assert job.run(tiny(finished[0], resolutions=(12, 16, 20))) == before
    assert metrics_file.stat().st_mtime_ns == time


def test_a_workdir_in_use_is_refused(tmp_path):
    settings = tiny(tmp_path)
    with claimed_workdir(tmp_path, settings.to_flags(), Run(settings).examples):
        with pytest.raises(ValueError, match=f"Another process is at work.*pid {os.getpid()} on"):
            job.run(settings)


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    settings = tiny(tmp_path)
    examples, flags = Run(settings).examples, settings.to_flags()
    with claimed_workdir(tmp_path, flags, examples) as workdir:
        (workdir / "checkpoints").mkdir()
    with claimed_workdir(tmp_path, flags, examples):
        pass
    for change in (
        {"class_names": examples.class_names[::-1]},
        {"train": examples.train.take(np.arange(1, len(examples.train)))},
    ):
        with pytest.raises(ValueError, match="has other images or classes than when"):
            with claimed_workdir(tmp_path, flags, dataclasses.replace(examples, **change)):
                pass


@pytest.mark.long
def test_a_first_stage_of_other_images_is_refused(tmp_path):
    own = own_images(tmp_path / "images", range(24))
    first = tiny(tmp_path / "first", method="cross_entropy", epochs=1, **own)
    job.run(first)
    own_images(tmp_path / "images", [24])
    second = {"workdir": str(tmp_path / "run"), "first_stage": first.workdir}
    with pytest.raises(ValueError, match="other images or classes than when the run in .*/first "):
        job.run(dataclasses.replace(first, method="crt", **second))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["images.txt", "history.csv"])
def test_a_directory_with_such_files_of_ones_own_is_refused(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds a file {name} that no run wrote"):
        job.run(tiny(tmp_path))
    with pytest.raises(NotADirectoryError, match="is a file: name another directory"):
        job.run(tiny(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_another_runs_workdir_is_refused(finished):
    with pytest.raises(ValueError, match="holds another run.*--seed=0 there.*--seed=1 here"):
        job.run(tiny(finished[0], resolutions=(12, 16, 20), seed=1))


def test_restore(finished):
    workdir, results = finished
    settings = tiny(workdir, resolutions=(12, 16, 20))
    run = Run(settings)
    assert run.evaluate()["test"] == results["student"]["test"]
    assert run.class_names == results["class_names"]
    run.examples = dataclasses.replace(run.examples, class_names=list("abcdefghij"))
    for measure in (run.evaluate, lambda: job.report(run)):
        with pytest.raises(ValueError, match="other images .* give the images that the run was"):
            measure()


ONE_A_KIND = ("mislas", "bbn")  # a second stage, and a scheme with a model of its own


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [m if m in ONE_A_KIND else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_every_method_runs_and_is_restored(method, tmp_path):
    half = {"precision": "mixed_bfloat16"}  # in which layers of another precision show
    settings = tiny(tmp_path, method=method, epochs=1, validation_split=0.2, **half)
    results = job.run(settings)
    assert ("teacher" in results) == METHODS[method].distills
    assert Run(settings).evaluate()["test"] == results["student"]["test"]


@pytest.mark.long
def test_no_epochs_measures_the_teacher_alone(tmp_path):
    settings = tiny(tmp_path, epochs=0, validation_split=0.2)
    results = job.run(settings)
    assert "student" not in results
    kept = {"validation", "test", "kilobytes", "classifier_norms", "cross_validation"}
    assert set(results["teacher"]) == kept
    with pytest.raises(ValueError, match="has trained no student"):
        Run(settings).restore()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"method": "candl"}, "did you mean 'candle'"),
        ({"student": "resnet"}, "did you mean 'resnet_e'"),
        ({"student": "resnet_e:widht=1"}, "widht"),
        ({"student": "resnet_e:blocks=()"}, "leave a stage without"),
        ({"student": "resnet_e:width=1e999"}, "`student=resnet_e:width=1e999` has arguments that"),
        ({"student_bits": "3"}, "Unknown student_bits '3'"),
        ({"binary_optimizer": "bob"}, "did you mean 'bop'"),
        ({"binary_optimizer": "bop:gama=1"}, "gama"),
        ({"binary_optimizer": "bop", "student_bits": "4"}, "bop` trains binary weights"),
        ({"two_step": True, "epochs": 1}, "`two_step` needs at least 2 `epochs`"),
        ({"warmup_epochs": -1}, "`warmup_epochs` is -1"),
        ({"warmup_epochs": 2}, "`warmup_epochs` is 2 but must be below the 2 epochs"),
        ({"warmup_epochs": 1, "two_step": True}, "below the 1 epochs"),
        ({"teacher": "keras:MobilNet"}, "did you mean 'MobileNet'"),
        ({"teacher": "larq_zoo:QuikNet"}, "did you mean 'QuickNet'"),
        ({"teacher": "nowhere.h5"}, "nowhere.h5"),
        ({"teacher": "MobileNet"}, "did you mean 'keras:MobileNet'"),
        ({"teacher": "kears:MobileNet"}, "did you mean 'keras:MobileNet'"),
        ({"teacher": "Letters"}, "did you mean 'letters'"),
        ({"teacher_preprocessing": "tensorflow"}, "Unknown teacher_preprocessing"),
        pytest.param(
            {"teacher": "keras:InceptionV3", "teacher_weights": "", "teacher_image_size": 32},
            "teacher can downsample",
            marks=pytest.mark.long,
        ),
        ({"sampler": "class_balance"}, "did you mean 'class_balanced'"),
        ({"sampler": "progressively_balanced"}, "train for more updates"),
        ({"method": "crt", "sampler": "progressively_balanced"}, "train for more updates"),
        ({"calibration": "softmax"}, "balanced_softmax"),
        ({"crop": "padded"}, "did you mean 'pad'"),
        ({"color_jitter": 1.5}, "color_jitter is 1.5"),
        ({"imbalance_ratio": 0.5}, "`imbalance_ratio` is 0.5"),
        ({"profile": "exp"}, "exponential"),
        (
            {"resolutions": (4, 16, 20), "student": "resnet_e:width=0.125"},
            "smaller than the student can downsample",
        ),
        (
            {
                "teacher": "keras:MobileNet",
                "teacher_weights": "",
                "teacher_image_size": 32,
                "resolutions": (12, 16, 20),
            },
            "Resolution 24 is smaller than the teacher can downsample .32-fold",
        ),
        ({"resolutions": (20, 24)}, "below and above 16"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"epochs": -1}, "`epochs` is -1"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` is 0"),
        ({"calibration_epochs": 0}, "`calibration_epochs` is 0"),
        ({"temperature": 0.0}, "`temperature` is 0"),
        ({"mixup": -0.1}, "`mixup` is -0.1 but must be finite and at least 0"),
        ({"mixup": float("nan")}, "`mixup` is nan"),
        ({"mixup": 0.01}, "mixup is 0.01"),
        ({"teacher_views": -1}, "`teacher_views` is -1"),
        (
            {"teacher_views": 2, "resolutions": (12, 16, 20)},
            "With views=2 no view has the resolution",
        ),
        ({"teacher_views": 2, "teacher_store": "run"}, "`teacher_store` is the `workdir`"),
        ({"teacher_views": 2, "teacher_store": "run/calibration"}, "is the `workdir` or inside it"),
        ({"teacher_views": 2, "teacher_store": "other"}, "is the workdir of a run"),
        ({"teacher_views": 10**9}, "has no room for"),
        ({"teacher_store": "store", "teacher_views": 0}, "there are none with `teacher_views=0`"),
        ({"label_smoothing": (0.3,)}, r"`label_smoothing` is \(0.3,\) but must be two numbers"),
        ({"label_smoothing": (0.3, 1.0)}, r"`label_smoothing` is \(0.3, 1.0\)"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"seed": -1}, "`seed` is -1"),
        ({"workdir": ""}, "`workdir` is missing"),
    ],
)
def test_bad_settings_are_refused_before_training(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tf.keras.Model, "fit", lambda *a, **k: pytest.fail("it trained"))
    if "teacher_store" in changes:
        changes = {**changes, "teacher_store": str(tmp_path / changes["teacher_store"])}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "flags.cfg").write_text("")
    with pytest.raises((ValueError, OSError), match=message):
        job.run(dataclasses.replace(tiny(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="name another directory"):
        job.run(tiny(tmp_path / "file" / "run"))


@pytest.mark.slow
def test_a_run_in_bfloat16_is_evaluated_and_taken_up_in_float32(tmp_path):
    settings = tiny(tmp_path, precision="mixed_bfloat16", mixup=1.0, two_step=True)
    results = job.run(settings)
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    run = Run(settings)
    assert {layer.compute_dtype for layer in run.student.student.layers} == {"float32"}
    assert run.evaluate()["test"] == results["student"]["test"]
    kernels = [w for w in weights(tmp_path) if w.ndim == 4]
    assert {w.dtype for w in kernels} == {np.dtype("float32")}
    assert results["student"]["macs"]["1"] > 0
