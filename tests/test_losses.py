import json
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import losses

RNG = np.random.default_rng(0)
COUNTS = [100, 55, 10]
PRIOR = np.log(np.array(COUNTS) / 165)
LABELS = np.array([0, 2, 1, 2, 0])
Z_T, Z_S = RNG.normal(scale=3.0, size=(2, 5, 3)).astype("float32")
WEIGHTS = [0.2, 0.8, 2.0]
LONG_TAILED = [
    losses.BalancedSoftmax(COUNTS),
    losses.LogitAdjustment(COUNTS, tau=1.5),
    losses.LabelAwareSmoothing(COUNTS, head=0.1, tail=0.4),
    losses.WeightedCrossEntropy(WEIGHTS),
    losses.Focal(gamma=1.5),
    losses.Focal(gamma=0.5, class_weights=WEIGHTS),
    losses.LDAM(COUNTS, max_margin=0.4, scale=5.0),
]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def targets(loss):
    """The distribution each loss pulls toward, and what is added to the logits."""
    one_hot = np.eye(3)[LABELS]
    if isinstance(loss, losses.LabelAwareSmoothing):
        e = np.array([0.1, 0.4 - 0.3 * np.sqrt(0.5), 0.4])[LABELS][:, None]
        return (1 - e) * one_hot + e / 3, 0.0
    shift = {
        losses.BalancedSoftmax: np.log(COUNTS),
        losses.LogitAdjustment: 1.5 * np.log(COUNTS),
        losses.LDAM: -5.0 * one_hot * 0.4 * np.array([0.1, 10 / 55, 1.0]) ** 0.25,
    }
    return one_hot, shift.get(type(loss), 0.0)


def reference(loss):
    """One value an example, and its gradient with respect to the logits."""
    target, shift = targets(loss)
    p = softmax(Z_S + shift)
    value, slope = -(target * np.log(p)).sum(-1), p - target
    if isinstance(loss, losses.Focal):
        gamma, p_y = loss.gamma, p[np.arange(5), LABELS]
        of_slope = (1 - p_y) ** gamma - gamma * p_y * (1 - p_y) ** (gamma - 1) * np.log(p_y)
        value, slope = (1 - p_y) ** gamma * value, of_slope[:, None] * slope
    weighted = isinstance(loss, losses.WeightedCrossEntropy) or getattr(loss, "gamma", 0) == 0.5
    weight = np.array(WEIGHTS)[LABELS] if weighted else np.ones(5)
    return weight * value, weight[:, None] * slope


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
    p, q = (softmax((z + shift) / temperature) for z in (Z_T, Z_S))
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


@pytest.mark.parametrize(
    "refuses",
    [
        losses.log_prior,
        losses.BalancedSoftmax,
        losses.LogitAdjustment,
        losses.LDAM,
        partial(losses.LabelAwareSmoothing, head=0.1, tail=0.0),
        losses.inverse_frequency_weights,
        losses.class_balanced_weights,
    ],
)
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
    arrays = {k: np.array(v) for k, v in loss.get_config().items() if isinstance(v, list)}
    own = {**loss.get_config(), **arrays, "name": "mine"}
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


@pytest.mark.parametrize("loss", LONG_TAILED)
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_gradients_are_finite_in_the_corners(loss, size):
    config = loss.get_config()
    if "class_counts" in config:
        config["class_counts"] = [1_000_000, 30, 1]
    corner = size * np.array([[1, 0, -1], [-1, 0, 1], [0, 0, 0], [0, -1, 1], [1, 1, 1]], "f4")
    value, gradient = value_and_gradient(
        lambda z: type(loss).from_config(config)(LABELS, z), corner
    )
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3


def test_class_balanced_weights():
    effective = [1.0, 1.9, 2.71]  # 1 + 0.9 + 0.81
    expected = 3 / np.array(effective) / np.sum(1 / np.array(effective))
    weights = losses.class_balanced_weights([1, 2, 3], beta=0.9)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_class_balanced_weights_go_from_equal_to_inverse_frequency():
    np.testing.assert_allclose(losses.class_balanced_weights(COUNTS, beta=0.0), [1, 1, 1])
    inverse = np.array([1 / 100, 1 / 55, 1 / 10])
    expected = 3 * inverse / inverse.sum()
    np.testing.assert_allclose(losses.inverse_frequency_weights(COUNTS), expected, rtol=1e-6)
    almost = losses.class_balanced_weights(COUNTS, beta=1 - 1e-9)
    np.testing.assert_allclose(almost, expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_beta_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match="beta is .* below 1"):
        losses.class_balanced_weights(COUNTS, beta)


