"""Teachers from real weights, and their calibration on real, long-tailed images."""

import importlib

import candle_tf
import numpy as np
import pytest
import tensorflow as tf
from candle_tf import Teacher
from candle_tf.calibration import CrossValidation
from candle_tf.classifiers import encode_dataset, linear
from candle_tf.runs.build import LETTERS, computing_in, mirrored_teacher
from candle_tf.teacher import preprocessing_of
from candle_tf.utils.files import Rows

applications = tf.keras.applications
COUNTS = [80, 62, 48, 37, 29, 22, 17, 13, 10, 8]
LOSSES = ["balanced_softmax", "label_aware_smoothing"]


@pytest.fixture(scope="module")
def weights(shared_data):
    directory = shared_data / "weights"
    return {
        "top": str(directory / "mobilenet_2_5_224_tf.h5"),
        "no top": str(directory / "mobilenet_2_5_224_tf_no_top.h5"),
        "file": str(directory / "mobilenet_1_0_conv_pw_12.h5"),
    }


@pytest.fixture(scope="module")
def cifar(cifar10):
    """(long-tailed training images and labels), (balanced test images and labels)."""

    def read(split, counts):
        images, labels = cifar10(split)
        kept = [np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)]
        kept = np.random.default_rng(0).permutation(np.concatenate(kept))
        return images[kept].astype(np.float32), labels[kept]

    return read("train[:3000]", COUNTS), read("test[:600]", [30] * 10)


@pytest.fixture(scope="module")
def mobilenet(weights):
    """The reference network, as Keras itself loads it."""
    return applications.MobileNet(alpha=0.25, weights=weights["no top"], include_top=False)


@pytest.fixture(scope="module")
def teacher(weights):
    return Teacher.from_keras("MobileNet", 64, weights=weights["no top"], alpha=0.25)


@pytest.fixture
def noise():
    return np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)


def tiny_teacher(size=8):
    tf.keras.utils.set_random_seed(0)
    images = tf.keras.Input((None, None, 3))
    return Teacher(tf.keras.Model(images, tf.keras.layers.Conv2D(6, 3)(images)), size)


def tiny_data(labels, images=None, batch=4):
    """Batches of as many images of 8x8 pixels, dark for class 0 and brighter for the others."""
    labels = np.asarray(labels)
    if images is None:
        noise = np.random.default_rng(0).uniform(0, 60, (len(labels), 8, 8, 3))
        images = (noise + 90 * labels[:, None, None, None]).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["top", pytest.param("no top", marks=pytest.mark.slow)])
def test_weights_with_and_without_a_top_are_the_same_encoder(kind, weights, mobilenet, noise):
    teacher = Teacher.from_keras("MobileNet", 64, weights=weights[kind], alpha=0.25)
    expected = mobilenet.predict(applications.mobilenet.preprocess_input(noise.copy()), verbose=0)
    features = teacher.embed(noise)
    assert features.shape == (2, teacher.width) == (2, 256)
    np.testing.assert_allclose(features, expected.mean((1, 2)), atol=1e-4)


@pytest.mark.long
def test_a_whole_model_file(weights, noise):
    teacher = Teacher.from_file(weights["file"], 64)
    model = tf.keras.models.load_model(weights["file"], compile=False)
    assert teacher.width == 1024 and teacher.preprocessing.mode == "tf"
    for size in (64, 96):
        scaled = tf.image.resize(noise, (size, size)) / 127.5 - 1.0
        expected = model.predict(scaled, verbose=0).mean((1, 2))
        np.testing.assert_allclose(teacher.embed(noise, size), expected, atol=1e-4)


def test_a_teacher_is_told_by_what_it_is_not_by_its_names():
    def identity(filters: int) -> dict:
        tf.keras.utils.set_random_seed(0)
        images = tf.keras.Input((None, None, 3))
        inner = tf.keras.Model(images, tf.keras.layers.Conv2D(filters, 3)(images))
        images = tf.keras.Input((None, None, 3))
        return Teacher(tf.keras.Model(images, inner(images)), 8).made_of()

    assert identity(4) == identity(4)  # whose layers Keras calls conv2d and conv2d_1
    assert identity(4) != identity(5)


def test_teachers_that_scale_images_otherwise_differ():
    def identity(divisor: float) -> dict:
        images = tf.keras.Input((None, None, 3))
        conv = tf.keras.layers.Conv2D(4, 3, kernel_initializer="ones")
        inner = tf.keras.Model(images, conv(images / divisor))
        images = tf.keras.Input((None, None, 3))
        return Teacher(tf.keras.Model(images, inner(images)), 8).made_of()

    assert identity(255.0) == identity(255.0) != identity(64.0)


