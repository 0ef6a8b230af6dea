"""Keras' `fit` over restarts, and over batches that are not finite."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import data
from candle_tf.data.entrance import Entrance
from candle_tf.runs import fit as fitting
from candle_tf.runs import job
from candle_tf.runs.checkpoints import NotFinite
from candle_tf.runs.run import Run
from tiny_runs import ALONE, assert_same, history, kill, tiny, weights

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.mark.long
def test_tensorboard_events(finished):
    workdir, _ = finished
    events = next((workdir / "tensorboard" / "train").glob("events*"))
    tags = {
        v.tag for e in tf.compat.v1.train.summary_iterator(str(events)) for v in e.summary.value
    }
    wanted = "loss kl feature lambda resolution accuracy learning_rate".split()
    assert tags >= {f"epoch_{name}" for name in wanted}


@pytest.mark.long
def test_an_interrupted_run_ends_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    settings = tiny(tmp_path, resolutions=(12, 16, 20))
    kill(settings, monkeypatch, 0)
    kill(settings, monkeypatch, 1, saved=False)
    assert [row.split(",")[0] for row in history(tmp_path)] == ["epoch", "0", "1"]
    kill(settings, monkeypatch, 1)  # which is trained again, and stands once in the history
    job.run(settings)
    assert_same(finished[0], tmp_path)
    assert history(tmp_path) == history(finished[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "practice", [{"binary_optimizer": "bop:gamma=1e-2,threshold=1e-6"}, {"two_step": True}]
)
def test_so_does_one_with(practice, tmp_path, monkeypatch):
    practice = {"method": "cross_entropy", "resolutions": (12, 16, 20), **practice}
    job.run(tiny(tmp_path / "whole", **practice))
    parts = tiny(tmp_path / "parts", **practice)
    for epoch in range(parts.epochs):
        kill(parts, monkeypatch, epoch)
    job.run(parts)
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.long
def test_nan_in_training_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="NaN or Inf in update .*Lower `learning_rate`"):
        job.run(tiny(tmp_path, method="cross_entropy", learning_rate=1e38))
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")) is None


@pytest.mark.long
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    """A file-size limit stands for the full disk: the second checkpoint cannot be written."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[1])!r})
from candle_tf.runs import job
from candle_tf.runs.checkpoints import Checkpoints
from tiny_runs import tiny
save = Checkpoints.on_epoch_end
def limited(self, epoch, logs=None):
    if epoch == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    save(self, epoch, logs)
Checkpoints.on_epoch_end = limited
job.run(tiny({str(tmp_path)!r}, method="cross_entropy"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "The checkpoint of epoch 2 cannot be written" in done.stderr
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-1")
    job.run(tiny(tmp_path, method="cross_entropy"))
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-2")


def with_nan(monkeypatch, bad):
    """Has the batches at the places `bad` of a run's stream hold NaN, unseen by `fit`'s check.

    Images that are NaN take the place of a loss that overflows.
    """
    ours = data.training_batches

    def batches(examples, *, first_example=0, **stream):
        first = first_example // stream["batch_size"]

        def spoil(n, batch):
            spoilt = tf.reduce_any(n == tf.constant(bad, tf.int64))
            return tf.where(spoilt, np.nan, batch[0]), batch[1]

        stream = ours(examples, first_example=first_example, **stream)
        return stream.enumerate(first).map(spoil)

    monkeypatch.setattr(data, "training_batches", batches)
    monkeypatch.setattr(Entrance, "checked", lambda self, x, y=None: x)


@pytest.mark.long
def test_a_batch_with_nan_is_noted_and_left_out_on_demand(tmp_path, monkeypatch, capsys):
    with_nan(monkeypatch, [4, 5])
    settings = tiny(tmp_path / "run", **ALONE)
    with pytest.raises(NotFinite, match=r"in update 5\. .* `on_nan=skip`") as raised:
        job.run(settings)
    assert str(tmp_path / "run" / "checkpoints" / "ckpt-1") in str(raised.value)
    noted = tmp_path / "run" / "not_finite" / "batch_4"
    assert str(noted) in str(raised.value)
    note = json.loads((noted / "batch.json").read_text())
    stream = Run(settings).training_stream(4)
    assert note["update"] == 5
    assert note["labels"] == next(iter(stream))[1].numpy().tolist()
    state = dict(tf.train.list_variables(str(noted / "state")))
    assert any("student" in name for name in state) and any("optimizer" in n for n in state)

    job.run(tiny(tmp_path / "run", **ALONE, on_nan="skip"))
    out = capsys.readouterr().out
    assert "it is left out.\nContinuing from update 3." in out
    skipped = json.loads((tmp_path / "run" / "skipped_batches.json").read_text())
    assert skipped == [4, 5]
    job.run(tiny(tmp_path / "at_once", **ALONE, on_nan="skip", checkpoint_every=2))
    assert_same(tmp_path / "at_once", tmp_path / "run")
    assert all(np.isfinite(value).all() for value in weights(tmp_path / "run"))


@pytest.mark.long
def test_left_out_batches_are_those_and_no_others():
    run = Run(tiny("unused", **ALONE, sampler="class_balanced"))
    every = [labels.numpy() for _, labels in run.training_stream()]
    for first in range(3):
        left = list(run.training_stream(first, skipped=[5, 2]))
        places = [0, 1, 3, 4, 6, 7, 8][first:]
        assert len(left) == 9 - first
        for place, (_, labels) in zip(places, left):
            np.testing.assert_array_equal(labels, every[place])
            indices = run.indices_of(place, [5, 2])
            np.testing.assert_array_equal(labels, run.examples.train.labels[indices])


@pytest.mark.long
def test_skipping_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "MOST_SKIPPED", 2)
    with_nan(monkeypatch, [0, 1, 2])
    with pytest.raises(NotFinite, match="in update 1.*2 batches are left out already"):
        job.run(tiny(tmp_path, **ALONE, on_nan="skip"))
    assert json.loads((tmp_path / "skipped_batches.json").read_text()) == [0, 1]


@pytest.mark.long
@pytest.mark.parametrize("views", [0, 2])
def test_the_speed_is_told(views, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "UNTIMED", 1)
    results = job.run(tiny(tmp_path, teacher_views=views))
    told = results["throughput"]
    assert set(told) == {"images_per_second", "reading", "teacher", "student"}
    assert told["images_per_second"] > 0 and (told["teacher"] > 0) == (views == 0)
    assert "images a second, " in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["throughput"] == told
