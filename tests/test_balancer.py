import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import AdversarialBalancer

KL, FEATURE = np.random.default_rng(0).uniform(0, 4, (2, 6)).astype("float32")
BOTH = pytest.mark.parametrize("per_sample", [False, True])


def lambda_of(balancer, kl=KL, feature=FEATURE):
    return balancer((tf.constant(kl), tf.constant(feature))).numpy()


def mlp(balancer, read):
    """lambda of one pair of losses, by hand from the weights."""
    weights = [w.numpy() for w in balancer.trainable_variables]
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2]):
        read = np.maximum(read @ kernel + bias, 0.0)
    logits = read @ weights[-2] + weights[-1]
    return 1 / (1 + np.exp(logits[..., 1] - logits[..., 0]))


@BOTH
def test_formula(per_sample):
    balancer = AdversarialBalancer(per_sample, seed=3)
    value = lambda_of(balancer)
    assert value.shape == ((6,) if per_sample else ())
    assert ((value > 0) & (value < 1)).all()
    pairs = np.stack([KL, FEATURE], -1)
    expected = mlp(balancer, pairs if per_sample else pairs.mean(0))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert np.ptp(mlp(balancer, pairs)) > 1e-3


def test_hidden_widths():
    balancer = AdversarialBalancer(hidden=(5, 3))
    lambda_of(balancer)
    shapes = [tuple(v.shape) for v in balancer.trainable_variables]
    assert shapes == [(2, 5), (5,), (5, 3), (3,), (3, 2), (2,)]


@BOTH
def test_losses_are_read_not_differentiated(per_sample):
    balancer = AdversarialBalancer(per_sample)
    kl, feature = tf.constant(KL), tf.constant(FEATURE)
    with tf.GradientTape() as tape:
        tape.watch([kl, feature])
        lambda_ = balancer((kl, feature))
        objective = tf.reduce_sum(lambda_ * kl + (1 - lambda_) * feature)
    of_kl, of_feature = tape.gradient(objective, [kl, feature])
    value = np.broadcast_to(lambda_.numpy(), (6,))
    np.testing.assert_allclose(of_kl, value, rtol=1e-6)
    np.testing.assert_allclose(of_feature, 1 - value, rtol=1e-6)


@BOTH
def test_phi_gets_a_gradient(per_sample):
    balancer = AdversarialBalancer(per_sample)
    with tf.GradientTape() as tape:
        lambda_ = tf.reduce_sum(balancer((tf.constant(KL), tf.constant(FEATURE))))
    gradients = tape.gradient(lambda_, balancer.trainable_variables)
    assert len(gradients) == 10
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


@BOTH
@pytest.mark.parametrize("kl, feature", [(3.0, 0.5), (0.5, 3.0)])
def test_ascent_moves_lambda_to_the_larger_loss(per_sample, kl, feature):
    balancer = AdversarialBalancer(per_sample)
    losses = tf.fill([4], kl), tf.fill([4], feature)
    trace = []
    for _ in range(30):
        with tf.GradientTape() as tape:
            lambda_ = balancer(losses)
            objective = tf.reduce_mean(lambda_ * losses[0] + (1 - lambda_) * losses[1])
        trace.append((float(objective), float(tf.reduce_mean(lambda_))))
        phi = balancer.trainable_variables
        for variable, gradient in zip(phi, tape.gradient(objective, phi)):
            variable.assign_add(0.02 * gradient)
    objectives, lambdas = np.array(trace).T
    assert (np.diff(objectives) > -1e-6).all() and objectives[-1] > objectives[0] + 0.1
    assert lambdas[-1] > 0.9 if kl > feature else lambdas[-1] < 0.1


def test_replicas_of_different_sizes_read_the_means_of_the_batch():
    """The last replica may get no image at all."""
    code = """
import candle_tf, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    balancer = candle_tf.AdversarialBalancer()
    balancer.build(None)
losses = tf.constant([1.0, 2.0, 6.0]), tf.constant([0.5, 0.1, 3.0])

@tf.function
def read(cut):
    def part(context):
        first = context.replica_id_in_sync_group == 0
        return [tf.cond(first, lambda: x[:cut], lambda: x[cut:]) for x in losses]
    def run():
        return balancer(part(tf.distribute.get_replica_context()))
    return strategy.run(run)

whole = float(balancer(losses))
for cut in (2, 3):
    for found in strategy.experimental_local_results(read(cut)):
        assert abs(float(found) - whole) < 1e-6, (cut, float(found), whole)
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["equal"], done.stderr[-2000:]


def test_seed():
    first, same, other = (lambda_of(AdversarialBalancer(True, seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-3


def test_config_round_trip():
    balancer = AdversarialBalancer(True, hidden=(4, 3), seed=5, name="mine")
    again = AdversarialBalancer.from_config(balancer.get_config())
    assert again.name == "mine"
    np.testing.assert_array_equal(lambda_of(balancer), lambda_of(again))
    assert [v.shape for v in again.weights] == [v.shape for v in balancer.weights]


@BOTH
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_save_and_reload(per_sample, suffix, tmp_path):
    inputs = [tf.keras.Input(()), tf.keras.Input(())]
    model = tf.keras.Model(inputs, AdversarialBalancer(per_sample)(inputs))
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    model.save(tmp_path / f"balancer{suffix}", save_format=suffix[1:])
    again = tf.keras.models.load_model(tmp_path / f"balancer{suffix}", compile=False)
    np.testing.assert_allclose(again([KL, FEATURE]), model([KL, FEATURE]), rtol=1e-6)
