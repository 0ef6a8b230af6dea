import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from candle_tf import data
from PIL import Image


def images_of(examples) -> set[bytes]:
    return {image.tobytes() for image in examples.images.numpy()}


def test_digits():
    digits = data.load("digits", imbalance_ratio=20)
    assert np.bincount(digits.test.labels).tolist() == [40] * 10
    assert digits.class_counts.sum() == len(digits.train)
    assert digits.class_counts.max() / digits.class_counts.min() >= 20
    assert digits.validation is None


def test_digits_test_set_is_the_same_for_every_seed_and_apart_from_training():
    a, b = (data.load("digits", imbalance_ratio=20, seed=seed) for seed in (0, 1))
    assert (a.test.images.numpy() == b.test.images.numpy()).all()
    assert images_of(a.train) != images_of(b.train)
    assert not images_of(a.train) & images_of(a.test)


def test_without_a_ratio_the_set_stays_as_published():
    digits = data.load("digits")
    assert len(digits.train) == 1797 - 400 and digits.class_counts.min() > 100


def test_validation_split_is_held_out_of_training():
    whole = data.load("digits")
    split = data.load("digits", validation_split=0.2)
    held_out = np.bincount(split.validation.labels, minlength=10)
    np.testing.assert_array_equal(held_out, whole.class_counts // 5)
    np.testing.assert_array_equal(held_out + split.class_counts, whole.class_counts)
    assert len(split.train) + len(split.validation) == len(whole.train)
    assert images_of(split.train) | images_of(split.validation) == images_of(whole.train)


def test_validation_split_is_held_out_before_the_set_is_made_long_tailed():
    whole, split = (data.load("digits", validation_split=0.2, imbalance_ratio=r) for r in (None, 9))
    assert images_of(split.validation) == images_of(whole.validation)
    assert images_of(split.train) < images_of(whole.train)
    available = np.bincount(whole.train.labels)
    np.testing.assert_array_equal(split.class_counts, data.long_tail_counts(available, 9))


def test_n_max_is_the_size_of_the_largest_class():
    digits = data.load("digits", imbalance_ratio=10, n_max=60)
    assert sorted(digits.class_counts)[::9] == [6, 60]
    with pytest.raises(ValueError, match="n_max needs a set that is made long-tailed"):
        data.load("digits", n_max=60)


@pytest.mark.long
@pytest.mark.parametrize(
    "ratio, total", [(100, 12406), pytest.param(10, 20431, marks=pytest.mark.slow)]
)
def test_cifar10_lt(shared_data, ratio, total):
    cifar = data.load("tfds:cifar10", str(shared_data / "tfds"), ratio)
    assert len(cifar.train) == total and len(cifar.test) == 10_000
    np.testing.assert_array_equal(np.bincount(cifar.train.labels), cifar.class_counts)
    assert cifar.class_counts[0] == 5000 and cifar.class_counts[-1] == 5000 // ratio
    assert cifar.class_names[0] == "airplane"
    assert cifar.info.bounds == (3, 7)
    assert cifar.label_smoothing == {100: (0.05, 0.1), 10: (0.07, 0.07)}[ratio]


@pytest.mark.long
def test_cifar10_is_read_as_tfds_reads_it(shared_data):
    root = str(shared_data / "tfds")
    cifar = data.load("tfds:cifar10", root)
    batches = data.evaluation_batches(cifar.test, 32, 64, cifar.info.augmentation)
    images, labels = next(iter(batches))
    reference = tfds.load("cifar10", split="test", data_dir=root, download=False).batch(64)
    expected = next(iter(reference))
    np.testing.assert_array_equal(images, expected["image"].numpy().astype(np.float32))
    np.testing.assert_array_equal(labels, expected["label"])


@pytest.mark.parametrize(
    "name, message",
    [
        ("tfds:cifar11", "did you mean 'tfds:cifar10"),
        ("tfds:cifar", "did you mean 'tfds:cifar10"),
        ("digit", "did you mean 'digits'"),
        ("cifar10", "did you mean 'tfds:cifar10'"),
    ],
)
def test_unknown_set(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name)


def test_set_that_is_not_in_the_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="`data_dir=DIR`.*`download=True`"):
        data.load("tfds:cifar100", str(tmp_path))


def test_a_set_that_cannot_be_prepared_says_why(tmp_path):
    with pytest.raises(OSError, match="tfds:imagenet2012 cannot be prepared: Manual directory"):
        data.load("tfds:imagenet2012", str(tmp_path), download=True)


def test_a_validation_split_that_holds_out_nothing_is_refused():
    with pytest.raises(ValueError, match="less than one of the 143 images of the largest class"):
        data.load("digits", validation_split=0.001)


@pytest.mark.parametrize("split", [-0.1, 1.0])
def test_validation_split_out_of_range(split):
    with pytest.raises(ValueError, match="share in"):
        data.load("digits", validation_split=split)


