import numpy as np
import pytest
import tensorflow as tf
from candle_tf.losses import BalancedSoftmax
from candle_tf.methods import DiveModel
from candle_tf.students import at_bits, resnet_e

COUNTS = [100, 50, 8, 20]


def softmax(z):
    p = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def virtual_examples(logits, temperature, power):
    t = softmax(logits / temperature) ** power
    return t / t.sum(-1, keepdims=True)


def sharpened(student, factor=20.0):
    """A teacher with opinions, of other weights than the student's."""
    kernel, bias = student.layers[-1].get_weights()
    student.layers[-1].set_weights([-factor * kernel, bias + [2.0, 1.0, 0.0, 0.0]])
    return student


@pytest.mark.parametrize("sample_weight", [None, np.float32([1, 0, 2, 1, 0, 0, 1, 3])])
@pytest.mark.parametrize("temperature, power, alpha", [(3, 0.5, 0.5), (2, 1.0, 0.3)])
def test_the_loss_follows_the_formula(
    temperature, power, alpha, sample_weight, smooth_student, images, labels
):
    model = DiveModel(sharpened(smooth_student()), smooth_student(), temperature, power, alpha)
    model.compile(
        tf.keras.optimizers.SGD(0.0), BalancedSoftmax(COUNTS), ["accuracy"], run_eagerly=True
    )
    z_t, z_s = model.teacher(images).numpy(), model.student(images).numpy()
    t = virtual_examples(z_t, temperature, power)
    kl = np.sum(t * (np.log(t) - np.log(softmax(z_s / temperature))), -1)
    label = -np.log(softmax(z_s + np.log(COUNTS))[np.arange(8), labels])
    weight = np.ones(8) if sample_weight is None else sample_weight
    expected = np.mean(weight * ((1 - alpha) * label + alpha * temperature**2 * kl))
    logs = model.train_on_batch(images, labels, sample_weight, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert logs["accuracy"] == np.mean(z_s.argmax(-1) == labels)


def test_a_power_below_1_makes_the_virtual_examples_more_balanced(smooth_student, images, labels):
    """The student that gives those flatter labels has nothing left to learn from the teacher."""
    teacher = sharpened(smooth_student())
    totals = {p: virtual_examples(teacher(images).numpy(), 3, p).sum(0) for p in (1.0, 0.5)}
    assert np.ptp(totals[0.5]) < 0.8 * np.ptp(totals[1.0])
    for power in (1.0, 0.5):
        student = sharpened(smooth_student())
        kernel, bias = student.layers[-1].get_weights()
        student.layers[-1].set_weights([0.5 * kernel, 0.5 * bias])
        model = DiveModel(teacher, student, power=power, alpha=1.0)
        model.compile(tf.keras.optimizers.SGD(0.0), run_eagerly=True)
        taught = softmax(student(images).numpy() / 3).sum(0)
        learnt = model.train_on_batch(images, labels) < 1e-5
        assert learnt == np.allclose(taught, totals[power], atol=1e-4) == (power == 0.5)


def test_the_teacher_is_frozen_and_its_batch_norm_stays(images, labels):
    tf.keras.utils.set_random_seed(0)
    student = resnet_e(4, 12, width=0.125, blocks=(1,))
    teacher = at_bits(student, "32")
    model = DiveModel(teacher, student)
    model.compile(tf.keras.optimizers.SGD(0.1), run_eagerly=True)
    before = teacher.get_weights()
    model.train_on_batch(images, labels)
    for ours, theirs in zip(before, teacher.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    assert not teacher.trainable_variables
    assert len(model.trainable_variables) == len(student.trainable_variables)


def test_a_teacher_of_other_classes_is_refused(smooth_student):
    with pytest.raises(ValueError, match="teacher has 5 classes but the student has 4"):
        DiveModel(smooth_student(5), smooth_student())


def test_a_teacher_of_one_size_is_refused_where_the_sizes_vary(smooth_student):
    images = tf.keras.Input((12, 12, 3))
    teacher = tf.keras.Model(images, tf.keras.layers.Dense(4)(tf.keras.layers.Flatten()(images)))
    with pytest.raises(ValueError, match="works only at its own size"):
        DiveModel(teacher, smooth_student(), resolutions=(8, 12, 16))
