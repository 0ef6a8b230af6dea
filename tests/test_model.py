"""The training steps against the method's equations, written out here from the raw weights."""

import functools
import json
import os
import subprocess
import sys

import candle_tf
import numpy as np
import pytest
import tensorflow as tf
from candle_tf import AdversarialBalancer, CandleModel, StudentModel, Teacher
from candle_tf.calibration import CrossValidation
from candle_tf.metrics import ShotAccuracy
from candle_tf.mixup import draw_pairs
from candle_tf.networks.keras_internals import iterations
from candle_tf.students import resnet_e
from candle_tf.utils.optimizers import build_optimizer

layers = tf.keras.layers
BASE, TEACHER_SIZE, CLASSES, WIDTH = 16, 24, 4, 8
COUNTS = [120, 60, 30, 6]
RNG = np.random.default_rng(0)
# Images of different colours: pooled features of plain noise would all be the same.
IMAGES = RNG.uniform(0, 255, (8, 1, 1, 3)) * RNG.uniform(0, 1, (8, BASE, BASE, 3))
IMAGES = IMAGES.astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 0])
CROSS_ENTROPY = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def smooth_student(size: int | None = BASE, classes: int = CLASSES):
    """No quantizers, no batch norm: its loss is differentiable wherever a step may go."""
    tf.keras.utils.set_random_seed(1)
    return tf.keras.Sequential(
        [
            tf.keras.Input((size, size, 3)),
            layers.Rescaling(1 / 127.5, -1.0),
            layers.Conv2D(4, 3, 2, "same", activation="tanh"),
            layers.Conv2D(6, 3, 2, "same", activation="sigmoid"),
            layers.GlobalAveragePooling2D(name="features"),
            layers.Dense(classes),
        ]
    )


def make_teacher() -> Teacher:
    """A random encoder whose batch norm would notice a step in training mode."""
    tf.keras.utils.set_random_seed(2)
    encoder = tf.keras.Sequential(
        [
            tf.keras.Input((None, None, 3)),
            layers.Conv2D(WIDTH, 3, 2, activation="relu"),
            layers.BatchNormalization(moving_mean_initializer="random_normal"),
        ]
    )
    teacher = Teacher(encoder, TEACHER_SIZE)
    teacher.classifier = candle_tf.classifiers.linear(WIDTH, CLASSES, seed=3)
    teacher.class_counts = COUNTS
    teacher.cross_validation = CrossValidation(0.3, [0.8, 0.6, 0.4, 0.2], COUNTS)
    return teacher


def make_candle(student=smooth_student, per_sample=False, **kwargs) -> CandleModel:
    if per_sample:
        kwargs["balancer"] = AdversarialBalancer(per_sample=True)
    return CandleModel(make_teacher(), student(), **kwargs)


def sgd(lr: float) -> dict:
    return {
        "optimizer": tf.keras.optimizers.SGD(lr),
        "balancer_optimizer": tf.keras.optimizers.SGD(lr),
    }


def batches(size: int = BASE, count: int = 4) -> tf.data.Dataset:
    images = tf.image.resize(IMAGES, (size, size))
    return tf.data.Dataset.from_tensors((images, LABELS)).repeat(count)


