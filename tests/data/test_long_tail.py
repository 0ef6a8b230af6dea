import numpy as np
import pytest
from candle_tf.data import PROFILES, long_tail_counts, long_tail_subset


def share(profile, classes, ratio):
    """The profile by its definition, a class at a time."""
    last = classes - 1
    return np.array(
        [
            {
                "exponential": ratio ** (-c / last),
                "step": 1.0 if 2 * c < classes else 1 / ratio,
                "pareto": (c + 1) ** (-np.log(ratio) / np.log(classes)),
            }[profile]
            for c in range(classes)
        ]
    )


def test_every_profile_is_tested():
    assert set(PROFILES) == {"exponential", "step", "pareto"}


@pytest.mark.parametrize(
    "ratio, profile, expected",
    [
        (1, "exponential", [5000] * 10),
        (10, "exponential", [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (100, "exponential", [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (100, "step", [5000] * 5 + [50] * 5),
        (10, "step", [5000] * 5 + [500] * 5),
    ],
)
def test_counts_of_cifar10(ratio, profile, expected):
    counts = long_tail_counts([5000] * 10, ratio, profile)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected


def test_cifar10_at_100_has_12406_images():
    assert long_tail_counts([5000] * 10, 100).sum() == 12406


@pytest.mark.parametrize("ratio", [10, 100])
def test_pareto_is_a_power_law(ratio):
    counts = long_tail_counts([5000] * 10, ratio, "pareto")
    assert (counts[0], counts[-1]) == (5000, 5000 / ratio)
    slope = np.diff(np.log(counts)) / np.diff(np.log(np.arange(1, 11)))
    np.testing.assert_allclose(slope, -np.log10(ratio), rtol=0.1)


@pytest.mark.parametrize("profile, expected", [("step", [9, 9, 3]), ("exponential", [9, 5, 3])])
def test_odd_number_of_classes(profile, expected):
    assert long_tail_counts([9, 9, 9], 3, profile).tolist() == expected


@pytest.mark.parametrize(
    "available, ratio, expected",
    [
        ([10, 100, 50], 10, [10, 100, 31]),
        ([100, 50, 1000], 100, [100, 10, 1000]),
        ([40, 30, 30], 4, [40, 20, 10]),
        ([1000, 20, 9], 4, [36, 18, 9]),
        ([7], 100, [7]),
    ],
)
def test_classes_are_ranked_by_what_they_have(available, ratio, expected):
    assert long_tail_counts(available, ratio).tolist() == expected


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(10))
def test_largest_that_every_class_can_follow(profile, seed):
    rng = np.random.default_rng(seed)
    classes, ratio = rng.integers(2, 40), rng.choice([1.0, 3.7, 10.0, 50.0])
    available = rng.integers(100, 2000, classes)
    counts = long_tail_counts(available, ratio, profile)
    order = np.argsort(-available, kind="stable")
    ranked, shape = counts[order], share(profile, classes, ratio)
    assert (counts <= available).all()
    assert (np.diff(ranked) <= 0).all()
    assert ((ranked[0] + 1) * shape > available[order]).any()
    assert (ranked > ranked[0] * shape - 1).all()
    assert (ranked <= (ranked[0] + 1) * shape).all()


@pytest.mark.parametrize("profile", PROFILES)
def test_n_max_is_what_the_largest_class_keeps(profile):
    available = [700, 900, 800, 1000]
    counts = long_tail_counts(available, 10, profile, n_max=500)
    np.testing.assert_allclose(sorted(counts / 500)[::-1], share(profile, 4, 10), atol=1 / 500)
    assert (counts[3], counts.min()) == (500, 50)


def test_n_max_of_cifar10_is_at_most_all():
    assert long_tail_counts([5000] * 10, 100, n_max=5000).sum() == 12406
    for n_max in (-4, float("nan")):
        with pytest.raises(ValueError, match="n_max is .* but must be finite and at least 1"):
            long_tail_counts([5000] * 10, 100, n_max=n_max)
    with pytest.raises(ValueError, match="n_max is 5001 but .* only enough images for 5000"):
        long_tail_counts([5000] * 10, 100, n_max=5001)


def test_the_n_max_that_a_message_names_can_be_followed():
    available = [100, 30, 20]  # the middle class allows 94.87
    with pytest.raises(ValueError, match="n_max is 95 but .* only enough images for 94:"):
        long_tail_counts(available, 10, n_max=95)
    assert long_tail_counts(available, 10, n_max=94).max() == 94


@pytest.mark.parametrize("ratio", [0.99, 0, -10, float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_ratio_below_one_is_refused(ratio):
    with pytest.raises(ValueError, match="imbalance_ratio.* is .* at least 1"):
        long_tail_counts([10, 10], ratio)


def test_unknown_profile_names_the_nearest():
    with pytest.raises(ValueError, match="profile 'exponental'.*'exponential'"):
        long_tail_counts([10, 10], 2, "exponental")


@pytest.mark.parametrize(
    "available, culprit",
    [
        ([50, 50, 50], 2),
        ([5, 500, 500], 0),
        ([100, 0, 100], 1),
    ],
)
def test_a_class_left_empty_is_refused(available, culprit):
    with pytest.raises(ValueError, match=f"Class {culprit} keeps no training image"):
        long_tail_counts(available, 1000)


LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [60, 50, 90, 40]))


def test_subset_follows_the_counts():
    indices = long_tail_subset(LABELS, 10)
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0 and indices[-1] < len(LABELS)
    assert np.bincount(LABELS[indices]).tolist() == [41, 19, 90, 9]


def test_subset_is_drawn_by_the_seed():
    first, same, other = (long_tail_subset(LABELS, 10, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert len(first) == len(other) and (first != other).any()


def test_subset_draws_every_example_alike():
    drawn = np.concatenate([long_tail_subset(LABELS, 10, seed=s) for s in range(300)])
    times = np.bincount(drawn, minlength=len(LABELS))
    for label, expected in enumerate(300 * np.array([41 / 60, 19 / 50, 90 / 90, 9 / 40])):
        spread = 5 * np.sqrt(expected * (1 - expected / 300))
        assert (abs(times[LABELS == label] - expected) <= spread).all()
