import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data import SAMPLERS
from candle_tf.losses import DeferredReweighting
from candle_tf.methods.second_stages import SECOND_STAGES
from candle_tf.methods.table import (
    METHODS,
    Setup,
    alone,
    candle,
    training_loss,
    with_cosine_classifier,
    with_weight_decay,
)
from candle_tf.students import resnet_e
from candle_tf.teacher import CALIBRATIONS


def test_the_published_objective_and_its_ablations():
    paper = METHODS["candle_paper"]
    assert paper.label_weight == paper.mixup == 0.0 and paper.temperature == 2.0
    assert paper.sampler == "instance_balanced" and training_loss(paper, None) is None
    assert paper.fixed_lambda is None and not paper.prior_adjusted
    for name, weight in {"kl": 1.0, "feature": 0.0, "fixed": 0.5}.items():
        for whole in ("candle_paper", "candle"):
            ablation = METHODS[f"{whole}_{name}"]
            assert ablation == dataclasses.replace(METHODS[whole], fixed_lambda=weight)


def test_the_label_term_of_the_recipe_has_the_prior_of_its_batches():
    recipe, counts = METHODS["candle"], [40, 20, 4]
    assert recipe.sampler == "effective_number" and recipe.mixup == 0.0
    assert recipe.label_weight is None  # by the teacher's accuracy
    term = training_loss(recipe, Setup(class_counts=counts, epochs=1, steps_per_epoch=2))
    logits = np.float32([[1.0, -2.0, 0.5]])
    prior = 1 - 0.95 ** np.array(counts)
    z = logits[0] + np.log(prior / prior.sum())
    expected = np.log(np.exp(z).sum()) - z[2]
    np.testing.assert_allclose(term([2], logits), expected, rtol=1e-5)


def test_a_setup_may_leave_the_resolution_out():
    setup = Setup(class_counts=[4, 2], epochs=1, steps_per_epoch=1)
    with pytest.raises(ValueError, match="The teacher is a NoneType"):
        candle(METHODS["candle"], None, setup)


@pytest.mark.parametrize("name", METHODS)
def test_rows_are_complete(name):
    method = METHODS[name]
    assert method.paper and method.sampler in SAMPLERS
    assert method.partner_sampler is None or method.partner_sampler in SAMPLERS
    assert method.distills == name.startswith("candle")
    assert method.mixes == (method.model in (alone, candle))
    assert method.calibration in CALIBRATIONS
    if method.second_stage:
        assert method.second_stage in SECOND_STAGES and method.starts_from
    if method.starts_from:
        first = METHODS[method.starts_from["method"]]
        assert first.starts_from is None


def test_every_second_stage_is_a_method():
    assert {method.second_stage for method in METHODS.values()} - {None} == set(SECOND_STAGES)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("cross_entropy", np.log(1 + np.exp(1.0))),
        ("balanced_softmax", np.log(1 + np.exp(1.0) / 3)),
        ("logit_adjusted_loss", np.log(1 + np.exp(1.0) / 3)),
        ("inverse_frequency", 0.5 * np.log(1 + np.exp(1.0))),  # weights 1/2 and 3/2
        ("focal", (1 / (1 + np.exp(-1.0))) ** 2 * np.log(1 + np.exp(1.0))),
    ],
)
def test_losses_of_an_example_of_the_larger_class(name, expected):
    logits, labels, counts = np.array([[1.0, 2.0]], np.float32), np.array([0]), np.array([300, 100])
    loss = METHODS[name].loss(counts)
    assert isinstance(loss, tf.keras.losses.Loss)
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-5)


def test_ldam_is_reweighted_in_the_last_fifth():
    (callback,) = METHODS["ldam_drw"].callbacks(20)
    assert isinstance(callback, DeferredReweighting) and callback.start_epoch == 16
    assert METHODS["ldam"].callbacks(20) == []


def test_a_cosine_classifier_bounds_the_logits():
    student = with_cosine_classifier(resnet_e(3, 16, width=0.125))
    logits = student(np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)))
    assert logits.shape == (4, 3) and np.abs(logits).max() <= 30.0 + 1e-4


def test_weight_decay_is_half_the_squared_norm_of_what_is_not_binary():
    student = resnet_e(3, 16, width=0.125)
    decayed = with_weight_decay(student, decay=0.5)
    kernels = [
        (getattr(layer, name), getattr(layer, "kernel_quantizer", None))
        for layer in student.layers
        for name in ("kernel", "depthwise_kernel")
        if hasattr(layer, name)
    ]
    real = [kernel for kernel, quantizer in kernels if quantizer is None]
    assert len(real) == 4 < len(kernels)  # the stem's three and the classifier's
    squares = sum(np.sum(np.square(kernel)) for kernel in real)
    np.testing.assert_allclose(sum(decayed.losses), 0.25 * squares, rtol=1e-5)