def formula(
    model,
    temperature=2.0,
    fixed=None,
    per_sample=False,
    prior=0.0,
    label_weight=0.0,
    sample_weight=1.0,
    size=BASE,
    mixup=None,
):
    """method.md, section 2, for one batch: {"loss", "kl", "feature", "lambda"}."""

    def scaled(images, side):
        return tf.image.resize(images, (side, side), antialias=True)

    def mixed(values):
        if mixup is None:
            return values
        pairs = draw_pairs(tf.constant(0, tf.int64), 8, mixup, seed=0, per_image=True)
        share = np.reshape(pairs[0], [8] + [1] * (len(values.shape) - 1))
        return share * values + (1 - share) * tf.gather(values, pairs[1])

    def dense(x, kernel, bias):
        return x @ kernel + bias

    g = tf.reduce_mean(model.teacher.encoder(scaled(IMAGES, size * 3 // 2) / 127.5 - 1.0), (1, 2))
    z_t = dense(g, *model.teacher.classifier.weights)
    g = mixed(g)
    *encoder, classifier = model.student.layers
    f = scaled(mixed(IMAGES), size)
    for layer in encoder:
        f = layer(f)
    z_s = classifier(tf.stop_gradient(f) if fixed == 0.0 else f)

    kernel, bias, gamma, beta = model.adapter.trainable_variables
    a = dense(f, kernel, bias)
    mean, variance = tf.nn.moments(a, 0)
    a = (a - mean) / tf.sqrt(variance + 1e-3) * gamma + beta
    a = tf.where(a > 0, a, 0.3 * a)

    p, q = (tf.nn.softmax((z + prior) / temperature) for z in (z_t, z_s))
    p = mixed(p)
    kl = temperature**2 * tf.reduce_sum(p * tf.math.log(p / q), -1)
    cosine = tf.reduce_sum(a * g, -1) / (tf.norm(a, axis=-1) * tf.norm(g, axis=-1))
    feature = 2 - 2 * cosine

    lambda_ = fixed
    if fixed is None:
        read = tf.stop_gradient(tf.stack([kl, feature], -1))
        read = read if per_sample else tf.reduce_mean(read, 0, keepdims=True)
        *hidden, last = zip(model.balancer.weights[::2], model.balancer.weights[1::2])
        for kernel, bias in hidden:
            read = tf.nn.relu(dense(read, kernel, bias))
        lambda_ = tf.nn.softmax(dense(read, *last))[:, 0]

    # At lambda 0 the classifier, cut off from the encoder, still follows the KL.
    total = (1.0 if fixed == 0.0 else lambda_) * kl + (1 - lambda_) * feature
    targets = mixed(
        np.reshape(sample_weight * np.ones(8, np.float32), (8, 1)) * tf.one_hot(LABELS, CLASSES)
    )
    log_likelihood = tf.reduce_sum(targets * tf.nn.log_softmax(z_s), -1)
    total = mixed(sample_weight * np.ones(8, np.float32)) * total - label_weight * log_likelihood
    values = {"loss": total, "kl": kl, "feature": feature, "lambda": lambda_}
    return {name: tf.reduce_mean(value) for name, value in values.items()}


def prior(counts):
    """Returns the class frequencies by effective numbers, from their definition."""
    effective = np.array([sum(0.999**i for i in range(n)) for n in counts])
    return effective / effective.sum()


HALF = np.float32([1, 1, 0, 1, 0, 0, 1, 0])
STEPS = {  # name: (arguments of CandleModel, of compile, what the formula knows of them)
    "adversarial": ({}, {}, {}),
    "per sample": ({"per_sample": True}, {}, {"per_sample": True}),
    "fixed": ({"balancer": 0.3}, {}, {"fixed": 0.3}),
    "kl only": ({"balancer": 1.0}, {}, {"fixed": 1.0}),
    "feature only": ({"balancer": 0.0}, {}, {"fixed": 0.0}),
    "temperature": ({"temperature": 4.0}, {}, {"temperature": 4.0}),
    "prior": ({"prior_adjusted": True}, {}, {"prior": np.log(prior(COUNTS)).astype(np.float32)}),
    "label": ({}, {"loss": CROSS_ENTROPY}, {"label_weight": 2.0}),  # by the teacher's 50 %
    "weighted label": ({"label_weight": 0.3}, {"loss": CROSS_ENTROPY}, {"label_weight": 0.3}),
    "sample weights": ({}, {"loss": CROSS_ENTROPY}, {"sample_weight": HALF, "label_weight": 2.0}),
    "mixed": ({"mixup": 1.0}, {}, {"mixup": 1.0}),
    "mixed label": (
        {"mixup": 1.0, "label_weight": 0.3},
        {"loss": CROSS_ENTROPY},
        {"mixup": 1.0, "label_weight": 0.3, "sample_weight": HALF},
    ),
    "weights of 2": ({"balancer": 0.3}, {}, {"fixed": 0.3, "sample_weight": np.full(8, 2.0, "f")}),
    "small size": ({"resolutions": (12, 16, 20), "seed": 1}, {}, {"size": 12}),
    "large size": ({"resolutions": (12, 16, 20), "seed": 7}, {}, {"size": 20}),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_follows_the_formula(name):
    arguments, compiled, known = STEPS[name]
    model = make_candle(**arguments)
    model.compile(**sgd(1.0), **compiled, run_eagerly=True)
    descending = model.student.trainable_variables + model.adapter.trainable_variables
    ascending = [] if "fixed" in known else model.balancer.trainable_variables
    assert len(descending) == 10 and len(ascending) in (0, 10)
    with tf.GradientTape() as tape:
        expected = formula(model, **known)
    gradients = tape.gradient(expected["loss"], descending + ascending)
    before = [variable.numpy() for variable in descending + ascending]

    weight = known.get("sample_weight")
    logs = model.train_on_batch(IMAGES, LABELS, weight, return_dict=True)
    for key, value in expected.items():
        np.testing.assert_allclose(logs[key], value, rtol=1e-4, err_msg=key)
    assert logs["resolution"] == known.get("size", BASE)
    signs = [-1.0] * len(descending) + [1.0] * len(ascending)
    for variable, old, gradient, sign in zip(descending + ascending, before, gradients, signs):
        np.testing.assert_allclose(
            variable - old, sign * gradient, rtol=1e-3, atol=1e-5, err_msg=variable.name
        )


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_student_descends_and_the_balancer_ascends(per_sample):
    model = make_candle(per_sample=per_sample)
    model.compile(**sgd(1e-2), run_eagerly=True)
    ascending = model.balancer.trainable_variables
    descending = model.student.trainable_variables + model.adapter.trainable_variables

    def loss_at(**values):
        for variables, numbers in (
            (descending, values["descending"]),
            (ascending, values["ascending"]),
        ):
            for variable, number in zip(variables, numbers):
                variable.assign(number)
        return float(formula(model, per_sample=per_sample)["loss"])

    descending0, ascending0 = [v.numpy() for v in descending], [v.numpy() for v in ascending]
    model.train_on_batch(IMAGES, LABELS)
    descending1, ascending1 = [v.numpy() for v in descending], [v.numpy() for v in ascending]
    start = loss_at(descending=descending0, ascending=ascending0)
    assert loss_at(descending=descending1, ascending=ascending0) < start - 1e-5
    assert loss_at(descending=descending0, ascending=ascending1) > start + 1e-5


@pytest.mark.parametrize("fixed, moved", [(0.0, "feature"), (1.0, "kl")])
def test_one_term_alone_trains_the_encoder(fixed, moved):
    model = make_candle(balancer=fixed)
    model.compile(**sgd(1.0), run_eagerly=True)
    *encoder, kernel, bias = model.student.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        terms = formula(model, fixed=0.5)
    alone = tape.gradient(terms[moved], encoder)
    by_kl = tape.gradient(terms["kl"], [kernel, bias])
    before = [v.numpy() for v in (*encoder, kernel, bias)]
    model.train_on_batch(IMAGES, LABELS)
    for variable, old, gradient in zip((*encoder, kernel, bias), before, alone + by_kl):
        assert np.abs(gradient).max() > 1e-4, "no gradient: this test proves nothing"
        np.testing.assert_allclose(old - variable, gradient, rtol=1e-3, atol=1e-5)


def test_a_weight_of_zero_leaves_examples_out():
    """Of the student alone: CANDLE's adapter and lambda still read the whole batch."""
    kept = HALF > 0
    weights = []
    for images, labels, weight in [
        (IMAGES, LABELS, HALF),
        (IMAGES[kept], LABELS[kept], np.full(4, 0.5, np.float32)),  # a mean over 8, not over 4
    ]:
        model = StudentModel(smooth_student())
        model.compile(tf.keras.optimizers.SGD(1.0), run_eagerly=True)
        model.train_on_batch(images, labels, weight)
        weights.append(model.student.get_weights())
    for with_zeros, without in zip(*weights):
        np.testing.assert_allclose(with_zeros, without, atol=1e-6)


def test_the_student_alone_descends_on_the_cross_entropy(assert_descends):
    model = StudentModel(smooth_student(), resolutions=(12, 16, 20), seed=7)
    model.compile(tf.keras.optimizers.SGD(1.0), run_eagerly=True)
    with tf.GradientTape() as tape:
        x = tf.image.resize(IMAGES, (20, 20))
        for layer in model.student.layers:
            x = layer(x)
        loss = -tf.reduce_mean(tf.gather(tf.nn.log_softmax(x), LABELS, batch_dims=1))
    gradients = tape.gradient(loss, model.student.trainable_variables)
    assert_descends(model, IMAGES, LABELS, loss, gradients)


def test_the_default_optimizers():
    model = make_candle()
    model.compile()
    assert isinstance(model.balancer_optimizer, tf.keras.optimizers.Adam)
    np.testing.assert_allclose(model.balancer_optimizer.learning_rate, 1e-3)
    assert model.balancer_optimizer is not model.optimizer
    assert not model.has_label_term


def test_resolutions_neither_retrace_nor_touch_the_teacher():
    model = make_candle(lambda: smooth_student(32), resolutions=(24, 32, 40))
    model.compile(**sgd(1e-2))
    teacher = [w.copy() for w in model.teacher.get_weights()]
    assert not model.teacher.trainable_variables
    sizes = model.fit(batches(40, 1).repeat(), epochs=12, steps_per_epoch=1, verbose=0)
    sizes = sizes.history["resolution"]
    draws = [int(model.resolution.draw(tf.constant(step, tf.int64))) for step in range(12)]
    assert sizes == draws and set(sizes) == {24, 32, 40}
    # Keras wraps the step in a function that it traces once, and once more to create variables.
    traces = model.train_tf_function.experimental_get_tracing_count()
    assert traces == 1
    for before, after in zip(teacher, model.teacher.get_weights()):
        np.testing.assert_array_equal(before, after)


@pytest.mark.long
@pytest.mark.parametrize("how", [{"steps_per_execution": 4}, {"run_eagerly": True}])
def test_every_way_to_run_gives_the_same_losses(how, graph_history):
    model = make_candle(resolutions=(12, 16, 20))
    model.compile(**sgd(0.1), **how)
    history = model.fit(batches(20, 8), epochs=2, verbose=0).history
    assert history.keys() == graph_history.keys()
    for name in history:
        np.testing.assert_allclose(history[name], graph_history[name], rtol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def graph_history():
    model = make_candle(resolutions=(12, 16, 20))
    model.compile(**sgd(0.1))
    return model.fit(batches(20, 8), epochs=2, verbose=0).history


@pytest.mark.long
def test_fit_with_validation_metrics_and_callbacks(tmp_path):
    model = make_candle()
    model.compile("adam", metrics=["accuracy", ShotAccuracy(COUNTS)])
    checkpoint = tf.keras.callbacks.ModelCheckpoint
    callbacks = [
        tf.keras.callbacks.EarlyStopping("kl", min_delta=1e9, patience=1),
        checkpoint(f"{tmp_path}/{{epoch}}.weights.h5", save_weights_only=True),
        checkpoint(f"{tmp_path}/best.keras", "val_accuracy", save_best_only=True),
    ]
    history = model.fit(
        batches(), epochs=9, validation_data=batches(count=1), callbacks=callbacks, verbose=0
    ).history
    assert len(history["loss"]) == 2, "EarlyStopping did not stop"
    evaluated = {"loss", "accuracy", "many", "medium", "few"}
    own = {"kl", "feature", "lambda", "resolution"}
    assert set(history) == evaluated | own | {f"val_{name}" for name in evaluated}

    results = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    logits = model.student(IMAGES).numpy().astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    hits = logits.argmax(-1) == LABELS
    expected = {
        "loss": -log_p[np.arange(8), LABELS].mean(),
        "accuracy": hits.mean(),
        "many": hits[LABELS == 0].mean(),
        "medium": (hits[LABELS == 1].mean() + hits[LABELS == 2].mean()) / 2,
        "few": hits[LABELS == 3].mean(),
    }
    assert results == pytest.approx(expected, rel=1e-5)
    assert history["val_loss"][-1] == pytest.approx(expected["loss"], rel=1e-5)

    fresh = make_candle()
    fresh.load_weights(tmp_path / "2.weights.h5")
    whole = tf.keras.models.load_model(tmp_path / "best.keras")
    best = 1 + int(np.argmax(history["val_accuracy"]))
    np.testing.assert_array_equal(fresh.predict(IMAGES, verbose=0), logits.astype(np.float32))
    fresh.load_weights(tmp_path / f"{best}.weights.h5")
    np.testing.assert_array_equal(
        whole.predict(IMAGES, verbose=0), fresh.predict(IMAGES, verbose=0)
    )


def test_predict_is_the_student_at_its_base_size():
    model = make_candle(resolutions=(12, 16, 20))
    images = np.random.default_rng(1).uniform(0, 255, (3, 30, 26, 3)).astype(np.float32)
    expected = model.student(tf.image.resize(images, (BASE, BASE), antialias=True))
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ""])
def test_weights_in_every_format(suffix, tmp_path):
    trained = make_candle()
    trained.compile(**sgd(0.5), run_eagerly=True)
    trained.train_on_batch(IMAGES, LABELS)
    path = str(tmp_path / f"weights{suffix}")
    trained.save_weights(path)
    other = make_candle()
    assert not np.allclose(trained.predict(IMAGES, verbose=0), other.predict(IMAGES, verbose=0))
    other.load_weights(path)
    for name in ("student", "adapter", "balancer", "teacher"):
        ours, theirs = (getattr(m, name).get_weights() for m in (trained, other))
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs):
            np.testing.assert_array_equal(a, b, err_msg=name)


def binary_student():
    tf.keras.utils.set_random_seed(1)
    return resnet_e(CLASSES, BASE, width=0.125)


SAVED = {
    "candle": (make_candle, {}),
    "label term": (lambda: make_candle(label_weight=0.5), {"loss": CROSS_ENTROPY}),
    "per sample": (lambda: make_candle(per_sample=True), {}),
    "fixed": (lambda: make_candle(balancer=0.25, prior_adjusted=True, temperature=3.0), {}),
    "resolutions": (lambda: make_candle(resolutions=(12, 16, 20), seed=4), {}),
    "binary": (lambda: make_candle(binary_student), {}),
    "student": (lambda: StudentModel(smooth_student(), resolutions=(12, 16, 20), seed=4), {}),
    "balanced softmax": (
        lambda: StudentModel(binary_student()),
        {"loss": candle_tf.losses.BalancedSoftmax(COUNTS)},
    ),
}


IN_SHORT = {"label term", "per sample", "resolutions", "balanced softmax"}


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [n if n in IN_SHORT else pytest.param(n, marks=pytest.mark.slow) for n in SAVED]
)
def test_a_saved_model_goes_on_as_if_never_saved(name, tmp_path):
    make, compiled = SAVED[name]
    model = make()
    model.compile("adam", metrics=["accuracy"], run_eagerly=True, **compiled)
    for _ in range(2):
        model.train_on_batch(IMAGES, LABELS)
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert getattr(loaded, "has_label_term", None) == getattr(model, "has_label_term", None)
    np.testing.assert_array_equal(
        loaded.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0)
    )
    logs = [m.train_on_batch(IMAGES, LABELS, return_dict=True) for m in (model, loaded)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)
    for ours, theirs in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fixed", [None, 0.25])
