"""Pretrains the demo's full-precision encoder, candle_tf/assets/letters.h5, on rendered letters.

    python scripts/maintainers/pretrain_letters.py --output=candle_tf/assets/letters.h5

The demo calibrates a frozen encoder on long-tailed handwritten digits, so the encoder must be
trained on other data: balanced images of printed letters, A-Z and a-z, in the fonts of matplotlib.
No digit is ever drawn. Each letter is warped, then reduced like scikit-learn's digits: a 32x32
bitmap becomes 8x8 counts of 4x4 pixels.

The file contains a Keras model from RGB images in [-1, 1] (preprocessing mode 'tf') to a feature
map. The images may have any size; 32x32 is best. A linear classifier needs the map's average.

The script needs the `report` extra (matplotlib with Pillow). Expect 94.8 % accuracy on held-out
images of 43 classes of letters, after 2 to 4 minutes on 2 cores.
"""

import candle_tf  # noqa: F401  # isort: skip  # Before TensorFlow, which it switches to Keras 2.

import math
import os
import string
from pathlib import Path

import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from PIL import Image, ImageDraw, ImageFilter, ImageFont

OUTPUT = flags.DEFINE_string("output", "candle_tf/assets/letters.h5", "The encoder's file, HDF5.")
IMAGES = flags.DEFINE_integer("images", 48_000, "Images to draw; a tenth of them is held out.")
EPOCHS = flags.DEFINE_integer("epochs", 7, "Passes over the drawn images.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images per step.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 4e-3, "Adam's, falling to 0 as a cosine.")
SEED = flags.DEFINE_integer("seed", 0, "Of the drawing, the initial weights and the data order.")

# The text fonts: matplotlib's others hold symbols, or one placeholder for every character.
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb", "cmmi", "cmr", "cmss", "cmti", "cmtt")
ALIKE = "COPSUVWXZ"  # Their lower case differs in size only, which fitting to the box removes.
CLASSES = [letter for letter in string.ascii_letters if letter not in ALIKE.lower()]

CANVAS = 64  # Pixels in which a letter is drawn and warped.
BITMAP = 32  # Pixels of the box to which it is then fitted,
CELLS = 8  # and the cells in which the bitmap's pixels are counted.
INPUT = 32  # Pixels to which the cells are enlarged for the network;
MIN_INPUT, MAX_INPUT = 24, 40  # in training a batch draws its size, as a teacher may meet several.


def load_fonts() -> list[ImageFont.FreeTypeFont]:
    paths = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))
    paths = [path for path in paths if path.stem.startswith(FONTS) and "Display" not in path.stem]
    return [ImageFont.truetype(path, size=40) for path in paths]


