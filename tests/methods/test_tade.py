import candle_tf  # noqa: F401  before tensorflow
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.methods import TadeModel, branch
from candle_tf.methods.tade import inverted

COUNTS = [100, 50, 8, 20]


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def terms(logits, labels, counts):
    """The three losses of the paper for the logits (batch, 3, classes) of its experts."""
    prior = np.array(counts) / np.sum(counts)
    inverse = np.array([8, 20, 100, 50]) / 178 if counts == COUNTS else prior
    shifts = [0.0, np.log(prior), np.log(prior) - 2 * np.log(inverse)]
    rows = np.arange(len(labels))
    return [
        -np.mean(log_softmax(logits[:, i].astype(np.float64) + shift)[rows, labels])
        for i, shift in enumerate(shifts)
    ]


def each(student, images):
    features = tf.keras.Model(student.input, student.get_layer("features").output)(images)
    return student.get_layer("logits").each(features).numpy()


def make(smooth_student, counts=COUNTS):
    model = TadeModel(branch(smooth_student(), 3), counts)
    model.compile(tf.keras.optimizers.SGD(0.0), metrics=["accuracy"], run_eagerly=True)
    return model


def test_the_loss_is_softmax_and_balanced_and_inverse_softmax(smooth_student, images, labels):
    model = make(smooth_student)
    logits = each(model.student, images)
    expected = terms(logits, labels, COUNTS)
    assert np.ptp(expected) > 0.1
    logs = model.train_on_batch(images, labels, return_dict=True)
    assert logs["loss"] == pytest.approx(sum(expected), rel=1e-5)
    assert logs["accuracy"] == np.mean(logits.mean(1).argmax(-1) == labels)


def test_sample_weights_count_for_every_expert(smooth_student, images, labels):
    model = make(smooth_student)
    logits = each(model.student, images)
    first = np.float32([1, 1, 1, 1, 0, 0, 0, 0])
    expected = sum(terms(logits[:4], labels[:4], COUNTS)) / 2
    assert model.train_on_batch(images, labels, first) == pytest.approx(
        [expected, np.mean(logits.mean(1).argmax(-1) == labels)], rel=1e-5
    )


def test_equal_counts_make_the_three_losses_equal(smooth_student, images, labels):
    model = make(smooth_student, [30] * 4)
    logits = each(model.student, images)
    plain = terms(logits, labels, [30] * 4)[:1] + [
        -np.mean(log_softmax(logits[:, i].astype(np.float64))[np.arange(8), labels]) for i in (1, 2)
    ]
    assert model.train_on_batch(images, labels)[0] == pytest.approx(sum(plain), rel=1e-5)


def test_the_inverse_prior_gives_the_tail_the_head_s_frequency():
    np.testing.assert_array_equal(inverted(np.array(COUNTS)), [8, 20, 100, 50])


def test_each_expert_learns_from_its_own_loss_alone(smooth_student, images, labels):
    """The heads share no weights, so a head's bias follows the gradient of its term."""
    model = make(smooth_student)
    model.optimizer.learning_rate = 1.0
    logits = each(model.student, images).astype(np.float64)
    prior, inverse = (np.array(counts) / 178 for counts in (COUNTS, [8, 20, 100, 50]))
    shifts = [0.0, np.log(prior), np.log(prior) - 2 * np.log(inverse)]
    before = [head.bias.numpy() for head in model.student.get_layer("logits").heads]
    model.train_on_batch(images, labels)
    for i, (head, bias) in enumerate(zip(model.student.get_layer("logits").heads, before)):
        p = np.exp(log_softmax(logits[:, i] + shifts[i]))
        expected = bias - np.mean(p - np.eye(4)[labels], axis=0)
        np.testing.assert_allclose(head.bias, expected, rtol=1e-4, atol=1e-5)


def test_a_prediction_is_the_mean_of_the_experts(smooth_student, images):
    model = make(smooth_student)
    expected = each(model.student, images).mean(1)
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "experts, counts, message",
    [
        (None, COUNTS, r"does not have 3 experts: give branch\(student, 3\)"),
        (2, COUNTS, r"does not have 3 experts: give branch\(student, 3\)"),
        (3, [3, 2], "class_counts has 2 classes but the student has 4"),
        (3, [3, 2, 1, 0], "class_counts is 0 for class"),
    ],
)
def test_what_cannot_work_is_refused(experts, counts, message, smooth_student):
    student = branch(smooth_student(), experts) if experts else smooth_student()
    with pytest.raises(ValueError, match=message):
        TadeModel(student, counts)
