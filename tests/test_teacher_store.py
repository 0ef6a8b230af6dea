import subprocess
import sys

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf import losses
from candle_tf.data import SAMPLERS, Augmentation, Examples
from candle_tf.data.views import take_views
from candle_tf.teacher_store import (
    ViewTurns,
    drawn_sizes,
    nth_view,
    occurrence,
    view_sizes,
)
from candle_tf.utils.files import checksums, locked

LABELS = np.repeat([0, 1, 2], [12, 6, 2])
SIZES = (12, 16, 20)
PAD = Augmentation("pad")


@pytest.fixture(scope="module")
def examples() -> Examples:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    return Examples(tf.constant(pixels), LABELS)


def teacher_of(seed: int = 0) -> ct.Teacher:
    tf.keras.utils.set_random_seed(seed)
    images = tf.keras.Input((None, None, 3))
    maps = tf.keras.layers.Conv2D(5, 3, strides=2, padding="same", activation="relu")(images)
    teacher = ct.Teacher(tf.keras.Model(images, maps), 24)
    teacher.classifier = ct.classifiers.linear(5, 3, seed)
    teacher.class_counts = [12, 6, 2]
    return teacher


def student() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(3)
    images = tf.keras.Input((16, 16, 3))
    x = tf.keras.layers.Conv2D(4, 3, strides=2)(images / 255.0)
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    return tf.keras.Model(images, tf.keras.layers.Dense(3, name="logits")(x))


def model(seed: int = 0, resolutions=None, **kwargs) -> ct.CandleModel:
    made = ct.CandleModel(teacher_of(seed), student(), resolutions=resolutions, **kwargs)
    made.compile(tf.keras.optimizers.SGD(0.1), metrics=["accuracy"])
    return made


def store_of(directory, examples, distilled=None, views=4, how=PAD, **kwargs):
    how = {"views": views, "augmentation": how, **kwargs}
    return ct.TeacherStore(directory, distilled or model(), examples, image_size=20, **how)


HOW = {
    "pad": PAD,
    "photographs": Augmentation("resized", color_jitter=0.4),
}


