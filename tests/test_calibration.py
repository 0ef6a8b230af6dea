"""The calibration against closed forms and scikit-learn, and on small sets that it once failed."""

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf import calibration
from candle_tf.calibration import CrossValidation, deal, fit_classifier, most_balanced
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

COUNTS = np.array([40, 12, 5])


def blobs(counts, width=4, spread=1.0, seed=0):
    generator = np.random.default_rng(seed)
    centres = 2.0 * np.eye(len(counts), width)
    labels = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    noise = spread * generator.normal(size=(len(labels), width))
    return (centres[labels] + noise).astype(np.float32), labels


def fit(x, y, loss="cross_entropy", smoothing=(0.1, 0.0)):
    penalty = 1 / (0.3 * len(y))  # scikit-learn's C = 0.3, which sums over the images
    return calibration.fit_standardized(x, y, y.max() + 1, penalty, loss, smoothing, 500)


def test_cross_entropy_is_the_logistic_regression_of_scikit_learn():
    x, y = blobs(COUNTS)
    kernel, bias = fit(x, y)
    reference = LogisticRegression(C=0.3, tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(kernel, reference.coef_.T, atol=2e-3)
    np.testing.assert_allclose(bias - bias.mean(), reference.intercept_, atol=2e-3)


def test_balanced_softmax_is_that_less_the_log_prior():
    """The bias is free, so it takes in any constant that stands beside it."""
    x, y = blobs(COUNTS)
    (kernel, bias), (plain, plain_bias) = fit(x, y, "balanced_softmax"), fit(x, y)
    np.testing.assert_allclose(kernel, plain, atol=2e-3)
    difference = plain_bias - bias - ct.losses.log_prior(COUNTS)
    np.testing.assert_allclose(difference, difference[0], atol=5e-3)


def test_label_aware_smoothing_minimises_its_loss_over_balanced_classes():
    x, y = blobs(COUNTS)
    kernel, bias = (tf.Variable(v) for v in fit(x, y, "label_aware_smoothing"))
    weights = (len(y) / 3 / COUNTS)[y]
    with tf.GradientTape() as tape:
        loss = ct.losses.LabelAwareSmoothing(COUNTS, head=0.1, tail=0.0, reduction="none")
        value = tf.reduce_sum(weights * loss(y, x @ kernel + bias))
        value += tf.reduce_sum(kernel**2) / (2 * 0.3)
    for gradient in tape.gradient(value, (kernel, bias)):
        np.testing.assert_allclose(gradient, 0.0, atol=0.02)


@pytest.mark.parametrize("loss", calibration.CALIBRATIONS)
def test_scale_and_place_of_the_features_do_not_matter(loss):
    x, y = blobs(COUNTS)
    factor, shift = np.float32([1e-4, 1.0, 300.0, 0.0]), np.float32([0, 50, -2000, 7])
    both = []
    for given in (x * [1, 1, 1, 0], x * factor + shift):  # a constant feature among them
        kernel, bias, checked = fit_classifier(given.astype(np.float32), y, COUNTS, loss=loss)
        both.append((given @ kernel + bias, checked.per_class, checked.strength))
    np.testing.assert_allclose(both[0][0], both[1][0], atol=0.05)
    assert both[0][1:] == both[1][1:]


def test_more_views_of_the_same_images_are_the_same_calibration():
    x, y = blobs(COUNTS)
    one = fit_classifier(x, y, COUNTS)
    four = fit_classifier(np.tile(x, (4, 1)), np.tile(y, 4), COUNTS)
    assert one[2] == four[2]
    np.testing.assert_allclose(one[0], four[0], atol=5e-3)


def test_each_class_of_two_images_is_held_out_and_never_missing():
    y = np.repeat(np.arange(6), [9, 5, 3, 2, 2, 1])
    fold = deal(y, 3, np.random.default_rng(0))
    assert (fold[y == 5] == -1).all() and (fold[y < 5] >= 0).all()
    for k in range(3):
        assert set(y[fold != k]) == set(range(6))
    assert np.ptp(np.bincount(fold[fold >= 0])) <= 2


def test_a_class_of_one_image_is_left_out_of_the_means():
    x, y = blobs([20, 5, 1])
    checked = fit_classifier(x, y, [20, 5, 1])[2]
    assert np.isnan(checked.per_class[2])
    assert checked.class_mean == pytest.approx(np.mean(checked.per_class[:2]))
    assert set(checked.by_rank()) == {"head", "medium"}
    alone = fit_classifier(*blobs([1, 1, 1]), [1, 1, 1])[2]
    assert np.isnan(alone.class_mean)


def test_large_sets_are_cross_validated_on_part_of_their_largest_classes():
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [900, 80, 5]))
    kept = most_balanced(y, 200, np.random.default_rng(0))
    assert np.bincount(y[kept]).tolist() == [115, 80, 5]
    np.testing.assert_array_equal(most_balanced(y, 985, np.random.default_rng(0)), np.arange(985))