@pytest.mark.parametrize("counts", [[], [[3, 2]], [5, float("nan")], ["a", "b"], 7, None])
@pytest.mark.parametrize(
    "refuses",
    [
        losses.positive_counts,
        losses.BalancedSoftmax,
        losses.LDAM,
        partial(losses.LabelAwareSmoothing, head=0.1, tail=0.0),
    ],
)
def test_counts_that_are_none_are_refused(refuses, counts):
    with pytest.raises(ValueError, match="class_counts is .* one number per class"):
        refuses(counts)


def test_shares_are_counts_too():
    loss = losses.BalancedSoftmax([0.6, 0.4])
    again = losses.BalancedSoftmax.from_config(loss.get_config())
    np.testing.assert_allclose(again.log_prior, np.log([0.6, 0.4]), rtol=1e-6)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: losses.Focal(gamma=-1), "gamma is -1"),
        (lambda: losses.Focal(gamma=float("nan")), "gamma is nan"),
        (lambda: losses.Focal(class_weights=[1.0, -1.0]), "class_weights is .* its weight"),
        (lambda: losses.WeightedCrossEntropy([float("inf"), 1.0]), "class_weights is"),
        (lambda: losses.LogitAdjustment(COUNTS, tau=float("inf")), "tau is inf"),
        (lambda: losses.LabelAwareSmoothing(COUNTS, head=1.0, tail=0.0), "head is 1.0 and tail"),
        (lambda: losses.LDAM(COUNTS, scale=0.0), "scale is 0.0"),
        (lambda: losses.LDAM(COUNTS, max_margin=-0.5), "max_margin is -0.5"),
    ],
)
def test_parameters_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_focal_of_gamma_0_is_cross_entropy():
    value = losses.Focal(gamma=0, reduction="none")(LABELS, Z_S)
    np.testing.assert_allclose(value, -np.log(softmax(Z_S))[np.arange(5), LABELS], rtol=1e-4)


def test_logit_adjustment_at_tau_1_is_balanced_softmax():
    p = softmax(Z_S + np.log(COUNTS))
    value = losses.LogitAdjustment(COUNTS, tau=1.0, reduction="none")(LABELS, Z_S)
    np.testing.assert_allclose(value, -np.log(p)[np.arange(5), LABELS], rtol=1e-4)


@pytest.mark.parametrize("counts", [[160_000, 10_000, 16], [16, 160_000, 10_000]])
def test_the_margin_is_largest_for_the_smallest_class(counts):
    margins = losses.LDAM(counts, max_margin=0.5).margins
    expected = {160_000: 0.05, 10_000: 0.1, 16: 0.5}
    np.testing.assert_allclose(margins, [expected[n] for n in counts], rtol=1e-5)


class Losses(tf.keras.callbacks.Callback):
    """The loss of each epoch, by its number."""

    def __init__(self):
        super().__init__()
        self.of_epoch = {}

    def on_epoch_end(self, epoch, logs):
        self.of_epoch[epoch] = logs["loss"]


def compiled(loss):
    """Logits as they come in, trained with steps of 0."""
    model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Rescaling(1.0)])
    model.compile(tf.keras.optimizers.SGD(0.0), loss)
    return model


def fit(model, start_epoch, initial_epoch=0):
    seen = Losses()
    callbacks = [losses.DeferredReweighting(start_epoch, beta=0.9), seen]
    model.fit(Z_S, LABELS, initial_epoch=initial_epoch, epochs=4, callbacks=callbacks, verbose=0)
    return seen.of_epoch


def test_deferred_reweighting_starts_at_its_epoch_and_survives_a_restart():
    ldam = losses.LDAM(COUNTS, max_margin=0.4, scale=5.0)
    value = reference(ldam)[0]
    inverse = 1 / (1 - 0.9 ** np.array(COUNTS))
    weighted = (value * (3 * inverse / inverse.sum())[LABELS]).mean()
    expected = {0: value.mean(), 1: value.mean(), 2: weighted, 3: weighted}
    assert abs(weighted - value.mean()) > 0.05

    model = compiled(ldam)
    assert fit(model, 2) == pytest.approx(expected, rel=1e-4)
    assert fit(model, 2) == pytest.approx(expected, rel=1e-4)  # from the first epoch again
    again = compiled(losses.LDAM.from_config(ldam.get_config()))
    assert fit(again, 2, initial_epoch=3) == pytest.approx({3: weighted}, rel=1e-4)


