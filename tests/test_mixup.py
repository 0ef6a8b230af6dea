"""Mixed batches: what is drawn, and what is made of it."""

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.mixup import Pairs, Unmixed, beta, check_alpha, draw_pairs


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_beta_has_its_moments(alpha):
    drawn = beta([20_000], tf.constant([3, 4]), alpha).numpy()
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(drawn.var() - 1 / (4 * (2 * alpha + 1))) < 0.005


def test_pairs_follow_seed_and_step_alone():
    def drawn(step, seed=0, per_image=True):
        pairs = draw_pairs(tf.constant(step, tf.int64), tf.constant(50), 1.0, seed, per_image)
        return [values.numpy() for values in pairs]

    for ours, again in zip(drawn(3), drawn(3)):
        np.testing.assert_array_equal(ours, again)
    for other in (drawn(4), drawn(3, seed=1)):
        assert (drawn(3)[0] != other[0]).all() and (drawn(3)[1] != other[1]).any()
    weight, partner = drawn(3)
    assert weight.shape == (50,) and sorted(partner) == list(range(50))
    assert drawn(3, per_image=False)[0].shape == ()


@pytest.mark.parametrize("weight", [0.3, [0.1, 0.5, 0.9]])
def test_mixtures_against_a_loop(weight):
    pairs = Pairs(tf.constant(weight, tf.float32), tf.constant([2, 0, 1]))
    for shape in ((3,), (3, 4), (3, 2, 2, 3)):
        values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        parts = np.broadcast_to(weight, 3)
        expected = [
            parts[i] * values[i].astype(float) + (1 - parts[i]) * values[j]
            for i, j in enumerate([2, 0, 1])
        ]
        np.testing.assert_allclose(pairs.mix(values), expected, rtol=1e-5)


def test_without_mixup_every_value_stays():
    images, labels, logits = tf.zeros((2, 1), tf.uint8), tf.constant([0, 1]), tf.ones((2, 2))
    assert Unmixed().mix(images) is images and Unmixed().mix(None) is None
    assert Unmixed().label_terms(labels, logits, None) == (labels, logits, None)
    assert Pairs(tf.constant(0.5), tf.constant([1, 0])).mix(None) is None


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_the_label_term_is_the_mixture_of_both_losses(weights):
    pairs = Pairs(tf.constant([0.1, 0.5, 0.9]), tf.constant([2, 0, 1]))
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    labels = tf.constant([3, 0, 1])
    given = None if weights is None else tf.constant(weights)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    terms = pairs.label_terms(labels, tf.constant(logits), given)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    w = np.ones(3) if weights is None else np.array(weights)
    expected = [
        -s * w[i] * log_p[i, y] - (1 - s) * w[j] * log_p[i, y_other]
        for i, (s, j, y, y_other) in enumerate(
            zip([0.1, 0.5, 0.9], [2, 0, 1], [3, 0, 1], [1, 3, 0])
        )
    ]
    np.testing.assert_allclose(loss(*terms), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("alpha", [-1.0, 0.01, float("inf"), float("nan")])
def test_an_alpha_that_cannot_be_drawn_from_is_refused(alpha):
    with pytest.raises(ValueError, match="must be 0, or finite and at least 0.05"):
        check_alpha(alpha)
