"""What a run chooses from its images, and from the minutes that it has."""

import dataclasses
import pathlib

import numpy as np
import pytest
from absl import flags
from candle_tf.cli import run_flags
from candle_tf.resolution import RandomResolution
from candle_tf.runs import job, plan
from candle_tf.runs import run as runs
from candle_tf.runs.run import Run
from candle_tf.runs.settings import PASSES, PLANNED, UPDATES, Settings, canonical
from candle_tf.runs.workdir import claimed_workdir, identity
from candle_tf.teacher_store import view_sizes
from tiny_runs import tiny

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
OPEN = dict.fromkeys(PLANNED) | {"steps_per_epoch": None}


def planned(images=300, side=None, **given) -> Settings:
    settings = Settings(**{"workdir": "w", "dataset": "folder:photos", **given})
    return settings.planned(images, side)


@pytest.mark.parametrize(
    "side, student, views", [(8, 32, 96), (32, 64, 96), (64, 64, 128), (None, 64, 128)]
)
def test_the_sizes_follow_from_the_images(side, student, views):
    made = planned(side=side)
    assert (made.image_size, made.teacher_image_size) == (student, views)
    assert planned(side=side, image_size=224).teacher_image_size == 224
    assert planned(side=side, teacher_image_size=100).teacher_image_size == 100


def test_students_at_64_pixels_start_from_the_generic_encoder():
    generic = "resnet_e:halvings=2,weights='generic'"
    assert planned().student == planned(side=64).student == planned(side=32).student == generic
    assert planned(side=28).student == planned(image_size=32).student == "resnet_e"
    assert planned(side=28, image_size=64).student == "resnet_e"
    assert planned(student_bits="4").student == "resnet_e"
    assert planned(student="reactnet_a").student == "reactnet_a"


@pytest.mark.parametrize(
    "given", [{"student": "resnet_e"}, {"student_bits": "4"}, {"resolutions": (24, 32, 40)}]
)
def test_other_students_see_small_images_at_32_pixels(given):
    made = planned(side=32, **given)
    made.check()
    assert (made.image_size, made.student) == (32, "resnet_e")
    assert planned(side=64, **{**given, "resolutions": ()}).image_size == 64


def test_the_teacher_is_that_of_the_digits_for_digits_alone():
    assert planned().teacher == "keras:MobileNet"
    digits = planned(dataset="digits")
    assert (digits.teacher, digits.teacher_image_size) == ("letters", 32)
    assert planned(dataset="digits", teacher="keras:MobileNet").teacher_image_size == 128