def test_config_rebuilds_the_model(fixed):
    balancer = fixed or AdversarialBalancer(True, hidden=(3, 5), seed=7)
    arguments = {"temperature": 3.0, "prior_adjusted": True, "label_weight": 0.5, "seed": 6}
    model = make_candle(balancer=balancer, resolutions=(12, 16, 20), **arguments)
    rebuilt = CandleModel.from_config(json.loads(json.dumps(model.get_config())))
    for name in (*arguments, "resolutions", "image_size"):
        assert list(np.ravel(rebuilt.get_config()[name])) == list(
            np.ravel(model.get_config()[name])
        )
    assert rebuilt.fixed_lambda == fixed
    if fixed is None:
        assert rebuilt.balancer.per_sample and rebuilt.balancer.hidden == (3, 5)
    assert rebuilt.teacher.class_counts == COUNTS
    rebuilt.set_weights(model.get_weights())
    np.testing.assert_array_equal(rebuilt(IMAGES), model(IMAGES))


TWINS = np.concatenate([IMAGES[:4], IMAGES[:4]]), np.concatenate([LABELS[:4], LABELS[:4]])
REPLICATED = {  # the adapter normalises each replica alone: equal halves, or no feature term
    "adversarial": (lambda: make_candle(resolutions=(12, 16, 20), seed=1), {}, TWINS),
    "kl only": (lambda: make_candle(balancer=1.0), {}, (IMAGES, LABELS)),
    "label term": (lambda: make_candle(balancer=1.0), {"loss": CROSS_ENTROPY}, (IMAGES, LABELS)),
    "student": (lambda: StudentModel(smooth_student()), {}, (IMAGES, LABELS)),
}


