"""Runs of a few seconds on the digits, and how two of them compare."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.runs import job
from candle_tf.runs.checkpoints import Checkpoints
from candle_tf.runs.settings import Settings

TINY = Settings(
    dataset="digits",
    imbalance_ratio=10,
    student="resnet_e:width=0.125,blocks=(1,1)",
    image_size=16,
    epochs=2,
    steps_per_epoch=3,
    batch_size=32,
    calibration_epochs=2,
    calibration_views=1,
)
ALONE = {"method": "cross_entropy", "epochs": 3}  # of 3 updates


def tiny(workdir, **changes) -> Settings:
    return dataclasses.replace(TINY, workdir=str(workdir), **changes)


def kill(settings: Settings, monkeypatch, epoch: int, saved: bool = True):
    """Runs until the end of an epoch, after or before its checkpoint."""

    def interrupt(self, ended, logs=None):
        if saved or ended < epoch:
            save(self, ended, logs)
        if ended == epoch:
            raise KeyboardInterrupt

    save = Checkpoints.on_epoch_end
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "on_epoch_end", interrupt)
        job.run(settings)


def weights(workdir) -> list[np.ndarray]:
    """The student's, of the last checkpoint."""
    reader = tf.train.load_checkpoint(f"{workdir}/checkpoints")
    names = sorted(name for name in reader.get_variable_to_shape_map() if "student" in name)
    return [reader.get_tensor(name) for name in names]


def assert_same(workdir, expected):
    for a, b in zip(weights(workdir), weights(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def history(workdir) -> list[str]:
    return (workdir / "history.csv").read_text().splitlines()
