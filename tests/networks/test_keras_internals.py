"""Keras beyond its documented interface: that the installed tf-keras is as the library expects."""

import re
from importlib.metadata import version
from pathlib import Path

import candle_tf
import numpy as np
import pytest
import tensorflow as tf
from candle_tf import StudentModel
from candle_tf.metrics import ShotAccuracy
from candle_tf.networks.keras_internals import (
    Untracked,
    called_within_fit,
    iterations,
    scales_loss,
)
from candle_tf.students import resnet_e
from packaging.version import Version

HOLDS_FOR = Version("2.16"), Version("2.20")  # as setup.py asks for
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0])


def student_model():
    model = StudentModel(resnet_e(3, 32, width=0.125))
    model.compile(tf.keras.optimizers.Adam(1e-3))
    return model


def test_the_version_is_one_that_they_hold_for():
    first, beyond = HOLDS_FOR
    assert first <= Version(version("tf-keras")) < beyond


def test_a_dataclass_hides_its_layers_from_keras():
    model = tf.keras.Model()
    layer = tf.keras.layers.Dense(2)
    layer.build((None, 3))
    model.helper = Untracked([layer])
    assert not model.layers and not model.weights and not model.submodules
    model.helper = [layer]
    assert model.layers == [layer] and len(model.weights) == 2


@pytest.mark.long
def test_fit_says_so_to_evaluate(monkeypatch):
    told = []
    evaluate = StudentModel.evaluate

    def listen(self, *args, **kwargs):
        told.append(called_within_fit(kwargs))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(StudentModel, "evaluate", listen)
    model = student_model()
    model.fit(IMAGES, LABELS, validation_data=(IMAGES, LABELS), verbose=0)
    model.evaluate(IMAGES, LABELS, verbose=0)
    assert told == [True, False]


def test_logs_are_those_of_the_first_replica():
    """Keras would add up or concatenate what the replicas return, unless it is told otherwise."""
    keras_own = tf.keras.Model().distribute_reduction_method
    assert keras_own == "auto" and student_model().distribute_reduction_method == "first"


def test_slots_are_there_before_the_first_update():
    model = student_model()
    slots = [v for v in model.optimizer.variables if v.shape.rank]
    assert len(slots) == 2 * len(model.descending_variables())


@pytest.mark.long
def test_the_first_step_is_traced_once():
    """Variables that a first step creates would have TensorFlow trace it a second time."""
    model, traced = student_model(), []
    step = model.train_step
    model.train_step = lambda data: traced.append(1) or step(data)
    model.compile("adam", metrics=["accuracy", ShotAccuracy([2, 1, 1])])
    model.fit(IMAGES, LABELS, verbose=0)
    assert len(traced) == 1


def test_only_a_scaling_optimizer_is_unwrapped():
    plain = tf.keras.optimizers.SGD(0.1)
    scaled = tf.keras.mixed_precision.LossScaleOptimizer(plain)
    assert scales_loss(scaled) and not scales_loss(plain)
    assert iterations(scaled) is plain.iterations


def test_no_other_file_reaches_into_keras():
    """Modules of tf-keras that it does not export, and attributes with an underscore."""
    package = Path(candle_tf.__file__).parent
    private = re.compile(
        r"tf_keras\.(src|protobuf)|_use_cached|reduction_method|\._[a-z]\w*\(include_self|(?<!self)\.node\b"
    )
    found = [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        if private.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["networks/keras_internals.py"]
