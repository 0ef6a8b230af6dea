import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data import SAMPLERS
from candle_tf.methods import METHODS, Method


def test_the_published_objective_and_its_ablations():
    paper = METHODS["candle_paper"]
    assert paper == Method(None, "instance_balanced", None, 2.0, False)
    for name, weight in {"kl": 1.0, "feature": 0.0, "fixed": 0.5}.items():
        ablation = METHODS[f"candle_paper_{name}"]
        assert ablation == dataclasses.replace(paper, fixed_lambda=weight)


@pytest.mark.parametrize("name", METHODS)
def test_rows_are_complete(name):
    method = METHODS[name]
    assert method.sampler in SAMPLERS
    assert method.distills == name.startswith("candle")


def test_losses_of_the_students_alone():
    logits, labels = np.array([[1.0, 2.0]], np.float32), np.array([0])
    counts = np.array([300, 100])
    plain = METHODS["cross_entropy"].loss(counts)(labels, logits)
    np.testing.assert_allclose(plain, np.log(1 + np.exp(1.0)), rtol=1e-6)
    balanced = METHODS["balanced_softmax"].loss(counts)(labels, logits)
    np.testing.assert_allclose(balanced, np.log(1 + np.exp(1.0) / 3), rtol=1e-6)
    assert isinstance(METHODS["balanced_softmax"].loss(counts), tf.keras.losses.Loss)
