"""Every data set's flag file, on a few images in the set's own format.

Networks are those of the flag files, with random weights and at small sizes; two updates.
"""

import dataclasses
import gc
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from candle_tf import data
from candle_tf.cli import run_flags
from candle_tf.runs import job
from PIL import Image

pytestmark = pytest.mark.slow
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
NOT_TRIED = ("digits_lt", "own_images")  # another test runs these values
FILES = sorted(path for path in CONFIGS.glob("*.cfg") if path.stem not in NOT_TRIED)
FILES += [CONFIGS / "paper" / f"{name}.cfg" for name in ("cifar10_lt", "imagenet_lt")]
SMALL = {
    "teacher_weights": "",  # random: those of ImageNet are a download
    "teacher_image_size": 32,
    "image_size": 32,
    "epochs": 1,
    "steps_per_epoch": 2,
    "batch_size": 8,
    "calibration_epochs": 1,
    "calibration_views": 1,
    "teacher_views": 0,
}


def settings_of(path, **changes):
    values = flags.FlagValues()
    run_flags.define(values)
    values(["run", f"--flagfile={path}"])
    settings = dataclasses.replace(run_flags.settings(values), **SMALL, **changes)
    if settings.resolutions:  # of which the teacher sees the smallest at 36
        sizes = {"resolutions": (24, 32, 40), "teacher_image_size": 48}
        settings = dataclasses.replace(settings, **sizes)
    return settings


@pytest.fixture(autouse=True)
def nothing_is_kept():
    """Keras keeps what was built: seventeen teachers would fill the memory."""
    yield
    tf.keras.backend.clear_session()
    gc.collect()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "0.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(path)
    return path


def mocked_tfds(photo, per_class):
    """TFDS's own mock, with so many images of each class."""
    testing = pytest.importorskip("tensorflow_datasets.testing", reason="it needs dill")

    def as_dataset(builder, split, decoders=None, read_config=None, shuffle_files=False):
        classes = builder.info.features["label"].num_classes
        side = builder.info.features["image"].shape[0]
        image = Image.open(photo).resize((side or 64, side or 64))
        labels = np.arange(classes).repeat(per_class if split.startswith("train") else 1)
        dataset = tf.data.Dataset.from_tensor_slices({"label": labels})
        if not isinstance(decoders, dict):  # the labels alone
            return dataset
        encoded = tf.io.encode_png(np.asarray(image))
        return dataset.map(lambda example: {**example, "image": encoded})

    mocking = testing.mock_data(policy=testing.MockPolicy.USE_CODE, as_dataset_fn=as_dataset)
    return mocking


def link(photo, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.hardlink_to(photo)


def lists(photo, root, info, train, test):
    """Lists as published: two images of class 0, one of each other, and as many test images."""
    names = info.source.removeprefix("list:").split(",")
    for name, pattern in zip(names, (train, test)):
        lines = []
        for label in [0, *range(info.classes)]:
            path = pattern.format(n=len(lines), label=label)
            link(photo, root / path)
            lines.append(f"{path} {label}\n")
        (root / name).write_text("".join(lines))


def aircraft(photo, root, info):
    for split, per_class in (("train", 10), ("test", 1)):
        lines = ["path,label\n"]
        for n in range(per_class * info.classes):
            path = f"images/{split == 'test':d}{n:06}.jpg"
            link(photo, root / path)
            lines.append(f"{path},A{n % info.classes}-200\n")
        (root / f"aircraft_{split}.csv").write_text("".join(lines))


def fruits(photo, root, info):
    for split, per_class in (("Training", 100), ("Test", 1)):
        for n in range(per_class * info.classes):
            kind = f"apple_{n % info.classes}"
            link(photo, root / "fruits-360" / split / kind / f"r0_{n}.jpg")


PLACED = {
    "aircraft": aircraft,
    "fruits": fruits,
    "imagenet_lt": lambda *where: lists(
        *where, "train/n{label:08}/n{label:08}_{n}.JPEG", "val/ILSVRC2012_val_{n:08}.JPEG"
    ),
    "places_lt": lambda *where: lists(
        *where, "data_256/a/place{label}/{n:08}.jpg", "val_256/Places365_val_{n:08}.jpg"
    ),
    "inaturalist2018": lambda *where: lists(
        *where, "train_val2018/Plantae/{label}/{n:032x}.jpg", "train_val2018/Aves/{label}/t{n}.jpg"
    ),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_two_updates(path, photo, tmp_path, no_report):
    settings = settings_of(path, data_dir=str(tmp_path), workdir=str(tmp_path / "run"))
    info = data.info_of(settings.dataset)
    if settings.dataset in PLACED:
        PLACED[settings.dataset](photo, tmp_path, info)
        results = job.run(settings)
    else:
        if "," not in settings.dataset:  # the mock knows no splits
            settings = dataclasses.replace(settings, dataset=f"{settings.dataset},train,test")
        with mocked_tfds(photo, int(settings.imbalance_ratio)):
            results = job.run(settings)
    assert results["updates"] == 2
    assert len(results["class_counts"]) == info.classes
    if settings.imbalance_ratio:
        assert results["imbalance_ratio"] == settings.imbalance_ratio
    for who in ("teacher", "student"):
        assert 0 <= results[who]["test"]["overall"] <= 1
        assert set(results[who]["test"]["ranks"]) == {"head", "medium", "tail"}
    assert results["student"]["macs"]["1"] > 0
