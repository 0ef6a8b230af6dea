"""Pretraining on images without labels."""

import shutil

import candle_tf as ct
import numpy as np
import pytest
from candle_tf.cli.run_flags import run_of
from candle_tf.pretraining import load_unlabelled
from candle_tf.pretraining.job import flags_of, standardized
from candle_tf.runs.checkpoints import Checkpoints
from candle_tf.runs.run import Run
from candle_tf.runs.settings import Settings
from candle_tf.runs.workdir import claimed_workdir
from PIL import Image
from tiny_runs import history

STUDENT = "resnet_e:width=0.125,blocks=(1,1)"
TINY = {
    "teacher": "letters",
    "teacher_views": 4,
    "student": STUDENT,
    "image_size": 16,
    "epochs": 3,
    "steps_per_epoch": 10,
    "batch_size": 32,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    return workdir, ct.pretrain("digits", workdir=workdir, **TINY)


@pytest.mark.long
def test_the_student_comes_nearer_to_the_teacher(made):
    header, *rows = (line.split(",") for line in history(made[0]))
    terms = [float(row[header.index("feature")]) for row in rows]
    assert terms[-1] < terms[0] - 0.1 and terms[-1] < 1.9
    assert [float(row[header.index("lambda")]) for row in rows] == [0.0] * 3


@pytest.mark.long
def test_another_student_starts_from_it(made):
    student = ct.students.create(STUDENT, num_classes=5, weights=str(made[1]))
    *encoder, _, _ = student.get_weights()
    with np.load(made[1]) as kept:
        for found, name in zip(encoder, kept.files, strict=True):
            np.testing.assert_array_equal(found, kept[name])


@pytest.mark.long
def test_an_interrupted_pretraining_ends_the_same(made, tmp_path, monkeypatch):
    save = Checkpoints.on_epoch_end

    def stop(self, epoch, logs=None):
        save(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "on_epoch_end", stop)
        ct.pretrain("digits", workdir=tmp_path, **TINY)
    file = ct.pretrain("digits", workdir=tmp_path, **TINY)
    with np.load(file) as found, np.load(made[1]) as expected:
        for name in expected.files:
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.long
def test_a_finished_pretraining_is_left_alone(made, capsys):
    workdir, file = made
    before = file.stat().st_mtime_ns
    assert ct.pretrain("digits", workdir=workdir, **TINY) == file
    assert "L_FS on 28 held-out images: 1." in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds another run"):
        ct.pretrain("digits", workdir=workdir, **{**TINY, "epochs": 4})


@pytest.mark.long
def test_its_student_is_not_taken_for_a_classifier(made):
    run = run_of(str(made[0]))
    with pytest.raises(ValueError, match="holds a pretraining.*weights="):
        run.restore()


def test_an_encoder_of_unknown_origin_is_not_taken(tmp_path):
    (tmp_path / "encoder.npz").write_bytes(b"of something else")
    with pytest.raises(ValueError, match="without its flags.cfg"):
        ct.pretrain("digits", workdir=tmp_path, **TINY)


def test_other_images_than_before_are_refused(photos, tmp_path):
    workdir = tmp_path / "run"
    data = load_unlabelled(f"folder:{photos}")
    settings = {**TINY, "teacher": "keras:MobileNet:alpha=0.25", "teacher_weights": ""}
    run = Run(Settings(str(workdir), f"folder:{photos}", mixup=0.5, **settings))
    run.examples = data
    with claimed_workdir(workdir, flags_of(run), data):
        (workdir / "encoder.npz").touch()
    (photos / "0.png").unlink()
    with pytest.raises(ValueError, match="has other images"):
        ct.pretrain(f"folder:{photos}", workdir=workdir, **settings)


@pytest.mark.long
def test_the_features_are_standardised(tmp_path):
    run = Run(Settings(str(tmp_path), "digits", **TINY))
    run.examples = load_unlabelled("digits")
    teacher = standardized(run)
    batches = run.evaluation_batches(run.examples.train, image_size=run.view_size)
    plain, seen = (
        np.concatenate([t.embed(images).numpy() for images, _ in batches])
        for t in (run.teacher, teacher)
    )
    variance = plain.var(axis=0)
    expected = (plain - plain.mean(axis=0)) / np.sqrt(np.maximum(variance, 0.01 * variance.mean()))
    np.testing.assert_allclose(seen, expected, atol=1e-3)
    assert teacher.class_counts == [len(run.examples.train)]  # no class to tell apart


@pytest.fixture
def photos(tmp_path):
    root, generator = tmp_path / "photos", np.random.default_rng(0)
    for i in range(60):
        path = root / ("deep/er" if i % 2 else ".") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    (root / "notes.txt").write_text("a note")
    return root


def test_a_folder_needs_no_classes(photos):
    data = load_unlabelled(f"folder:{photos}")
    assert (len(data.train), len(data.test), data.left_out) == (58, 2, 1)
    names = {path.rsplit("/", 1)[1] for path in data.train.paths() + data.test.paths()}
    assert len(names) == 60 and not data.train.labels.any()


def test_images_that_cannot_be_read_are_named_or_left_out(photos):
    (photos / "7.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match="7.jpg .*on_bad_image=skip"):
        load_unlabelled(f"folder:{photos}")
    data = load_unlabelled(f"folder:{photos}", on_bad_image="skip")
    assert len(data.train) + len(data.test) == 60 and data.left_out == 2


def test_too_few_images_are_refused(photos, tmp_path):
    shutil.rmtree(photos / "deep")
    for path in sorted(photos.glob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="holds 1 images"):
        load_unlabelled(f"folder:{photos}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No image is below"):
        load_unlabelled(f"folder:{tmp_path / 'empty'}")


def test_no_epochs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`epochs` is 0 but must be at least 1"):
        ct.pretrain("digits", workdir=tmp_path, **{**TINY, "epochs": 0})


@pytest.mark.parametrize("name", ["method", "label_weight", "imbalance_ratio", "colour"])
def test_settings_without_a_meaning_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"Unknown setting {name!r}"):
        ct.pretrain("digits", workdir=tmp_path, **{name: None})
