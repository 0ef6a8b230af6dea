"""A frozen network by TensorFlow Lite against TensorFlow."""

import gc
import types
import weakref

import candle_tf
import candle_tf as ct
import larq as lq
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
    embed = teacher.embedder(few, sizes or ())
    monkeypatch.setattr(teacher, "embed", None)
    for size in sizes or [None]:
        result = tf.function(embed)(images, size)
        monkeypatch.undo()
        np.testing.assert_allclose(result, teacher.embed(images, size), rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(teacher, "embed", None)
    assert capfd.readouterr() == ("", "")


def test_other_kinds_of_input_are_embedded_too(images, monkeypatch):
    monkeypatch.setattr(candle_tf.teacher, "MANY_PIXELS", 0)
    teacher = teacher_with()
    embed = teacher.embedder(7)
    for kind in (np.float64, np.float16, np.uint8):
        given = images.astype(kind)
        np.testing.assert_allclose(embed(given), teacher.embed(given), rtol=1e-4, atol=1e-5)
    for size in (24, tf.constant(SIZE)):  # TensorFlow computes them
        np.testing.assert_array_equal(embed(images, size), teacher.embed(images, size))


def test_the_memory_is_given_back(images, monkeypatch):
    monkeypatch.setattr(candle_tf.teacher, "MANY_PIXELS", 0)
    made, kept = LiteEncoder.__init__, []
    monkeypatch.setattr(
        LiteEncoder, "__init__", lambda self, *a: made(self, *a) or kept.append(weakref.ref(self))
    )
    embed = tf.function(teacher_with().embedder(7))
    embed(images)
    assert kept[0]() is not None
    del embed
    gc.collect()
    assert kept[0]() is None


def test_tensorflow_embeds_where_tensorflow_lite_cannot(images, capsys):
    class Betainc(tf.keras.layers.Layer):
        def call(self, x):
            return tf.raw_ops.Betainc(a=1.0 + x, b=1.0 + x, x=0.0 * x)

    teacher = teacher_with(Betainc())
    assert teacher.embedder(10**9) == teacher.embed
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("TensorFlow Lite cannot run the encoder")


@pytest.mark.parametrize(
    "layer",
    [
        tf.keras.layers.Conv2D(5, 1, dtype="mixed_bfloat16"),
        tf.keras.Sequential([tf.keras.layers.Conv2D(5, 1, dtype="mixed_bfloat16")]),
        lq.layers.QuantConv2D(5, 1, input_quantizer="ste_sign"),
    ],
)
def test_other_precisions_stay_with_tensorflow(layer):
    teacher = teacher_with(layer)
    assert teacher.embedder(10**9) == teacher.embed


def test_several_replicas_stay_with_tensorflow():
    teacher = teacher_with()
    two = types.SimpleNamespace(num_replicas_in_sync=2)
    assert teacher.embedder(10**9, strategy=two) == teacher.embed


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


def test_an_image_that_fails_does_not_keep_the_interpreter(images, monkeypatch):
    monkeypatch.setattr("candle_tf.networks.lite.processors", lambda: 1)
    encode = LiteEncoder(teacher_with().encode, SIZE)
    with pytest.raises(ValueError, match="Dimension mismatch"):
        encode(images[:, :8])
    assert encode(images).shape == (7, 6)
