import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data.samplers import SAMPLERS, class_probabilities, epoch_order

COUNTS = np.array([5000, 1200, 300, 40])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))
DRAWN = {  # by hand from p_j = n_j^q / sum n_i^q
    "instance_balanced": COUNTS / 6540,
    "square_root": np.sqrt(COUNTS) / (70.7107 + 34.6410 + 17.3205 + 6.3246),
    "class_balanced": np.full(4, 0.25),
}
WITH_REPLACEMENT = ["square_root", "class_balanced"]


def order(sampler, seed=(3, 1), labels=LABELS):
    return epoch_order(labels, sampler, seed).numpy()


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


@pytest.mark.parametrize("sampler", WITH_REPLACEMENT)
def test_class_frequencies(sampler):
    drawn = np.bincount(LABELS[order(sampler)], minlength=4)
    expected = len(LABELS) * DRAWN[sampler]
    assert drawn.sum() == len(LABELS)
    assert ((drawn - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees, p = 0.001


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
    "call", [lambda name: class_probabilities(COUNTS, name), lambda name: order(name)]
)
def test_unknown_name(call):
    with pytest.raises(ValueError, match="sampler 'class-balanced'.*'class_balanced'"):
        call("class-balanced")