@pytest.mark.parametrize("images, steps", [(10, 100), (300, 100), (12_800, 100), (128_000, 1000)])
def test_few_images_are_trained_as_long_as_many(images, steps):
    made = planned(images)
    updates = made.epochs * made.steps_per_epoch
    assert made.steps_per_epoch == steps
    assert updates == max(UPDATES, PASSES * (images // made.batch_size))


def test_given_epochs_are_passes_over_the_images():
    made = planned(epochs=7)
    assert (made.epochs, made.steps_per_epoch) == (7, None)
    assert planned(steps_per_epoch=7).epochs == -(-UPDATES // 7)


def test_what_is_given_is_kept():
    given = {"image_size": 48, "teacher": "letters", "teacher_image_size": 40, "epochs": 0}
    made = planned(**given)
    assert {name: getattr(made, name) for name in given} == given and not made.open


def test_the_flag_file_of_own_images_has_what_a_run_chooses():
    values = flags.FlagValues()
    run_flags.define(values)
    values(["run", f"--flagfile={CONFIGS / 'own_images.cfg'}", "--workdir=w"])
    written = canonical(run_flags.settings(values))
    assert not written.open
    assert written == canonical(planned(12_800))


def test_a_run_says_what_it_chose_and_keeps_it(tmp_path, capsys):
    run = Run(tiny(tmp_path / "run", method="focal", **OPEN))
    assert run.given.open == ["student", "image_size", "epochs"]  # nobody needs a teacher
    assert run.settings.image_size == 32 and run.updates == UPDATES
    said = capsys.readouterr().out
    assert "student=resnet_e, image_size=32, epochs=30, steps_per_epoch=100" in said


@pytest.mark.long
def test_a_run_that_began_keeps_its_plan(tmp_path, no_report, monkeypatch, capsys):
    settings = tiny(tmp_path / "run", method="focal", image_size=None, epochs=1)
    job.run(settings)
    monkeypatch.setattr(Settings, "planned", lambda *a: pytest.fail("it planned again"))
    again = tiny(tmp_path / "run", method="focal", **OPEN | {"steps_per_epoch": 3})
    run = Run(again)
    assert (run.settings.image_size, run.settings.epochs) == (32, 1)
    capsys.readouterr()
    job.run(dataclasses.replace(again, minutes=30.0, steps_per_epoch=100))
    said = f"began here: student={run.settings.student}, image_size=32, epochs=1; other values"
    assert said in capsys.readouterr().out


def test_a_run_keeps_the_values_that_its_method_had_and_names_them(tmp_path, capsys):
    begun = Run(tiny(tmp_path / "run", method="candle", mixup=1.0))
    with claimed_workdir(begun.workdir, begun.settings.to_flags(), begun.examples):
        (begun.workdir / "teacher_classifier.keras").touch()
    run = Run(tiny(tmp_path / "run", method="candle"))
    job.say_kept(run)
    assert run.method.mixup == 1.0 and run.kept[-1] == "mixup"
    assert "teacher_image_size=32, mixup=1.0; other values need" in capsys.readouterr().out


def test_a_store_for_which_no_views_were_planned_is_named_and_left_out(
    tmp_path, monkeypatch, capsys
):
    settings = tiny(tmp_path / "run", teacher_store=str(tmp_path / "store"))
    monkeypatch.setattr(plan, "plan_views", lambda *a: (0, "each view is fresh"))
    run = Run(settings)
    plan.decide_views(run)
    said = f"teacher_views=0: each view is fresh; {settings.teacher_store} is not used"
    assert said in capsys.readouterr().out
    with claimed_workdir(run.workdir, run.settings.to_flags(), run.examples):
        (run.workdir / "teacher_classifier.keras").touch()
    # The same command, and the flag file of an earlier version, which names the store.
    for again in (settings, dataclasses.replace(settings, teacher_views=0)):
        assert (Run(again).settings.teacher_views, Run(again).settings.teacher_store) == (0, None)


@pytest.mark.long
def test_a_calibrated_teacher_alone_is_no_plan(tmp_path, no_report):
    begun = tiny(tmp_path / "run", epochs=0)
    job.run(begun)
    with pytest.raises(ValueError, match="holds another run"):
        job.run(dataclasses.replace(begun, epochs=None))


def test_values_of_earlier_versions_do_not_make_another_run():
    old = Settings(workdir="w", **PLANNED).to_flags()
    assert identity(old) == identity(Settings(workdir="w").to_flags()) == ()


def test_minutes_plan_the_updates(tmp_path, no_report, monkeypatch, capsys):
    """At half a second an update and 1,000 images a second, four minutes are spent."""
    monkeypatch.setattr(plan, "seconds_per_update", lambda run, student: 0.5)
    monkeypatch.setattr(runs, "images_per_second", lambda embed, images: 1000.0)
    settings = tiny(tmp_path / "run", epochs=None, minutes=4.0)
    run = Run(settings)
    student, _ = job.prepare(run)
    images = len(run.examples.train)
    spent = 0.5 * run.updates + images * (1 + run.settings.teacher_views) / 1000
    assert 240 - 0.5 * settings.steps_per_epoch <= spent <= 240
    assert run.settings.minutes is None and run.settings.steps_per_epoch == 3


def test_a_measured_update_leaves_the_student_as_it_is(tmp_path):
    run = Run(tiny(tmp_path / "run", method="focal", epochs=None, minutes=0.1))
    student = run.build_student(10)
    before = student.get_weights()
    assert 0 < plan.seconds_per_update(run, student) < 60
    for old, new in zip(before, student.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_too_few_minutes_for_the_teacher_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "seconds_per_update", lambda run, student: 0.5)
    monkeypatch.setattr(runs, "images_per_second", lambda embed, images: 20.0)
    with pytest.raises(ValueError, match="teacher needs .* Give more minutes"):
        job.prepare(Run(tiny(tmp_path / "run", epochs=None, minutes=1.0)))


def test_a_live_teacher_takes_part_of_each_update(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "seconds_per_update", lambda run, student: 0.5)
    monkeypatch.setattr(runs, "images_per_second", lambda embed, images: 64.0)
    settings = tiny(tmp_path / "run", epochs=None, minutes=1.0, teacher_views=0)
    run = Run(settings)
    job.prepare(run)
    spent = len(run.examples.train) / 64 + run.updates * (0.5 + settings.batch_size / 64)
    assert 60 - 3 <= spent <= 60


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"minutes": 5.0}, "leave `epochs` out, or `minutes`"),
        ({"minutes": 0.0, "epochs": None}, "`minutes` is 0.0 but must be above 0"),
        ({"minutes": -1.0, "epochs": None}, "`minutes` is -1.0"),
        ({"minutes": 5.0, "epochs": None, "method": "crt"}, "give `epochs` for `method=crt`"),
        ({"minutes": 5.0, "epochs": None, "strategy": "mirrored"}, "or `strategy`"),
        ({"minutes": 5.0, "epochs": None, "method": "bbn"}, "whose updates take more"),
        ({"minutes": 5.0, "epochs": None, "method": "paco"}, "whose updates take more"),
    ],
)
def test_minutes_that_plan_nothing_are_refused(tmp_path, changes, problem):
    with pytest.raises(ValueError, match=problem):
        Run(tiny(tmp_path / "run", **changes))


@pytest.mark.parametrize(
    "images, draws, speed, expected, said",
    [
        (753, 255, 50, 20, "20 views of each of the 753 images once, 5 minutes at 50 images"),
        (10_847, 47, 50, 8, "8 views of each of the 10,847 images once, 29 minutes"),
        (100_000, 47, 50, 4, "4 views of each of the 100,000 images once, 133 minutes"),
        (200, 12.5, 50, 0, "shows each image 12.5 times, each time in a fresh view"),
        (20, 500, 400, 20, "1 s at 400 images a second; training shows each image 500 times"),
    ],
)
def test_as_many_views_as_help_and_as_there_is_time_for(images, draws, speed, expected, said):
    views, reason = plan.plan_views(images, draws, lambda: speed, RandomResolution((16,), 16))
    assert views == expected and said in reason


def test_planned_views_have_every_size():
    resolution = RandomResolution((8, 16, 96), 16)
    assert resolution.probabilities[2] < 0.05
    views, _ = plan.plan_views(100_000, 1e6, lambda: 50.0, resolution)
    assert set(view_sizes(resolution, views)) == {8, 16, 96}
