"""Strangers' networks: cut at their features, not scaled twice, or refused by name."""

from pathlib import Path

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.networks.checks import own_scaling, without_classifier
from candle_tf.networks.safe_load import load_model

L = tf.keras.layers
FIXTURES = Path(__file__).parents[1] / "fixtures"
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype("float32")
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")


def network(*head, stem=()):
    return tf.keras.Sequential(
        [tf.keras.Input((16, 16, 3)), *stem, L.Conv2D(6, 3, strides=2, name="conv"), *head]
    )


def pool(name="pool"):
    return L.GlobalAveragePooling2D(name=name)


def mobilenet():
    return tf.keras.applications.MobileNet((32, 32, 3), 0.25, weights=None, classes=7)


def nested():
    inner = network(pool(), L.Dense(5, "softmax"))
    images = tf.keras.Input((16, 16, 3))
    return tf.keras.Model(images, inner(L.Rescaling(1 / 255)(images)))


@pytest.mark.parametrize(
    "build, layer",
    [
        (lambda: network(pool(), L.Dense(5, "softmax")), "pool"),
        (lambda: network(pool(), L.Dense(5), L.Softmax()), "pool"),
        (lambda: network(pool(), L.Dense(5), L.Activation("softmax")), "pool"),
        (lambda: network(pool(), L.Dropout(0.1), L.Dense(128, "softmax")), "pool"),
        (lambda: network(pool(), L.Dense(10)), "pool"),
        (lambda: network(pool(), L.Dense(1000)), "pool"),
        (lambda: network(pool(), L.Dense(128, name="predictions")), "pool"),
        (lambda: network(pool(), L.Dense(1, "sigmoid")), "pool"),
        (lambda: network(L.Flatten(name="flat"), L.Dense(5, "softmax")), "flat"),
        (lambda: network(L.Conv2D(5, 1), pool(), L.Softmax()), "conv"),
        (mobilenet, "global_average_pooling2d"),
        (nested, "pool"),
    ],
)
def test_a_classifier_is_cut_off(build, layer):
    whole = build()
    cut, name = without_classifier(whole)
    assert name.startswith(layer) and cut.output_shape[-1] != whole.output_shape[-1]
    images = IMAGES if whole.input_shape[1] == 16 else np.repeat(np.repeat(IMAGES, 2, 1), 2, 2)
    assert np.isfinite(cut(images)).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: network(),
        lambda: network(pool()),
        lambda: network(pool(), L.Dense(128)),
        lambda: network(pool(), L.Dense(10, "relu")),
        lambda: network(pool(), L.Dense(10), L.BatchNormalization()),
        lambda: network(L.Conv2D(10, 1)),
        lambda: network(L.Dropout(0.5), pool()),
    ],
)
def test_features_and_embeddings_stay(build):
    whole = build()
    assert without_classifier(whole) == (whole, None)


def batch_norm(mean):
    layer = L.BatchNormalization(name="scaling")
    layer.build((None, 16, 16, 3))
    layer.moving_mean.assign([mean] * 3)
    return layer


def arithmetic():
    images = tf.keras.Input((16, 16, 3))
    return tf.keras.Model(images, L.Conv2D(6, 3)(images / 127.5 - 1.0))


@pytest.mark.long
@pytest.mark.parametrize(
    "build, scales",
    [
        (lambda: network(stem=[L.Rescaling(1 / 255, name="scaling")]), True),
        (
            lambda: network(stem=[L.ZeroPadding2D(), L.Rescaling(1 / 127.5, -1, name="scaling")]),
            True,
        ),
        (lambda: network(stem=[L.Normalization(mean=[120.0] * 3, variance=[9.0] * 3)]), True),
        (lambda: network(stem=[batch_norm(120.0)]), True),
        (lambda: network(stem=[batch_norm(0.4)]), False),
        (lambda: network(stem=[L.Rescaling(1.0)]), False),
        (lambda: network(L.Rescaling(0.1)), False),
        (lambda: network(L.BatchNormalization()), False),
        (arithmetic, True),
        (nested, True),
        (lambda: tf.keras.applications.EfficientNetB0(False, None), True),
        (lambda: tf.keras.applications.MobileNet(include_top=False, weights=None), False),
    ],
)
def test_its_own_scaling_is_seen(build, scales):
    assert bool(own_scaling(build())) == scales


