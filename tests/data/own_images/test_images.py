import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data.examples import Examples
from candle_tf.data.own_images import images, pixels
from candle_tf.data.own_images.images import look_at, look_at_files, problem_of
from candle_tf.data.own_images.pixels import open_image, read_part
from PIL import Image

RNG = np.random.default_rng(0)
SMOOTH = np.uint8(np.indices((24, 32)).sum(0)[..., None] * [4, 3, 2])  # survives JPEG


def saved(tmp_path, name, image=SMOOTH, **options):
    path = str(tmp_path / name)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def read_whole(path):
    """Reads a file as the pipeline does after the first look."""
    _, mark = look_at(path)
    whole = Examples(tf.constant([path]), np.zeros(1, np.int64), on_disk=True, marks=mark[None])
    return whole.image(tf.constant(0))


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
    read = read_whole(path)
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


def exif_of(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def animated(path):
    frames = [Image.fromarray(SMOOTH // n) for n in (1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


NOISE = np.random.default_rng(1).integers(0, 256, (37, 50, 3), np.uint8)
GRAY = Image.fromarray(NOISE[..., 0])
ALPHA = Image.fromarray(np.dstack([NOISE, NOISE[..., 0]]))
READ = {  # file -> (how it is written, whether TensorFlow reads it)
    "jpeg": (lambda path: Image.fromarray(NOISE).save(path, "JPEG"), True),
    "jpeg of small chroma": (
        lambda path: Image.fromarray(NOISE).save(path, "JPEG", subsampling="4:2:0", quality=30),
        True,
    ),
    "jpeg of full chroma": (
        lambda path: Image.fromarray(NOISE).save(path, "JPEG", subsampling="4:4:4", quality=97),
        True,
    ),
    "progressive jpeg": (
        lambda path: Image.fromarray(NOISE).save(path, "JPEG", progressive=True),
        True,
    ),
    "rgb jpeg": (lambda path: Image.fromarray(NOISE).save(path, "JPEG", keep_rgb=True), True),
    "gray jpeg": (lambda path: GRAY.save(path, "JPEG"), True),
    "cmyk jpeg": (lambda path: Image.fromarray(NOISE).convert("CMYK").save(path, "JPEG"), False),
    "upright jpeg": (lambda path: GRAY.save(path, "JPEG", exif=exif_of(1)), True),
    "turned jpeg": (lambda path: GRAY.save(path, "JPEG", exif=exif_of(6)), False),
    "png": (lambda path: Image.fromarray(NOISE).save(path, "PNG"), True),
    "gray png": (lambda path: GRAY.save(path, "PNG"), True),
    "png with alpha": (lambda path: ALPHA.save(path, "PNG"), True),
    "png with a transparent color": (
        lambda path: Image.fromarray(NOISE).save(path, "PNG", transparency=(1, 2, 3)),
        True,
    ),
    "turned png": (lambda path: GRAY.save(path, "PNG", exif=exif_of(3)), False),
    "png of a palette": (lambda path: Image.fromarray(NOISE).quantize(9).save(path, "PNG"), False),
    "png of 16 bits": (
        lambda path: Image.fromarray(np.uint16(NOISE[..., 0]) * 251).save(path, "PNG"),
        False,
    ),
    "png of 16-bit colors": (
        lambda path: Path(path).write_bytes(
            tf.io.encode_png(NOISE.astype(np.uint16) * 251).numpy()
        ),
        False,
    ),
    "png of 1 bit": (lambda path: GRAY.convert("1").save(path, "PNG"), False),
    "animated.png": (animated, False),
    "webp": (lambda path: Image.fromarray(NOISE).save(path, "WEBP"), False),
    "png.jpg": (lambda path: Image.fromarray(NOISE).save(path, "PNG"), True),
    "jpeg.bmp": (lambda path: Image.fromarray(NOISE).save(path, "JPEG"), True),
}


@pytest.mark.parametrize("name", READ)
def test_tensorflow_reads_plain_files_as_pillow_does(name, tmp_path):
    write, plain = READ[name]
    path = str(tmp_path / name)
    write(path)
    problem, mark = look_at(path)
    assert problem is None and (mark["plain"] > 0) == plain
    np.testing.assert_array_equal(read_whole(path), open_image(path))
    assert images.mark_of(open_image(path))["content"] == mark["content"]


def photographs(shared_data, count):
    """Real photographs as JPEG, enlarged to 500 x 375."""
    some = sorted((shared_data / "images/caltech101").rglob("*.jpg"))[:: 6000 // count][:count]
    for path in some:
        yield Image.open(path).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)


def part_of(path, box, side, mark=None):
    """Reads a part (top, left, height, width) of a file by its mark."""
    mark = look_at(path)[1] if mark is None else mark
    return read_part(tf.constant(path), mark["plain"], lambda _: tf.constant(box, tf.int32), side)


def test_parts_have_the_pixels_of_the_whole(shared_data, tmp_path):
    rng = np.random.default_rng(0)
    for i, picture in enumerate(photographs(shared_data, 20)):
        path = saved(tmp_path, f"{i}.jpg", picture, quality=90)
        extent = rng.integers(64, (376, 501))
        begin = rng.integers(0, np.array([376, 501]) - extent)
        part = part_of(path, [*begin, *extent], side=512)
        rows, columns = (slice(b, b + e) for b, e in zip(begin, extent))
        difference = np.abs(np.int32(part) - open_image(path)[rows, columns])
        assert difference[:, 1:-1].max() == 0 and difference.max() <= 12


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_a_shrunk_part_looks_like_the_resized_part(ratio, shared_data, tmp_path):
    side = 300 // ratio
    rows, columns = slice(51 // ratio, 355 // ratio + 1), slice(77 // ratio, 436 // ratio + 1)
    for i, picture in enumerate(photographs(shared_data, 8)):
        path = saved(tmp_path, f"{i}.jpg", picture, quality=90)
        part = part_of(path, [51, 77, 305, 360], side)
        shape = rows.stop - rows.start, columns.stop - columns.start
        assert part.shape == (*shape, 3)
        every = [slice(s.start * ratio, s.stop * ratio) for s in (rows, columns)]
        whole = tf.image.resize(open_image(path)[tuple(every)], shape, antialias=True)
        difference = np.abs(tf.cast(part, tf.float32) - whole)
        assert difference.mean() < 4  # libjpeg averages squares, TensorFlow weighs by distance


def test_a_file_that_changed_since_the_look_is_read_by_pillow(tmp_path):
    path = saved(tmp_path, "a.png")
    _, mark = look_at(path)
    other = saved(tmp_path, "a.png", 255 - SMOOTH)
    box = [0, 0, 24, 32]
    np.testing.assert_array_equal(part_of(other, box, 99, mark), 255 - SMOOTH)
    truncated(path)
    with pytest.raises(ValueError, match="a.png cannot be decoded"):
        part_of(path, box, 99, mark)


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
    assert pixels.is_image(path) and problem_of(path) is None
    assert np.abs(np.int32(open_image(path)) - SMOOTH).mean() < 8


@pytest.mark.parametrize("content", [b"", b"notes", b"%!PS-Adobe-3.0 EPSF-3.0", b"GIF", bytes(99)])
def test_what_is_no_image(content, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert not pixels.is_image(str(path))


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
