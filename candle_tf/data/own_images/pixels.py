"""The pixels of images in memory, in encoded bytes, or in files that Pillow reads."""

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

Image.init()
# All formats that Pillow reads by itself and that hold one picture. EPS and WMF run programs.
FORMATS = tuple(
    name
    for name in "JPEG PNG BMP DIB GIF WEBP TIFF PPM AVIF JPEG2000 ICO TGA PCX SGI QOI PSD".split()
    if name in Image.OPEN
)
SUFFIXES = {
    suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")
}
FAULTS = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    Image.DecompressionBombError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    EOFError,
)  # a damaged file fails in its parser's own ways
PLAIN = {"JPEG": ("L", "RGB"), "PNG": ("L", "RGB", "RGBA")}  # format -> modes of 8 bits
PNG_TURNS = b"eXIf", b"exif", b"xmp"  # a PNG without these words has no orientation
PILLOWS = "INTEGER_ACCURATE"  # the cosine transform that Pillow uses
RATIOS = 1, 2, 4, 8  # by which libjpeg shrinks an image while it decodes it

Box = Callable[[tf.Tensor], tf.Tensor]  # height and width (2,) -> top, left, height, width (4,)


def decode(image: tf.Tensor) -> tf.Tensor:
    """Returns the bytes of a file, or pixels, as uint8 RGB (..., height, width, 3)."""
    if image.dtype == tf.string:
        image = tf.io.decode_image(image, channels=3, expand_animations=False)
        image = tf.ensure_shape(image, (None, None, 3))
    return image


def cut(image: tf.Tensor, box: Box) -> tf.Tensor:
    """Returns a part of an image (height, width, 3)."""
    begin, extent = tf.split(box(tf.shape(image)[:2]), 2)
    part = tf.slice(image, tf.concat([begin, [0]], 0), tf.concat([extent, [3]], 0))
    return tf.ensure_shape(part, (None, None, 3))


def decode_part(content: tf.Tensor, box: Box, side: int, transform: str = "") -> tf.Tensor:
    """Decodes a part of an image; of a JPEG no more than the part.

    A part of a JPEG that is at least twice as large as needed is shrunk while it is decoded.

    Args:
        content: Bytes of the file, a scalar string.
        box: Function from the image's height and width to the part.
        side: Side in pixels that the part is needed at; a shrunk part is not smaller.
        transform: The cosine transform of JPEG, as in `tf.io.decode_jpeg`.

    Returns:
        Pixels, uint8 RGB (height, width, 3). Those of the first and last column of a JPEG's part
        may differ by a few levels from those of the whole image.
    """

    def jpeg() -> tf.Tensor:
        sides = tf.io.extract_jpeg_shape(content)[:2]
        begin, extent = tf.split(box(sides), 2)

        def at(ratio: int) -> Callable[[], tf.Tensor]:
            first, last = begin // ratio, (begin + extent - 1) // ratio
            window = tf.concat([first, last - first + 1], 0)
            how = {"channels": 3, "ratio": ratio, "dct_method": transform}
            return lambda: tf.io.decode_and_crop_jpeg(content, window, **how)

        fits = tf.reduce_min(extent) >= side * np.array(RATIOS[1:])
        return tf.switch_case(tf.reduce_sum(tf.cast(fits, tf.int32)), list(map(at, RATIOS)))

    part = tf.cond(tf.io.is_jpeg(content), jpeg, lambda: cut(decode(content), box))
    return tf.ensure_shape(part, (None, None, 3))


def read_part(path: tf.Tensor, plain: tf.Tensor, box: Box, side: int) -> tf.Tensor:
    """Reads a part of the image file at a scalar path.

    Args:
        path: Path of the file, a scalar string.
        plain: Hash of the file as it was when `open_plain` decoded it, else 0. Pillow reads a file
            that is not plain or has changed, and names it in its error.
        box: Function from the image's height and width to the part.
        side: Side in pixels that the part is needed at, as in `decode_part`.

    Returns:
        Pixels, uint8 RGB (height, width, 3), as `decode_part` returns them.
    """

    def by_pillow() -> tf.Tensor:
        def read(name) -> np.ndarray:
            return open_image(os.fsdecode(np.asarray(name).item()))

        image = tf.numpy_function(read, [path], tf.uint8)
        return cut(tf.ensure_shape(image, (None, None, 3)), box)

    content = tf.cond(plain > 0, lambda: tf.io.read_file(path), lambda: "")
    same = (plain > 0) & (hash_of(content) == plain)
    return tf.cond(same, lambda: decode_part(content, box, side, PILLOWS), by_pillow)


def hash_of(content: tf.Tensor) -> tf.Tensor:
    """Returns a hash of bytes, int64 above 0."""
    return tf.strings.to_hash_bucket_fast(content, 2**62) + 1


def open_image(path: str) -> np.ndarray:
    """Reads the first frame of an image file as uint8 RGB (height, width, 3), turned by its EXIF.

    Gray, palette, 16-bit and CMYK images become RGB; transparent pixels keep their color.

    Raises:
        ValueError: If the file cannot be decoded. The message names the file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: check the path.") from error
    except FAULTS as error:
        raise ValueError(f"{path} cannot be decoded ({error}).") from error


def open_plain(path: str) -> tuple[np.ndarray, int]:
    """Returns the pixels of `open_image` and the hash of the file if it is plain, else 0.

    TensorFlow decodes a plain file to the same pixels as Pillow: an upright image of 8 bits in a
    JPEG or PNG file without damage.

    Raises:
        ValueError: As in `open_image`.
    """
    with suppress(*FAULTS, tf.errors.InvalidArgumentError):
        with Image.open(path, formats=FORMATS) as image:
            plain = is_plain(image)
        content = Path(path).read_bytes() if plain else b""
        if plain and not (image.format == "PNG" and any(word in content for word in PNG_TURNS)):
            kind = {"JPEG": tf.io.decode_jpeg, "PNG": tf.io.decode_png}[image.format]
            how = {"dct_method": PILLOWS} if image.format == "JPEG" else {}
            return kind(content, channels=3, **how).numpy(), int(hash_of(content))
    return open_image(path), 0


def is_plain(image: Image.Image) -> bool:
    """Returns whether the head of an open image is that of a plain one; see `open_plain`."""
    if image.mode not in PLAIN.get(image.format, ()) or getattr(image, "n_frames", 1) > 1:
        return False
    if image.format == "PNG":
        return image.tile[0][3] == image.mode  # how its pixels are stored: not in 1, 2 or 16 bits
    return image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture of any mode to 8-bit RGB.

    Raises:
        ValueError: For floating-point pixels, which have no agreed range.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip to 8
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.uint8(np.clip(values / 257, 0, 255) + 0.5))
    return image.convert("RGB")


def is_image(path: str) -> bool:
    """Returns whether the suffix of a file, or else its content, is that of an image."""
    if os.path.splitext(path)[1].lower() in SUFFIXES:
        return True
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except FAULTS:
        return False
