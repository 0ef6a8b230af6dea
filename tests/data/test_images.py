import os
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data import images
from candle_tf.data.images import open_image, problem_of, problems_of, read_image
from PIL import Image

RNG = np.random.default_rng(0)
SMOOTH = np.uint8(np.indices((24, 32)).sum(0)[..., None] * [4, 3, 2])  # survives JPEG


def saved(tmp_path, name, image=SMOOTH, **options):
    path = str(tmp_path / name)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


KINDS = {
    "plain.png": (lambda: Image.fromarray(SMOOTH), SMOOTH),
    "plain.bmp": (lambda: Image.fromarray(SMOOTH), SMOOTH),
    "gray.png": (lambda: Image.fromarray(SMOOTH[..., 0]), SMOOTH[..., :1].repeat(3, -1)),
    "16bit.png": (
        lambda: Image.fromarray(np.uint16(SMOOTH[..., 0]) * 257),
        SMOOTH[..., :1].repeat(3, -1),
    ),
    "alpha.png": (
        lambda: Image.fromarray(np.dstack([SMOOTH, SMOOTH[..., 0]])),
        SMOOTH,
    ),
    "one_bit.png": (
        lambda: Image.fromarray(SMOOTH[..., 0] > 60),
        np.uint8(255 * (SMOOTH[..., :1] > 60)).repeat(3, -1),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_becomes_rgb(tmp_path, name):
    make, expected = KINDS[name]
    path = saved(tmp_path, name, make())
    assert problem_of(path) is None
    np.testing.assert_array_equal(open_image(path), expected)
    read = read_image(tf.constant(path))
    assert read.dtype == tf.uint8
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_jpeg(tmp_path, mode):
    picture = Image.fromarray(SMOOTH)
    expected = np.asarray(picture.convert("L").convert("RGB") if mode == "L" else picture)
    path = saved(tmp_path, "a.jpg", picture.convert(mode), quality=95)
    assert problem_of(path) is None
    assert np.abs(np.int32(open_image(path)) - expected).mean() < 4


def test_a_palette_and_the_first_frame_of_a_gif(tmp_path):
    frames = [Image.fromarray(SMOOTH // n * n).quantize(64) for n in (1, 8)]
    path = saved(tmp_path, "a.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(open_image(path), np.asarray(frames[0].convert("RGB")))


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise, to be upright
    path = saved(tmp_path, "a.png", exif=exif)
    np.testing.assert_array_equal(open_image(path), np.rot90(SMOOTH, -1))


@pytest.mark.parametrize("side", [8, 8000])
def test_sizes(tmp_path, side):
    path = saved(tmp_path, "a.png", np.zeros((side, 8, 3), np.uint8))
    assert problem_of(path) is None and open_image(path).shape == (side, 8, 3)


def truncated(path):
    content = open(path, "rb").read()
    open(path, "wb").write(content[: len(content) // 2])


def bomb(path):
    """A PNG whose head says 50,000 x 50,000."""
    content = bytearray(open(path, "rb").read())
    content[16:24] = struct.pack(">II", 50_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    open(path, "wb").write(content)


@pytest.mark.parametrize(
    "name, damage, problem",
    [
        ("a.jpg", truncated, "[Tt]runcated"),
        ("a.png", truncated, "is truncated or damaged"),
        ("a.bmp", truncated, "is truncated or damaged"),
        ("a.gif", truncated, "is truncated or damaged"),
        ("a.png", lambda path: open(path, "w").close(), "is empty"),
        ("a.jpg", lambda path: open(path, "w").write("hello"), "is no image in JPEG, PNG, BMP or"),
        ("a.png", bomb, "too large|50000 x 50000 pixels"),
        ("a.png", os.remove, "does not exist"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_says_why(tmp_path, name, damage, problem):
    path = saved(tmp_path, name)
    assert problem_of(path) is None
    damage(path)
    assert re.search(problem, problem_of(path))
    if "exist" not in problem:
        with pytest.raises(ValueError, match="a.* cannot be decoded"):
            open_image(path)


def test_a_jpeg_with_bytes_after_its_end_is_whole(tmp_path):
    path = saved(tmp_path, "a.jpg")
    with open(path, "ab") as file:
        file.write(bytes(10_000))
    assert problem_of(path) is None


def test_files_are_opened_again_only_when_they_changed(tmp_path, monkeypatch):
    paths = [saved(tmp_path, f"{i}.png") for i in range(5)]
    open(paths[3], "w").close()
    found = problems_of(paths, tmp_path / "cache")
    assert found == {3: "is empty"}
    opened = []
    monkeypatch.setattr(images, "problem_of", opened.append)
    assert problems_of(paths, tmp_path / "cache") == found
    assert opened == []
    saved(tmp_path, "3.png")
    problems_of(paths, tmp_path / "cache")
    assert sorted(opened) == paths


def test_a_truncated_gif_of_noise(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    path = saved(tmp_path, "a.gif", Image.fromarray(noise).quantize())
    truncated(path)
    assert problem_of(path)


def test_what_may_pass_is_looked_at_again(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.png")
    monkeypatch.setattr(images, "problem_of", lambda path: f"{images.UNREADABLE} (Errno 5)")
    assert problems_of([path], tmp_path / "cache")
    monkeypatch.undo()
    assert problems_of([path], tmp_path / "cache") == {}
    (cached,) = (tmp_path / "cache").glob("*.json")
    cached.write_text("")  # damaged
    assert problems_of([path], tmp_path / "cache") == {}


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert problems_of([saved(tmp_path, "a.png")], tmp_path / "cache") == {}