def test_deferred_reweighting_needs_ldam():
    with pytest.raises(ValueError, match="the loss is focal: compile"):
        fit(compiled(losses.Focal()), 2)


FEATURES = RNG.normal(size=(9, 4)).astype("float32")
GROUPS = np.array([7, 3, 7, 5, 3, 7, 9, 7, 5])  # four, two, two and one of a class


def range_reference(x, y, margin, k):
    within, centres = 0.0, []
    for label in np.unique(y):
        own = x[y == label]
        centres.append(own.mean(0))
        d = [((a - b) ** 2).sum() for i, a in enumerate(own) for b in own[:i]]
        if d:
            largest = np.sort(d)[-k:]
            within += len(largest) / (1 / largest).sum()
    between = [((a - b) ** 2).sum() for i, a in enumerate(centres) for b in centres[:i]]
    return within + max(0, margin - min(between))


def lifted_reference(x, y, margin):
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    pairs = [(i, j) for i in range(len(y)) for j in range(i) if y[i] == y[j]]
    total = 0.0
    for i, j in pairs:
        others = sum(np.exp(margin - d[a, b]) for a in (i, j) for b in np.flatnonzero(y != y[i]))
        total += max(0, np.log(others) + d[i, j]) ** 2
    return total / 2 / len(pairs)


@pytest.mark.parametrize("k", [1, 2, 3, 50])
@pytest.mark.parametrize("margin", [0.1, 20.0])
def test_range_loss(k, margin):
    value = losses.range_loss(FEATURES, GROUPS, margin, k)
    np.testing.assert_allclose(value, range_reference(FEATURES, GROUPS, margin, k), rtol=1e-4)


@pytest.mark.parametrize("margin", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("spread", [0.3, 5.0])
def test_lifted_structured_loss(margin, spread):
    value = losses.lifted_structured_loss(spread * FEATURES, GROUPS, margin)
    np.testing.assert_allclose(
        value, lifted_reference(spread * FEATURES, GROUPS, margin), rtol=1e-4
    )


@pytest.mark.parametrize(
    "function, reference",
    [
        (lambda x: losses.range_loss(x, GROUPS, 20.0), lambda x: range_reference(x, GROUPS, 20, 2)),
        (
            lambda x: losses.lifted_structured_loss(x, GROUPS),
            lambda x: lifted_reference(x, GROUPS, 1),
        ),
    ],
    ids=["range", "lifted"],
)
def test_gradients_of_the_terms_on_features(function, reference):
    _, gradient = value_and_gradient(function, FEATURES)
    x, step = FEATURES.astype("float64"), 1e-5
    numeric = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[place] = step
        numeric[place] = (reference(x + e) - reference(x - e)) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-3)


TERMS = [losses.range_loss, losses.lifted_structured_loss]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize(
    "x, labels, zero",
    [
        (FEATURES[:3], [4, 1, 0], TERMS),
        (FEATURES[:1], [4], TERMS),
        (FEATURES[:3], [4, 4, 4], TERMS[1:]),
        (np.repeat(FEATURES[:2], 2, axis=0), [4, 4, 1, 1], []),
        (np.zeros((4, 4), "float32"), [4, 4, 1, 1], []),
        (1e-12 * FEATURES[:4], [4, 4, 1, 1], []),
        (1e4 * FEATURES[:4], [4, 4, 1, 1], []),
    ],
    ids=["no pair", "one image", "one class", "the same image twice", "all zero", "near", "far"],
)
def test_terms_on_features_are_finite_in_the_corners(term, x, labels, zero):
    value, gradient = value_and_gradient(lambda x: term(x, np.array(labels), margin=1e-3), x)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if term in zero:
        assert value == 0.0 and not gradient.any()


@pytest.mark.parametrize("term", TERMS)
def test_terms_on_features_inside_tf_function(term):
    signature = [tf.TensorSpec((None, 4)), tf.TensorSpec((None,), tf.int64)]
    traced = tf.function(term, input_signature=signature)
    for n in (9, 5):
        np.testing.assert_allclose(
            traced(FEATURES[:n], GROUPS[:n]), term(FEATURES[:n], GROUPS[:n]), rtol=1e-5
        )
