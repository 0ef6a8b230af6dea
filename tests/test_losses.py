import json

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import losses

RNG = np.random.default_rng(0)
COUNTS = [100, 55, 10]
PRIOR = np.log(np.array(COUNTS) / 165)
LABELS = np.array([0, 2, 1, 2, 0])
Z_T, Z_S = RNG.normal(scale=3.0, size=(2, 5, 3)).astype("float32")
LONG_TAILED = [
    losses.BalancedSoftmax(COUNTS),
    losses.LabelAwareSmoothing(COUNTS, head=0.1, tail=0.4),
]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def targets(loss):
    """The distribution each loss pulls toward, and the prior added to the logits."""
    one_hot = np.eye(3)[LABELS]
    if isinstance(loss, losses.BalancedSoftmax):
        return one_hot, np.log(COUNTS)
    e = np.array([0.1, 0.4 - 0.3 * np.sqrt(0.5), 0.4])[LABELS][:, None]
    return (1 - e) * one_hot + e / 3, 0.0


def reference(loss):
    """One value an example, and its gradient with respect to the logits."""
    target, prior = targets(loss)
    p = softmax(Z_S + prior)
    return -(target * np.log(p)).sum(-1), p - target


def value_and_gradient(function, z):
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = function(z)
    return value.numpy(), tape.gradient(value, z).numpy()


def per_example(loss):
    return type(loss).from_config({**loss.get_config(), "reduction": "none"})


@pytest.mark.parametrize("prior", [None, PRIOR.astype("float32")], ids=["plain", "prior"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kl_divergence(temperature, prior):
    shift = 0.0 if prior is None else prior
    p, q = (softmax(z / temperature + shift) for z in (Z_T, Z_S))
    value, gradient = value_and_gradient(
        lambda z: losses.kl_divergence(Z_T, z, temperature, prior), Z_S
    )
    np.testing.assert_allclose(value, temperature**2 * (p * np.log(p / q)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(gradient, temperature * (q - p), atol=1e-5)


def test_kl_divergence_is_zero_up_to_a_constant_and_finite_far_away():
    np.testing.assert_allclose(losses.kl_divergence(Z_T, Z_T + 7.0), np.zeros(5), atol=1e-5)
    far = tf.constant([[1e4, 0.0, -1e4]])
    value, gradient = value_and_gradient(lambda z: losses.kl_divergence(-far, z), far.numpy())
    np.testing.assert_allclose(value, [4 * 1e4], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[2.0, 0.0, -2.0]], atol=1e-5)


def test_feature_similarity():
    a, g = RNG.normal(size=(2, 4, 6)).astype("float32")
    norm_a, norm_g = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, g))
    cosine = (a * g).sum(-1, keepdims=True) / norm_a / norm_g
    value, gradient = value_and_gradient(lambda x: losses.feature_similarity(x, g), a)
    np.testing.assert_allclose(value, 2 - 2 * cosine[:, 0], rtol=1e-4)
    np.testing.assert_allclose(
        gradient, -2 / norm_a * (g / norm_g - cosine * a / norm_a), atol=1e-5
    )


@pytest.mark.parametrize("scale, expected", [(3.0, 0.0), (-0.5, 4.0), (0.0, 2.0)])
def test_feature_similarity_knows_direction_alone(scale, expected):
    g = RNG.normal(size=(4, 6)).astype("float32")
    value, gradient = value_and_gradient(lambda x: losses.feature_similarity(x, g), scale * g)
    np.testing.assert_allclose(value, np.full(4, expected), atol=1e-5)
    assert np.isfinite(gradient).all()


def test_log_prior():
    prior = losses.log_prior(COUNTS)
    assert prior.dtype == np.float32
    np.testing.assert_allclose(prior, PRIOR, rtol=1e-6)
    np.testing.assert_allclose(np.exp(prior).sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("refuses", [losses.log_prior, losses.BalancedSoftmax])
def test_empty_class_is_refused(refuses):
    with pytest.raises(ValueError, match=r"0 for class \[1, 3\]"):
        refuses([5, 0, 2, 0])


@pytest.mark.parametrize("loss", LONG_TAILED)
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], LABELS.astype("float32")])
def test_values_and_gradients(loss, labels):
    value, gradient = value_and_gradient(lambda z: per_example(loss)(labels, z), Z_S)
    expected, slope = reference(loss)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, slope, atol=1e-5)


@pytest.mark.parametrize("loss", LONG_TAILED)
@pytest.mark.parametrize("weight", [None, np.array([1.0, 0.0, 2.0, 0.5, 3.0], "float32")])
@pytest.mark.parametrize(
    "reduction, reduce",
    [("sum_over_batch_size", np.mean), ("sum", np.sum), ("none", np.asarray)],
)
def test_reductions(loss, weight, reduction, reduce):
    reduced = type(loss).from_config({**loss.get_config(), "reduction": reduction})
    expected = reference(loss)[0] * (1.0 if weight is None else weight)
    np.testing.assert_allclose(reduced(LABELS, Z_S, weight), reduce(expected), rtol=1e-4)


@pytest.mark.parametrize("loss", LONG_TAILED)
def test_inside_tf_function(loss):
    signature = [tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, 3))]
    traced = tf.function(loss, input_signature=signature)
    np.testing.assert_allclose(traced(LABELS, Z_S), reference(loss)[0].mean(), rtol=1e-4)
    np.testing.assert_allclose(
        traced(LABELS[:2], Z_S[:2]), reference(loss)[0][:2].mean(), rtol=1e-4
    )


@pytest.mark.parametrize("loss", LONG_TAILED)
def test_config_round_trip(loss):
    own = {**loss.get_config(), "class_counts": np.array(COUNTS), "name": "mine"}
    config = json.loads(json.dumps(tf.keras.losses.serialize(type(loss).from_config(own))))
    again = tf.keras.losses.deserialize(config)
    assert type(again) is type(loss) and again.name == "mine"
    np.testing.assert_allclose(again(LABELS, Z_S), reference(loss)[0].mean(), rtol=1e-4)


def test_balanced_softmax_of_equal_counts_is_cross_entropy():
    value = losses.BalancedSoftmax([7, 7, 7], reduction="none")(LABELS, Z_S)
    np.testing.assert_allclose(value, -np.log(softmax(Z_S))[np.arange(5), LABELS], rtol=1e-4)


@pytest.mark.parametrize(
    "counts, expected",
    [
        ([100, 55, 10], [0.1, 0.4 - 0.3 * np.sqrt(0.5), 0.4]),
        ([10, 40, 100], [0.4, 0.25, 0.1]),
        ([7, 7, 7], [0.1, 0.1, 0.1]),
    ],
    ids=["head first", "head last", "equal counts"],
)
def test_smoothing_of_each_class(counts, expected):
    smoothing = losses.LabelAwareSmoothing(counts, head=0.1, tail=0.4).smoothing
    np.testing.assert_allclose(smoothing, expected, rtol=1e-5)
