"""Pixels and labels are checked wherever they enter, whatever holds them."""

import os

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data.entrance import reading_errors

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 8, 8, 3), np.uint8)
LABELS = np.arange(8) % 3
SCALED = r"images are in \[0, 255\]; these end at 1, as if divided by 255"


def student(last=None):
    images = tf.keras.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(4, 3, strides=4)(tf.keras.layers.Rescaling(1 / 255)(images))
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    return tf.keras.Model(images, tf.keras.layers.Dense(3, last, name="logits")(x))


@pytest.fixture(scope="module")
def model():
    model = ct.StudentModel(student())
    model.compile(metrics=["accuracy", ct.metrics.ShotAccuracy([3, 3, 2])])
    return model


def dataset(images, labels=LABELS):
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)


def generator(images, labels=LABELS):
    return ((images[i : i + 4], labels[i : i + 4]) for i in (0, 4))


class Sequence(tf.keras.utils.Sequence):
    def __init__(self, images, labels=LABELS):
        self.data = images, labels

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return tuple(x[4 * i : 4 * i + 4] for x in self.data)


HOLDERS = pytest.mark.parametrize("hold", [dataset, generator, Sequence, None])


def call(model, name, hold, images, labels=LABELS):
    if name == "predict":
        return model.predict(images if hold is None else hold(images, labels), verbose=0)
    given = (images, labels) if hold is None else (hold(images, labels),)
    return getattr(model, name)(*given, verbose=0)


@pytest.mark.parametrize(
    "name, hold", [("fit", dataset), ("fit", None), ("evaluate", generator), ("predict", Sequence)]
)
def test_bytes_and_floats_are_taken_alike(name, hold, model):
    results = []
    for images in (IMAGES, IMAGES.astype(np.float32)):
        again = tf.keras.models.clone_model(model.student)
        again.set_weights(model.student.get_weights())
        each = ct.StudentModel(again)
        each.compile(tf.keras.optimizers.SGD(1e-3), metrics=["accuracy"])
        found = call(each, name, hold, images)
        results.append(found.history["loss"] if name == "fit" else found)
    np.testing.assert_allclose(*results, rtol=1e-5)


@HOLDERS
@pytest.mark.parametrize("name", ["fit", "evaluate", "predict"])
def test_images_divided_by_255_are_refused(name, hold, model):
    with pytest.raises(ValueError, match=f"^{name}: {SCALED}"):
        call(model, name, hold, IMAGES / np.float32(255))


@pytest.mark.parametrize("name", ["fit", "evaluate"])
@HOLDERS
def test_labels_are_class_numbers(name, hold, model):
    with pytest.raises(ValueError, match="one-hot: pass labels.argmax"):
        call(model, name, hold, IMAGES, np.eye(3)[LABELS])
    with pytest.raises(ValueError, match="label 3, but labels go from 0 to 2"):
        call(model, name, hold, IMAGES, LABELS + 1)


def test_a_label_out_of_range_in_a_later_batch(model):
    labels = LABELS.copy()
    labels[6] = 3
    with pytest.raises(ValueError, match="fit: example 2 has label 3"):
        model.fit(dataset(IMAGES, labels), verbose=0)


def test_other_shapes_are_refused_before_anything_is_traced(model):
    for images, message in ((IMAGES[..., :1], "gray"), (np.moveaxis(IMAGES, -1, 1), "first")):
        for hold in (dataset, Sequence):
            with pytest.raises(ValueError, match=message) as error:
                model.fit(hold(images), verbose=0)
            assert "\n" not in str(error.value)


def test_images_and_labels_that_differ_in_number(model):
    with pytest.raises(ValueError, match="fit: 8 images have 7 labels"):
        model.fit(IMAGES, LABELS[:7], verbose=0)


@pytest.mark.parametrize("hold", [dataset, lambda *x: x])
def test_validation_data_are_checked(hold, model):
    with pytest.raises(ValueError, match=SCALED):
        model.fit(IMAGES, LABELS, validation_data=hold(IMAGES / 255, LABELS), verbose=0)


def test_dark_images_are_taken(model):
    for dark in (np.zeros_like(IMAGES), np.uint8(IMAGES > 250), np.full(IMAGES.shape, 2.5)):
        assert np.isfinite(call(model, "predict", dataset, dark)).all()


