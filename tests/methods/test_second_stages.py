import builtins
from dataclasses import replace

import numpy as np
import pytest
from candle_tf import losses
from candle_tf.methods.second_stages import (
    SECOND_STAGES,
    TAUS,
    FirstStage,
    oversampled,
    tau_normalized,
)
from sklearn.linear_model import LogisticRegression

COUNTS = np.array([600, 200, 60, 30, 12, 6])
WIDTH = 8
CENTRES = np.random.default_rng(1).normal(scale=0.9, size=(6, WIDTH))


def gaussians(counts, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(6), counts)
    features = CENTRES[labels] + rng.normal(size=(len(labels), WIDTH)) + 0.5
    return features.astype(np.float32), labels


TEST = gaussians([300] * 6, seed=2)


@pytest.fixture(scope="module")
def first():
    """Skewed Gaussians and the logistic regression on them."""
    features, labels = gaussians(COUNTS, seed=3)
    fitted = LogisticRegression(C=1e3, max_iter=2000).fit(features, labels)
    return FirstStage(
        features,
        labels,
        COUNTS,
        fitted.coef_.T.astype(np.float32),
        fitted.intercept_.astype(np.float32),
        validation=gaussians([100, 60, 40, 20, 20, 20], seed=4),
        epochs=10,
        batch_size=64,
        learning_rate=3e-2,
    )


@pytest.fixture(scope="module")
def stages(first):
    return {name: stage(first) for name, stage in SECOND_STAGES.items()}


def tail_accuracy(kernel, bias):
    features, labels = TEST
    return np.mean((features @ kernel + bias).argmax(-1)[labels >= 4] == labels[labels >= 4])


def directions(kernel):
    return kernel / np.linalg.norm(kernel, axis=0)


def norms(kernel):
    return np.linalg.norm(kernel, axis=0)


@pytest.mark.long
@pytest.mark.parametrize("name", SECOND_STAGES)
def test_every_stage_fits_the_last_layer_and_helps_the_tail(name, first, stages):
    kernel, bias = stages[name]
    assert (kernel.shape, kernel.dtype) == ((WIDTH, 6), np.float32)
    assert (bias.shape, bias.dtype) == ((6,), np.float32)
    before, after = tail_accuracy(first.kernel, first.bias), tail_accuracy(kernel, bias)
    assert after > before + 0.03, f"{before:.3f} before, {after:.3f} after"


@pytest.mark.long
@pytest.mark.parametrize("name", ["crt", pytest.param("fslwf", marks=pytest.mark.slow)])
def test_what_is_trained_is_a_function_of_the_seed(name, first, stages):
    np.testing.assert_array_equal(SECOND_STAGES[name](first)[0], stages[name][0])
    assert not np.allclose(SECOND_STAGES[name](replace(first, seed=1))[0], stages[name][0])


@pytest.mark.long
def test_crt_starts_afresh_and_mislas_from_the_first_classifier(first):
    still = replace(first, learning_rate=1e-9, epochs=1)
    turned = replace(still, kernel=-first.kernel)
    crt, mislas = (SECOND_STAGES[name] for name in ("crt", "mislas"))
    np.testing.assert_array_equal(crt(still)[0], crt(turned)[0])
    np.testing.assert_allclose(mislas(turned)[0], -first.kernel, atol=1e-5)


@pytest.mark.long
def test_lws_scales_each_class_and_keeps_its_direction(first, stages):
    kernel, bias = stages["lws"]
    factors = norms(kernel) / norms(first.kernel)
    np.testing.assert_allclose(kernel, first.kernel * factors, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias, first.bias * factors, rtol=1e-4, atol=1e-5)
    assert np.ptp(factors) > 0.05, "the factors did not learn"


@pytest.mark.long
def test_mislas_leaves_the_directions_of_the_first_stage(first, stages):
    assert not np.allclose(directions(stages["mislas"][0]), directions(first.kernel), atol=1e-2)


@pytest.mark.long
def test_mislas_smooths_as_much_as_it_is_told_to(first, stages):
    def confidence(kernel, bias):
        p = np.exp(first.features @ kernel + bias)
        return np.mean(p.max(-1) / p.sum(-1))

    smooth = SECOND_STAGES["mislas"](replace(first, label_smoothing=(0.5, 0.5)))
    assert confidence(*smooth) < confidence(*stages["mislas"]) - 0.1


def test_tau_norm_takes_the_best_tau_of_the_validation_split(first, stages):
    kernel, bias = stages["tau_norm"]
    features, labels = first.validation

    def class_mean(kernel):
        hit = (features @ kernel).argmax(-1) == labels
        return np.mean([hit[labels == c].mean() for c in range(6)])

    scores = [class_mean(first.kernel / norms(first.kernel) ** tau) for tau in TAUS]
    assert class_mean(kernel) == max(scores) > scores[0]
    np.testing.assert_allclose(directions(kernel), directions(first.kernel), atol=1e-5)
    assert not bias.any()


def test_tau_0_keeps_the_kernel_and_tau_1_makes_norms_equal(first):
    np.testing.assert_allclose(tau_normalized(first.kernel, 0.0), first.kernel)
    np.testing.assert_allclose(norms(tau_normalized(first.kernel, 1.0)), 1.0, rtol=1e-5)
    half = norms(tau_normalized(first.kernel, 0.5))
    np.testing.assert_allclose(half, norms(first.kernel) ** 0.5, rtol=1e-5)
    assert not tau_normalized(np.zeros((3, 2)), 1.0).any()


