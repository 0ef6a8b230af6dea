import json

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import metrics

COUNTS = [5, 500, 101, 100, 20, 19, 60, 1, 300]
SHOTS = {"many": [1, 2, 8], "medium": [3, 4, 6], "few": [0, 5, 7]}


def members(groups):
    return {name: list(classes) for name, classes in groups.items()}


def examples(n=400, classes=9, without=(), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.setdiff1d(np.arange(classes), without), n)
    scores = rng.normal(size=(n, classes)).astype("float32")
    scores[np.arange(n), labels] += rng.uniform(0, 3, n)
    return labels, scores


def brute_force(labels, predictions, weight=None):
    """Accuracy by class: a loop over the examples."""
    weight = np.ones(len(labels)) if weight is None else weight
    hit, total = {}, {}
    for y, p, w in zip(labels, predictions, weight):
        hit[y] = hit.get(y, 0.0) + w * (y == p)
        total[y] = total.get(y, 0.0) + w
    return {y: hit[y] / total[y] for y in total if total[y]}


def group_means(accuracy, groups):
    seen = {k: [accuracy[c] for c in v if c in accuracy] for k, v in groups.items()}
    return {k: sum(v) / len(v) for k, v in seen.items() if v}


@pytest.mark.parametrize(
    "counts, expected",
    [
        (COUNTS, SHOTS),
        ([5000, 500, 101], {"many": [0, 1, 2]}),
        ([101, 19], {"many": [0], "few": [1]}),
        ([20, 100], {"medium": [0, 1]}),
    ],
)
def test_shot_groups(counts, expected):
    assert members(metrics.shot_groups(counts)) == expected


@pytest.mark.parametrize(
    "counts, bounds, expected",
    [
        (COUNTS, None, {"head": [1, 2, 8], "medium": [3, 4, 6], "tail": [0, 5, 7]}),
        (COUNTS, (1, 7), {"head": [1], "medium": [2, 3, 4, 5, 6, 8], "tail": [0, 7]}),
        (range(10, 0, -1), None, {"head": [0, 1, 2], "medium": [3, 4, 5, 6], "tail": [7, 8, 9]}),
        ([3, 3, 3], (1, 2), {"head": [0], "medium": [1], "tail": [2]}),
        ([1, 9], None, {"head": [1], "tail": [0]}),
        ([9, 5, 1], (0, 3), {"medium": [0, 1, 2]}),
    ],
    ids=["thirds", "bounds", "ten", "ties in label order", "two", "empty ends"],
)
def test_rank_groups(counts, bounds, expected):
    assert members(metrics.rank_groups(list(counts), bounds)) == expected


def test_accuracy_report():
    labels, scores = examples()
    predictions = scores.argmax(-1)
    accuracy = brute_force(labels, predictions)
    report = metrics.accuracy_report(labels, predictions, COUNTS, bounds=(2, 6))
    ranks = {"head": [1, 8], "medium": [2, 3, 4, 6], "tail": [0, 5, 7]}
    hits = sum(y == p for y, p in zip(labels, predictions))
    assert 0.2 < report["overall"] < 1.0
    assert report["overall"] == pytest.approx(hits / 400)
    assert report["class_mean"] == pytest.approx(sum(accuracy.values()) / 9)
    assert report["per_class"] == pytest.approx([accuracy[c] for c in range(9)])
    assert report["shots"] == pytest.approx(group_means(accuracy, SHOTS))
    assert report["ranks"] == pytest.approx(group_means(accuracy, ranks))


def test_shifted_accuracy_is_the_mean_over_long_tailed_test_images():
    labels, scores = examples(without=[0])
    predictions = scores.argmax(-1)
    shifted = metrics.accuracy_report(labels, predictions, COUNTS)["shifted"]
    order = [c for c in metrics.head_to_tail(COUNTS) if c != 0]
    for ratio in (10, 50):
        for direction, ranked in (("forward", order), ("backward", order[::-1])):
            frequency = dict(zip(ranked, np.geomspace(1, 1 / ratio, len(ranked))))
            weights = [frequency[y] / np.sum(labels == y) for y in labels]
            expected = np.average(labels == predictions, weights=weights)
            assert shifted[f"{direction} {ratio}"] == pytest.approx(expected)


def test_classes_and_groups_without_an_example_are_left_out():
    labels, scores = examples(without=[8, *SHOTS["few"]])
    report = metrics.accuracy_report(labels, scores.argmax(-1), COUNTS)
    accuracy = brute_force(labels, scores.argmax(-1))
    assert [c for c, a in enumerate(report["per_class"]) if a is None] == [0, 5, 7, 8]
    assert report["shots"] == pytest.approx(group_means(accuracy, SHOTS))
    assert set(report["shots"]) == {"many", "medium"} and set(report["ranks"]) == {"head", "medium"}
    assert report["class_mean"] == pytest.approx(np.mean(list(accuracy.values())))
    assert "NaN" not in json.dumps(report)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_example_has_no_shifted_accuracy():
    none = np.array([], int)
    assert metrics.accuracy_report(none, none, [3, 2])["shifted"] == {}


def test_a_class_that_is_never_right_is_zero_not_none():
    report = metrics.accuracy_report(np.array([0, 1, 1]), np.array([0, 0, 0]), [200, 5])
    assert report["per_class"] == [1.0, 0.0]
    assert report["shots"] == {"many": 1.0, "few": 0.0}


