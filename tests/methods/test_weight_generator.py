import numpy as np
import pytest
import tensorflow as tf
from candle_tf.methods.weight_generator import WeightGenerator, learn_to_generate

RNG = np.random.default_rng(0)
AVAILABLE = np.array([True, False, True, True])


def random_generator():
    generator = WeightGenerator(RNG.normal(size=(4, 6)).astype(np.float32), seed=0)
    for variable in generator.trainable_variables:
        variable.assign(RNG.normal(size=variable.shape))
    return generator


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_attention_sums_to_1_over_the_available_base_classes():
    exemplars = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    attention = random_generator().attention(exemplars, AVAILABLE).numpy()
    assert attention.shape == (2, 3, 4)
    np.testing.assert_allclose(attention.sum(-1), 1.0, rtol=1e-5)
    assert (attention[..., 1] == 0).all() and (attention[..., AVAILABLE] > 0).all()


def test_generated_weights_are_the_papers_formula():
    generator = random_generator()
    exemplars = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    v = {name: getattr(generator, name).numpy() for name in "phi_q phi_avg phi_att gamma".split()}
    keys, base = generator.keys.numpy(), generator.base_weights.numpy()
    expected = np.zeros((2, 6))
    for j, images in enumerate(unit(exemplars)):
        attended = np.zeros(6)
        for z in images:
            energy = np.exp([v["gamma"] * unit(z @ v["phi_q"]) @ unit(k) for k in keys]) * AVAILABLE
            attended += (energy / energy.sum()) @ unit(base) / len(images)
        expected[j] = v["phi_avg"] * images.mean(0) + v["phi_att"] * attended
    made = generator.generate(exemplars, AVAILABLE)
    np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_episodes_teach_every_part_and_finite_values_only():
    labels = np.repeat(np.arange(4), [30, 20, 10, 3])
    features = RNG.normal(size=(4, 6))[labels] * 2 + RNG.normal(size=(63, 6))
    start = WeightGenerator(np.eye(4, 6, dtype=np.float32), seed=0)
    learned = learn_to_generate(
        features.astype(np.float32), labels, np.eye(4, 6, dtype=np.float32), 40, 32, 1e-2, seed=0
    )
    for before, after in zip(start.trainable_variables, learned.trainable_variables):
        assert np.isfinite(after.numpy()).all()
        assert np.abs(after - before).max() > 1e-2, after.name


@pytest.mark.long
def test_learning_improves_the_weights_of_classes_it_never_met():
    """Noise in half of the dimensions: phi_avg learns to leave them out."""
    signal = np.repeat([1.0, 0.0], 8)
    centres = RNG.normal(size=(12, 16)) * 2 * signal

    def images(classes, count, rng):
        labels = np.repeat(classes, count)
        noise = rng.normal(size=(len(labels), 16)) * np.where(signal, 0.5, 2.5)
        return (centres[labels] + noise).astype(np.float32), labels

    features, labels = images(np.arange(8), 60, RNG)
    means = np.stack([features[labels == b].mean(0) for b in range(8)])

    def accuracy(updates):
        generator = learn_to_generate(features, labels, means, updates, 64, 2e-2, seed=0)
        rng = np.random.default_rng(1)
        hits = []
        for _ in range(20):
            exemplars = images(np.arange(8, 12), 2, rng)[0].reshape(4, 2, 16)
            weights = generator.generate(exemplars, tf.ones(8, bool)).numpy()
            queries, truth = images(np.arange(8, 12), 20, rng)
            hits.append((queries @ unit(weights).T).argmax(-1) + 8 == truth)
        return np.mean(hits)

    assert accuracy(150) > accuracy(0) + 0.05