def warp(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotates, shears and bends `image`, by an affine map of a mesh with jittered knots."""
    angle = math.radians(rng.normal(0, 9))
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([[cos, -sin], [sin, cos]])
    shear = np.array([[1, rng.normal(0, 0.2)], [0, 1]])
    knots = np.linspace(-CANVAS / 2, CANVAS / 2, 5)
    grid = np.stack(np.meshgrid(knots, knots), axis=-1) @ (rotation @ shear).T
    grid += rng.normal(0, 2.2, grid.shape) + CANVAS / 2

    step = CANVAS // 4
    mesh = []
    for y in range(4):
        for x in range(4):
            box = (x * step, y * step, (x + 1) * step, (y + 1) * step)
            corners = grid[y, x], grid[y + 1, x], grid[y + 1, x + 1], grid[y, x + 1]
            mesh.append((box, np.concatenate(corners).tolist()))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def draw(letter: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> np.ndarray:
    """Draws a random image of `letter`, light on dark: uint8 (8, 8) in [0, 255]."""
    image = Image.new("L", (CANVAS, CANVAS))
    centre = (CANVAS / 2, CANVAS / 2)
    stroke_width = int(rng.integers(2))
    ImageDraw.Draw(image).text(centre, letter, 255, font, "mm", stroke_width=stroke_width)
    image = warp(image, rng).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    threshold = rng.uniform(50, 150)  # Low thickens the strokes, high thins them.
    image = image.point(lambda value: 255 * (value > threshold))

    # Fitted to the box like scanned handwriting, so that the size of a letter does not matter.
    image = image.crop(image.getbbox())
    height = int(rng.integers(27, BITMAP + 1))
    width = round(np.clip(image.width * height / image.height * rng.uniform(0.7, 1.1), 4, 28))
    bitmap = Image.new("L", (BITMAP, BITMAP))
    left = (BITMAP - width) // 2 + int(rng.integers(-2, 3))
    top = int(rng.integers(BITMAP - height + 1))
    bitmap.paste(image.resize((width, height)), (left, top))
    cell = BITMAP // CELLS
    ink = (np.asarray(bitmap) > 127).reshape(CELLS, cell, CELLS, cell).mean(axis=(1, 3))
    return np.round(255 * ink).astype(np.uint8)


def draw_letters(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws balanced images, uint8 RGB (count, 8, 8, 3), and their labels, int64 (count,)."""
    rng = np.random.default_rng(seed)
    fonts = load_fonts()
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    images = []
    for label in labels:
        letter = CLASSES[label]
        if letter in ALIKE and rng.random() < 0.5:
            letter = letter.lower()
        images.append(draw(letter, fonts[rng.integers(len(fonts))], rng))
    return np.repeat(np.stack(images)[..., np.newaxis], 3, axis=-1), labels


def preprocess(images: tf.Tensor, size: int | tf.Tensor = INPUT) -> tf.Tensor:
    """Enlarges images in [0, 255], (batch, 8, 8, 3): float32 in [-1, 1], (batch, size, size, 3)."""
    return tf.image.resize(images, (size, size)) / 127.5 - 1.0


def build_encoder() -> tf.keras.Model:
    """Returns a model from images in [-1, 1], (batch, h, w, 3), to (batch, h / 8, w / 8, 160)."""

    def conv(x: tf.Tensor, filters: int, strides: int = 1, separable: bool = False) -> tf.Tensor:
        layer = tf.keras.layers.SeparableConv2D if separable else tf.keras.layers.Conv2D
        x = layer(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        return tf.keras.layers.ReLU()(tf.keras.layers.BatchNormalization(momentum=0.9)(x))

    images = x = tf.keras.Input((None, None, 3))
    x = conv(x, 24, strides=2)
    x = conv(x, 48, strides=2)
    x = conv(x, 64)
    x = conv(x, 96, separable=True)
    x = conv(x, 128, strides=2, separable=True)
    x = conv(x, 160, separable=True)
    return tf.keras.Model(images, x, name="letters")


def main(argv: list[str]) -> None:
    del argv
    tf.keras.utils.set_random_seed(SEED.value)
    tf.config.experimental.enable_op_determinism()

    def train_inputs(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        size = tf.random.uniform((), MIN_INPUT, MAX_INPUT + 1, tf.int32)
        return preprocess(images, size), labels

    images, labels = draw_letters(IMAGES.value, SEED.value)
    held_out = IMAGES.value // 10
    train = tf.data.Dataset.from_tensor_slices((images[held_out:], labels[held_out:]))
    train = train.shuffle(len(images)).batch(BATCH_SIZE.value, drop_remainder=True)
    train = train.map(train_inputs).prefetch(1)

    encoder = build_encoder()
    features = tf.keras.layers.GlobalAveragePooling2D()(encoder.output)
    model = tf.keras.Model(encoder.input, tf.keras.layers.Dense(len(CLASSES))(features))
    steps = EPOCHS.value * len(train)
    schedule = tf.keras.optimizers.schedules.CosineDecay(LEARNING_RATE.value, steps)
    model.compile(
        tf.keras.optimizers.Adam(schedule),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, epochs=EPOCHS.value, verbose=2)
    _, accuracy = model.evaluate(preprocess(images[:held_out]), labels[:held_out], verbose=0)

    output = Path(OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    encoder.save(partial, save_format="h5", include_optimizer=False)
    os.replace(partial, output)
    logging.info("%s: held-out accuracy %.1f %%", output, 100 * accuracy)


if __name__ == "__main__":
    app.run(main)