@pytest.mark.parametrize("name", [name for name in data.CATALOG if name != "digits"])
def test_what_is_declared_fits_together(name):
    info = data.info_of(name)
    assert 0 < info.bounds[0] < info.bounds[1] < info.classes
    assert all(0 <= e < 1 for factors in info.label_smoothing.values() for e in factors)
    assert all(0.25 < m < 0.7 for m in info.mean) and all(0.15 < s < 0.34 for s in info.std)
    assert bool(info.source) == bool(info.where) == (not name.startswith("tfds:"))
    assert not info.source or info.source.partition(":")[0] in ("list", "csv", "folder")
    assert data.info_of(f"{name},train,test") is info


@pytest.mark.long
def test_splits_of_tfds(shared_data):
    root = str(shared_data / "tfds")
    some = data.load("tfds:cifar10,train[:1%],test[50%:]", root)
    assert (len(some.train), len(some.test)) == (500, 5000)
    assert some.info is data.info_of("tfds:cifar10")
    whole = data.load("tfds:cifar10", root)
    np.testing.assert_array_equal(some.train.images, whole.train.images[:500])
    with pytest.raises(ValueError, match="names 1 splits but needs two: give tfds:cifar10,train"):
        data.load("tfds:cifar10,train", root)


@pytest.mark.long
@pytest.mark.parametrize(
    "splits, shared", [("train,train", "50,000"), ("train[:60%],train[50%:]", "5,000")]
)
def test_splits_of_tfds_that_overlap_are_refused(splits, shared, shared_data):
    with pytest.raises(ValueError, match=f"have {shared} images in common: name splits"):
        data.load(f"tfds:cifar10,{splits}", str(shared_data / "tfds"))


def test_what_was_read_is_said(capsys):
    digits = data.load("digits", imbalance_ratio=20)
    assert digits.summary().startswith("10 classes (")
    assert digits.summary().endswith("), 400 test images")
    assert digits.summary() in capsys.readouterr().out
    assert repr(digits).splitlines()[0] == digits.summary() and len(repr(digits).splitlines()) == 3


def test_a_set_makes_its_own_batches():
    digits = data.load("digits", imbalance_ratio=10)
    how, counts = digits.info.augmentation, np.zeros(10)
    made = digits.training_batches(batch_size=50, image_size=16, sampler="class_balanced", seed=4)
    expected = data.training_batches(digits.train, 16, 50, None, "class_balanced", how, 4)
    for (x, labels), (y, _) in zip(made, expected, strict=True):
        np.testing.assert_array_equal(x, y)
        counts += np.bincount(labels, minlength=10)
    assert counts.min() > 30 > digits.class_counts.min()
    for split in ("test", "train"):
        made = next(iter(digits.evaluation_batches(batch_size=9, split=split)))
        examples = getattr(digits, split)
        expected = next(iter(data.evaluation_batches(examples, 8, 9, how)))
        np.testing.assert_array_equal(made[0], expected[0])
        np.testing.assert_array_equal(made[1], examples.labels[:9])


def test_batches_that_a_set_cannot_make_are_refused():
    digits = data.load("digits", imbalance_ratio=10)
    with pytest.raises(ValueError, match="no validation split: load it with a validation_split"):
        digits.evaluation_batches(batch_size=9, split="validation")
    with pytest.raises(ValueError, match="did you mean 'test'"):
        digits.evaluation_batches(batch_size=9, split="tests")
    photos = dataclasses.replace(digits, image_size=None)
    with pytest.raises(ValueError, match="different sizes: give image_size"):
        photos.training_batches(batch_size=9)


def test_examples_are_told_in_a_line():
    digits = data.load("digits", imbalance_ratio=10)
    assert repr(digits.train) == f"Examples({len(digits.train)} images of 8x8, 10 classes)"
    files = data.Examples(tf.constant(["a.png", "b.png"]), np.array([0, 1]), on_disk=True)
    assert repr(files) == "Examples(2 files, 2 classes)"


def test_labels_of_tfds_are_read_once(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec, root = "tfds:cifar10,test[:40],test[40:70]", str(shared_data / "tfds")
    first = data.load(spec, root)
    assert len(list((tmp_path / "candle_tf").glob("labels_*.npy"))) == 2
    monkeypatch.setattr(
        tfds.decode.PartialDecoding, "__init__", lambda *a: pytest.fail("read again")
    )
    again = data.load(spec, root)
    for name in ("train", "test"):
        np.testing.assert_array_equal(getattr(again, name).labels, getattr(first, name).labels)


@pytest.mark.parametrize(
    "name, missing",
    [("imagenet_lt", "train/ and val/ .*145 GB"), ("fruits", "Training/ and Test/")],
)
def test_what_is_to_be_placed_by_hand_is_said(name, missing, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"`data_dir={tmp_path}` is to hold .*{missing}"):
        data.load(name, str(tmp_path))


def test_a_set_in_the_working_directory_is_not_that_of_data_dir(tmp_path, monkeypatch):
    (tmp_path / "fruits-360").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="is to hold"):
        data.load("fruits", str(tmp_path / "data"))


def test_a_set_that_is_not_whole_is_refused(tmp_path):
    for split in ("Training", "Test"):
        for name in "ab":
            path = tmp_path / "fruits-360" / split / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(ValueError, match="fruits has 2 classes here but 24 as published"):
        data.load("fruits", str(tmp_path))


def test_ratio_that_leaves_a_class_empty():
    with pytest.raises(ValueError, match="keeps no training image"):
        data.load("digits", imbalance_ratio=1000)
