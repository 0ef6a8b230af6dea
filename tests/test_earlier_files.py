"""Files that the library wrote before its modules moved into folders (at commit 51020e8).

`fixtures/earlier_files.tar.gz` holds a calibrated Teacher, a CandleModel of an RSign, a binary
convolution and an RPReLU, whole and its weights, and two workdirs of one run on the digits: ended,
and interrupted after the first of its two epochs. `earlier_numbers.json` holds what they gave.
"""

import json
import pathlib
import tarfile

import candle_tf as ct
import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.runs import job
from candle_tf.runs.run import Run
from tiny_runs import history, tiny, weights

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
NUMBERS = json.loads((FIXTURES / "earlier_numbers.json").read_text())
IMAGES = np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)).astype("float32")
LABELS = np.arange(8) % 3
RUN = {"student": "resnet_e:width=0.0625,blocks=(1,1)", "resolutions": (12, 16, 20)}
pytestmark = pytest.mark.usefixtures("no_report")
layers = tf.keras.layers


@pytest.fixture
def earlier(tmp_path):
    with tarfile.open(FIXTURES / "earlier_files.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def assert_gives_the_same(model):
    expected = NUMBERS["candle_model"]
    np.testing.assert_allclose(
        model.predict(IMAGES, verbose=0), expected["logits"], rtol=1e-4, atol=1e-5
    )
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4)
    measured = model.evaluate(batches, verbose=0, return_dict=True)
    assert measured == pytest.approx(expected["evaluate"], rel=1e-4)


def test_a_teacher_file_loads(earlier):
    teacher = tf.keras.models.load_model(earlier / "teacher.keras")
    for name, value in zip(("features", "logits"), teacher(IMAGES)):
        np.testing.assert_allclose(value, NUMBERS["teacher"][name], rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_model_file_loads_and_trains_on(earlier):
    model = tf.keras.models.load_model(earlier / "candle_model.keras")
    assert_gives_the_same(model)
    updates = int(model.optimizer.iterations)
    model.fit(IMAGES, LABELS, batch_size=4, verbose=0)
    assert updates == 4 and int(model.optimizer.iterations) == 6


@pytest.mark.long
def test_a_weights_file_loads(earlier):
    inputs = tf.keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    x = ct.students.RSign()(layers.Conv2D(4, 3, 2)(x))
    x = lq.layers.QuantConv2D(
        *(4, 3),
        kernel_quantizer="magnitude_aware_sign",
        kernel_constraint="weight_clip",
        input_quantizer=ct.students.FusedApproxSign(),
        use_bias=False,
    )(x)
    x = layers.GlobalAveragePooling2D(name="features")(ct.students.RPReLU()(x))
    student = tf.keras.Model(inputs, layers.Dense(3, name="logits")(x))
    teacher = tf.keras.models.load_model(earlier / "teacher.keras")
    model = ct.CandleModel(teacher, student, resolutions=(12, 16, 20), image_size=16)
    model.compile(optimizer=tf.keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    model.train_on_batch(IMAGES, LABELS)  # makes its variables, to be overwritten
    model.load_weights(earlier / "candle_model.weights.h5")
    assert_gives_the_same(model)


@pytest.mark.long
def test_a_finished_run_is_taken_as_finished(earlier, capsys):
    workdir = earlier / "finished"
    settings = tiny(workdir, **RUN)
    results = job.run(settings)
    assert "holds this run, finished" in capsys.readouterr().out
    assert results == json.loads((workdir / "metrics.json").read_text())
    run = Run(settings)
    assert run.class_names == [str(digit) for digit in range(10)]
    run.measure(run.student, workdir / "again.npz")
    with np.load(workdir / "predictions.npz") as old, np.load(workdir / "again.npz") as new:
        assert np.mean(old["predictions"] == new["predictions"]) >= 0.99
        np.testing.assert_allclose(old["confidence"], new["confidence"], atol=1e-3)


@pytest.mark.long
def test_an_interrupted_run_goes_on(earlier, monkeypatch):
    workdir = earlier / "interrupted"
    calibrated = []
    monkeypatch.setattr(ct.Teacher, "calibrate", lambda *a, **k: calibrated.append(1))
    first, before = history(workdir)[:2], weights(workdir)
    job.run(tiny(workdir, **RUN))
    assert not calibrated  # its classifier is taken from the file
    assert history(workdir)[:2] == first and len(history(workdir)) == 3
    expected = weights(earlier / "finished")
    for start, end, other in zip(before, weights(workdir), expected, strict=True):
        # Where rounding is another than on the machine that wrote the file, they differ a little.
        np.testing.assert_allclose(end, other, atol=5e-3)
        assert start.shape == end.shape
    assert any((a != b).any() for a, b in zip(before, weights(workdir)))
