import candle_tf  # noqa: F401  before tensorflow
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.methods import MixupModel
from candle_tf.mixup import Pairs


def cross_entropy(logits, labels):
    z = logits - logits.max(-1, keepdims=True)
    return (np.log(np.exp(z).sum(-1)) - z[np.arange(len(labels)), labels]).astype(np.float64)


def draws(alpha, count, seed=0, student=None):
    model = MixupModel(student, alpha, seed=seed)
    draw = tf.function(lambda step: model.draw(step, 8))
    return [draw(tf.constant(step, tf.int64)) for step in range(count)]


@pytest.mark.parametrize("sample_weight", [None, np.float32([1, 0, 2, 1, 0, 0, 1, 3])])
def test_the_loss_is_that_of_both_labels_on_mixed_images(
    smooth_student, images, labels, sample_weight
):
    model = MixupModel(smooth_student(), alpha=1.0, seed=2)
    model.compile(tf.keras.optimizers.SGD(0.0), run_eagerly=True)
    lambda_, partners = (x.numpy() for x in model.draw(tf.constant(0, tf.int64), 8))
    assert 0.05 < lambda_ < 0.95 and (partners != np.arange(8)).any()
    logits = model.student(lambda_ * images + (1 - lambda_) * images[partners]).numpy()
    weight = np.ones(8) if sample_weight is None else sample_weight
    expected = lambda_ * np.mean(weight * cross_entropy(logits, labels)) + (1 - lambda_) * np.mean(
        weight[partners] * cross_entropy(logits, labels[partners])
    )
    logs = model.train_on_batch(images, labels, sample_weight, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


def test_lambda_1_is_the_plain_loss(smooth_student, images, labels):
    model = MixupModel(smooth_student())
    model.compile(tf.keras.optimizers.SGD(0.0), metrics=["accuracy"], run_eagerly=True)
    model.draw = lambda step, batch_size: Pairs(tf.constant(1.0), tf.range(batch_size)[::-1])
    logits = model.student(images).numpy()
    logs = model.train_on_batch(images, labels, return_dict=True)
    assert logs["loss"] == pytest.approx(cross_entropy(logits, labels).mean(), rel=1e-5)
    assert logs["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))


def test_lambda_is_uniform_unless_told(smooth_student):
    assert MixupModel(smooth_student()).alpha == 1.0


@pytest.mark.long
@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_is_beta_distributed(alpha, smooth_student):
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    drawn = np.array([lambda_ for lambda_, _ in draws(alpha, 2000, student=smooth_student())])
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.05)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_draws_depend_on_seed_and_step_alone(smooth_student):
    def listed(seed):
        pairs = draws(1.0, 5, seed, smooth_student())
        return [(float(lambda_), *partners.numpy()) for lambda_, partners in pairs]

    assert listed(3) == listed(3)
    assert len(set(listed(3) + listed(4))) == 10
    assert all(sorted(partners) == list(range(8)) for _, *partners in listed(3))


@pytest.mark.parametrize("alpha", [0.0, -1.0, 0.01, float("nan")])
def test_an_alpha_without_shares_is_refused(alpha, smooth_student):
    with pytest.raises(ValueError, match="at least 0.05.*use StudentModel"):
        MixupModel(smooth_student(), alpha)