def test_with_many_classes_two_images_of_each_are_held_out(monkeypatch):
    monkeypatch.setattr(calibration, "MOST_CROSS_VALIDATED", 5)
    counts = [3, 3, 3, 2]
    x, y = blobs(counts)
    per_class = fit_classifier(x, y, counts)[2].per_class
    assert np.isfinite(per_class).all()


def test_the_accuracy_of_a_large_set_is_that_of_a_classifier_of_all_its_images(monkeypatch):
    monkeypatch.setattr(calibration, "STRENGTHS", (2.0,))
    counts = [91, 61, 31]
    x, y = blobs(counts)
    whole = fit_classifier(x, y, counts)[2]
    monkeypatch.setattr(calibration, "MOST_CROSS_VALIDATED", 9)
    part = fit_classifier(x, y, counts)[2]
    assert abs(part.class_mean - whole.class_mean) < 0.05
    seen = [round(share * n, 6) for share, n in zip(part.per_class, counts)]
    assert seen == [round(n) for n in seen]  # each image is held out once


@pytest.mark.parametrize("loss", calibration.CALIBRATIONS)
def test_logits_in_blocks_are_the_same_calibration(loss, monkeypatch):
    x, y = blobs(COUNTS)
    whole = fit_classifier(x, y, COUNTS, loss=loss)
    monkeypatch.setattr(calibration, "MOST_LOGITS", 7 * len(COUNTS))
    blocks = fit_classifier(x, y, COUNTS, loss=loss)
    np.testing.assert_allclose(blocks[0], whole[0], atol=1e-3)
    np.testing.assert_allclose(blocks[1], whole[1], atol=1e-3)
    assert blocks[2] == whole[2]


def test_what_it_says():
    good = CrossValidation(0.3, [0.9, 0.8, 0.7], [9, 5, 2])
    assert good.summary() == (
        "Cross-validated accuracy of the teacher: 80.0 %, the mean of the classes (head 90.0, "
        "medium 80.0, tail 70.0)"
    )
    assert "That is poor" in CrossValidation(0.3, [0.4, 0.3, 0.1], [9, 5, 2]).summary()


def test_features_that_are_not_finite_or_come_unevenly_are_refused():
    x, y = blobs(COUNTS)
    with pytest.raises(ValueError, match="do not hold each training image once"):
        fit_classifier(np.repeat(x, 2, axis=0), np.repeat(y, 2), COUNTS)
    with pytest.raises(ValueError, match=r"calibrate: example \d+ has label -1, .* from 0 to"):
        fit_classifier(x, y - 1, COUNTS)
    with pytest.raises(ValueError, match="rows of features have .* labels: give one per row"):
        fit_classifier(x, y[1:], COUNTS)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="hold NaN or Inf"):
        fit_classifier(x, y, COUNTS)


def class_mean(kernel, bias, x, y):
    predictions = np.argmax(x @ kernel + bias, axis=1)
    return np.nanmean(ct.metrics.per_class_accuracy(y, predictions, len(bias)))


@pytest.mark.long
def test_few_digits_and_features_of_any_scale():
    """An encoder of one's own, 330 images: a fixed number of Adam's steps once learned nothing."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order], digits.target[order]
    tf.keras.utils.set_random_seed(0)
    encoder = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 1)),
            tf.keras.layers.Conv2D(32, 3, activation="relu"),
            tf.keras.layers.Flatten(),
        ]
    )
    features = encoder.predict(images[..., None] / 1600.0, verbose=0)
    counts = np.bincount(labels[:330])
    kernel, bias, _ = fit_classifier(features[:330], labels[:330], counts)
    assert class_mean(kernel, bias, features[:330], labels[:330]) > 0.97
    mean, std = features[:330].mean(0), features[:330].std(0) + 1e-9
    scaled = (features - mean) / std
    model = LogisticRegression(class_weight="balanced", max_iter=500)
    model.fit(scaled[:330], labels[:330])
    reference = class_mean(model.coef_.T, model.intercept_, scaled[330:], labels[330:])
    assert class_mean(kernel, bias, features[330:], labels[330:]) > reference - 0.01