def test_a_scaling_of_other_images_is_refused():
    with pytest.raises(ValueError, match=r"by 2, as for images in \[0, 1\].*0.007843"):
        own_scaling(network(stem=[L.Rescaling(2.0, -1.0)]))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_teacher_file_is_cut_and_not_scaled_twice(suffix, tmp_path, capsys):
    whole = network(pool(), L.Dense(5, "softmax"), stem=[L.Rescaling(1 / 255)])
    path = tmp_path / f"teacher{suffix}"
    whole.save(path)
    teacher = ct.Teacher.from_file(path, 16)
    said = capsys.readouterr().out
    assert "ends in a classifier: it is cut after the layer 'pool'" in said
    assert "scales images itself (layer 'rescaling" in said
    assert teacher.preprocessing.mode == "none" and teacher.width == 6
    expected = tf.keras.Model(whole.input, whole.get_layer("pool").output)(IMAGES)
    np.testing.assert_allclose(teacher.embed(IMAGES), expected, rtol=1e-4, atol=1e-4)
    again = ct.Teacher.from_config(teacher.get_config())
    assert again.width == 6 and again.preprocessing.mode == "none"
    with pytest.raises(ValueError, match="scales images itself .*preprocessing='tf' would"):
        ct.Teacher.from_file(path, 16, preprocessing="tf")


def test_networks_that_scale_nothing_are_given_what_they_were():
    assert ct.Teacher(network(), 16).preprocessing.mode == "tf"
    assert ct.Teacher(network(), 16, preprocessing="torch").preprocessing.mode == "torch"


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_file_of_keras_3_is_refused_by_name(suffix, trusted):
    with pytest.raises(ValueError, match="was saved by Keras 3: save it with tf-keras") as error:
        load_model(FIXTURES / f"keras_3.{suffix}", trusted)
    assert "or load its weights" in str(error.value)
    assert "allow_custom_code" not in str(error.value)


@pytest.mark.parametrize("end", [L.Softmax(), L.Activation("softmax"), L.Activation("sigmoid")])
def test_a_student_of_probabilities_is_refused(end):
    student = network(pool("features"), L.Dense(5), end)
    with pytest.raises(
        ValueError, match=r"ends in a (softmax|sigmoid) .*Dense\(5\) without an act"
    ):
        ct.StudentModel(student)
    with pytest.raises(ValueError, match="ends in a softmax .layer 'dense"):
        ct.StudentModel(network(pool("features"), L.Dense(5, "softmax", name="dense_x")))


@pytest.fixture(scope="module")
def teacher():
    teacher = ct.Teacher(network(), 16, preprocessing="none")
    data = tf.data.Dataset.from_tensor_slices((IMAGES, [0, 1])).batch(2)
    teacher.calibrate(data, [1, 1], verbose=0)
    return teacher


def test_what_is_passed_in_another_place_is_named(teacher):
    student = network(pool("features"), L.Dense(2))
    with pytest.raises(
        ValueError, match="The teacher is a Sequential, not a Teacher: pass the tea"
    ):
        ct.CandleModel(student, teacher)
    with pytest.raises(ValueError, match="The student is a Teacher: pass the teacher first"):
        ct.CandleModel(teacher, teacher)
    with pytest.raises(ValueError, match="The teacher is the class Teacher"):
        ct.CandleModel(ct.Teacher, student)
    with pytest.raises(ValueError, match="The student is the class Model"):
        ct.CandleModel(teacher, tf.keras.Model)
    with pytest.raises(ValueError, match="The student is a function: pass a functional"):
        ct.CandleModel(teacher, ct.students.resnet_e)
    with pytest.raises(ValueError, match="ends in a classifier: cut it .*get_layer.'pool'"):
        ct.Teacher(network(pool(), L.Dense(5, "softmax")), 16)


def graph(*shapes, outputs=1):
    inputs = [tf.keras.Input(shape) for shape in shapes]
    whole = L.Conv2D(4, 3) if len(shapes[0]) == 3 else L.Dense(4)
    merged = inputs[0] if len(inputs) == 1 else L.Add()(inputs)
    return tf.keras.Model(inputs, [whole(merged)] * outputs)


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = L.Conv2D(4, 3)

    def call(self, images):
        return self.conv(images)


@pytest.mark.parametrize(
    "build, problem",
    [
        (lambda: graph((16, 16, 1)), r"takes \(None, 16, 16, 1\): .* RGB images"),
        (lambda: graph((16, 16, 3), (16, 16, 3)), "16, 3\\) and \\(None.* takes one batch"),
        (lambda: graph((9,)), r"takes \(None, 9\)"),
        (lambda: graph((16, 16, 3), outputs=2), "2 outputs: keep one"),
        (Subclassed, "no graph of layers"),
        (lambda: tf.keras.Sequential([L.Conv2D(4, 3)]), "starts with tf.keras.Input"),
    ],
)
def test_only_graphs_from_rgb_images_are_taken(build, problem):
    with pytest.raises(ValueError, match=f"The encoder .*{problem}"):
        ct.Teacher(build(), 16)
    with pytest.raises(ValueError, match=f"The student .*{problem}"):
        ct.StudentModel(build())
