"""Compares how fast this library and Keras read photographs, for docs/performance.md.

    taskset -c 0 python scripts/maintainers/bench_reading.py --images=DIR

The photographs become JPEG files of 500 x 375 pixels at quality 90. Each round reads all of them
once by each reader, in turn, and the ratios of the medians count: the library's training batches at
224 pixels with all random changes, and `tf.keras.utils.image_dataset_from_directory`, which crops
and changes nothing. The command also times both looks at many files: hard links to the photographs.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import candle_tf  # before tensorflow
import numpy as np
import tensorflow as tf
from absl import app, flags
from candle_tf.data.own_images.images import look_at_files
from candle_tf.reports.tables import markdown
from PIL import Image

COUNT, SIZE, BATCH = 300, 224, 50


def write_photographs(root: Path, directory: str):
    """Writes root/CLASS/NUMBER.jpg: photographs of a directory, enlarged, with a sensor's noise."""
    found = sorted(Path(directory).rglob("*.jpg"))
    rng = np.random.default_rng(0)
    for i, path in enumerate(found[:: len(found) // COUNT][:COUNT]):
        picture = Image.open(path).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture) + rng.normal(0, 4, (375, 500, 1))
        (root / f"class{i % 10}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.uint8(np.clip(pixels, 0, 255)))
        picture.save(root / f"class{i % 10}" / f"{i}.jpg", quality=90)


def readers(root: Path, cache: Path) -> Iterator[tuple[str, tf.data.Dataset]]:
    """Yields the name and the batches of each reader."""
    paths = sorted(map(str, root.rglob("*.jpg")))
    marks, labels = look_at_files(paths, cache).marks, np.zeros(len(paths), np.int64)
    for name, known in (("TensorFlow decodes", marks), ("Pillow decodes", None)):
        train = candle_tf.data.Examples(tf.constant(paths), labels, on_disk=True, marks=known)
        for color_jitter in (0.4, 0.0) if known is not None else (0.4,):
            how = candle_tf.data.Augmentation("resized", color_jitter=color_jitter)
            batches = candle_tf.data.training_batches(train, SIZE, BATCH, augmentation=how)
            yield f"{name}, {'with' if color_jitter else 'without'} color jitter", batches
    yield (
        "Keras",
        tf.keras.utils.image_dataset_from_directory(
            root, batch_size=BATCH, image_size=(SIZE, SIZE), seed=0
        ),
    )


def seconds_of(job: Callable[[], object]) -> np.ndarray:
    """Returns the seconds of wall time and of CPU time that a job needs, (2,)."""
    began = np.array([time.perf_counter(), time.process_time()])
    job()
    return np.array([time.perf_counter(), time.process_time()]) - began


def photographs_by_reader(directory: Path, images: str, rounds: int) -> dict[str, np.ndarray]:
    """Returns the median seconds of wall and CPU time, (2,), that each reader needs; Keras is last.

    Args:
        directory: Empty directory for the photographs.
        images: Directory to take them from.
        rounds: How often each reader reads them all.
    """
    write_photographs(directory / "photographs", images)
    names, datasets = zip(*readers(directory / "photographs", directory / "cache"))
    seconds = np.zeros((rounds + 1, len(names), 2))
    for i in range(len(seconds)):
        for j, batches in enumerate(datasets):
            seconds[i, j] = seconds_of(lambda batches=batches: list(map(len, batches)))
    return dict(zip(names, np.median(seconds[1:], axis=0)))  # the first round builds the graphs


def bench(_):
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        seconds = photographs_by_reader(directory, flags.FLAGS.images, flags.FLAGS.rounds)
        keras = seconds["Keras"]
        columns = {
            "images a second": {name: f"{COUNT / s[0]:.0f}" for name, s in seconds.items()},
            "CPU ms an image": {name: f"{1e3 * s[1] / COUNT:.2f}" for name, s in seconds.items()},
            "speed / Keras', wall": {n: f"{keras[0] / s[0]:.2f}" for n, s in seconds.items()},
            "CPU": {name: f"{keras[1] / s[1]:.2f}" for name, s in seconds.items()},
        }
        print(markdown(columns, list(seconds)))
        look_at_many(directory / "photographs", directory / "cache", directory / "many")


def look_at_many(root: Path, cache: Path, many: Path):
    """Prints the time per file of the first and of the second look."""
    photographs, count = list(root.rglob("*.jpg")), flags.FLAGS.files
    many.mkdir()
    paths = [str(many / f"{i}.jpg") for i in range(count)]
    for i, path in enumerate(paths):
        os.link(photographs[i % len(photographs)], path)
    for which in ("first", "second"):
        wall, cpu = 1e3 * seconds_of(lambda: look_at_files(paths, cache)) / max(count, 1)
        print(f"{which} look: {wall:.3f} ms a file, {cpu:.3f} ms of CPU time")


if __name__ == "__main__":
    flags.DEFINE_string("images", None, "Directory with at least 300 photographs.", required=True)
    flags.DEFINE_integer("rounds", 9, "How often each reader reads all photographs.")
    flags.DEFINE_integer("files", 20_000, "Files of the looks.")
    app.run(bench)