OPERATIONS = [
    lambda x: x - np.float32([123.7, 116.8, 103.9]),
    lambda x: tf.clip_by_value(x, 0.0, 200.0),
    lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="REFLECT"),
    lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC"),
    lambda x: 255.0 - x,
    lambda x: x - 255.0,
    lambda x: x[:, 1:],
    lambda x: x[:, :-1],
]


def test_a_saved_teacher_with_operations_is_the_same_and_others_are_not(tmp_path):
    found = []
    for operation in OPERATIONS:
        images = tf.keras.Input((None, None, 3))
        conv = tf.keras.layers.Conv2D(4, 3, kernel_initializer="ones")
        teacher = Teacher(tf.keras.Model(images, conv(operation(images))), 8)
        teacher.save(tmp_path / "teacher.keras")
        loaded = tf.keras.models.load_model(tmp_path / "teacher.keras")
        assert loaded.made_of() == teacher.made_of()
        found.append(teacher.made_of()["teacher"])
    assert len(set(found)) == len(OPERATIONS)


def test_a_file_with_several_outputs_is_refused(tmp_path):
    images = tf.keras.Input((8, 8, 3))
    tf.keras.Model(images, [images, images]).save(tmp_path / "two.keras")
    with pytest.raises(ValueError, match="does not end in one feature map or embedding"):
        Teacher.from_file(tmp_path / "two.keras", 8)


@pytest.mark.long
@pytest.mark.parametrize(
    "name, kind, alpha",
    [("MobileNet", "no top", 0.5), ("MobileNet", "file", 1.0), ("MobileNetV2", "top", 0.35)],
)
def test_weights_of_another_network_are_refused(name, kind, alpha, weights):
    with pytest.raises(ValueError, match=f"{weights[kind]} does not hold weights of 'mobilenet"):
        Teacher.from_keras(name, 64, weights=weights[kind], alpha=alpha)


def test_a_broken_weights_file_is_named(tmp_path):
    (tmp_path / "broken.h5").write_bytes(b"garbage" * 100)
    with pytest.raises((ValueError, OSError), match="broken.h5"):
        Teacher.from_keras("MobileNet", 64, weights=str(tmp_path / "broken.h5"), alpha=0.25)


def test_weights_of_a_file_that_keras_would_give_other_inputs_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="EfficientNetB0.*teacher=FILE.*teacher_preprocessing=none"
    ):
        Teacher.from_keras("EfficientNetB0", 64, weights=str(tmp_path / "b0.h5"))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.h5 do not exist"):
        Teacher.from_keras("MobileNet", 64, weights=str(tmp_path / "absent.h5"), alpha=0.25)
    with pytest.raises(FileNotFoundError, match="absent.h5"):
        Teacher.from_file(tmp_path / "absent.h5", 64)


@pytest.mark.parametrize(
    "make, nearest",
    [
        (lambda: Teacher.from_keras("mobilenet", 64, weights=None), "'MobileNet'"),
        (lambda: Teacher.from_keras("ResNet51", 64, weights=None), "'ResNet50'"),
        (lambda: Teacher.from_larq_zoo("QuikNet", 64, weights=None), "'QuickNet'"),
        (
            lambda: Teacher(
                tf.keras.Sequential([tf.keras.Input((8, 8, 3))]), 8, preprocessing="cafe"
            ),
            "'caffe'",
        ),
        (
            lambda: tiny_teacher().calibrate(tiny_data([0, 1]), [1, 1], loss="balancedsoftmax"),
            "'balanced_softmax'",
        ),
    ],
)
def test_an_unknown_name_suggests_the_nearest(make, nearest):
    with pytest.raises(ValueError, match=f"did you mean {nearest}"):
        make()


@pytest.mark.parametrize(
    "name, mode",
    [
        ("MobileNet", "tf"),
        ("ResNet50V2", "tf"),
        ("ResNet50", "caffe"),
        ("VGG16", "caffe"),
        ("DenseNet121", "torch"),
        ("EfficientNetB0", "none"),
        ("EfficientNetV2M", "none"),
    ],
)
def test_the_preprocessing_of_an_application(name, mode):
    module = importlib.import_module(getattr(applications, name).__module__)
    assert preprocessing_of(module.preprocess_input) == mode


