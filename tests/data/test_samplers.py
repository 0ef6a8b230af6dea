import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data.samplers import SAMPLERS, class_probabilities, epoch_length, epoch_order

COUNTS = np.array([5000, 1200, 300, 40])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))
DRAWN = {  # by hand from p_j = n_j^q / sum n_i^q
    "instance_balanced": COUNTS / 6540,
    "square_root": np.sqrt(COUNTS) / (70.7107 + 34.6410 + 17.3205 + 6.3246),
    # 20 (1 - 0.95^n): 20, 20, 20 - 4e-6 and 17.4298
    "effective_number": np.array([20.0, 20.0, 20.0, 17.4298]) / 77.4298,
    "class_balanced": np.full(4, 0.25),
    "reversed": np.array([24, 100, 400, 3000]) / 3524,  # 120,000 / n_j
    "progressively_balanced": COUNTS / 6540,  # at the start
    "over_sampling": np.full(4, 0.25),
    "under_sampling": np.full(4, 0.25),
}
WITH_REPLACEMENT = ["square_root", "effective_number", "class_balanced"]
EVEN = {"over_sampling": 5000, "under_sampling": 40}


def order(sampler, seed=(3, 1), labels=LABELS, progress=0.0):
    return epoch_order(labels, sampler, seed, progress).numpy()


def assert_drawn_from(indices, probabilities):
    drawn, expected = np.bincount(LABELS[indices], minlength=4), len(LABELS) * probabilities
    assert drawn.sum() == len(LABELS)
    assert ((drawn - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees, p = 0.001


def test_every_sampler_is_tested():
    assert set(SAMPLERS) == set(DRAWN)


@pytest.mark.parametrize("sampler", DRAWN)
def test_class_probabilities(sampler):
    np.testing.assert_allclose(class_probabilities(COUNTS, sampler), DRAWN[sampler], rtol=1e-5)


@pytest.mark.parametrize("sampler", DRAWN)
def test_an_empty_class_is_never_drawn(sampler):
    probabilities = class_probabilities([9, 0, 4], sampler)
    assert probabilities[1] == 0.0
    assert probabilities.sum() == pytest.approx(1.0)


def test_instance_balanced_is_a_permutation():
    indices = order("instance_balanced")
    np.testing.assert_array_equal(np.sort(indices), np.arange(len(LABELS)))
    assert (indices != np.arange(len(LABELS))).mean() > 0.9


@pytest.mark.parametrize("sampler", [*WITH_REPLACEMENT, "reversed"])
def test_class_frequencies(sampler):
    assert_drawn_from(order(sampler), DRAWN[sampler])


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.9])
def test_progressively_balanced_goes_from_instances_to_classes(progress):
    expected = (1 - progress) * COUNTS / 6540 + progress / 4
    probabilities = class_probabilities(COUNTS, "progressively_balanced", progress)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert_drawn_from(order("progressively_balanced", progress=progress), expected)


@pytest.mark.parametrize("sampler", sorted(set(DRAWN) - {"progressively_balanced"}))
def test_only_progressively_balanced_depends_on_the_progress(sampler):
    np.testing.assert_array_equal(order(sampler), order(sampler, progress=0.7))


@pytest.mark.parametrize("sampler", DRAWN)
def test_the_length_of_an_epoch(sampler):
    expected = 4 * EVEN[sampler] if sampler in EVEN else 6540
    assert epoch_length(LABELS, sampler) == len(order(sampler)) == expected


@pytest.mark.parametrize("sampler", EVEN)
def test_every_class_gets_as_many_places(sampler):
    assert np.bincount(LABELS[order(sampler)]).tolist() == [EVEN[sampler]] * 4


def test_over_sampling_repeats_a_class_as_evenly_as_can_be():
    times = np.bincount(order("over_sampling"), minlength=len(LABELS))
    for label, count in enumerate(COUNTS):
        whole, rest = divmod(5000, count)
        expected = [whole] * (count - rest) + [whole + 1] * rest
        np.testing.assert_array_equal(np.sort(times[LABELS == label]), expected)


def test_under_sampling_takes_each_example_once_and_others_each_epoch():
    first, second = (order("under_sampling", seed=(3, epoch)) for epoch in (1, 2))
    assert len(set(first)) == len(first)
    head = [set(indices[LABELS[indices] == 0]) for indices in (first, second)]
    assert len(head[0] & head[1]) < 5  # of 40 out of 5000
    tail = [set(indices[LABELS[indices] == 3]) for indices in (first, second)]
    assert tail[0] == tail[1] == set(np.flatnonzero(LABELS == 3))


@pytest.mark.parametrize("sampler", EVEN)
def test_even_samplers_mix_the_classes_and_leave_out_an_empty_one(sampler):
    indices = order(sampler, labels=2 * LABELS)  # classes 1, 3 and 5 have no example
    np.testing.assert_array_equal(indices, order(sampler))
    first_half = np.bincount(LABELS[indices[: len(indices) // 2]], minlength=4)
    np.testing.assert_allclose(first_half / first_half.sum(), 0.25, atol=0.15)


@pytest.mark.parametrize("sampler", WITH_REPLACEMENT)
@pytest.mark.parametrize("label", range(4))
def test_uniform_within_a_class(sampler, label):
    indices = order(sampler)
    times = np.bincount(indices[LABELS[indices] == label], minlength=len(LABELS))[LABELS == label]
    expected, freedom = times.mean(), len(times) - 1
    assert expected > 0.3
    chi_square = ((times - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom * (1 + 1 / (2 * expected)))


@pytest.mark.parametrize("sampler", DRAWN)
def test_a_function_of_the_seed_alone(sampler):
    first = order(sampler)
    traced = tf.function(lambda seed: epoch_order(LABELS, sampler, seed))
    np.testing.assert_array_equal(first, order(sampler))
    np.testing.assert_array_equal(first, traced(tf.constant([3, 1])))
    for other in [(3, 2), (4, 1)]:
        assert (first != order(sampler, other)).mean() > 0.5


@pytest.mark.parametrize("sampler", DRAWN)
def test_one_class(sampler):
    indices = order(sampler, labels=np.zeros(7, np.int64))
    assert indices.dtype == np.int64 and indices.shape == (7,)
    assert set(indices) <= set(range(7))


@pytest.mark.parametrize(
    "call",
    [
        lambda name: class_probabilities(COUNTS, name),
        lambda name: epoch_length(LABELS, name),
        lambda name: order(name),
    ],
)
def test_unknown_name(call):
    with pytest.raises(ValueError, match="sampler 'class-balanced'.*'class_balanced'"):
        call("class-balanced")