def test_data_that_can_be_read_once_lose_nothing(model):
    read = []

    def stream():
        for i, batch in enumerate(generator(IMAGES)):
            read.append(i)
            yield batch

    assert len(model.predict(stream(), verbose=0)) == 8
    once = tf.data.Dataset.from_generator(
        stream, output_signature=(tf.TensorSpec((4, 8, 8, 3), tf.uint8), tf.TensorSpec((4,)))
    )
    assert len(model.predict(once, verbose=0)) == 8
    assert read == [0, 1, 0, 1]
    epochs = ct.data.training_batches(ct.data.Examples(tf.constant(IMAGES), LABELS), 8, 4)
    batches = [labels.numpy() for labels in epochs.map(lambda _, y: y)]  # the first epoch
    model.fit(epochs, epochs=1, verbose=0)  # the second
    third = [labels.numpy() for labels in epochs.map(lambda _, y: y)]
    again = ct.data.training_batches(ct.data.Examples(tf.constant(IMAGES), LABELS), 8, 4)
    every = [[labels.numpy() for labels in again.map(lambda _, y: y)] for _ in range(3)]
    np.testing.assert_array_equal([batches, third], [every[0], every[2]])


def test_under_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = ct.StudentModel(student())
        model.compile()
    model.fit(dataset(IMAGES), verbose=0)
    with pytest.raises(ValueError, match=SCALED):
        model.fit(dataset(np.float32(IMAGES / 255)), verbose=0)


def test_calibration_and_store():
    images = tf.keras.Input((None, None, 3))
    encoder = tf.keras.Model(images, tf.keras.layers.Conv2D(4, 3, strides=4)(images))
    teacher = ct.Teacher(encoder, 8, preprocessing="none")
    with pytest.raises(ValueError, match=f"^calibrate: {SCALED}"):
        teacher.calibrate(dataset(np.float32(IMAGES / 255)), [3, 3, 2], verbose=0)
    with pytest.raises(ValueError, match="calibrate: labels are class numbers.*one-hot"):
        teacher.calibrate(dataset(IMAGES, np.eye(3)[LABELS]), [3, 3, 2], verbose=0)
    with pytest.raises(ValueError, match="calibrate: .*channels come first"):
        teacher.calibrate(dataset(np.moveaxis(IMAGES, -1, 1)), [3, 3, 2], verbose=0)
    teacher.calibrate(dataset(np.uint8(IMAGES > 250)), [3, 3, 2], verbose=0)  # dark
    teacher.calibrate(dataset(IMAGES), [3, 3, 2], verbose=0)
    weighted = tf.data.Dataset.from_tensors((IMAGES, LABELS, np.ones(8)))
    with pytest.raises(ValueError, match="The batches hold sample weights"):
        teacher.calibrate(weighted, [3, 3, 2], verbose=0)
    model = ct.CandleModel(teacher, student())
    model.compile()
    stored = tf.data.Dataset.from_tensors(({"images": IMAGES, "features": IMAGES}, LABELS))
    with pytest.raises(ValueError, match="^validation_data: the batches are dictionaries"):
        model.fit(dataset(IMAGES), validation_data=stored, verbose=0)
    for pixels, message in ((IMAGES / 255, SCALED), (IMAGES[..., :1], "gray")):
        with pytest.raises(ValueError, match=message):
            ct.TeacherStore(
                "nowhere", model, ct.data.Examples(tf.constant(pixels), LABELS), image_size=8
            )
    with pytest.raises(ValueError, match="TeacherStore: example 2 has label 3"):
        ct.TeacherStore(
            "nowhere", model, ct.data.Examples(tf.constant(IMAGES), LABELS + 1), image_size=8
        )


def test_a_shot_accuracy_of_one_hot_labels():
    with pytest.raises(ValueError, match="not one-hot: pass labels.argmax"):
        ct.metrics.ShotAccuracy([3, 3]).update_state(tf.eye(2), tf.eye(2))


def test_a_file_that_is_lost_later_ends_in_a_sentence(tmp_path, model):
    from PIL import Image

    for i in range(8):
        path = tmp_path / "photos" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[i]).save(path)
    photos = ct.data.load(f"folder:{tmp_path / 'photos'}")
    lost = photos.train.images[0].numpy().decode()
    os.rename(lost, tmp_path / "moved.png")
    batches = ct.data.training_batches(photos.train, 8, 4)
    with pytest.raises(ValueError, match=f"^{lost} cannot be read .No such file") as error:
        model.fit(batches, verbose=0)
    assert "\n" not in str(error.value) and "Start the same command again" in str(error.value)
    open(lost, "w").close()
    batches = ct.data.training_batches(photos.train, 8, 4)
    with pytest.raises(ValueError, match=f"{lost} cannot be decoded") as error:
        model.fit(batches, verbose=0)
    assert "\n" not in str(error.value) and "Start the same command again" in str(error.value)
    with pytest.raises(ValueError, match="is empty"):
        ct.data.load(f"folder:{tmp_path / 'photos'}")


def test_other_errors_of_tensorflow_pass():
    with pytest.raises(tf.errors.InvalidArgumentError), reading_errors():
        tf.reshape(tf.zeros(3), (2,))