@pytest.mark.long
@pytest.mark.parametrize("how", HOW)
def test_a_batch_brings_what_the_teacher_says_of_its_images(tmp_path, examples, how):
    distilled = model(resolutions=SIZES)
    store = store_of(tmp_path, examples, distilled, 7, HOW[how])
    store.complete(6, verbose=0)
    batches = store.training_batches(8, num_examples=80, sampler="class_balanced")
    drawn = distilled.resolution.draws(10)
    for step, (x, labels) in enumerate(batches):
        size = int(x["size"][0])
        assert (x["size"].numpy() == size).all() and size == drawn[step]
        features, logits = distilled.teacher(x["images"], distilled.teacher_size(size))
        np.testing.assert_allclose(x["features"], features, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(x["logits"], logits, atol=1e-4)
        assert len(labels) == 8
    assert step == 9


@pytest.mark.parametrize("crop, side", [("pad", 40), ("resized", 20)])
def test_training_batches_have_only_the_pixels_that_the_student_needs(
    tmp_path, examples, crop, side
):
    how, distilled = Augmentation(crop, color_jitter=0.4), model(resolutions=SIZES)
    smooth = tf.image.resize(examples.images[:, ::4, ::4], (16, 16))
    examples = Examples(tf.cast(smooth, tf.uint8), LABELS)
    store = ct.TeacherStore(tmp_path, distilled, examples, image_size=40, views=7, augmentation=how)
    store.complete(verbose=0)
    x, _ = next(iter(store.training_batches(8)))
    assert x["images"].shape == (8, side, side, 3)
    records = store.records()
    place = [int(np.flatnonzero((records["logits"] == z).all(1))[0]) for z in x["logits"].numpy()]
    shown = {
        "index": np.array(place) % 20,
        **{n: records[n][place] for n in ("crop", "flip", "color")},
    }
    views = tf.data.Dataset.from_tensor_slices(shown)
    _, large = next(iter(take_views(views, examples, 40, 8, how)))
    small = tf.image.resize(large, (side, side), antialias=True)
    assert np.abs(x["images"] - small).mean() < 4  # of 255 levels
    size = distilled.teacher_size(int(x["size"][0]))
    _, logits = distilled.teacher(large, size)
    np.testing.assert_allclose(x["logits"], logits, atol=1e-4)


def test_views_come_in_turn(tmp_path, examples):
    store = store_of(tmp_path, examples, views=3)
    store.complete(verbose=0)
    crops = store.records()["crop"].reshape(3, 20, 4)
    seen = [[] for _ in range(20)]
    for x, _ in store.training_batches(20, num_examples=120):
        for features in x["features"].numpy():
            row = np.flatnonzero((store.records()["features"] == features).all(axis=1))[0]
            seen[row % 20].append(row // 20)
    assert seen == [[0, 1, 2, 0, 1, 2]] * 20
    assert len(np.unique(crops.reshape(60, 4), axis=0)) == 60


def test_an_image_that_comes_again_in_an_epoch_comes_in_its_next_view(tmp_path, examples):
    store = store_of(tmp_path, examples, views=5)
    store.complete(verbose=0)
    features = store.records()["features"].reshape(5, 20, -1)
    x, labels = next(iter(store.training_batches(20, num_examples=20, sampler="class_balanced")))
    seen = x["features"].numpy()
    for image in (18, 19):  # of the smallest class
        came = [v for f in seen for v in np.flatnonzero((features[:, image] == f).all(axis=1))]
        assert len(came) > 1 and came == [i % 5 for i in range(len(came))]


@pytest.mark.long
@pytest.mark.parametrize("sampler", ["class_balanced", "instance_balanced"])
def test_every_view_has_its_turn(of_three_sizes, sampler):
    store, shown = of_three_sizes, set()
    crops = [crop.tobytes() for crop in store.records()["crop"]]
    assert len(set(crops)) == len(store) == 400

    def count(places, batch_size, image_size):
        shown.update(place["crop"].numpy().tobytes() for place in places)
        return places.take(0).map(lambda place: (place, tf.zeros((1, 1)))).batch(batch_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "take", count)
        store.training_batches(4, num_examples=160 * 20, sampler=sampler)
    assert len(shown) >= 0.97 * len(store)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_turns_against_a_loop(ends, batch_size):
    """Which record comes at each place of three epochs, counted one by one."""
    resolution, order = ct.RandomResolution(SIZES, 16, seed=4), [3, 0, 3, 3, 2, 1, 3, 0, 2, 3]
    sizes = view_sizes(resolution, 7)
    turns = ViewTurns(sizes, resolution, 4, len(order), batch_size, epochs_end_batches=ends)
    drawn = resolution.draws(20)
    for number in range(3):
        expected = []
        for place, image in enumerate(order):
            update = (place + number * len(order)) // batch_size
            if ends:
                update = place // batch_size + number * int(np.ceil(len(order) / batch_size))
            views = np.flatnonzero(sizes == drawn[update])
            turn = number + order[:place].count(image)
            expected.append(views[turn % len(views)] * 4 + image)
        rows = turns.rows(tf.constant(order, tf.int64), tf.constant(number, tf.int64))
        assert rows.numpy().tolist() == expected


def test_it_is_told_in_a_line(tmp_path, examples):
    store = store_of(tmp_path, examples, views=3)
    assert "3 views of 20 images: 0 of 60 records, 0.0 MB when complete" in repr(store)


def test_swapped_arguments_are_named(examples):
    with pytest.raises(ValueError, match="pass the directory first"):
        ct.TeacherStore(model(), "store", examples, image_size=20)
    with pytest.raises(ValueError, match="the type Examples: pass the CandleModel"):
        ct.TeacherStore("store", examples, model(), image_size=20)


def test_views_of_a_size_come_in_turn():
    sizes = np.array([16, 12, 16, 20, 16], np.int32)
    view = nth_view(sizes, tf.constant([1, 1, 1, 1, 0, 2], tf.int64), tf.range(6, dtype=tf.int64))
    assert view.numpy().tolist() == [0, 2, 4, 0, 1, 3]


def test_more_views_only_add_to_the_end():
    resolution = ct.RandomResolution(SIZES, 16)
    np.testing.assert_array_equal(view_sizes(resolution, 20), view_sizes(resolution, 27)[:20])


def test_occurrence_against_a_loop():
    order = np.random.default_rng(0).integers(0, 6, 40)
    expected = [int((order[:i] == order[i]).sum()) for i in range(40)]
    assert occurrence(tf.constant(order)).numpy().tolist() == expected


def test_sizes_of_views_are_as_often_as_they_are_drawn():
    resolution = ct.RandomResolution(SIZES, 16)
    sizes = view_sizes(resolution, 300)
    shares = [(sizes == size).mean() for size in SIZES]
    np.testing.assert_allclose(shares, resolution.probabilities, atol=0.005)
    np.testing.assert_array_equal(sizes[:10], view_sizes(resolution, 10))
    with pytest.raises(ValueError, match="With views=2 no view has the resolution"):
        view_sizes(resolution, 2)


def test_sizes_of_steps_are_those_that_the_model_draws():
    resolution = ct.RandomResolution(SIZES, 16, seed=4)
    steps = tf.repeat(tf.range(5, 30, dtype=tf.int64), 3)
    drawn = np.array(SIZES)[drawn_sizes(resolution, steps).numpy()]
    np.testing.assert_array_equal(drawn, resolution.draws(30)[5:].repeat(3))


@pytest.mark.long
@pytest.mark.parametrize("sizes", [pytest.param(None, marks=pytest.mark.slow), SIZES])
def test_the_step_is_that_of_a_live_teacher_on_the_same_images(tmp_path, examples, sizes):
    stored, live = (model(resolutions=sizes, mixup=1.0) for _ in range(2))
    store = store_of(tmp_path, examples, stored, 6)
    store.complete(verbose=0)
    batches = store.training_batches(8, num_examples=40, sampler="class_balanced")
    logs = [
        each.fit(data, epochs=1, verbose=0).history
        for each, data in ((stored, batches), (live, batches.map(lambda x, y: (x["images"], y))))
    ]
    for name in logs[0]:
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=2e-3, err_msg=name)
    for a, b in zip(stored.student.get_weights(), live.student.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_the_step_reads_the_store_alone(tmp_path, examples):
    distilled = model(balancer=1.0)
    store = store_of(tmp_path, examples, distilled)
    store.complete(verbose=0)
    x, labels = next(iter(store.training_batches(20)))
    logits = np.float32([[5, 0, 0]] * 20)
    expected = losses.kl_divergence(logits, distilled.student(x["images"][:, 2:18, 2:18]), 2.0)
    x = {**x, "images": x["images"][:, 2:18, 2:18], "logits": tf.constant(logits)}
    logs = distilled.train_on_batch(x, labels, return_dict=True)
    np.testing.assert_allclose(logs["loss"], tf.reduce_mean(expected), rtol=1e-4)


@pytest.fixture(scope="module")
def of_three_sizes(tmp_path_factory, examples):
    store = store_of(tmp_path_factory.mktemp("store"), examples, model(resolutions=SIZES), 20)
    store.complete(verbose=0)
    return store


RESUMED = [  # one that draws at random, and one that changes from epoch to epoch
    s
    if s in ("class_balanced", "progressively_balanced")
    else pytest.param(s, marks=pytest.mark.slow)
    for s in SAMPLERS
]


@pytest.mark.long
@pytest.mark.parametrize("sampler", RESUMED)
def test_a_resumed_stream_goes_on_as_the_first_would(of_three_sizes, sampler):
    store = of_three_sizes
    whole = list(store.training_batches(8, num_examples=80, sampler=sampler))[4:]
    resumed = list(store.training_batches(8, num_examples=80, sampler=sampler, first_example=32))
    assert len(whole) == len(resumed) == 6
    for (a, y), (b, z) in zip(whole, resumed):
        np.testing.assert_array_equal(y, z)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    with pytest.raises(ValueError, match="must be a multiple of the batch size, 8"):
        store.training_batches(8, num_examples=80, sampler=sampler, first_example=36)


def test_without_an_end_each_reading_is_the_next_epoch(tmp_path, examples):
    store = store_of(tmp_path, examples, model(resolutions=SIZES), 5)
    store.complete(verbose=0)
    batches = store.training_batches(8)
    for _ in range(3):
        read = list(batches)
        assert [len(y) for _, y in read] == [8, 8, 4]
        assert np.bincount(np.concatenate([y for _, y in read])).tolist() == [12, 6, 2]
        assert all(len(set(x["size"].numpy())) == 1 for x, _ in read)


def test_an_interrupted_store_is_completed_not_redone(tmp_path, examples):
    whole = store_of(tmp_path / "whole", examples, views=3)
    whole.complete(verbose=0)
    store_of(tmp_path / "part", examples, views=1).complete(verbose=0)
    part = store_of(tmp_path / "part", examples, views=3)  # takes up those of fewer views
    with pytest.raises(ValueError, match="holds 20 of 60 records: call complete"):
        part.records()
    marked = part.rows.read()[:15].copy()
    marked["logits"] = 7.0  # which a teacher would not say again
    marked["checksum"] = checksums(marked)
    part.rows.path.write_bytes(marked.tobytes() + b"torn")
    part.complete(7, verbose=0)
    assert (part.records()["logits"][:15] == 7.0).all()
    for name in ("features", "logits", "crop", "flip", "color", "size"):
        ours, theirs = (np.float64(s.records()[name][15:]) for s in (part, whole))
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_complete_store_is_left_alone(tmp_path, examples):
    store_of(tmp_path, examples).complete(verbose=0)
    store = store_of(tmp_path, examples)
    with locked(tmp_path):  # as by another process
        store.complete(verbose=0)
        more = store_of(tmp_path, examples, views=5)
        with pytest.raises(ValueError, match="Another process is at work"):
            more.complete(verbose=0)


@pytest.mark.long
def test_fit_with_plain_images_to_validate_on(tmp_path, examples):
    distilled = model()
    files = tf.constant([tf.io.encode_png(image).numpy() for image in examples.images.numpy()])
    store = store_of(tmp_path, Examples(files, LABELS), distilled)
    store.complete(verbose=0)
    plain = ct.data.evaluation_batches(examples, 20, 8, PAD)
    logs = distilled.fit(
        store.training_batches(8), validation_data=plain, epochs=2, verbose=0
    ).history
    assert len(logs["val_accuracy"]) == 2 and np.isfinite(logs["loss"]).all()


@pytest.mark.long
def test_its_batches_are_for_a_model_with_a_teacher(tmp_path, examples):
    store = store_of(tmp_path, examples, distilled := model())
    store.complete(verbose=0)
    alone = ct.StudentModel(distilled.student)
    alone.compile()
    for call in (alone.fit, alone.evaluate, distilled.evaluate):
        with pytest.raises(ValueError, match="dictionaries of .*: give batches of .images, labels"):
            call(store.training_batches(8))


@pytest.mark.long
def test_a_killed_process_leaves_a_store_that_is_completed(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
import os
import numpy as np, tensorflow as tf
import test_teacher_store as this
from candle_tf.utils.files import Rows
append = Rows.append
def killed(rows, records):
    append(rows, records)
    if len(rows) > 30:
        open(rows.path, "ab").write(b"torn")
        os.kill(os.getpid(), 9)
Rows.append = killed
pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
this.store_of({str(tmp_path)!r}, this.Examples(tf.constant(pixels), this.LABELS)).complete(7)
"""
    killed = subprocess.run(
        [sys.executable, "-c", "import candle_tf\n" + code], capture_output=True
    )
    assert killed.returncode == -9
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    examples = Examples(tf.constant(pixels), LABELS)
    store = store_of(tmp_path, examples)
    assert len(store.rows) == 34
    store.complete(verbose=0)
    fresh = store_of(tmp_path / "fresh", examples)
    fresh.complete(verbose=0)
    np.testing.assert_allclose(store.records()["logits"], fresh.records()["logits"], atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    "other, named",
    [
        ({"distilled": 1}, "teacher"),
        ({"classifier": 1}, "teacher's classifier"),
        ({"how": Augmentation("pad", flip=False)}, "augmentation"),
        ({"seed": 1}, "seed"),
        ({"resolutions": SIZES}, "resolutions"),
        ({"labels": LABELS[::-1]}, "images .set, ratio, split or seed."),
        ({"pixels": 1}, "images .set, ratio, split or seed."),
        ({"function": 1}, "teacher"),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path, examples, other, named):
    store_of(tmp_path, examples, views=1).complete(verbose=0)
    distilled = model(other.get("distilled", 0), other.get("resolutions"))
    if "classifier" in other:
        distilled.teacher.classifier = ct.classifiers.linear(5, 3, 1)
    if "function" in other:  # of the same weights
        distilled.teacher.encoder.layers[-1].activation = tf.nn.leaky_relu
    pixels = examples.images + tf.cast(other.get("pixels", 0), tf.uint8)
    examples = Examples(pixels, other.get("labels", LABELS))
    same = {name: other[name] for name in ("how", "seed") if name in other}
    with pytest.raises(ValueError, match=f"made of another {named} .*name another directory"):
        store_of(tmp_path, examples, distilled, views=5, **same)


@pytest.mark.long
def test_views_of_whole_images_are_not_mixed_with_views_decoded_in_parts(tmp_path, examples):
    pixels = examples.images.numpy()
    encoded = Examples(tf.stack([tf.io.encode_png(image) for image in pixels]), examples.labels)
    store_of(tmp_path / "store", encoded, how=HOW["photographs"]).complete(verbose=0)
    cached = encoded.cached(tmp_path / "cache")
    with pytest.raises(ValueError, match="made of another images"):
        store_of(tmp_path / "store", cached, how=HOW["photographs"])
    assert store_of(tmp_path / "pad", encoded).rows.made_of == (
        store_of(tmp_path / "pad", cached).rows.made_of
    )


def test_its_size_is_known_before_it_is_written(tmp_path, examples):
    store = store_of(tmp_path, examples, views=4)
    assert store.nbytes == 4 * 20 * (5 * 2 + 3 * 4 + 4 * 4 + 1 + 3 * 4 + 4 + 4)
    store.complete(verbose=0)
    assert store.rows.path.stat().st_size == store.nbytes


def test_a_damaged_store_is_refused(tmp_path, examples):
    store = store_of(tmp_path, examples)
    store.complete(verbose=0)
    content = bytearray(store.rows.path.read_bytes())
    content[33 * store.rows.dtype.itemsize + 1] = 255
    store.rows.path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged at record 33: delete"):
        store.training_batches(8)


def test_features_beyond_half_precision_are_refused(tmp_path, examples):
    distilled = model()
    kernel, bias = distilled.teacher.encoder.get_weights()
    distilled.teacher.encoder.set_weights([kernel, bias + 1e6])
    with pytest.raises(ValueError, match="exceed half precision"):
        store_of(tmp_path, examples, distilled).complete(verbose=0)


def test_no_view_is_refused(tmp_path, examples):
    with pytest.raises(ValueError, match="views is 0"):
        store_of(tmp_path, examples, views=0)


def test_a_damaged_store_is_refused_before_the_teacher_sees_more(tmp_path, examples):
    store_of(tmp_path, examples, views=2).complete(verbose=0)
    more = store_of(tmp_path, examples, views=4)
    content = bytearray(more.rows.path.read_bytes())
    content[3] ^= 1
    more.rows.path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged at record 0: delete the file"):
        more.complete(verbose=0)
    assert len(more.rows) == 40
