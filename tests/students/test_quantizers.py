import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.students import FusedApproxSign

X = np.concatenate([np.random.default_rng(0).normal(size=1000), [0, -0.0, 1, -1, 1e-30, 9, -9]])
X = X.astype(np.float32)


def called(quantizer, x=X):
    x = tf.constant(x)
    upstream = tf.constant(np.random.default_rng(1).normal(size=x.shape).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = quantizer(x)
    return outputs.numpy(), tape.gradient(outputs, x, upstream).numpy(), upstream.numpy()


def test_values_and_gradients_are_the_formulas():
    outputs, gradient, upstream = called(FusedApproxSign())
    np.testing.assert_array_equal(outputs, np.where(X >= 0, 1, -1))
    np.testing.assert_allclose(gradient, upstream * np.maximum(0, 2 - 2 * np.abs(X)), atol=1e-6)


def test_values_and_gradients_are_larqs():
    for ours, theirs in zip(called(FusedApproxSign()), called(lq.quantizers.ApproxSign())):
        np.testing.assert_array_equal(ours, theirs)


def test_the_gradient_at_nan_is_nan():
    _, gradient, _ = called(FusedApproxSign(), np.float32([np.nan, 0.5]))
    assert np.isnan(gradient).tolist() == [True, False]


def test_larq_finds_it_by_name():
    named = lq.quantizers.get("fused_approx_sign")
    assert type(named) is FusedApproxSign and named.precision == 1
    again = lq.quantizers.get(lq.quantizers.serialize(named))
    assert type(again) is FusedApproxSign


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_a_layer_of_it_saves_reloads_and_counts_flips(suffix, tmp_path):
    with lq.context.metrics_scope(["flip_ratio"]):
        layer = lq.layers.QuantDense(3, kernel_quantizer="fused_approx_sign")
    model = tf.keras.Sequential([tf.keras.Input((4,)), layer])
    assert any("flip_ratio" in metric.name for metric in model.metrics)
    model.save(tmp_path / f"model{suffix}")
    loaded = tf.keras.models.load_model(tmp_path / f"model{suffix}")
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert type(loaded.layers[0].kernel_quantizer) is FusedApproxSign
