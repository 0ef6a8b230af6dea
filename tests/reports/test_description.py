import re

import numpy as np
import pytest
from candle_tf import data
from candle_tf.reports.description import (
    contact_sheet,
    describe,
    picture_paths,
    pixels,
    write_pictures,
)
from PIL import Image


@pytest.fixture
def photos(tmp_path):
    """Five classes of 12, 9, 6, 3 and 2 training images, all of one color each."""
    for split in ("train", "test"):
        for c, count in enumerate((12, 9, 6, 3, 2)):
            for i in range(count if split == "train" else 1):
                path = tmp_path / "photos" / split / f"class{c}" / f"{c}{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (10 + i, 8), (51 * c, 0, 255)).save(path)
    return tmp_path / "photos"


def test_what_is_said(photos):
    text = describe(data.load(f"folder:{photos}"))
    assert "5 classes, 32 training, 0 validation and 5 test images" in text
    assert "imbalance ratio 6: from class0 (12 images) to class4 (2 images)" in text
    assert "head 2 classes (21 images), medium 1 classes (6 images), tail 2 classes" in text
    assert "by shots: few 5 classes (32 images)" in text
    assert "from 8x10 to 8x21" in text


def test_pixels_against_numpy():
    digits = data.load("digits", imbalance_ratio=20).train
    images = digits.images.numpy() / 255
    mean, std, sides = pixels(digits)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-4)
    assert sides.tolist() == [[8, 8], [8, 8]]


@pytest.mark.long
def test_measured_moments_are_those_that_the_catalog_declares(shared_data):
    cifar = data.load("tfds:cifar10", str(shared_data / "tfds"))
    mean, _, _ = pixels(cifar.train)
    np.testing.assert_allclose(mean, cifar.info.mean, atol=0.01)


def test_pictures(photos, tmp_path):
    examples = data.load(f"folder:{photos}")
    write_pictures(examples, tmp_path / "out")
    paths = write_pictures(examples, tmp_path / "out")  # over those of an earlier call
    assert [path.name for path in paths] == ["distribution.png", "images.png"]
    for path in paths:
        assert np.asarray(Image.open(path)).std() > 0
    shown = [axes for axes in contact_sheet(examples).axes if axes.get_title()]
    titles = [axes.get_title() for axes in shown]
    assert len(titles) == 5 + 5 + 5 + 3 + 2
    assert titles[0] == "class0 (12)" and titles[-1] == "class4 (2)"
    for axes in shown:
        c = int(re.search(r"class(.)", axes.get_title())[1])
        assert axes.images[0].get_array()[0, 0].tolist() == [51 * c, 0, 255]


def test_a_picture_of_ones_own_is_not_replaced(tmp_path):
    (tmp_path / "images.png").write_bytes(b"my own")
    with pytest.raises(FileExistsError, match="images.png is not an earlier picture"):
        picture_paths(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file: name a directory"):
        picture_paths(tmp_path / "images.png")
