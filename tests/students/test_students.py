"""Every student: distilled for a few updates, saved and reloaded, exported."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import CandleModel, StudentModel, Teacher, students
from candle_tf.export.loaded import Exported
from candle_tf.networks.pretrained import zoo_networks
from candle_tf.networks.safe_load import load_model
from candle_tf.networks.surgery import any_size, renewed
from candle_tf.runs.build import LETTERS, computing_in

OURS = {"resnet_e": (32, {}), "reactnet_a": (32, {"width": 0.125}), "mobilenet_v2": (32, {})}
LARGER = {
    **dict.fromkeys(("BinaryAlexNet", "DoReFaNet"), 64),
    **dict.fromkeys(("BiRealNet", "MeliusNet22", "RealToBinaryNet"), 96),
    "XNORNet": 224,
}
ZOO = {f"larq_zoo:{name}": (LARGER.get(name, 32), {}) for name in zoo_networks()}
ANIMALS = range(2, 8)  # of CIFAR-10's classes
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("reactnet_a", *ZOO)]
# What Larq Compute Engine cannot pack, and how it is refused.
STAYS_REAL = {
    "larq_zoo:BinaryAlexNet": "has a real-valued input",
    "larq_zoo:DoReFaNet": "has a 2-bit input",
    "larq_zoo:XNORNet": "keeps layer 'quant_conv2d.*' real-valued",
}


def distilled(name: str, images, labels) -> CandleModel:
    """The student after some updates beside a small calibrated teacher."""
    size, arguments = {**OURS, **ZOO}[name]
    teacher = Teacher.from_file(LETTERS, 32)
    teacher.calibrate(
        tf.data.Dataset.from_tensor_slices((images, labels)).batch(50),
        np.bincount(labels, minlength=10),
        views=1,
        verbose=0,
    )
    model = CandleModel(
        teacher, students.create(name, num_classes=10, image_size=size, **arguments)
    )
    model.compile(tf.keras.optimizers.Adam(1e-3), metrics=["accuracy"])
    history = model.fit(images.astype(np.float32), labels, batch_size=16, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    return model


def fit_until_sure(student: tf.keras.Model, images, labels):
    """Fits the images themselves: where classes lie near each other, rounding decides."""
    model = StudentModel(student)
    model.compile(tf.keras.optimizers.Adam(1e-3), metrics=["accuracy"])
    for _ in range(15):
        model.fit(images, labels, batch_size=50, verbose=0)
        if model.evaluate(images, labels, verbose=0)[1] > 0.9:
            return


def test_mobilenet_v2_has_the_batch_norm_momentum_of_the_other_students():
    for momentum in (0.9, 0.99):
        made = students.mobilenet_v2(10, 32, alpha=0.1, norm_momentum=momentum)
        for network in (made, renewed(made)):
            norms = [x for x in network.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
            assert len(norms) == 52 and {norm.momentum for norm in norms} == {momentum}


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet_e", *SLOW])
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_every_student_trains_saves_and_exports(name, cifar10, tmp_path):
    images, labels = cifar10("test[:1000]")
    pixels = images.astype(np.float32)
    model = distilled(name, images[:64], labels[:64])
    if name not in STAYS_REAL:
        fit_until_sure(model.student, pixels, np.isin(labels, ANIMALS).astype(int))
    probabilities = tf.nn.softmax(model.predict(pixels, verbose=0)).numpy()

    model.student.save(tmp_path / "student.keras")
    again = load_model(tmp_path / "student.keras")
    batch = tf.image.resize(tf.cast(images[:8], tf.float32), again.input_shape[1:3])
    np.testing.assert_allclose(tf.nn.softmax(again(batch)), probabilities[:8], atol=1e-4)

    # Where a value is at 0, rounding decides its sign: now and then an image differs.
    model.export(tmp_path / "saved_model")
    served = Exported(tmp_path / "saved_model").predict(images)
    assert_same_function(served, probabilities)

    binary = tmp_path / "student.tflite"
    if name in STAYS_REAL:
        with pytest.raises(ValueError, match=STAYS_REAL[name]):
            model.export(binary, format="lce")
        return
    model.export(binary, format="lce")
    difference = assert_same_function(Exported(binary).predict(images), probabilities)
    print(f"{name}: equal; largest probability difference {difference:.1e}")


def assert_same_function(exported, probabilities) -> float:
    """Of 1,000 images, 999 of one class and most without a difference; returns the largest."""
    difference = np.abs(exported - probabilities).max(axis=-1)
    assert np.sum(exported.argmax(-1) == probabilities.argmax(-1)) >= 999
    assert np.median(difference) < 1e-5
    return difference.max()


def test_zoo_students_take_the_same_arguments_as_ours():
    parameters = [
        list(inspect.signature(make).parameters)[:2] for make in students.STUDENTS.values()
    ]
    zoo = list(inspect.signature(students.larq_zoo).parameters)[1:3]
    assert parameters == [zoo] * len(OURS) == [["num_classes", "image_size"]] * len(OURS)


def test_a_student_is_created_by_the_grammar_of_the_command_line():
    written = students.create("resnet_e:width=0.25,blocks=(2,1)", num_classes=7, image_size=40)
    given = students.create("resnet_e", num_classes=7, image_size=40, width=0.25, blocks=(2, 1))
    assert [layer.name.rstrip("_0123456789") for layer in written.layers] == [
        layer.name.rstrip("_0123456789") for layer in given.layers
    ]
    assert written.input_shape == (None, 40, 40, 3) and written.output_shape == (None, 7)
    assert students.create("resnet_e", num_classes=7).input_shape[1] == 32


def test_every_name_is_listed():
    assert students.list() == [*OURS, *ZOO]


@pytest.fixture(scope="module")
def quicknet():
    return students.create("larq_zoo:QuickNetSmall", num_classes=7, image_size=64)


def test_a_zoo_student_is_flat_and_scales_raw_pixels_as_larq_zoo_does(quicknet):
    assert not any(isinstance(layer, tf.keras.Model) for layer in quicknet.layers)
    assert quicknet.output_shape == (None, 7)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    scaled = tf.keras.Model(quicknet.input, quicknet.layers[1].output)(pixels)
    expected = tf.keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode="torch")
    np.testing.assert_allclose(scaled, expected, atol=1e-4)


@pytest.mark.long
def test_a_zoo_student_computes_what_larq_zoo_does(quicknet):
    """With its own classifier, on the network that larq-zoo builds with its top."""
    original = zoo_networks()["QuickNetSmall"](weights=None, input_shape=(64, 64, 3), num_classes=7)
    original.set_weights(quicknet.get_weights())
    x = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    scaled = tf.keras.applications.imagenet_utils.preprocess_input(x.copy(), mode="torch")
    np.testing.assert_allclose(tf.nn.softmax(quicknet(x)), original(scaled), atol=1e-5)


@pytest.mark.long
def test_a_zoo_student_takes_pixels_and_gives_logits_in_float32_at_any_precision():
    with computing_in("mixed_bfloat16"):
        student = students.create("larq_zoo:QuickNetSmall", num_classes=7, image_size=64)
    first, last = student.layers[1], student.layers[-1]
    assert first.compute_dtype == last.compute_dtype == student.output.dtype == "float32"
    assert {layer.compute_dtype for layer in student.layers} == {"float32", "bfloat16"}


@pytest.mark.long
def test_a_zoo_student_works_at_other_sizes(quicknet):
    assert any_size(quicknet)(tf.zeros((1, 96, 80, 3))).shape == (1, 7)


@pytest.mark.long
def test_a_zoo_student_starts_from_a_weights_file(quicknet, tmp_path):
    network = zoo_networks()["QuickNetSmall"](weights=None, include_top=False)
    network.save_weights(tmp_path / "weights.h5")
    student = students.larq_zoo("QuickNetSmall", 7, 64, weights=str(tmp_path / "weights.h5"))
    for mine, original in zip(student.get_weights(), network.get_weights()):
        np.testing.assert_array_equal(mine, original)


@pytest.mark.parametrize(
    "name, arguments, error, message",
    [
        ("resnet", {}, ValueError, "did you mean 'resnet_e'"),
        ("QuickNet", {}, ValueError, "did you mean 'larq_zoo:QuickNet'"),
        ("larq_zoo:BiRealNets", {}, ValueError, "did you mean 'larq_zoo:BiRealNet'"),
        ("larq_zoo:XNORNet", {"image_size": 32}, ValueError, "cannot work at 32 pixels"),
        ("resnet_e", {"widht": 2}, TypeError, "unexpected keyword argument 'widht'"),
        ("resnet_e:image_size=32", {}, ValueError, "image_size is given beside"),
        ("resnet_e", {"halvings": 0}, ValueError, "halvings is 0 but must be"),
        ("resnet_e", {"halvings": 7}, ValueError, "leaves a pixel of 64"),
        ("resnet_e:0.5", {}, ValueError, "an argument without a name"),
        ("larq_zoo:QuickNet", {"weights": "no.h5"}, FileNotFoundError, "Weights no.h5"),
    ],
)
def test_a_mistake_is_named(name, arguments, error, message):
    with pytest.raises(error, match=message):
        students.create(name, num_classes=10, **{"image_size": 64, **arguments})