def train_on_one_and_two_replicas(directory):
    """Run in a process of its own: the CPU is split before TensorFlow starts."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert two.num_replicas_in_sync == 2
    for name, (make, compiled, batch) in REPLICATED.items():
        for replicas, strategy in ((1, tf.distribute.get_strategy()), (2, two)):
            with strategy.scope():
                model = make()
                optimizers = (
                    sgd(1.0)
                    if isinstance(model, CandleModel)
                    else {"optimizer": sgd(1.0)["optimizer"]}
                )
                model.compile(**optimizers, **compiled, run_eagerly=replicas == 1)
            dataset = tf.data.Dataset.from_tensor_slices(batch).batch(8)
            history = model.fit(dataset, verbose=0).history
            trained = model.descending_variables() + (
                model.ascending_variables() if isinstance(model, CandleModel) else []
            )
            values = {f"variable {i}": v.numpy() for i, v in enumerate(trained)}
            values |= {key: value[0] for key, value in history.items()}
            np.savez(os.path.join(directory, f"{name} {replicas}.npz"), **values)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    directory = tmp_path_factory.mktemp("replicated")
    code = "import sys, test_model; test_model.train_on_one_and_two_replicas(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, directory],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.long
@pytest.mark.parametrize("name", REPLICATED)
def test_two_replicas_step_like_one(name, replicated):
    one, two = (np.load(replicated / f"{name} {replicas}.npz") for replicas in (1, 2))
    assert sorted(one) == sorted(two) and len(one) > 6
    for key in set(one) - (set() if name == "adversarial" else {"feature"}):
        np.testing.assert_allclose(two[key], one[key], rtol=1e-5, atol=1e-5, err_msg=key)


def uncalibrated():
    teacher = make_teacher()
    teacher.classifier = None
    return teacher


def without_features():
    return tf.keras.Sequential([tf.keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(4)])


PROBABILITIES = "expects probabilities, and the student returns logits"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CandleModel(uncalibrated(), smooth_student()), "not calibrated: call teacher.cal"),
        (lambda: make_candle(lambda: smooth_student(classes=7)), "for 4 classes .* student has 7"),
        (lambda: make_candle(without_features), "no layer named 'features'"),
        (lambda: StudentModel(without_features()), "no layer named 'features'"),
        (lambda: make_candle(resolutions=(3, 16, 20)), "Resolution 3 is smaller .*4-fold"),
        (lambda: make_candle(resolutions=(16, 20)), r"resolutions \(16, 20\) cannot cost the same"),
        (lambda: make_candle(resolutions=(20,)), r"resolutions \(20,\) cannot cost the same"),
        (lambda: make_candle(resolutions=(0, 16, 20)), "positive"),
        (lambda: make_candle(balancer=1.5), r"\[0, 1\], not 1.5"),
        (lambda: make_candle(balancer=-0.1), r"\[0, 1\], not -0.1"),
        (lambda: make_candle(lambda: smooth_student(None)), "give image_size"),
        (lambda: StudentModel(smooth_student(None)), "give image_size"),
        (lambda: StudentModel(smooth_student(), image_size=32), "is 32, but .* images of 16 pix"),
        (lambda: make_candle(balancer=AdversarialBalancer), r"give an AdversarialBalancer\(\) or"),
        (lambda: make_candle(balancer="kl"), "balancer is 'kl'"),
        (lambda: make_candle(temperature=0.0), "temperature is 0.0 but must be above 0"),
        (lambda: make_candle(label_weight=-1.0), "label_weight is -1.0 but must be at least 0"),
        (lambda: make_candle(label_weight=5.0).compile(), "label_weight is 5 but compile has no"),
        *[
            (lambda loss=loss: make_candle().compile(loss=loss), PROBABILITIES)
            for loss in (
                "sparse_categorical_crossentropy",
                tf.keras.losses.SparseCategoricalCrossentropy(),
                tf.keras.losses.sparse_categorical_crossentropy,
                ["sparse_categorical_crossentropy"],
                {"logits": tf.keras.losses.SparseCategoricalCrossentropy()},
            )
        ],
        (lambda: make_candle().save("model"), "model does not end in .keras: `save` writes"),
        (lambda: StudentModel(smooth_student()).save("model.h5"), "model.h5 does not end in .kera"),
        (lambda: make_teacher().save("teacher"), "teacher does not end in .keras"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_student_of_any_size_takes_its_base_from_image_size():
    model = make_candle(lambda: smooth_student(None), image_size=BASE)
    images = tf.image.resize(IMAGES, (30, 30))
    expected = model.student(tf.image.resize(images, (BASE, BASE), antialias=True))
    np.testing.assert_allclose(model(images), expected, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("make", [make_candle, lambda: StudentModel(smooth_student())])
def test_keras_habits(make, tmp_path):
    """Positional metrics, a loss without a config, averaged weights, a summary before any call."""
    model = make()
    model.summary(print_fn=lambda line: None)
    model.save_weights(tmp_path / "fresh.weights.h5")
    loss = functools.partial(tf.keras.losses.sparse_categorical_crossentropy, from_logits=True)
    model.compile(tf.keras.optimizers.Adam(use_ema=True), loss, ["accuracy"])
    assert "accuracy" in model.fit(batches(), verbose=0).history
    make().load_weights(tmp_path / "fresh.weights.h5")


def candle_at(policy: str) -> CandleModel:
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        return make_candle()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def test_a_linear_adapter_is_the_same_without_the_leaky_relu():
    bent, linear = make_candle(), make_candle(linear_adapter=True)
    features = np.random.default_rng(0).normal(size=(6, bent.adapter.input_shape[1]))
    expected, found = bent.adapter(features).numpy(), linear.adapter(features).numpy()
    np.testing.assert_allclose(expected, np.where(found > 0, found, 0.3 * found), rtol=1e-6)
    assert (found < 0).any()
    again = CandleModel.from_config(linear.get_config())
    assert again.adapter.count_params() == linear.adapter.count_params()
    assert [type(x) for x in again.adapter.layers] == [type(x) for x in linear.adapter.layers]


@pytest.mark.long
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_step_in_half_precision_is_that_in_float32_but_for_rounding(half):
    logs = []
    for policy in ("float32", f"mixed_{half}"):
        model = candle_at(policy)
        optimizers = sgd(0.1)
        if half == "float16":  # at Keras' own scale the first steps would overflow
            scaled = tf.keras.mixed_precision.LossScaleOptimizer
            optimizers["optimizer"] = scaled(optimizers["optimizer"], initial_scale=2.0**8)
        model.compile(**optimizers)
        logs.append(model.fit(batches(), verbose=0).history)
    assert model.adapter.compute_dtype == half != model.balancer.compute_dtype
    for name in logs[0]:
        np.testing.assert_allclose(logs[1][name], logs[0][name], rtol=0.05, err_msg=name)
    assert logs[0]["kl"] != logs[1]["kl"]


@pytest.mark.long
def test_updates_are_counted_where_the_innermost_optimizer_does():
    scaled = tf.keras.mixed_precision.LossScaleOptimizer
    for optimizer in (build_optimizer("adam", 0.1), build_optimizer("bop", 0.1)):
        model = StudentModel(resnet_e(CLASSES, BASE, width=0.125))
        model.compile(scaled(optimizer), CROSS_ENTROPY)
        model.fit(batches(count=3), verbose=0)
        assert int(iterations(model.optimizer)) == 3


@pytest.mark.long
@pytest.mark.parametrize("scale, steps", [(2.0**8, True), (2.0**100, False)])
def test_where_the_scaled_loss_overflows_neither_side_steps(scale, steps):
    model = candle_at("mixed_float16")
    scaled = functools.partial(tf.keras.mixed_precision.LossScaleOptimizer, initial_scale=scale)
    optimizers = sgd(0.1)
    model.compile(**{**optimizers, "optimizer": scaled(optimizers["optimizer"])})
    before = [
        [v.numpy() for v in side()]
        for side in (model.descending_variables, model.ascending_variables)
    ]
    model.fit(batches(count=1), verbose=0)
    for old, side in zip(before, (model.descending_variables, model.ascending_variables)):
        changed = [not np.array_equal(a, b.numpy()) for a, b in zip(old, side())]
        assert any(changed) if steps else not any(changed)
    assert float(model.optimizer.loss_scale) == (scale if steps else scale / 2)


def test_a_students_regularizers_count_once():
    def regularized():
        student = smooth_student()
        student.layers[1].kernel_regularizer = tf.keras.regularizers.L2(0.1)
        return tf.keras.models.clone_model(student)

    losses = []
    for build in (smooth_student, regularized):
        model = CandleModel(make_teacher(), build())
        model.student.set_weights(smooth_student().get_weights())
        model.compile(**sgd(0.0))
        losses.append(model.fit(batches(count=1), verbose=0).history["loss"][0])
    kernel = smooth_student().layers[1].kernel.numpy()
    np.testing.assert_allclose(losses[1] - losses[0], 0.1 * np.sum(kernel**2), rtol=1e-4)


def test_the_label_weight_follows_the_teacher_at_each_compile():
    model = make_candle()
    weights = []
    for accuracy in (0.6, 0.9):
        model.teacher.cross_validation = CrossValidation(0.3, [accuracy] * CLASSES, COUNTS)
        model.compile(loss=CROSS_ENTROPY)
        weights.append(model.weight_of_labels)
    np.testing.assert_allclose(weights, [0.4 / 0.35, 0.1 / 0.65])
    assert model.get_config()["label_weight"] is None


@pytest.mark.parametrize("loss", [None, CROSS_ENTROPY])
def test_the_values_of_a_batch_have_their_names_the_loss_first(loss):
    model = make_candle()
    model.compile("sgd", loss, ["accuracy"])
    values = model.train_on_batch(IMAGES, LABELS)
    named = dict(zip(model.metrics_names, values))
    assert model.metrics_names[0] == "loss" and len(named) == len(values)
    assert named["resolution"] == BASE and named["accuracy"] in np.arange(9) / 8
    kl, feature, lambda_ = (named[name] for name in ("kl", "feature", "lambda"))
    objective = lambda_ * kl + (1 - lambda_) * feature
    assert (named["loss"] > objective) if loss else named["loss"] == pytest.approx(objective)


def test_the_prior_is_that_of_the_calibration_at_compile():
    model = make_candle(prior_adjusted=True)
    kernel, bias = model.teacher.classifier.get_weights()
    model.teacher.set_classifier(kernel, bias, CrossValidation(0.3, [0.5] * 4, COUNTS[::-1]))
    model.compile("sgd")
    np.testing.assert_allclose(tf.exp(model.log_prior), prior(COUNTS[::-1]), rtol=1e-6)


def test_a_first_batch_of_one_image_moves_the_adapter_a_little():
    """Batch norm of one image gives 0, where the derivative of the norm has a pole."""
    model = make_candle(balancer=0.5)
    model.compile(tf.keras.optimizers.SGD(1e-2))
    before = [v.numpy() for v in model.adapter.trainable_variables]
    model.train_on_batch(IMAGES[:1], LABELS[:1])
    for old, new in zip(before, model.adapter.trainable_variables):
        assert np.abs(new - old).max() < 10.0


def test_logits_of_a_student_in_half_precision_are_evaluated_in_float32():
    images = tf.keras.Input((BASE, BASE, 3))
    pooled = layers.GlobalAveragePooling2D(name="features", dtype="float16")(images)
    student = tf.keras.Model(images, layers.Dense(CLASSES, dtype="float16")(pooled))
    assert StudentModel(student)(IMAGES).dtype == tf.float32
