"""Flatbuffers with 8-bit integers, converted and run as on a device."""

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.export.loaded import Exported
from candle_tf.students import at_bits, resnet_e

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"),
]


def learned(student, cifar10, rate):
    """The student after a few updates on real images."""
    tf.keras.utils.set_random_seed(0)
    model = ct.StudentModel(student)
    model.compile(tf.keras.optimizers.Adam(rate))
    images, labels = cifar10("train[:256]")
    model.fit(images.astype(np.float32), labels, batch_size=32, epochs=6, verbose=0)
    return model


@pytest.fixture(scope="module")
def test_images(cifar10):
    return cifar10("test[:500]")


@pytest.fixture(scope="module")
def binary(cifar10):
    return learned(resnet_e(10, 32, width=0.5), cifar10, 1e-2)


@pytest.fixture(scope="module")
def real(cifar10):
    return learned(at_bits(resnet_e(10, 32, width=0.25), "32"), cifar10, 3e-3)


def compared(path, model, images, labels):
    """(Share of equal classes, difference of accuracy) of a file and its student."""
    theirs = Exported(path).predict(images).argmax(-1)
    mine = model.student(images.astype(np.float32)).numpy().argmax(-1)
    assert len(set(mine)) > 4, "most images alike: this test proves nothing"
    return np.mean(theirs == mine), np.mean(theirs == labels) - np.mean(mine == labels)


def test_int8_gives_nearly_the_students_classes_in_less_than_half_the_bytes(
    real, test_images, cifar10, tmp_path
):
    path, plain = tmp_path / "int8.tflite", tmp_path / "plain.tflite"
    real.export(path, format="int8", images=cifar10("train[:100]")[0])
    real.export(plain, format="tflite")
    same, difference = compared(path, real, *test_images)
    assert same >= 0.9 and abs(difference) <= 0.03
    assert path.stat().st_size < plain.stat().st_size / 2
    interpreter = tf.lite.Interpreter(str(path))
    kinds = [tensor["dtype"] for tensor in interpreter.get_tensor_details()]
    assert kinds.count(np.float32) == 2  # the images and the probabilities


def test_lce_int8_gives_nearly_the_students_classes_in_fewer_bytes(binary, test_images, tmp_path):
    path, plain = tmp_path / "lce_int8.tflite", tmp_path / "lce.tflite"
    binary.export(path, format="lce_int8")
    binary.export(plain, format="lce")
    same, difference = compared(path, binary, *test_images)
    assert same >= 0.9 and abs(difference) <= 0.03
    assert path.stat().st_size < plain.stat().st_size


@pytest.mark.parametrize("images", [None, np.zeros((0, 32, 32, 3))])
def test_int8_without_images_is_refused(images, real, tmp_path):
    with pytest.raises(ValueError, match="measures the ranges .*: give some training images"):
        real.export(tmp_path / "int8.tflite", format="int8", images=images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", ["1", "4"])
def test_int8_refuses_quantizers(bits, binary, cifar10, tmp_path):
    model = ct.StudentModel(at_bits(binary.student, bits))
    with pytest.raises(ValueError, match="has quantizers: .*student_bits=32"):
        model.export(tmp_path / "int8.tflite", format="int8", images=cifar10("train[:4]")[0])
    assert not list(tmp_path.iterdir())