def test_tau_norm_asks_for_a_validation_split(first):
    with pytest.raises(ValueError, match="give a `validation_split`"):
        SECOND_STAGES["tau_norm"](replace(first, validation=None))


def test_ncm_is_the_nearest_class_mean_by_cosine_and_by_euclid(first, stages):
    kernel, bias = stages["ncm"]
    means = np.stack([first.features[first.labels == c].mean(0) for c in range(6)])
    unit_means = means / np.linalg.norm(means, axis=1, keepdims=True)
    for x, label in zip(TEST[0][::17], (TEST[0] @ kernel + bias).argmax(-1)[::17]):
        cosines = [x @ m / np.linalg.norm(x) / np.linalg.norm(m) for m in means]
        distances = [np.linalg.norm(x / np.linalg.norm(x) - m) for m in unit_means]
        assert np.argmax(cosines) == np.argmin(distances) == label


@pytest.mark.parametrize("name", ["cosine", "ncm", "fslwf"])
def test_kernels_of_cosine_classifiers_have_unit_norm_and_no_bias(name, stages):
    kernel, bias = stages[name]
    np.testing.assert_allclose(norms(kernel), 1.0, rtol=1e-5)
    assert not bias.any()


def test_logit_adjustment_makes_the_prior_uniform(first, stages):
    kernel, bias = stages["logit_adjustment"]
    np.testing.assert_array_equal(kernel, first.kernel)
    x = TEST[0][:20].astype(np.float64)
    old, new = (np.exp(x @ kernel + b) for b in (first.bias, bias))
    balanced = old / (COUNTS / COUNTS.sum())  # Bayes: p(x | y) is p(y | x) / p(y)
    np.testing.assert_allclose(
        new / new.sum(-1, keepdims=True), balanced / balanced.sum(-1, keepdims=True), rtol=1e-4
    )


def test_smote_fills_every_class_with_points_between_its_own():
    features, labels = gaussians([40, 12, 7, 3, 2, 1], seed=5)
    filled, filled_labels = oversampled(features, labels, seed=0)
    assert np.bincount(filled_labels).tolist() == [40] * 6
    for c in range(6):
        own, synthetic = features[labels == c], filled[filled_labels == c]
        for x in synthetic:  # x = a + u (b - a) for a pair of the class: |x-a| + |x-b| = |a-b|
            to = np.linalg.norm(own - x, axis=1)
            detour = to[:, None] + to - np.linalg.norm(own[:, None] - own, axis=-1)
            assert detour.min() < 1e-3
    np.testing.assert_allclose(filled[filled_labels == 5], np.repeat(features[-1:], 40, axis=0))


def test_smote_names_the_extra_that_it_needs(first, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("imblearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install imbalanced-learn"):
        SECOND_STAGES["smote"](first)


def test_weight_balancing_keeps_the_norms_in_its_ball(first, stages):
    before, after = norms(first.kernel), norms(stages["weight_balancing"][0])
    radius = before.min() + 0.1 * np.ptp(before)
    assert before.max() > radius and (after <= radius * (1 + 1e-5)).all()


@pytest.mark.long
def test_weight_balancing_weighs_a_class_as_its_effective_number_says(first):
    # Without information in the features, the optimum is softmax(b)_c ~ n_c * weight_c.
    flat = replace(
        first,
        features=np.zeros_like(first.features),
        kernel=np.full_like(first.kernel, 0.1),
        bias=np.zeros_like(first.bias),
        epochs=60,
    )
    kernel, bias = SECOND_STAGES["weight_balancing"](flat)
    assert np.abs(kernel).max() < 0.01, "what no loss asks for decays"
    p = np.exp(bias)
    expected = COUNTS * losses.class_balanced_weights(COUNTS)
    np.testing.assert_allclose(p / p.sum(), expected / expected.sum(), rtol=0.1)


def test_fslwf_takes_the_third_with_the_fewest_images_for_the_tail(first):
    """Untrained, it generates phi_avg * mean + phi_att * attended and keeps the others."""
    kernel, _ = SECOND_STAGES["fslwf"](replace(first, epochs=0))
    np.testing.assert_allclose(kernel[:, :4], directions(first.kernel)[:, :4], rtol=1e-5)
    assert np.abs(kernel[:, 4:] - directions(first.kernel)[:, 4:]).max() > 0.1


def test_fslwf_needs_two_base_classes(first):
    few = first.labels < 2
    two = replace(
        first,
        features=first.features[few],
        labels=first.labels[few],
        class_counts=COUNTS[:2],
        kernel=first.kernel[:, :2],
        bias=first.bias[:2],
    )
    with pytest.raises(ValueError, match="it needs 3 classes, not 2"):
        SECOND_STAGES["fslwf"](two)


def test_a_class_without_features_is_refused(first):
    keep = first.labels != 3
    with pytest.raises(ValueError, match=r"No features of class \[3\]"):
        replace(first, features=first.features[keep], labels=first.labels[keep])


def test_features_of_a_diverged_network_are_refused(first):
    with pytest.raises(ValueError, match="first stage diverged"):
        replace(first, features=np.where(first.features > 3, np.inf, first.features))