def stream(metric, labels, scores, weight=None, batch=37):
    for i in range(0, len(labels), batch):
        part = slice(i, i + batch)
        metric.update_state(labels[part], scores[part], None if weight is None else weight[part])
    return {name: float(value) for name, value in metric.result().items()}


@pytest.mark.parametrize("without", [(), (0, 3)], ids=["all classes", "two classes missing"])
@pytest.mark.parametrize("column", [False, True])
def test_streamed_shots_equal_the_report(without, column):
    labels, scores = examples(without=without)
    streamed = stream(metrics.ShotAccuracy(COUNTS), labels[:, None] if column else labels, scores)
    report = metrics.accuracy_report(labels, scores.argmax(-1), COUNTS)
    assert set(streamed) == {"many", "medium", "few"}
    assert streamed == pytest.approx(report["shots"], rel=1e-5)


def test_streamed_group_without_a_class_is_left_out():
    labels, scores = examples(classes=3)
    assert set(stream(metrics.ShotAccuracy([500, 200, 5]), labels, scores)) == {"many", "few"}


def test_sample_weights():
    labels, scores = examples()
    weight = np.random.default_rng(1).choice([0.0, 0.5, 2.0], 400).astype("float32")
    weight[labels == 5] = 0.0
    expected = group_means(brute_force(labels, scores.argmax(-1), weight), SHOTS)
    streamed = stream(metrics.ShotAccuracy(COUNTS), labels, scores, weight)
    assert streamed == pytest.approx(expected, rel=1e-5)


def test_reset_forgets_the_last_epoch():
    metric = metrics.ShotAccuracy(COUNTS)
    stream(metric, *examples(seed=1))
    metric.reset_state()
    labels, scores = examples(seed=2)
    expected = group_means(brute_force(labels, scores.argmax(-1)), SHOTS)
    assert stream(metric, labels, scores) == pytest.approx(expected, rel=1e-5)


def test_in_fit_and_evaluate():
    labels, scores = examples()
    expected = group_means(brute_force(labels, scores.argmax(-1)), SHOTS)
    model = tf.keras.Sequential([tf.keras.Input((9,)), tf.keras.layers.Rescaling(2.0)])
    model.compile("sgd", "mse", metrics=[metrics.ShotAccuracy(COUNTS)])
    history = model.fit(scores, labels, batch_size=64, epochs=2, verbose=0).history
    evaluated = model.evaluate(scores, labels, batch_size=64, verbose=0, return_dict=True)
    for name, value in expected.items():
        assert history[name] == pytest.approx([value, value], rel=1e-5)
        assert evaluated[name] == pytest.approx(value, rel=1e-5)


def test_config_round_trip():
    metric = metrics.ShotAccuracy(np.array(COUNTS), name="mine")
    config = json.loads(json.dumps(tf.keras.metrics.serialize(metric)))
    again = tf.keras.metrics.deserialize(config)
    labels, scores = examples()
    expected = group_means(brute_force(labels, scores.argmax(-1)), SHOTS)
    assert again.name == "mine"
    assert stream(again, labels, scores) == pytest.approx(expected, rel=1e-5)


def test_calibration_error_is_the_mean_gap_of_the_bins():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1.0, 500)
    correct = rng.random(500) < confidence**2
    expected = 0.0
    for m in range(1, 16):
        members = [i for i, p in enumerate(confidence) if (m - 1) / 15 < p <= m / 15]
        if members:
            gap = np.mean(correct[members]) - np.mean(confidence[members])
            expected += len(members) / 500 * abs(gap)
    assert 0.1 < expected < 0.3
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(expected)


def test_calibration_error_in_closed_form():
    sure, right = np.ones(8), np.arange(8) < 2
    assert metrics.expected_calibration_error(sure, right) == pytest.approx(0.75)
    assert metrics.expected_calibration_error(np.full(8, 0.25), right) == 0.0
    # Opposite gaps in one bin cancel, in two bins they add up.
    confidence, correct = np.array([0.7, 0.9]), np.array([True, False])
    assert metrics.expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.3)
    assert metrics.expected_calibration_error(confidence, correct, bins=5) == pytest.approx(0.6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    count, accuracy, confidence = metrics.calibration_bins(
        np.array([0.5, 0.75, 1.0]), np.array([True, False, True]), bins=4
    )
    assert count.tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(accuracy, [np.nan, 1, 0, 1])
    np.testing.assert_array_equal(confidence, [np.nan, 0.5, 0.75, 1])


def test_norm_gap_ignores_the_scale():
    full_precision = np.array([4.0, 2.0, 1.0])
    assert metrics.norm_gap(3 * full_precision, full_precision) == 0.0
    # Head to tail 1, 1, 1 against 1, 1/2, 1/4.
    assert metrics.norm_gap(np.full(3, 7.0), full_precision) == pytest.approx((1 / 2 + 3 / 4) / 3)


def test_logits_in_place_of_predictions_are_named():
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match=r"predictions are class numbers.*\(2, 3\) of float64"):
        metrics.accuracy_report(labels, np.zeros((2, 3)), [5, 4, 3])
    with pytest.raises(ValueError, match="labels are class numbers"):
        metrics.accuracy_report(np.eye(2), labels, [5, 4])
