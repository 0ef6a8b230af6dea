"""One run in one workdir: its settings, and the objects that the settings name."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf import data, metrics, students
from candle_tf.data.pipeline import training_places
from candle_tf.methods import Method
from candle_tf.methods.experts import start_branches
from candle_tf.networks.surgery import at_policy, check_size
from candle_tf.reports.tables import summary_table
from candle_tf.resolution import RandomResolution, in_proportion, resize
from candle_tf.runs.build import images_per_second, named_teacher
from candle_tf.runs.checkpoints import restored
from candle_tf.runs.evaluate import logits_of, save_predictions
from candle_tf.runs.settings import OF_VIEWS, OWN, Settings, canonical, first_stage_of, method_of
from candle_tf.runs.workdir import as_begun, check_images
from candle_tf.student_model import StudentModel
from candle_tf.students import bits
from candle_tf.teacher import Teacher
from candle_tf.teacher_store import FEWEST, TeacherStore
from candle_tf.utils.distribution import (
    ALONE,
    Share,
    build_strategy,
    distributed,
    leads,
    on_all_replicas,
    share_of,
)
from candle_tf.utils.files import read_json
from candle_tf.utils.names import arguments_of, parse_spec
from candle_tf.utils.run_files import (
    CLASSES_FILE,
    ENCODER_FILE,
    METRICS_FILE,
    REPORT,
    TEACHER_STORE,
    UNLABELLED,
    read_results,
)

TIMED = 9  # batches of which a speed is measured, without the first one
INT8_IMAGES = 200  # training images on which an 8-bit export measures its ranges


class Run:
    """One run in one workdir: it builds the objects that its settings name, each once.

    Args:
        settings: Settings of the run. If a run has begun in the workdir, its values replace the
            method's defaults for settings that are not given.
        scales_by_set: Whether the student scales pixels by the set's mean and standard deviation.

    Attributes:
        given: The settings with the method's own values and absolute paths.
        kept: Names of the settings that are not given and have the values of the run that began in
            the workdir.
        unread: Names of the settings that are given and that the method does not read.
        throughput: Images per second of the last training here, and the parts of its time; see
            `candle_tf.utils.throughput.Throughput.results`.

    Raises:
        ValueError: If a setting is wrong, or settings contradict each other.

    Example:
        >>> chosen = {"student": "resnet_e", "image_size": 32, "epochs": 60}
        >>> run = Run(Settings(workdir="runs/digits", method="focal", **chosen))
        >>> run.method.sampler, run.resolution.sizes, run.teacher
        ('instance_balanced', (32,), None)
    """

    def __init__(self, settings: Settings, scales_by_set: bool = True):
        given = as_begun(settings)
        given.check()
        self.given = canonical(given)
        self.kept = [name for name in canonical(settings).open if name not in self.given.open]
        now, then = method_of(settings), method_of(self.given)  # a method's own values may change
        self.kept += [name for name in OWN if getattr(now, name) != getattr(then, name)]
        default = Settings()
        self.unread = [
            name for name in settings.unread if getattr(settings, name) != getattr(default, name)
        ]
        self.scales_by_set = scales_by_set
        self.throughput: dict[str, float] = {}

    def __repr__(self) -> str:
        settings = self.given
        state = "finished" if (self.workdir / METRICS_FILE).exists() else "not finished"
        return (
            f"Run in {settings.workdir}, {state}\n"
            f"{settings.method} trains {settings.student or 'a student'} on {settings.dataset}"
        )

    def decide(self, **values):
        """Sets values that the settings left open, such as a planned number of views."""
        self.settings = dataclasses.replace(self.settings, **values)
        for follows in ("method", "steps_per_epoch"):
            self.__dict__.pop(follows, None)

    # The objects that the settings name.

    @cached_property
    def settings(self) -> Settings:
        """The given settings, with values chosen from the images for those that are open."""
        if not (names := self.given.open):
            return self.given
        planned = self.given.planned(len(self.examples.train), self.examples.image_size)
        planned.check()
        if self.leads:
            if "epochs" in names:
                names = [*names, "steps_per_epoch"]
            if self.given.minutes:  # which replaces them
                names = [name for name in names if name not in ("epochs", "steps_per_epoch")]
            chosen = ", ".join(f"{name}={getattr(planned, name)}" for name in names)
            if chosen:
                print(f"Chosen for these images: {chosen}")
        return planned

    @cached_property
    def method(self) -> Method:
        """The method's row, with the values that the settings change."""
        return method_of(self.settings)

    @property
    def workdir(self) -> Path:
        """The directory that the run writes to."""
        return Path(self.given.workdir)

    @cached_property
    def strategy(self) -> tf.distribute.Strategy:
        """TensorFlow's strategy, which says on which devices the run trains."""
        return build_strategy(self.given.strategy)

    @cached_property
    def share(self) -> Share:
        """The part of each batch that this process reads."""
        return share_of(self.strategy)

    @property
    def leads(self) -> bool:
        """True in the first worker, which alone writes."""
        return self.share.worker == 0

    @cached_property
    def first_stage(self) -> "Run | None":
        """The run that this one starts from, for a method of two stages."""
        first = first_stage_of(self.settings) if self.settings.epochs else None
        return first and Run(first)

    @cached_property
    def examples(self) -> data.LongTailedData:
        """The training, validation and test images of the run."""
        return self.given.load_images()  # the other settings are chosen from the images

    @property
    def label_smoothing(self) -> tuple[float, float]:
        """The factors of head and tail in label-aware smoothing."""
        return self.settings.label_smoothing or self.examples.label_smoothing

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes, as the run in the workdir wrote them."""
        path = self.workdir / CLASSES_FILE
        return read_json(path, list, "the run's command writes it again")

    @cached_property
    def teacher(self) -> Teacher | None:
        """The teacher, not calibrated until the run calibrates it; None without a teacher.

        Raises:
            ValueError, OSError: If there is no such teacher, or it cannot work at every resolution.
        """
        settings = self.settings
        if not settings.calibrates:
            return None
        teacher = named_teacher(
            settings.teacher,
            settings.teacher_image_size,
            settings.teacher_weights,
            settings.teacher_preprocessing,
            settings.allow_custom_code,
        )
        if settings.resolutions:  # the teacher's own size has been checked
            smallest = self.teacher_size(self.resolution.sizes[0])
            check_size(teacher.encoder, teacher.image_size, smallest, "teacher")
        if settings.precision != "float32":
            teacher.encoder = at_policy(teacher.encoder, settings.precision)
            teacher.encoder.trainable = False
        return teacher

    @cached_property
    def teacher_speed(self) -> float:
        """The number of views that are read and encoded per second, measured once."""
        embed = self.teacher.embedder(FEWEST * len(self.examples.train), strategy=self.strategy)
        return images_per_second(embed, self.timed_batches())

    @cached_property
    def live_teacher_speed(self) -> float:
        """The number of images that the teacher encodes per second within an update."""
        return images_per_second(self.teacher.embed, list(self.timed_batches().take(3)))

    def timed_batches(self) -> tf.data.Dataset:
        """Returns the images of some training batches."""
        batches = self.training_batches(num_examples=TIMED * self.settings.batch_size)
        return batches.map(lambda images, _: images)

    @cached_property
    def student(self) -> StudentModel:
        """The trained student; see `restore`. A run that is not finished says so."""
        student = self.restore()
        if self.results is None:
            print(f"{self.workdir} is not finished: this is its student at the last checkpoint.")
        return student

    def restore(self) -> StudentModel:
        """Returns the student of the last checkpoint.

        Raises:
            FileNotFoundError: If the run has no checkpoint yet.
            ValueError: If the run trains no student of classes, or its last checkpoint is damaged.
        """
        if self.class_names == [UNLABELLED]:
            encoder = self.workdir / ENCODER_FILE
            raise ValueError(
                f"{self.workdir} holds a pretraining, whose student tells no classes apart: train "
                f"one that starts from it, `student=resnet_e:weights='{encoder}'`."
            )
        student = self.build_student(len(self.class_names), pretrained=False)
        if not self.settings.epochs:
            raise ValueError(f"{self.workdir} has trained no student: it ran with `epochs=0`.")
        return StudentModel(restored(student, self.workdir))

    def build_student(self, num_classes: int, pretrained: bool = True) -> tf.keras.Model:
        """Returns a student with the weights that its training starts from.

        Args:
            num_classes: Number of classes.
            pretrained: Whether to load pretrained weights, which a checkpoint would replace.
        """
        settings = self.settings
        name, arguments = self.student_arguments(pretrained)
        tf.keras.utils.set_random_seed(settings.seed)
        with arguments_of("student", settings.student):
            student = students.create(
                name, num_classes=num_classes, image_size=settings.image_size, **arguments
            )
        student = bits.at_bits(student, settings.student_bits)
        network = self.method.network(student)
        if arguments.get("weights"):
            start_branches(network, student)
        return network

    def student_arguments(self, pretrained: bool = True) -> tuple[str, dict]:
        """Returns the name of the student and the arguments of its function.

        Args:
            pretrained: Whether the arguments may name pretrained weights.
        """
        name, arguments = parse_spec(self.settings.student)
        starts = arguments.get("weights")
        if starts and not pretrained:
            arguments["weights"] = None if str(starts).endswith(".npz") else ""
        # Pretrained weights expect the scaling of their pretraining, and larq-zoo has its own.
        if name in students.STUDENTS and not starts and self.scales_by_set:
            info = data.info_of(self.settings.dataset)
            scaling = {"mean": info.mean, "std": info.std} if info.mean else {}
            arguments = {**scaling, **arguments}
        return name, arguments

    # Sizes.

    @cached_property
    def resolution(self) -> RandomResolution:
        """The sizes of the student's images, and how often each is drawn."""
        settings = self.settings
        sizes = settings.resolutions or (settings.image_size,)
        return RandomResolution(sizes, settings.image_size, settings.seed)

    def teacher_size(self, size: int) -> int:
        """Returns the side of the teacher's images if that of the student's images is `size`."""
        settings = self.settings
        return in_proportion(size, settings.image_size, settings.teacher_image_size)

    @cached_property
    def view_size(self) -> int:
        """The largest size that student or teacher needs, never above the images' own size."""
        largest = max(self.resolution.sizes)
        needed = max(largest, self.settings.image_size)
        if self.settings.calibrates:
            needed = max(needed, self.teacher_size(largest))
        return min(needed, self.examples.image_size or needed)

    @cached_property
    def augmentation(self) -> data.Augmentation:
        """The random variation of training images: the data set's, changed by the settings."""
        own = data.info_of(self.settings.dataset).augmentation
        return dataclasses.replace(own, **self.settings.given(OF_VIEWS))

    @cached_property
    def steps_per_epoch(self) -> int:
        """The number of updates per epoch."""
        settings = self.settings
        return settings.steps_per_epoch or max(1, len(self.examples.train) // settings.batch_size)

    @property
    def updates(self) -> int:
        """The number of updates of all epochs; those of a first stage are not counted."""
        return 0 if self.method.second_stage else self.settings.epochs * self.steps_per_epoch

    @cached_property
    def drawn_sizes(self) -> np.ndarray:
        """The size of the student's images at each update, int32 (updates,)."""
        settings = self.settings
        # With a live teacher, both steps draw from update 0; with a store, the second continues.
        half = settings.epochs // 2 if settings.two_step and not settings.teacher_views else 0
        steps = [epochs * self.steps_per_epoch for epochs in (half, settings.epochs - half)]
        return np.concatenate([self.resolution.draws(count) for count in steps])

    # Batches.

    def training_batches(self, batch_size: int | None = None, **stream) -> tf.data.Dataset:
        """Returns augmented training images.

        Args:
            batch_size: Batch size over all replicas; the run's own by default.
            stream: Further arguments of `candle_tf.data.training_batches`.
        """
        how = {"image_size": self.view_size, "augmentation": self.augmentation, **stream}
        return data.training_batches(
            self.examples.train, batch_size=batch_size or self.settings.batch_size, **how
        )

    def evaluation_batches(
        self,
        part: data.Examples,
        batch_size: int | None = None,
        share: Share = Share(),
        image_size: int | None = None,
    ) -> tf.data.Dataset:
        """Returns a split of the data as a network is evaluated on it.

        Args:
            part: Images to show, each once and in order.
            batch_size: Batch size over all replicas; the run's own by default.
            share: The part of each batch that this process reads.
            image_size: Side of the images in pixels. By default the student's own, so that larger
                images are shrunk once, as its exports shrink them.
        """
        size = image_size or min(self.resolution.base, self.view_size)
        batch_size = batch_size or self.settings.batch_size
        return data.evaluation_batches(part, size, batch_size, self.augmentation, share)

    def training_stream(
        self,
        first_update: int = 0,
        store: TeacherStore | None = None,
        skipped: Sequence[int] = (),
        share: Share = Share(),
    ) -> tf.data.Dataset:
        """Returns the batches of all updates, in pairs for a method of two samplers.

        Args:
            first_update: Number of the update to begin with.
            store: Store of the teacher's outputs, for a run with `teacher_views`.
            skipped: Places of the batches to leave out; later batches move up.
            share: The part of each batch that this process reads.
        """
        batch_size, method = self.settings.batch_size, self.method
        place = place_of(first_update, skipped)
        span = {
            "share": share,
            "num_examples": self.examples_seen(skipped),
            "first_example": place * batch_size,
        }
        if store:
            seed = self.settings.seed
            stream = store.training_batches(batch_size, sampler=method.sampler, seed=seed, **span)
        else:
            main, *partner = (
                self.training_batches(sampler=sampler, seed=seed, **span, **views)
                for (sampler, seed), views in zip(self.streams, ({"views": method.views}, {}))
            )
            stream = main
            for second in partner:
                pairs = tf.data.Dataset.zip((main, second))
                stream = pairs.map(lambda a, b: ((a[0], b[0]), (a[1], b[1])))
        if not skipped:
            return stream
        numbered = stream.enumerate(place * share.replicas)
        left = numbered.filter(lambda n, _: ~tf.reduce_any(n // share.replicas == list(skipped)))
        return left.map(lambda _, x: x)

    @property
    def streams(self) -> list[tuple[str, int]]:
        """The sampler and the seed of each stream that the method's batches come from."""
        partner, seed = self.method.partner_sampler, self.settings.seed
        return [(self.method.sampler, seed), *([(partner, seed + 3)] if partner else [])]

    def examples_seen(self, skipped: Sequence[int]) -> int:
        """Returns the number of images in all epochs, with those of skipped batches."""
        batches = self.settings.epochs * self.steps_per_epoch + len(skipped)
        return batches * self.settings.batch_size

    def indices_of(self, place: int, skipped: Sequence[int]) -> list[int]:
        """Returns the training images of a batch, those of a partner stream after the others.

        Args:
            place: Place of the batch in the stream, skipped batches included.
            skipped: Places of the batches to leave out.
        """
        indices, batch_size = [], self.settings.batch_size
        for sampler, seed in self.streams:
            places = training_places(
                self.examples.train.labels,
                sampler,
                seed,
                lambda order, key, number: {},
                self.examples_seen(skipped),
                place * batch_size,
            )
            indices += [int(at["index"]) for at in places.take(batch_size)]
        return indices

    def check_sampler(self):
        """Refuses a progressive sampler that would see the images only once."""
        if self.settings.epochs and not self.method.second_stage:
            self.training_stream()

    # The teacher's store.

    @property
    def store_directory(self) -> Path:
        """The directory of the teacher's outputs on `teacher_views`."""
        return Path(self.settings.teacher_store or self.workdir / TEACHER_STORE)

    # The results of a finished run.

    @property
    def results(self) -> dict | None:
        """The results in metrics.json, or None where the run is not finished."""
        return read_results(self.workdir)

    @property
    def report(self) -> Path:
        """The path of the page that shows the finished run.

        Raises:
            FileNotFoundError: If there is no such page.
        """
        path = self.workdir / REPORT
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: it is written at the end of a run that trains a student, "
                "where matplotlib is installed."
            )
        return path

    def summary(self) -> str:
        """Returns a table of the accuracy in %, overall and by group, and of the size in kB.

        Raises:
            FileNotFoundError: If the run is not finished.
        """
        return summary_table(self.workdir)

    def evaluate(self) -> dict:
        """Returns the accuracy of the trained student by split, as in metrics.json.

        Raises:
            FileNotFoundError, ValueError: As `student`, or as `check_own_images`.
        """
        student = self.student
        self.check_own_images()
        return self.measure(student)

    def check_own_images(self):
        """Refuses images that are not those that the run began on.

        Raises:
            ValueError: If there are others, or some were added or removed.
        """
        remedy = "give the images that the run was trained on (`data_dir`)"
        check_images(self.workdir, self.examples.fingerprint(), remedy)

    def measure(
        self,
        network: Callable[[tf.Tensor], tf.Tensor],
        predictions_file: Path | None = None,
        strategy: tf.distribute.Strategy = ALONE,
        title: str = "Student",
        image_size: int | None = None,
    ) -> dict:
        """Returns the accuracy on the test set, and on the validation split if there is one.

        Args:
            network: Function from images to logits.
            predictions_file: File for the predictions on the test set; none by default.
            strategy: Strategy whose replicas predict one part each.
            title: Name of the network on the progress bar.
            image_size: Side of its images in pixels; the student's own by default.
        """
        reports, examples = {}, self.examples
        predict = on_all_replicas(strategy, network)
        wide = self.settings.batch_size * strategy.num_replicas_in_sync
        splits = {"validation": examples.validation, "test": examples.test}
        for split, part in splits.items():
            if part is None:
                continue
            batches = distributed(
                strategy,
                lambda share, part=part: self.evaluation_batches(part, wide, share, image_size),
            )
            total = -(-len(part) // wide)
            title_of_split = f"{title} on {split} images"
            logits = logits_of(predict, batches, total, title_of_split, leads(strategy))
            if predictions_file and split == "test":
                save_predictions(predictions_file, logits, part.labels)
            reports[split] = metrics.accuracy_report(
                part.labels,
                np.argmax(logits, axis=-1),
                examples.class_counts,
                examples.info.bounds,
            )
        return reports

    def export(self, path: str | os.PathLike, *, format: str = "saved_model"):
        """Writes the trained student.

        Args:
            path: Directory or file to write.
            format: A format of `candle_tf.CandleModel.export`, such as "saved_model" or "lce".
        """
        share = self.augmentation.centre_square
        options = {"images": self.calibration_images()} if format == "int8" else {}
        self.student.export(
            os.fspath(path),
            class_names=self.class_names,
            format=format,
            centre_square=share,
            **options,
        )

    def calibration_images(self) -> np.ndarray:
        """Returns some training images as the evaluation sees them, for an 8-bit export."""
        train = self.examples.train
        drawn = np.random.default_rng(self.settings.seed).permutation(len(train))[:INT8_IMAGES]
        batches = self.evaluation_batches(train.take(drawn))
        images = np.concatenate([images for images, _ in batches])
        return resize(images, self.resolution.base).numpy()


def place_of(update: int, skipped: Sequence[int]) -> int:
    """Returns the place of an update's batch in a stream whose skipped batches are counted."""
    for place in sorted(skipped):
        update += place <= update
    return update
