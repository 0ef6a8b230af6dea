"""A frozen network by TensorFlow Lite against TensorFlow."""

import candle_tf
import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.networks.lite import LiteEncoder
from candle_tf.teacher import Teacher

SIZE = 16


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (7, SIZE, SIZE, 3)).astype(np.float32)


def teacher_with(*layers) -> Teacher:
    tf.keras.utils.set_random_seed(0)
    first = tf.keras.layers.Conv2D(6, 3, 2, padding="same", activation="relu")
    encoder = tf.keras.Sequential([tf.keras.Input((None, None, 3)), first, *layers])
    return Teacher(encoder, SIZE)


def test_features_of_each_image_equal_tensorflows_and_do_not_depend_on_the_others(images):
    teacher = teacher_with(tf.keras.layers.DepthwiseConv2D(3), tf.keras.layers.Conv2D(5, 1))
    encode = LiteEncoder(teacher.encode, SIZE)
    features = encode(images)
    np.testing.assert_allclose(features, teacher.embed(images), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(encode(images[2:5]), features[2:5])
    assert encode(images[:0]).shape == (0, teacher.width)


def test_what_tensorflow_lite_cannot_compute_is_refused():
    with pytest.raises(ValueError, match="TensorFlow Lite cannot compute it"):
        LiteEncoder(lambda images: tf.raw_ops.Betainc(a=images, b=images, x=images)[:, 0, 0], SIZE)


@pytest.mark.parametrize("sizes", [None, [SIZE, 24]])
def test_many_images_are_embedded_by_tensorflow_lite(images, sizes, monkeypatch, capfd):
    teacher = teacher_with()
    few = SIZE**-2 * candle_tf.teacher.MANY_PIXELS
    assert teacher.embedder(few - 1, [SIZE]) == teacher.embed
    embed = teacher.embedder(few, sizes)
    monkeypatch.setattr(teacher, "embed", None)
    for size in sizes or [None]:
        result = tf.function(embed)(images, size)
        monkeypatch.undo()
        np.testing.assert_allclose(result, teacher.embed(images, size), rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(teacher, "embed", None)
    assert capfd.readouterr() == ("", "")


def test_tensorflow_embeds_where_tensorflow_lite_cannot(images, capsys):
    class Betainc(tf.keras.layers.Layer):
        def call(self, x):
            return tf.raw_ops.Betainc(a=1.0 + x, b=1.0 + x, x=0.0 * x)

    teacher = teacher_with(Betainc())
    assert teacher.embedder(10**9) == teacher.embed
    said = capsys.readouterr().out
    assert "TensorFlow Lite cannot compute it" in said and "takes longer" in said


def test_other_precisions_stay_with_tensorflow():
    half = tf.keras.layers.Conv2D(5, 1, dtype="mixed_bfloat16")
    teacher = teacher_with(half)
    assert teacher.embedder(10**9) == teacher.embed


def test_calibration_and_store_by_tensorflow_lite(images, tmp_path, monkeypatch):
    labels = np.arange(7) % 2
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    teacher, other = teacher_with(), teacher_with()
    teacher.calibrate(batches, [4, 3], verbose=0)
    monkeypatch.setattr(candle_tf.teacher, "MANY_PIXELS", 0)
    monkeypatch.setattr(other, "embed", None)
    other.calibrate(batches, [4, 3], verbose=0)
    for mine, expected in zip(other.classifier.get_weights(), teacher.classifier.get_weights()):
        np.testing.assert_allclose(mine, expected, rtol=1e-2, atol=1e-3)
    monkeypatch.setattr(candle_tf.teacher, "MANY_PIXELS", 2**25)
    other.classifier.set_weights(teacher.classifier.get_weights())
    examples = ct.data.Examples(tf.constant(images.astype(np.uint8)), labels)
    records = []
    for name, each, least in (("tensorflow", teacher, 2**25), ("lite", other, 0)):
        monkeypatch.setattr(candle_tf.teacher, "MANY_PIXELS", least)
        features = tf.keras.layers.GlobalAveragePooling2D(name="features")
        student = [tf.keras.Input((SIZE, SIZE, 3)), features, tf.keras.layers.Dense(2)]
        model = ct.CandleModel(each, tf.keras.Sequential(student))
        store = ct.TeacherStore(tmp_path / name, model, examples, image_size=SIZE, views=2)
        store.complete(verbose=0)
        records.append(store.records())
    for name in ("features", "logits"):
        expected, mine = records[0][name], records[1][name]
        np.testing.assert_allclose(mine, expected, rtol=2e-3, atol=2e-3)
