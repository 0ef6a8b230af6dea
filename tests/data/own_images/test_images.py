import os
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data.own_images import images
from candle_tf.data.own_images.images import look_at_files, open_image, problem_of, read_image
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
        (
            "a.jpg",
            lambda path: open(path, "w").write("hello"),
            "is not in a known format .JPEG, PNG",
        ),
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
    first = look_at_files(paths, tmp_path / "cache")
    assert first.problems == [None, None, None, "is empty", None]
    opened, look_at = [], images.look_at
    monkeypatch.setattr(images, "look_at", lambda path: opened.append(path) or look_at(path))
    again = look_at_files(paths[::-1], tmp_path / "cache")
    assert opened == [] and again.problems == first.problems[::-1]
    np.testing.assert_array_equal(again.marks[::-1], first.marks)
    saved(tmp_path, "3.png")
    assert look_at_files(paths, tmp_path / "cache").problems == [None] * 5
    assert opened == [paths[3]]


def test_what_an_interrupted_look_found_is_kept(tmp_path, monkeypatch):
    paths = [saved(tmp_path, f"{i:02}.png") for i in range(40)]
    opened, look_at = [], images.look_at

    def interrupted(path):
        if path == paths[30]:
            raise KeyboardInterrupt
        return look_at(path)

    monkeypatch.setattr(images, "look_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look_at_files(paths, tmp_path / "cache")
    monkeypatch.setattr(images, "look_at", lambda path: opened.append(path) or look_at(path))
    assert look_at_files(paths, tmp_path / "cache").problems == [None] * 40
    assert sorted(opened) == paths[30:]


def test_a_truncated_gif_of_noise(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    path = saved(tmp_path, "a.gif", Image.fromarray(noise).quantize())
    truncated(path)
    assert problem_of(path)


def test_what_may_pass_is_looked_at_again(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.png")
    failed = f"{images.UNREADABLE} (Errno 5)", np.zeros((), images.MARK)
    monkeypatch.setattr(images, "look_at", lambda path: failed)
    assert look_at_files([path], tmp_path / "cache").problems == [failed[0]]
    monkeypatch.undo()
    assert look_at_files([path], tmp_path / "cache").problems == [None]
    (cached,) = (tmp_path / "cache").glob("*.npz")
    cached.write_text("")  # damaged
    assert look_at_files([path], tmp_path / "cache").problems == [None]


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert look_at_files([saved(tmp_path, "a.png")], tmp_path / "cache").problems == [None]


@pytest.mark.parametrize(
    "name, format",
    [("a.webp", "WEBP"), ("a.jfif", "JPEG"), ("a.tif", "TIFF"), ("a.ppm", "PPM"), ("a", "JPEG")]
    + [("a.dat", "PNG"), ("a.tga", "TGA"), ("a.jp2", "JPEG2000"), ("a.mpo", "MPO")],
)
def test_whatever_pillow_reads_is_read(name, format, tmp_path):
    path = saved(tmp_path, name, format=format)
    assert images.is_image(path) and problem_of(path) is None
    assert np.abs(np.int32(open_image(path)) - SMOOTH).mean() < 8


@pytest.mark.parametrize("content", [b"", b"notes", b"%!PS-Adobe-3.0 EPSF-3.0", b"GIF", bytes(99)])
def test_what_is_no_image(content, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert not images.is_image(str(path))


def test_pixels_of_floating_point_are_refused(tmp_path):
    path = saved(tmp_path, "a.tif", Image.fromarray(np.float32(SMOOTH[..., 0]) / 255))
    assert "floating-point numbers: save it with 8 or 16 bits" in problem_of(path)


def scanned(path):
    """Random bytes in the scan of a JPEG, with head and end whole."""
    b = bytearray(open(path, "rb").read())
    n = len(b)
    b[n // 2 : n // 2 + n // 3] = np.random.default_rng(0).bytes(n // 3)
    open(path, "wb").write(bytes(b[:-2]) + b"\xff\xd9")


def test_what_passes_the_look_can_be_decoded(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for i in range(20):
        path = saved(tmp_path, f"{i}.jpg", noise, quality=50 + i)
        scanned(path)
        if problem_of(path) is None:
            assert open_image(path).shape == (64, 64, 3)
        else:
            with pytest.raises(ValueError, match="cannot be decoded"):
                open_image(path)
