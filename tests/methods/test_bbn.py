import candle_tf  # noqa: F401  before tensorflow
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.methods import BbnModel, branch
from candle_tf.students import resnet_e

T = 10


def make(student, step=0, rate=0.0, eagerly=True):
    model = BbnModel(branch(student, 2), T)
    model.compile(tf.keras.optimizers.SGD(rate), metrics=["accuracy"], run_eagerly=eagerly)
    model.optimizer.iterations.assign(step)
    return model


def pairs(images, labels):
    """Different images and labels for the two branches."""
    return (images[:4], images[4:]), (labels[:4], np.array([3, 3, 2, 3]))


def log_likelihood(z, labels):
    z = z - z.max(-1, keepdims=True)
    return (z - np.log(np.exp(z).sum(-1, keepdims=True)))[np.arange(len(labels)), labels]


@pytest.mark.parametrize("step, alpha", [(0, 1.0), (3, 0.91), (5, 0.75), (10, 0.0), (20, 0.0)])
def test_the_loss_follows_the_formula(step, alpha, smooth_student, images, labels):
    model = make(smooth_student(), step)
    (x_c, x_r), (y_c, y_r) = pairs(images, labels)
    student = model.student
    pooled = tf.keras.Model(student.input, student.get_layer("features").output)
    w_c, b_c, w_r, b_r = student.get_layer("logits").get_weights()
    z_c = pooled(x_c).numpy()[:, :6] @ w_c + b_c
    z_r = pooled(x_r).numpy()[:, 6:] @ w_r + b_r
    z = alpha * z_c + (1 - alpha) * z_r
    losses = [-np.mean(log_likelihood(z, y)) for y in (y_c, y_r)]
    assert abs(losses[0] - losses[1]) > 0.01
    logs = model.train_on_batch((x_c, x_r), (y_c, y_r), return_dict=True)
    assert logs["loss"] == pytest.approx(alpha * losses[0] + (1 - alpha) * losses[1], rel=1e-5)
    hits = [np.mean(z.argmax(-1) == y) for y in (y_c, y_r)]
    assert logs["accuracy"] == pytest.approx(np.mean(hits))


@pytest.mark.long
@pytest.mark.parametrize("step, ignored", [(0, 1), (T, 0)])
def test_each_end_ignores_the_other_batch(step, ignored, smooth_student, images, labels):
    """At first the re-balancing batch counts for nothing, at last the conventional one."""

    def trained(changed):
        data = [list(pair) for pair in pairs(images, labels)]
        if changed is not None:
            data[0][changed] = 255 - data[0][changed]
            data[1][changed] = (data[1][changed] + 1) % 4
        model = make(smooth_student(), step, rate=1.0)
        model.set_weights(weights)
        model.train_on_batch(*map(tuple, data))
        return model.get_weights()

    weights = make(smooth_student()).get_weights()
    plain, without, other = (trained(changed) for changed in (None, ignored, 1 - ignored))
    for ours, theirs in zip(plain, without):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert max(np.abs(ours - theirs).max() for ours, theirs in zip(plain, other)) > 0.01


@pytest.mark.long
def test_a_branch_s_batch_norm_sees_its_own_batch_alone(images, labels):
    tf.keras.utils.set_random_seed(0)
    student = resnet_e(4, 12, width=0.125, blocks=(1,))
    (x_c, x_r), y = pairs(images, labels)
    other = 255 - images[:4] * np.float32([0.2, 0.5, 1.0])
    weights = make(student).get_weights()

    def moving_means(*batches):
        model = make(student)
        model.set_weights(weights)
        model.train_on_batch(batches, y)
        norms = [x for x in model.student.layers if "branch" in x.name and "norm" in x.name]
        return [norm.moving_mean.numpy() for norm in norms]

    plain = moving_means(x_c, x_r)
    for changed, batches in enumerate([(other, x_r), (x_c, other)]):
        after = moving_means(*batches)
        same = 1 - changed
        np.testing.assert_allclose(after[same], plain[same], rtol=1e-5, atol=1e-6)
        assert np.abs(after[changed] - plain[changed]).max() > 1e-3


def test_a_prediction_is_the_mean_of_both_branches(smooth_student, images):
    model = make(smooth_student())
    student = model.student
    pooled = tf.keras.Model(student.input, student.get_layer("features").output)(images).numpy()
    w_c, b_c, w_r, b_r = student.get_layer("logits").get_weights()
    expected = 0.5 * (pooled[:, :6] @ w_c + b_c) + 0.5 * (pooled[:, 6:] @ w_r + b_r)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_fit_takes_pairs_and_validates_on_plain_batches(smooth_student, images, labels):
    model = make(smooth_student(), rate=0.1, eagerly=False)
    train = tf.data.Dataset.from_tensors(pairs(images, labels)).repeat(3)
    history = model.fit(train, validation_data=(images, labels), epochs=2, verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert int(model.optimizer.iterations) == 6


def test_a_resumed_run_goes_on_at_its_alpha(smooth_student, images, labels, tmp_path):
    model, resumed = (make(smooth_student(), rate=0.1) for _ in range(2))
    for _ in range(5):
        model.train_on_batch(*pairs(images, labels))
    path = tf.train.Checkpoint(**model.trained_parts()).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(**resumed.trained_parts()).restore(path).assert_consumed()
    assert resumed.alpha(resumed.optimizer.iterations) == 0.75
    losses = [m.train_on_batch(*pairs(images, labels))[0] for m in (model, resumed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_sample_weights_come_in_pairs_too(smooth_student, images, labels):
    """At alpha 1 the loss is the conventional batch's alone, weighted by its half of them."""
    model = make(smooth_student())
    (x_c, x_r), (y_c, y_r) = pairs(images, labels)
    once = model.train_on_batch((x_c, x_r), (y_c, y_r))[0]
    model.optimizer.iterations.assign(0)
    weights = (np.full(4, 3.0, np.float32), np.zeros(4, np.float32))
    batches = tf.data.Dataset.from_tensors(((x_c, x_r), (y_c, y_r), weights))
    assert model.fit(batches, verbose=0).history["loss"][0] == pytest.approx(3 * once, rel=1e-5)


def test_a_plain_batch_is_refused_in_training(smooth_student, images, labels):
    with pytest.raises(ValueError, match="pairs of batches: give"):
        make(smooth_student()).train_on_batch(images, labels)


def test_a_student_of_one_branch_is_refused(smooth_student):
    with pytest.raises(ValueError, match=r"does not have 2 experts: give branch\(student, 2\)"):
        BbnModel(smooth_student(), T)


def test_a_training_of_no_steps_is_refused(smooth_student):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        BbnModel(branch(smooth_student(), 2), 0)
