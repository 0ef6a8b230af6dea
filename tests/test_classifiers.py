import numpy as np
import pytest
import tensorflow as tf
from candle_tf import classifiers

FEATURES = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
BUILDERS = pytest.mark.parametrize("build", [classifiers.linear, classifiers.scaled_linear])


def randomize(model):
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@BUILDERS
def test_formula(build):
    classifier = randomize(build(5, 3))
    kernel, bias, *scale = classifier.get_weights()
    assert kernel.shape == (5, 3) and len(scale) == (build is classifiers.scaled_linear)
    expected = (FEATURES @ kernel + bias) * (scale[0] if scale else 1.0)
    np.testing.assert_allclose(classifier(FEATURES), expected, rtol=1e-4, atol=1e-6)


@BUILDERS
def test_seed(build):
    first, same, other = (build(5, 3, seed)(FEATURES).numpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-2


def test_scaling_starts_as_the_linear_classifier():
    scaled, plain = classifiers.scaled_linear(5, 3, seed=4), classifiers.linear(5, 3, seed=4)
    np.testing.assert_array_equal(scaled(FEATURES), plain(FEATURES))


def test_gradient_of_the_scale():
    classifier = randomize(classifiers.scaled_linear(5, 3))
    kernel, bias, _ = classifier.get_weights()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(classifier(FEATURES))
    gradients = tape.gradient(total, classifier.trainable_variables)
    assert len(gradients) == 3
    np.testing.assert_allclose(gradients[2], (FEATURES @ kernel + bias).sum(0), rtol=1e-4)


@BUILDERS
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_save_and_reload(build, suffix, tmp_path):
    classifier = randomize(build(5, 3))
    classifier.save(tmp_path / f"classifier{suffix}")
    again = tf.keras.models.load_model(tmp_path / f"classifier{suffix}", compile=False)
    np.testing.assert_allclose(again(FEATURES), classifier(FEATURES), rtol=1e-6)
