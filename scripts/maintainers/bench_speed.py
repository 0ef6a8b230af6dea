"""Measures times of candle_tf as ratios of two things timed in turn, for docs/performance.md.

    python scripts/maintainers/bench_speed.py --data_dir=DIR --teacher=FILE --images=PHOTOGRAPHS

DIR is a TFDS directory with CIFAR-10, FILE a Keras 2 model that ends in a feature map, and
PHOTOGRAPHS a directory with at least 300 JPEG files. A row with a bound has a verdict. The command
should take less than ten minutes on two cores that do nothing else.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what matters comes as an exception
from candle_tf.cli import run_flags  # isort: skip  before tensorflow
import larq as lq
import tensorflow as tf
from bench_reading import photographs_by_reader, write_photographs
from candle_tf import CandleModel, StudentModel, Teacher, TeacherStore, data, students
from candle_tf.classifiers import linear
from candle_tf.networks.surgery import renewed, rewire
from candle_tf.reports.tables import markdown
from candle_tf.resolution import resize

BATCH, SIZE, SIZES, CLASSES = 128, 32, (24, 32, 40), 10
STEPS = 12  # per epoch
EPOCHS, VIEWS = 30, 4  # of a calibration
LOOPED = 3  # of its epochs are timed with the encoder in the loop
PARTS = ("calibration", "teacher", "store", "step", "input", "reading", "peers")
PEERS = ("candle", "larq_zoo", "keras3")

flags.DEFINE_string("data_dir", None, "The TFDS directory that holds CIFAR-10.", required=True)
flags.DEFINE_string("teacher", None, "A saved Keras model's file.", required=True)
flags.DEFINE_string("images", None, "Photographs for `reading`, which is left out without them.")
flags.DEFINE_integer("teacher_image_size", 96, "Side in pixels of what the teacher sees.")
flags.DEFINE_integer(
    "rounds", 3, "How often an epoch is timed, a step 3 times as often; the medians count."
)
flags.DEFINE_multi_enum("parts", PARTS, PARTS, "Of the table.")


@dataclass
class Row:
    """A ratio of (wall time, CPU time) or of memory, and what the first must not pass."""

    what: str
    ratio: np.ndarray
    at_most: float | None = None
    at_least: float | None = None

    def cells(self) -> list[str]:
        ratios = [f"{r:.2f}" for r in self.ratio] + ["-"] * (2 - len(self.ratio))
        if self.at_most is not None:
            bound, within = f"≤ {self.at_most:.2f}", self.ratio <= self.at_most
        elif self.at_least is not None:
            bound, within = f"≥ {self.at_least:.2f}", self.ratio >= self.at_least
        else:
            return [*ratios, "-", "-"]
        verdict = {True: "holds", False: "missed"}
        wall, cpu = verdict[bool(within[0])], verdict[bool(within[-1])]
        return [*ratios, bound, wall if wall == cpu else f"wall {wall}, CPU {cpu}"]


def clock() -> np.ndarray:
    """Returns the seconds of wall time and of CPU time, (2,)."""
    return np.array([time.perf_counter(), time.process_time()])


def medians(*jobs: Callable[[], object], rounds: int = 0, warm_up: bool = True) -> np.ndarray:
    """Returns the median seconds of each job, (jobs, 2); each round runs each job once."""
    for job in jobs if warm_up else ():
        job()
    rounds = rounds or flags.FLAGS.rounds
    seconds = np.zeros((rounds, len(jobs), 2))
    for i in range(rounds):
        for number in list(range(len(jobs)))[:: 1 if i % 2 else -1]:
            began = clock()
            jobs[number]()
            seconds[i, number] = clock() - began
    return np.median(seconds, axis=0)


class Bench:
    """The jobs to time, on real data."""

    def __init__(self):
        loaded = data.load("tfds:cifar10", flags.FLAGS.data_dir, imbalance_ratio=100)
        self.how = loaded.info.augmentation
        self.examples = loaded.train.take(np.random.default_rng(0).permutation(2048))

    def encoder(self) -> Teacher:
        return Teacher.from_file(flags.FLAGS.teacher, flags.FLAGS.teacher_image_size)

    def candle(self, **kwargs) -> CandleModel:
        teacher = self.encoder()
        # A classifier without calibration takes the same time.
        teacher.classifier = linear(teacher.width, CLASSES)
        teacher.class_counts = [1] * CLASSES
        return compiled(CandleModel(teacher, students.resnet_e(CLASSES, SIZE), **kwargs))

    def student(self) -> StudentModel:
        return compiled(StudentModel(students.resnet_e(CLASSES, SIZE)))

    def stream(self, size: int = SIZE) -> tf.data.Dataset:
        """Returns augmented batches without end."""
        how = {"augmentation": self.how, "num_examples": 10**7}
        return data.training_batches(self.examples, size, BATCH, **how)

    def ready(self, size: int = SIZE) -> tf.data.Dataset:
        """Returns batches from tensors in memory, again and again."""
        images, labels = zip(*self.stream(size).take(STEPS))
        return tf.data.Dataset.from_tensor_slices((tf.stack(images), tf.stack(labels))).repeat()

    def calibration(self) -> Iterator[Row]:
        counts = np.bincount(self.examples.labels, minlength=CLASSES)
        batches = data.training_batches(self.examples, SIZE, BATCH, augmentation=self.how)

        teacher = self.encoder()
        tf.get_logger().setLevel("ERROR")  # Lambda wonders whether to train the encoder
        model = tf.keras.Sequential(
            [tf.keras.layers.Lambda(teacher.embed), tf.keras.layers.Dense(CLASSES)]
        )
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf.keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
        model.fit(batches, steps_per_epoch=1, verbose=0)  # traces

        def cached():
            self.encoder().calibrate(batches, counts, views=VIEWS, verbose=0)

        # Each runs once, the second with its tracing, because it takes minutes.
        looped, quick = medians(
            *(lambda: model.fit(batches, epochs=LOOPED, verbose=0), cached), rounds=1, warm_up=False
        )
        looped *= EPOCHS / LOOPED
        what = f"calibration: `fit` with the encoder / for {EPOCHS} epochs, {VIEWS} views cached"
        yield Row(what, looped / quick, at_least=0.85 * EPOCHS / VIEWS)

    def teacher(self) -> Iterator[Row]:
        teacher, size = self.encoder(), flags.FLAGS.teacher_image_size
        images = next(iter(self.stream()))[0]

        def whole(images):
            return teacher.encoder(teacher.preprocessing(resize(images, size)), training=False)

        ways = teacher.embedder(10**9), teacher.embed, whole
        lite, parts, at_once = medians(*(partial(tf.function(way), images) for way in ways))
        print(f"teacher: {BATCH / lite[0]:.0f} images a second")
        yield Row(f"teacher: a batch in parts / {BATCH} images at once", parts / at_once, 1.0)
        yield Row("teacher: TensorFlow Lite / TensorFlow, a batch in parts", lite / parts, 1.0)

    def store(self) -> Iterator[Row]:
        live = self.candle()
        plain, quick, slow = self.epochs(self.examples, self.how, SIZE, live)
        yield Row("epoch: CANDLE, teacher store / cross-entropy", quick / plain, 1.0)
        yield Row("epoch: CANDLE, live teacher / cross-entropy", slow / plain)
        yield Row("epoch: CANDLE, live teacher / teacher store", slow / quick)
        if flags.FLAGS.images is None:
            return
        with tempfile.TemporaryDirectory() as directory:
            write_photographs(Path(directory), flags.FLAGS.images)
            photographs = data.load(f"folder:{directory}")
            how, size = photographs.info.augmentation, flags.FLAGS.teacher_image_size
            plain, quick = self.epochs(photographs.train, how, size)
        yield Row("epoch of photographs: CANDLE, teacher store / cross-entropy", quick / plain, 1.0)

    def epochs(
        self,
        examples: data.Examples,
        how: data.Augmentation,
        image_size: int,
        live: CandleModel | None = None,
    ) -> np.ndarray:
        """Returns the seconds of an epoch, (2 or 3, 2): cross-entropy, from a store, live."""
        alone, stored = self.student(), self.candle()
        endless = {"num_examples": 10**7}
        plain = data.training_batches(examples, SIZE, BATCH, augmentation=how, **endless)
        with tempfile.TemporaryDirectory() as directory:
            of = (directory, stored, examples)
            store = TeacherStore(*of, image_size=image_size, views=1, augmentation=how)
            store.complete(verbose=0)
            jobs = [epoch(alone, plain), epoch(stored, store.training_batches(BATCH, **endless))]
            if live is not None:
                jobs.append(epoch(live, plain))
            return medians(*jobs)

    def step(self) -> Iterator[Row]:
        live, alone, several = self.candle(), self.student(), self.candle(resolutions=SIZES)
        side = tf.Variable(SIZE)
        several.resolution.draw = lambda step: tf.identity(side)  # each size in its turn
        teacher, size = tf.function(live.teacher), flags.FLAGS.teacher_image_size
        ready, large = self.ready(), self.ready(max(SIZES))
        images = next(iter(ready))[0]
        a, b = tf.random.normal((2, 2048, 2048))
        copied = tf.random.normal((64, 1024, 1024))

        def at(size: int) -> Callable[[], object]:
            return lambda: (side.assign(size), epoch(several, large, 1)())

        parts = epoch(live, ready, 1), epoch(alone, ready, 1), lambda: teacher(images, size)
        best = lambda: a @ b, lambda: -copied
        rounds = 3 * flags.FLAGS.rounds
        measured = medians(*parts, *best, *map(at, SIZES), rounds=rounds)
        shown, plain, forward, product, copy = measured[:5]
        yield Row(
            "step: CANDLE / (teacher forward + student step)", shown / (plain + forward), 1.05
        )
        expected = several.resolution.probabilities @ measured[5:]
        yield Row(f"step: one of {SIZES} by chance / {SIZE} alone", expected / shown, 1.05)
        traces = [m.train_function.experimental_get_tracing_count() for m in (several, live)]
        print(f"traces of the step: {traces[0]} for {len(SIZES)} sizes, {traces[1]} for one")
        # The teacher forward; the student too, and its gradients by weights and by inputs.
        network = rewire(live.teacher.encoder, (size, size, 3))
        work = 3 * work_of(students.resnet_e(CLASSES, SIZE))
        for what, took, each in (
            ("CANDLE", shown, work + work_of(network)),
            ("the student alone", plain, work),
        ):
            macs, elements = BATCH * each
            arithmetic, memory = macs * product / 2048**3, elements * copy / 2**26
            floor = "its multiply-accumulates at a matrix product's rate"
            yield Row(f"step: {what} / {floor}", took / arithmetic, 1.2)
            yield Row(f"step: {what} / its layers' outputs at a copy's rate", took / memory)

    def input(self) -> Iterator[Row]:
        model = self.student()
        streamed, ready = medians(epoch(model, self.stream()), epoch(model, self.ready()))
        yield Row("epoch: input pipeline / ready tensors", streamed / ready, 1.05)

    def reading(self) -> Iterator[Row]:
        if flags.FLAGS.images is None:
            return
        with tempfile.TemporaryDirectory() as directory:
            seconds = photographs_by_reader(Path(directory), flags.FLAGS.images, flags.FLAGS.rounds)
        *ours, (_, keras) = seconds.items()
        for name, took in ours:
            bound = 1.5 if name.startswith("TensorFlow") else None
            yield Row(f"reading at 224 pixels: Keras / {name}", keras / took, at_least=bound)

    def peers(self) -> Iterator[Row]:
        """Times each peer in a process of scripts/maintainers/bench_peers.py, in turn."""
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            path = os.path.join(directory, "images.npz")
            images = self.examples.images.numpy().astype(np.float32)
            np.savez(path, images=images, labels=self.examples.labels)
            ask = {name: stack.enter_context(worker(name, path)) for name in PEERS}
            rounds = range(3 * flags.FLAGS.rounds)
            said = [{name: ask[name](1) for name in PEERS} for _ in rounds]

        def median(name: str, *what: str) -> np.ndarray:
            return np.median([[answers[name][w] for w in what] for answers in said], axis=0)

        for name in PEERS[1:]:
            seconds = [median(n, "seconds", "cpu_seconds") for n in ("candle", name)]
            yield Row(f"step: CANDLE, live teacher / {name}", seconds[0] / seconds[1], 1.0)
            memory = [median(n, "peak_rss_mb") for n in ("candle", name)]
            yield Row(f"peak memory: CANDLE, live teacher / {name}", memory[0] / memory[1], 1.0)


def work_of(network: tf.keras.Model) -> np.ndarray:
    """Returns the multiply-accumulates per image, by Larq, and the elements of all outputs."""
    network = renewed(network)  # the layers of a new network have only one size
    outputs = sum(int(np.prod(layer.output_shape[1:])) for layer in network.layers[1:])
    return np.array([lq.models.ModelProfile(network).op_count("mac"), outputs])


def compiled(model: StudentModel) -> StudentModel:
    model.compile(tf.keras.optimizers.Adam(2.5e-3), metrics=["accuracy"])
    return model


def epoch(
    model: StudentModel, batches: tf.data.Dataset, steps: int = STEPS
) -> Callable[[], object]:
    return lambda: model.fit(batches, steps_per_epoch=steps, verbose=0)


@contextlib.contextmanager
def worker(peer: str, images: str) -> Iterator[Callable[[int], dict]]:
    """Yields a function from a number of steps to the answer of a peer's process."""
    script = Path(__file__).with_name("bench_peers.py")
    given = [f"--peer={peer}", f"--images={images}", f"--teacher={flags.FLAGS.teacher}"]
    command = [sys.executable, str(script), *given]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        tempfile.TemporaryFile("w+") as log,  # a pipe that nobody reads would fill
        subprocess.Popen(command, text=True, stderr=log, **pipes) as process,
    ):

        def answer(steps: int | None = None) -> dict:
            if steps:
                print(steps, file=process.stdin, flush=True)
            if not (line := process.stdout.readline()):
                log.seek(0)
                raise OSError(f"The peer {peer} ended: {log.read()[-2000:]}")
            return json.loads(line)

        answer()  # that it is ready
        yield answer
        process.stdin.close()


def bench():
    began = time.monotonic()
    timed = Bench()
    cells = {"wall time": {}, "CPU time": {}, "bound": {}, "verdict": {}}
    for part in flags.FLAGS.parts:
        for row in getattr(timed, part)():
            for column, cell in zip(cells.values(), row.cells()):
                column[row.what] = cell
        print(f"{part}: done after {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    print(markdown(cells, list(cells["bound"])))


if __name__ == "__main__":
    app.run(run_flags.main_of(bench))
