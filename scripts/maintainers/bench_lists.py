"""Compares this library and Keras at reading 437,513 images, the size of iNaturalist 2018.

    python scripts/maintainers/bench_lists.py

Prints the time to the first batch, the peak memory and the images per second. Each reader runs in a
process of its own. The images are 300 files of 500 x 375 pixels under many names. The library reads
them by a list, Keras' `image_dataset_from_directory` from 8,142 class folders.
"""

import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import candle_tf  # before tensorflow
import numpy as np
import tensorflow as tf
from absl import app, flags
from candle_tf.reports.tables import markdown
from PIL import Image

flags.DEFINE_integer("images", 437_513, "Lines of the list.")
flags.DEFINE_integer("classes", 8_142, "Classes.")
flags.DEFINE_string("directory", None, "Where to make the files; the system's own if not given.")

FILES, SIZE, BATCH, BATCHES = 300, 224, 128, 40


def make(root: Path, images: int, classes: int):
    """Writes root/CLASS/NUMBER.jpg, hard links to a few files, and root/{train,test}.txt."""
    rng = np.random.default_rng(0)
    for i in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        coarse.resize((500, 375)).save(root / f"{i}.jpg", quality=90)
    labels = np.sort(np.arange(images) % classes)
    for label in range(classes):
        (root / "images" / f"{label:04}").mkdir(parents=True)
    paths = [f"images/{label:04}/{n:06}.jpg" for n, label in enumerate(labels)]
    for n, path in enumerate(paths):
        os.link(root / f"{n % FILES}.jpg", root / path)
    train = "".join(f"{path} {label}\n" for path, label in zip(paths, labels))
    (root / "train.txt").write_text(train)
    for label in range(classes):
        os.link(root / "0.jpg", root / f"test{label}.jpg")
    (root / "test.txt").write_text("".join(f"test{n}.jpg {n}\n" for n in range(classes)))


def by_list(root: str) -> tf.data.Dataset:
    examples = candle_tf.data.load(f"list:{root}/train.txt,{root}/test.txt")
    how = candle_tf.data.Augmentation(flip=False)
    return candle_tf.data.training_batches(examples.train, SIZE, BATCH, augmentation=how)


def by_keras(root: str) -> tf.data.Dataset:
    return tf.keras.utils.image_dataset_from_directory(
        f"{root}/images", batch_size=BATCH, image_size=(SIZE, SIZE), seed=0
    )


READERS = {"list, files looked at": by_list, "list again": by_list, "Keras": by_keras}


def measure(name: str, root: str, sender):
    """Sends the seconds to the first batch, the images per second after it, and peak MB."""
    before = peak()
    began = time.perf_counter()
    batches = iter(READERS[name](root))
    next(batches)
    first = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    rate = BATCHES * BATCH / (time.perf_counter() - first)
    sender.send({"start": first - began, "rate": rate, "memory": peak() - before})


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main(_):
    spawn = multiprocessing.get_context("spawn")
    columns = {name: {} for name in ("start-up, s", "peak memory, MB", "images a second")}
    with tempfile.TemporaryDirectory(dir=flags.FLAGS.directory) as root:
        os.environ["XDG_CACHE_HOME"] = f"{root}/cache"
        make(Path(root), flags.FLAGS.images, flags.FLAGS.classes)
        for name in READERS:
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=measure, args=(name, root, sender))
            process.start()
            sender.close()  # so that the end of a reader that dies is noticed
            figures = receiver.recv()
            process.join()
            for column, key in zip(columns.values(), ("start", "memory", "rate")):
                column[name] = f"{figures[key]:.1f}"
            print(json.dumps({name: figures}), flush=True)
    print(markdown(columns, list(READERS)))


if __name__ == "__main__":
    app.run(main)