def test_a_preprocessing_of_its_own_is_refused():
    with pytest.raises(ValueError, match="pass preprocessing explicitly"):
        preprocessing_of(lambda images: images / 3.0)


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe", "none"])
def test_the_teacher_prepares_images_as_keras_does(mode, noise):
    images = tf.keras.Input((None, None, 3))
    teacher = Teacher(
        tf.keras.Model(images, tf.keras.layers.Activation("linear")(images)),
        64,
        preprocessing=mode,
    )
    pixels = noise.copy()
    if mode != "none":
        pixels = applications.imagenet_utils.preprocess_input(pixels, mode=mode)
    np.testing.assert_allclose(teacher.embed(noise), pixels.mean((1, 2)), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_larq_zoo_network_works_at_other_sizes(noise):
    teacher = Teacher.from_larq_zoo("QuickNetSmall", 64, weights=None)
    features = [teacher.embed(noise, size).numpy() for size in (64, 96)]
    assert features[0].shape == features[1].shape == (2, teacher.width)
    assert not np.allclose(*features)
    assert not teacher.trainable_variables


def test_images_keep_their_precision_under_a_mixed_policy(noise):
    plain = Teacher.from_file(LETTERS, 32)
    plain.classifier = linear(plain.width, 3, seed=0)
    with computing_in("mixed_bfloat16"):
        mixed = mirrored_teacher(plain)
    for mine, expected in zip(mixed(noise), plain(noise)):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_a_batch_in_parts_has_the_features_of_the_whole_batch(count, size, monkeypatch):
    teacher = tiny_teacher()
    images = np.random.default_rng(0).uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)
    seen, call = [], teacher.encoder.call
    monkeypatch.setattr(teacher.encoder, "call", lambda x, **k: seen.append(len(x)) or call(x, **k))
    embed = tf.function(teacher.embed)
    for pixels in (3 * 8**2, 2**18):
        monkeypatch.setattr(candle_tf.teacher, "MOST_PIXELS", pixels)
        features = teacher.embed(images, tf.constant(size))
        parts = max(1, -(-count // max(1, pixels // size**2)))
        assert seen == parts * [max(1, -(-count // parts))]
        assert features.shape == (count, teacher.width)
        seen.clear()
        if not count:
            continue
        whole = teacher.encoder(teacher.preprocessing(tf.image.resize(images, (size, size))))
        np.testing.assert_allclose(features, tf.reduce_mean(whole, (1, 2)), atol=1e-5)
        seen.clear()
    monkeypatch.undo()
    assert embed(images).shape == (count, teacher.width)


@pytest.mark.parametrize("count", [None, 7])
def test_a_batch_in_parts_is_compiled_by_xla(count, monkeypatch):
    monkeypatch.setattr(candle_tf.teacher, "MOST_PIXELS", 3 * 8**2)
    teacher = tiny_teacher()
    images = np.random.default_rng(0).uniform(0, 255, (7, 8, 8, 3)).astype(np.float32)
    signature = [tf.TensorSpec((count, 8, 8, 3))]
    embed = tf.function(teacher.embed, jit_compile=True, input_signature=signature)
    np.testing.assert_allclose(embed(images), teacher.embed(images), atol=1e-4)


def test_embed_takes_bytes_and_a_size_of_64_bits():
    teacher, images = tiny_teacher(), np.ones((5, 8, 8, 3), np.uint8)
    expected = teacher.embed(images.astype(np.float32))
    np.testing.assert_allclose(teacher.embed(images, tf.constant(8, tf.int64)), expected, atol=1e-5)


@pytest.fixture(
    scope="module",
    params=[LOSSES[0], *(pytest.param(x, marks=pytest.mark.slow) for x in LOSSES[1:])],
)
def calibrated(request, weights, cifar):
    """(loss, teacher, the encoder's weights before, cross-validation)."""
    teacher = Teacher.from_keras("MobileNet", 64, weights=weights["no top"], alpha=0.25)
    before = teacher.encoder.get_weights()
    train = tf.data.Dataset.from_tensor_slices(cifar[0]).batch(64)
    checked = teacher.calibrate(train, COUNTS, loss=request.param, verbose=0)
    return request.param, teacher, before, checked


def test_calibration_learns_and_leaves_the_encoder(calibrated, cifar):
    loss, teacher, before, checked = calibrated
    images, labels = cifar[1]
    features, logits = teacher.predict(images, verbose=0)
    assert features.shape == (300, 256) and logits.shape == (300, 10)
    assert (logits.argmax(-1) == labels).mean() > 0.25  # chance is 0.1; 0.4 measured
    assert abs(checked.class_mean - (logits.argmax(-1) == labels).mean()) < 0.15
    assert checked is teacher.cross_validation and list(checked.class_counts) == COUNTS
    for old, new in zip(before, teacher.encoder.get_weights()):
        np.testing.assert_array_equal(old, new)
    assert teacher.class_counts == COUNTS and not teacher.trainable_variables


@pytest.mark.long
def test_a_calibrated_teacher_saves_and_reloads(calibrated, cifar, tmp_path):
    _, teacher, _, _ = calibrated
    teacher.save(tmp_path / "teacher.keras")
    loaded = tf.keras.models.load_model(tmp_path / "teacher.keras")
    assert (loaded.class_counts, loaded.image_size) == (COUNTS, 64)
    assert loaded.cross_validation == teacher.cross_validation
    assert loaded.label_weight() == teacher.label_weight() > 0
    assert not loaded.trainable_variables
    images = cifar[1][0][:8]
    for ours, theirs in zip(teacher(images), loaded(images)):
        np.testing.assert_array_equal(ours, theirs)


def test_an_uncalibrated_teacher_saves_and_reloads(tmp_path):
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    teacher = tiny_teacher()
    teacher.save(tmp_path / "teacher.keras")
    loaded = tf.keras.models.load_model(tmp_path / "teacher.keras")
    assert loaded.classifier is None and loaded.name == teacher.name
    np.testing.assert_array_equal(loaded.embed(images), teacher.embed(images))


def test_calibration_is_a_function_of_the_seed():
    def made(seed):
        teacher = tiny_teacher()
        checked = teacher.calibrate(tiny_data([0, 0, 1, 1, 2, 2]), [2, 2, 2], seed=seed, verbose=0)
        return checked, *teacher.classifier.get_weights()

    for first, again in zip(made(5), made(5)):
        np.testing.assert_equal(first, again)


def test_trust_follows_from_the_cross_validation():
    teacher = tiny_teacher()
    with pytest.raises(ValueError, match="not cross-validated: pass label_weight"):
        teacher.label_weight()
    teacher.cross_validation = CrossValidation(0.3, [0.6, float("nan"), 0.4], [9, 1, 3])
    teacher.class_counts = [9, 1, 3]
    assert teacher.label_weight() == pytest.approx(0.5 / (0.5 - 1 / 3))
    teacher.cross_validation = CrossValidation(0.3, [1.0, 1.0, 1.0], [9, 1, 3])
    assert teacher.label_weight() == 0.0
    teacher.cross_validation = CrossValidation(0.3, [0.2, 0.2, 0.5], [9, 1, 3])
    assert teacher.label_weight() == 99.0


def test_calibrating_again_replaces_the_classifier():
    teacher, labels = tiny_teacher(), [0, 0, 1, 1, 2, 2]
    teacher.calibrate(tiny_data(labels), [2, 2, 2], loss=LOSSES[1], verbose=0)
    first = teacher.classifier
    teacher.calibrate(tiny_data([0, 0, 1, 1]), [2, 2], verbose=0)
    assert teacher.classifier is not first and teacher.class_counts == [2, 2]
    assert teacher(np.zeros((1, 8, 8, 3), np.float32))[1].shape == (1, 2)
    fresh = tiny_teacher()
    fresh.calibrate(tiny_data([0, 0, 1, 1]), [2, 2], verbose=0)
    np.testing.assert_array_equal(*(t.classifier.get_weights()[0] for t in (teacher, fresh)))


def test_every_view_is_a_reading_of_the_data():
    readings = []

    def augmented():
        readings.append(len(readings))
        for label in (0, 0, 1, 1):
            yield np.full((8, 8, 3), 100.0 * label + readings[-1], np.float32), label

    signature = (tf.TensorSpec((8, 8, 3)), tf.TensorSpec((), tf.int64))
    data = tf.data.Dataset.from_generator(augmented, output_signature=signature).batch(4)
    teacher = tiny_teacher()
    features, labels = encode_dataset(teacher.embed, data, [2, 2], views=3, verbose=0)
    assert len(readings) == 3
    assert features.shape == (12, 6) and labels.tolist() == [0, 0, 1, 1] * 3
    assert not np.allclose(features[:4], features[4:8])


def test_an_interrupted_calibration_goes_on(tmp_path, monkeypatch):
    labels, encoded = [0, 0, 1, 1, 2, 2], []
    whole = tiny_teacher()
    whole.calibrate(tiny_data(labels), [2, 2, 2], verbose=0)
    teacher = tiny_teacher()
    append = Rows.append

    def stopped(rows, features):
        append(rows, features)
        encoded.append(len(features))
        if len(encoded) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Rows, "append", stopped)

    def encode(labels):
        kept = {"directory": tmp_path, "made_of": teacher.made_of()}
        return encode_dataset(teacher.embed, tiny_data(labels), [2, 2, 2], 4, verbose=0, **kept)

    with pytest.raises(KeyboardInterrupt):
        encode(labels)
    teacher.calibrate(encode(labels), [2, 2, 2], verbose=0)
    assert sum(encoded) == 4 * len(labels), "4 views of each image, once"
    for a, b in zip(whole.classifier.get_weights(), teacher.classifier.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    with pytest.raises(ValueError, match="holds features of other images"):
        encode([0, 1, 0, 1, 2, 2])
    teacher.encoder.set_weights([2 * weights for weights in teacher.encoder.get_weights()])
    with pytest.raises(ValueError, match="made of another teacher"):
        encode(labels)


def test_features_of_another_teacher_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 5\) but the teacher has 6"):
        tiny_teacher().calibrate((np.zeros((4, 5)), np.array([0, 0, 1, 1])), [2, 2])


def test_it_is_told_in_one_line():
    teacher = tiny_teacher()
    assert (
        repr(teacher) == f"Teacher({teacher.encoder.name}, 6 features at 8 pixels, not calibrated)"
    )
    teacher.calibrate(tiny_data([0, 0, 1, 1]), [2, 2], verbose=0)
    assert repr(teacher).endswith("2 classes)")


def test_swapped_arguments_are_named():
    with pytest.raises(ValueError, match="pass the encoder first, then its image size"):
        Teacher(64, tiny_teacher().encoder)
    with pytest.raises(ValueError, match="pass the batches first, then the counts"):
        tiny_teacher().calibrate([2, 2], tiny_data([0, 0, 1, 1]))


def test_one_hot_labels_are_refused():
    one_hot = tf.data.Dataset.from_tensors((np.zeros((2, 8, 8, 3), np.float32), np.eye(2)))
    with pytest.raises(ValueError, match="labels are class numbers, one per image"):
        tiny_teacher().calibrate(one_hot, [1, 1], verbose=0)


def test_features_are_mapped_into_memory():
    features, _ = encode_dataset(tiny_teacher().embed, tiny_data([0, 1]), [1, 1], verbose=0)
    assert isinstance(features, np.memmap) and features.dtype == np.float32


GOOD = [0, 0, 0, 0, 1, 1, 1, 2, 2]


def spoiled(value):
    images = np.zeros((9, 8, 8, 3), np.float32)
    images[6, 2, 3, 1] = value
    return images


@pytest.mark.parametrize(
    "labels, counts, images, message",
    [
        (GOOD, [4, 2, 2], None, "says 2 images of class 1 but the data holds 3"),
        (GOOD, [8, 6, 4], None, "says 8 images of class 0 but the data holds 4"),
        (GOOD, [4, 3, 2, 1], None, "says 1 images of class 3 but the data holds 0"),
        (GOOD, [4, 0, 2], None, r"0 for class \[1\]: every class needs a training image"),
        (GOOD, [4, 3, 2], spoiled(np.nan), "Image 6 of the stream holds NaN"),
        (GOOD, [4, 3, 2], spoiled(np.inf), "Image 6 of the stream holds NaN or Inf"),
        ([*GOOD[:7], 3, 2], [4, 3, 2], None, "example 7 has label 3, .* from 0 to 2"),
        ([*GOOD[:7], -1, 2], [4, 3, 2], None, "example 7 has label -1, .* from 0 to 2"),
    ],
)
def test_data_that_cannot_calibrate_is_refused(labels, counts, images, message):
    teacher = tiny_teacher()
    with pytest.raises(ValueError, match=message):
        teacher.calibrate(tiny_data(labels, images), counts, verbose=0)
    assert teacher.classifier is None


def test_data_without_end_cannot_calibrate():
    with pytest.raises(ValueError, match="more than twice the 9 images .* leave out repeat"):
        tiny_teacher().calibrate(tiny_data(GOOD, None).repeat(), [4, 3, 2], verbose=0)


def test_a_generator_calibrates_on_one_view():
    batches = [(images.numpy(), labels.numpy()) for images, labels in tiny_data(GOOD, None)]
    with pytest.raises(ValueError, match="a generator, which can be read once, not 4 times"):
        tiny_teacher().calibrate((batch for batch in batches), [4, 3, 2], verbose=0)
    teacher = tiny_teacher()
    teacher.calibrate((batch for batch in batches), [4, 3, 2], views=1, verbose=0)
    assert teacher.class_counts == [4, 3, 2]
