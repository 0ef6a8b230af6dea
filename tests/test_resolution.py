import numpy as np
import pytest
import tensorflow as tf
from candle_tf.resolution import (
    RandomResolution,
    cost_neutral_probabilities,
    in_proportion,
    resize,
)
from scipy.optimize import minimize

layers = tf.keras.layers
RNG = np.random.default_rng(0)
SETS = [
    ((24, 32, 40), 32),
    ((16, 24, 32, 48), 32),
    ((128, 160, 192, 224, 288), 224),
    ((24, 40), 32),
]
EXTREME = [
    ((8, 64, 512), 500),
    ((8, 64, 512), 9),
    ((8, 512), 511),
    ((1, 1000000), 2),
    ((31, 32, 33), 32),
    (tuple(range(8, 513, 8)), 100),
]


def images(height=16, width=16):
    return tf.constant(RNG.uniform(0, 255, (2, height, width, 3)), tf.float32)


def entropy(p):
    return -(p * np.log(p)).sum()


@pytest.mark.parametrize("sizes, base", SETS + EXTREME)
def test_expected_pixels_are_the_base(sizes, base):
    p = cost_neutral_probabilities(sizes, base)
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1.0, rel=1e-12)
    assert p @ np.square(sizes, dtype=float) == pytest.approx(base**2, rel=1e-6)


@pytest.mark.parametrize("sizes, base", SETS)
def test_entropy_is_the_largest(sizes, base):
    pixels = np.square(np.array(sizes) / base)
    solution = minimize(
        lambda p: -entropy(p),
        np.full(len(sizes), 1 / len(sizes)),
        bounds=[(1e-9, 1)] * len(sizes),
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "eq", "fun": lambda p: p @ pixels - 1},
        ],
        tol=1e-12,
    )
    assert solution.success
    p = cost_neutral_probabilities(sizes, base)
    np.testing.assert_allclose(p, solution.x, atol=1e-4)


@pytest.mark.parametrize("sizes, base", SETS[:3] + EXTREME[-2:])
def test_log_p_is_affine_in_pixels(sizes, base):
    pixels = np.square(np.array(sizes) / base)
    log_p = np.log(cost_neutral_probabilities(sizes, base))
    line = np.polyfit(pixels, log_p, 1)
    np.testing.assert_allclose(log_p, np.polyval(line, pixels), atol=1e-6)


def test_base_alone():
    assert cost_neutral_probabilities([32], 32).tolist() == [1.0]
    draw = RandomResolution([32, 32], 32).draw(tf.constant(5))
    assert isinstance(draw, int) and draw == 32


@pytest.mark.parametrize("sizes", [(32, 48), (16, 32), (48, 64), (16, 24), (24,)])
def test_infeasible_sets_are_refused(sizes):
    with pytest.raises(ValueError, match="cannot cost the same as image_size 32.*below and above"):
        RandomResolution(sizes, 32)


@pytest.mark.parametrize("sizes", [(), (0, 64), (-8, 64)])
def test_sizes_are_positive(sizes):
    with pytest.raises(ValueError, match="must be positive"):
        RandomResolution(sizes, 32)


def test_sizes_are_sorted_and_unique():
    resolution = RandomResolution((48, 16, 32, 16), 32)
    assert resolution.sizes == (16, 32, 48)
    assert resolution.probabilities @ [256, 1024, 2304] == pytest.approx(1024)


def draws(resolution, start, stop):
    steps = tf.range(start, stop, dtype=tf.int64)
    draw = tf.function(lambda s: tf.map_fn(resolution.draw, s, fn_output_signature=tf.int32))
    return draw(steps).numpy()


def test_draw_follows_the_probabilities():
    drawn = draws(RandomResolution((16, 24, 48), 32, seed=7), 0, 20_000)
    p = cost_neutral_probabilities((16, 24, 48), 32)
    frequency = [(drawn == size).mean() for size in (16, 24, 48)]
    np.testing.assert_array_less(abs(frequency - p), 4 * np.sqrt(p * (1 - p) / 20_000))


def test_draw_depends_on_seed_and_step_alone():
    first, same, other = (RandomResolution((16, 24, 48), 32, seed=s) for s in (1, 1, 2))
    run = draws(first, 0, 200)
    np.testing.assert_array_equal(run[120:], draws(same, 120, 200))
    assert (run != draws(other, 0, 200)).any()
    assert (run[1:] != run[:-1]).mean() > 0.3
    assert [int(first.draw(tf.constant(s))) for s in range(20)] == run[:20].tolist()


def test_one_trace_over_many_steps():
    resolution = RandomResolution((8, 12, 24), 16)
    batch = images()

    @tf.function
    def step(iteration):
        return tf.shape(resize(batch, resolution.draw(iteration)))

    shapes = {tuple(step(tf.constant(i, tf.int64)).numpy()) for i in range(30)}
    assert shapes == {(2, size, size, 3) for size in (8, 12, 24)}
    assert step.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("sizes", [(16, 24, 48), (32,)])
def test_all_draws_at_once_are_those_of_each_step(sizes):
    resolution = RandomResolution(sizes, 32, seed=3)
    np.testing.assert_array_equal(resolution.draws(50), draws(resolution, 0, 50))


@tf.function(input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((), tf.int32)])
def resize_unknown(batch, size):
    return resize(batch, size)


RESIZE = {
    "static": resize,
    "tensor": lambda batch, size: resize(batch, tf.constant(size)),
    "unknown": lambda batch, size: resize_unknown(batch, tf.constant(size)),
}


@pytest.mark.parametrize("how", RESIZE)
@pytest.mark.parametrize(
    "height, width, size",
    [(16, 16, 8), (16, 16, 11), (16, 16, 15), (16, 16, 24), (16, 16, 39), (12, 20, 16), (9, 7, 18)],
)
def test_resize(how, height, width, size):
    batch = images(height, width)
    resized = RESIZE[how](batch, size)
    expected = tf.image.resize(batch, [size, size], antialias=True)
    assert resized.shape == (2, size, size, 3) and resized.dtype == tf.float32
    np.testing.assert_allclose(resized, expected, atol=1e-3)
    aliased = tf.image.resize(batch, [size, size])
    assert np.allclose(resized, aliased, atol=1e-3) == (size >= max(height, width))


@pytest.mark.parametrize("how", RESIZE)
def test_resize_to_the_same_size_is_the_identity(how):
    batch = images()
    np.testing.assert_allclose(RESIZE[how](batch, 16), batch, atol=1e-4)


def test_sizes_in_proportion_are_the_same_in_python_and_in_a_graph():
    graph = tf.function(in_proportion)
    sizes = tf.range(8, 64)
    for base, other in ((24, 100), (32, 96), (40, 100), (32, 128)):
        expected = [in_proportion(size, base, other) for size in sizes.numpy().tolist()]
        np.testing.assert_array_equal(graph(sizes, base, other), expected)
        np.testing.assert_allclose(expected, sizes.numpy() * other / base, atol=0.5)
