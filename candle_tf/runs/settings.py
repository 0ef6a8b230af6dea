"""The settings of a run: one field per setting, its default and its help text."""

import dataclasses
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from candle_tf import data, students
from candle_tf.calibration import CALIBRATIONS
from candle_tf.methods import METHODS, Method
from candle_tf.mixup import check_alpha
from candle_tf.resolution import RandomResolution
from candle_tf.runs.checks import (
    CHOICES,
    LEAST,
    OF_DISTILLATION,
    PRECISIONS,
    RULES,
    absolute,
)
from candle_tf.students import bits
from candle_tf.teacher import PREPROCESSING
from candle_tf.utils.distribution import STRATEGIES
from candle_tf.utils.names import lookup
from candle_tf.utils.optimizers import build_optimizer

# Settings whose defaults are the method's, and those whose defaults are the data set's.
OWN = ("sampler", "label_weight", "mixup", "prior_adjusted", "temperature", "calibration")
OF_VIEWS = ("crop", "flip", "color_jitter")
# Settings that only a run with a teacher reads; beside it, a run on a first stage's features.
OF_TEACHER = ("teacher", "teacher_weights", "teacher_preprocessing", "allow_custom_code")
OF_FEATURES = ("calibration_epochs", "calibration_views")
PATHS = ("cache", "data_dir", "first_stage", "teacher_store", "workdir")
# Settings that a run chooses from its images if they are not given, and their defaults in earlier
# versions.
PLANNED = {
    "teacher": "letters",
    "teacher_image_size": 32,
    "student": "resnet_e",
    "image_size": 32,
    "epochs": 20,
}
PRETRAINED = "resnet_e:halvings=2,weights='generic'"  # at 64 pixels
UPDATES = 3000  # planned for few images: 1,500 stop too early (docs/results.md)
PASSES = 20  # planned for many images


def setting(default, help):
    """Returns a field of `Settings` with its help text."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """The settings of a run; scripts/train.py has a flag for each.

    Raises:
        ValueError: If a value has another type than its setting.

    Example:
        >>> Settings(workdir="runs/digits", epochs=2).method
        'candle'
    """

    workdir: str = setting(
        "",
        "Directory of this run: flags, logs, checkpoints, metrics and exports.",
    )
    dataset: str = setting(
        "digits",
        f"{', '.join(name for name in data.CATALOG if ':' not in name)}; 'tfds:NAME' for a TFDS "
        "set, 'tfds:NAME,TRAIN,TEST' for two of its splits; or your own images: 'folder:DIR' of "
        "class folders, 'list:TRAIN.txt,TEST.txt' with lines 'path label', 'csv:FILE' with the "
        "columns path, label and optionally split.",
    )
    data_dir: str | None = setting(
        None,
        "Directory in which TFDS keeps its sets; if not given, the default of TFDS. For lists and "
        "CSV files, the directory of the images; if not given, the directory of the list or file.",
    )
    on_bad_image: str = setting(
        "error",
        "If image files cannot be read: 'error' names them and stops before any work, 'skip' "
        "leaves them out.",
    )
    cache: str | None = setting(
        None,
        "Directory for decoded training images, which runs of the same images share; if not "
        "given, each epoch decodes them again.",
    )
    download: bool = setting(
        False,
        "Let TFDS download and prepare a set that is not in `data_dir`.",
    )
    imbalance_ratio: float | None = setting(
        None,
        "Largest class count divided by the smallest, to which the training set is cut; if not "
        "given, the set is not cut.",
    )
    profile: str = setting(
        "exponential",
        f"Shape of the tail: {', '.join(data.PROFILES)}.",
    )
    n_max: int | None = setting(
        None,
        "Number of images of the largest class, with `imbalance_ratio`; if not given, the largest "
        "number for which every class has enough images.",
    )
    validation_split: float = setting(
        0.0,
        "Fraction of each class to hold out, before the set is made long-tailed.",
    )
    method: str = setting(
        "candle",
        f"Method that trains the student: {', '.join(METHODS)}.",
    )
    sampler: str | None = setting(
        None,
        f"Sampler of the batches: {', '.join(data.SAMPLERS)}; the method's own if not given. A "
        "second stage passes the sampler on to its first stage.",
    )
    crop: str | None = setting(
        None,
        "Crop of training images: 'pad' shifts them, after padding by one eighth; 'resized', for "
        "photographs, takes 25 to 100 % of the area, and evaluation takes the central 7/8. The "
        "data set's own if not given.",
    )
    flip: bool | None = setting(
        None,
        "Mirror half of the training images; the data set's own choice if not given.",
    )
    color_jitter: float | None = setting(
        None,
        "Largest relative change of brightness, contrast and saturation in training images; the "
        "data set's own if not given.",
    )
    prior_adjusted: bool | None = setting(
        None,
        "Add the log prior, by effective numbers of images, to both sides of the KL term; the "
        "method's own choice if not given.",
    )
    temperature: float | None = setting(
        None,
        "Temperature of the KL term; the method's own if not given.",
    )
    lambda_per_sample: bool = setting(
        False,
        "One adversarial lambda per image instead of one per batch.",
    )
    mixup: float | None = setting(
        None,
        "Alpha of mixup of images and labels, and of the teacher's outputs if there is a teacher; "
        "0 for none; the method's own if not given. A second stage passes the value on to its "
        "first stage.",
    )
    label_weight: float | None = setting(
        None,
        "Weight of the labels beside the teacher's output, 0 for none; if neither given nor set "
        "by the method, it follows from the teacher's cross-validated accuracy.",
    )
    teacher_views: int | None = setting(
        None,
        "Number of views of each image that the teacher sees once, before the training, which "
        "then uses them in turn; 0 shows the teacher every batch. If not given, the run plans the "
        "number from its images, its updates and the teacher's measured speed.",
    )
    teacher_store: str | None = setting(
        None,
        "Directory for the teacher's outputs on `teacher_views`, which runs of the same images, "
        "seed and calibration share; the directory teacher_store in `workdir` if not given.",
    )
    teacher: str | None = setting(
        None,
        "'keras:NAME' of tf.keras.applications or 'larq_zoo:NAME', both with arguments as in "
        "'keras:MobileNet:alpha=0.25'; the path of a saved Keras model; or 'letters', the small "
        "network of this package, for dataset 'digits' only. If not given, 'letters' for the "
        "digits and 'keras:MobileNet' for other images.",
    )
    teacher_weights: str = setting(
        "imagenet",
        "'imagenet' or a weights file, for a teacher by name; empty for random weights.",
    )
    teacher_preprocessing: str | None = setting(
        None,
        f"Scaling of the images that the teacher expects, as in Keras: {', '.join(PREPROCESSING)}; "
        "if not given, the network's own, and 'tf' for a file that does not scale images itself.",
    )
    teacher_image_size: int | None = setting(
        None,
        "Side in pixels of the images that the teacher sees; if not given, 32 for 'letters', 96 "
        "for a set of TFDS below 64 pixels, 128 for others, and at least `image_size`.",
    )
    allow_custom_code: bool = setting(
        False,
        "Trust a teacher file that contains code of its own.",
    )
    calibration: str | None = setting(
        None,
        f"Loss of the calibration: {', '.join(CALIBRATIONS)}; the method's own if not given.",
    )
    calibration_epochs: int = setting(
        30,
        "Passes over the features of all views, in second stages.",
    )
    calibration_views: int = setting(
        4,
        "Number of augmented views of each image, in a teacher's calibration and in second stages.",
    )
    label_smoothing: tuple[float, ...] = setting(
        (),
        "Factors of head and tail in label-aware smoothing; the data set's own if not given.",
    )
    student: str | None = setting(
        None,
        f"{', '.join(students.STUDENTS)}, or 'larq_zoo:NAME'; with arguments as in "
        "'resnet_e:width=0.5' or 'larq_zoo:QuickNet:weights=\"imagenet\"'; weights='FILE' starts "
        "from the encoder of a pretraining, weights='generic' from that of candle_tf. "
        "If not given, resnet_e; at 64 pixels, of 1 bit, with halvings=2,weights='generic'.",
    )
    student_bits: str = setting(
        "1",
        f"Bits of the student's weights and activations: {', '.join(bits.BITS)}.",
    )
    precision: str = setting(
        "float32",
        f"Precision of the training and of the teacher: {', '.join(PRECISIONS)}; weights, losses "
        "and the evaluated and exported student stay in float32.",
    )
    image_size: int | None = setting(
        None,
        "Side in pixels of the images that the student sees; if not given, 64. For a set of TFDS "
        "below 64 pixels it is 32 if they are below 32, or the student, its bits or resolutions "
        "are given.",
    )
    resolutions: tuple[int, ...] = setting(
        (),
        "Sizes of the student's images, such as 24,32,40, of which each batch draws one; "
        "`image_size` alone if not given.",
    )
    epochs: int | None = setting(
        None,
        "Epochs of the student's training; 0 stops after the calibration. If not given, the run "
        f"plans {PASSES} passes over the images, and at least {UPDATES:,} updates.",
    )
    minutes: float | None = setting(
        None,
        "Minutes for calibration and training together, in place of `epochs`: the run measures its "
        "speed on this machine and plans as many updates as fit.",
    )
    steps_per_epoch: int | None = setting(
        None,
        "Updates per epoch; if not given, one pass over the images, or 100 if that is fewer and "
        "`epochs` is not given.",
    )
    batch_size: int = setting(
        128,
        "Images per update.",
    )
    learning_rate: float = setting(
        1e-2,
        "Adam's learning rate, annealed to 0 by a cosine.",
    )
    warmup_epochs: int = setting(
        0,
        "Epochs at the beginning in which the learning rate rises from 0.",
    )
    binary_optimizer: str = setting(
        "adam",
        "Optimizer of the binary weights: 'adam' on latent weights, or Larq's 'bop', with "
        "arguments as in 'bop:gamma=1e-3,threshold=1e-8'.",
    )
    two_step: bool = setting(
        False,
        "Train real-valued weights with binary activations for the first half of the epochs.",
    )
    first_stage: str | None = setting(
        None,
        "Workdir of the first stage, for a method of two stages; the run trains the stage "
        "if it is missing; the directory first_stage in `workdir` if not given.",
    )
    strategy: str | None = setting(
        None,
        f"Train on several devices: {', '.join(STRATEGIES)} (docs/scaling.md); on one "
        "device if not given. `batch_size` counts the images of all devices, `learning_rate` is "
        "used as given.",
    )
    sync_batch_norm: bool = setting(
        False,
        "With `strategy`: batch norm over the images of all devices, not of each one.",
    )
    checkpoint_every: int | None = setting(
        None,
        "Updates between two checkpoints, in addition to one after each epoch.",
    )
    on_nan: str = setting(
        "stop",
        "If a loss becomes NaN or Inf: 'stop', or 'skip' to continue from the last checkpoint "
        "without that batch.",
    )
    seed: int = setting(
        0,
        "Seed of everything random: on a processor the same seed gives the same run.",
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = typed(field, getattr(self, field.name))
            if field.name in PATHS and value:
                value = os.path.expanduser(value)
            object.__setattr__(self, field.name, value)

    @property
    def calibrates(self) -> bool:
        """True for a run with a teacher: to distill or, without epochs, to measure."""
        return lookup("method", self.method, METHODS).distills or self.epochs == 0

    @property
    def shortest_step(self) -> int:
        """The number of epochs of the shortest training that the learning rate is annealed in."""
        return (self.epochs or 0) // (2 if self.two_step else 1)

    @property
    def unread(self) -> tuple[str, ...]:
        """The names of the settings that the method does not read."""
        method = method_of(self)
        names = () if self.calibrates else (*OF_TEACHER, *OF_DISTILLATION)
        if not self.calibrates and method.starts_from is None:
            names += OF_FEATURES
        if not method.label_smoothing and method.calibration != "label_aware_smoothing":
            names += ("label_smoothing",)
        return names

    def load_images(self) -> data.LongTailedData:
        """Reads the images that the settings name.

        Raises:
            ValueError, OSError: As `candle_tf.data.load`.
        """
        return data.load(
            self.dataset,
            self.data_dir,
            imbalance_ratio=self.imbalance_ratio,
            profile=self.profile,
            n_max=self.n_max,
            validation_split=self.validation_split,
            seed=self.seed,
            download=self.download,
            on_bad_image=self.on_bad_image,
        )

    @property
    def open(self) -> list[str]:
        """The names of the settings that the run chooses from its images."""
        return [name for name in PLANNED if getattr(self, name) is None]

    def planned(self, images: int, side: int | None) -> "Settings":
        """Returns the settings with values for those that are open.

        Args:
            images: Number of training images.
            side: Side in pixels of the images; None if they have different sizes.

        Example:
            >>> made = Settings("runs/mine", "folder:photos").planned(images=300, side=None)
            >>> made.image_size, made.teacher_image_size, made.epochs, made.steps_per_epoch
            (64, 128, 30, 100)
            >>> made.student
            "resnet_e:halvings=2,weights='generic'"
        """
        digits = self.dataset == "digits"
        side = side or 64
        # From the encoder, 64 pixels cost what 32 cost other students (docs/your_images.md).
        enlarged = self.student is None and self.student_bits == "1" and not self.resolutions
        least = 32 if enlarged else 64
        size = self.image_size or (64 if side >= least else 32)
        letters = digits and self.teacher in (None, "letters")
        pretrained = size == 64 and side >= 32 and self.student_bits == "1"
        views = 32 if letters else max(128 if side >= 64 else 96, size)
        steps, epochs = self.steps_per_epoch, self.epochs
        if epochs is None:
            one_pass = max(1, images // self.batch_size)
            steps = steps or max(one_pass, 100)
            epochs = -(-max(UPDATES, PASSES * one_pass) // steps)
        return dataclasses.replace(
            self,
            teacher=self.teacher or ("letters" if digits else "keras:MobileNet"),
            teacher_image_size=self.teacher_image_size or views,
            student=self.student or (PRETRAINED if pretrained else PLANNED["student"]),
            image_size=size,
            epochs=epochs,
            steps_per_epoch=steps,
            minutes=None,
        )

    def given(self, names: Sequence[str]) -> dict:
        """Returns those of the named settings that have a value."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def to_flags(self) -> str:
        """Returns a flag file that makes the same run in another workdir."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "workdir" or value in (None, ()):
                continue
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            lines.append(f"--{field.name}={text}\n")
        return "".join(lines)

    def check(self):
        """Refuses unknown names, numbers out of range and settings that exclude each other.

        Raises:
            ValueError: One sentence with cause and remedy.
        """
        if not self.workdir:
            raise ValueError("`workdir` is missing: name the directory that the run writes to.")
        method = method_of(self)
        for name in ("dataset", "student", "teacher"):
            if getattr(self, name) == "":
                raise ValueError(f"`{name}` is empty: give a name, or leave `{name}` out.")
        if self.student:
            students.parse(self.student)
        build_optimizer(self.binary_optimizer, self.learning_rate)
        for name, value in self.given(CHOICES).items():
            lookup(name, value, dict.fromkeys(CHOICES[name]))
        for name, value in self.given(LEAST).items():
            if not LEAST[name] <= value < float("inf"):
                raise ValueError(
                    f"`{name}` is {value} but must be finite and at least {LEAST[name]}."
                )
        for sentence, broken in RULES:
            if broken(self, method):
                raise ValueError(sentence.format(s=self))
        data.Augmentation(**self.given(OF_VIEWS))
        if self.resolutions and self.image_size:
            RandomResolution(self.resolutions, self.image_size)
        check_alpha(method.mixup)


def method_of(settings: Settings) -> Method:
    """Returns the method's row with the values that the settings change."""
    method = lookup("method", settings.method, METHODS)
    return dataclasses.replace(method, **settings.given(OWN))


def canonical(settings: Settings) -> Settings:
    """Returns the settings as their run reads them: equal for equal runs.

    Paths become absolute. The method's own values replace those that are not given, and defaults
    replace those that the method does not read.
    """
    method = method_of(settings)
    changes = {name: absolute(getattr(settings, name)) for name in PATHS if name != "workdir"}
    changes["dataset"] = data.absolute(settings.dataset)
    for name, ours in (("teacher", "letters"), ("teacher_weights", "imagenet")):
        value = getattr(settings, name)
        if value != ours and os.path.exists(file := absolute(value) or ""):
            changes[name] = file
    weights = students.parse(settings.student)[1].get("weights") if settings.student else None
    known = weights in ("generic", "imagenet")
    if isinstance(weights, str) and not known and os.path.exists(file := absolute(weights) or ""):
        named = rf"""(['"]){re.escape(weights)}\1"""
        changes["student"] = re.sub(named, lambda m: m[1] + file + m[1], settings.student)
    changes |= {name: getattr(method, name) for name in OWN}
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    changes |= {name: defaults[name] for name in settings.unread}
    if not settings.calibrates:  # none to plan
        changes["teacher_views"] = 0
        changes["teacher"] = PLANNED["teacher"]
        changes["teacher_image_size"] = settings.teacher_image_size or PLANNED["teacher_image_size"]
    return dataclasses.replace(settings, **changes)


def first_stage_of(settings: Settings) -> Settings | None:
    """Returns the settings of the first stage, or None for a method of one stage."""
    method = method_of(settings)
    if method.starts_from is None:
        return None
    workdir = settings.first_stage or os.path.join(settings.workdir, "first_stage")
    changes = {"workdir": workdir, "first_stage": None, "mixup": method.mixup}
    changes |= method.starts_from
    if not method.second_stage:
        changes["sampler"] = None  # the given one is for the stage that follows
    return dataclasses.replace(settings, **changes)


def settings_of(
    dataset: str, workdir: str | os.PathLike, given: Mapping, unused: Sequence[str] = ()
) -> Settings:
    """Returns the settings of a call in Python.

    Args:
        dataset: Name of the data set.
        workdir: Directory that the run writes to.
        given: Further settings by name.
        unused: Names of settings that the call does not take.

    Raises:
        ValueError: For a name that no setting has, or a workdir that is no path.
    """
    if not isinstance(workdir, (str, os.PathLike)):
        raise ValueError(f"workdir is {workdir!r}: name the directory that the run writes to.")
    fields = (field.name for field in dataclasses.fields(Settings))
    known = dict.fromkeys(name for name in fields if name not in unused)
    for name in given:
        lookup("setting", name, known)
    return Settings(dataset=dataset, workdir=os.fspath(workdir), **given)


def kind_of(field: dataclasses.Field) -> tuple[type, bool]:
    """Returns the type of a setting's value or of its parts, and whether it has parts."""
    several = typing.get_origin(field.type) is tuple
    return (typing.get_args(field.type) or (field.type,))[0], several  # (X, ...), X | None or X


def typed(field: dataclasses.Field, value):
    """Returns the value as a flag would give it: 10 becomes 10.0 or "10", and 24 becomes (24,)."""
    if value is None and field.default is None:
        return None
    kind, several = kind_of(field)
    values = value if several and isinstance(value, (tuple, list)) else [value]
    if any(type(v) is not kind and (type(v) is not int or kind is bool) for v in values):
        takes = f"({kind.__name__}, ...)" if several else kind.__name__
        raise ValueError(f"`{field.name}` cannot be {value!r}: it takes {takes}.")
    return tuple(map(kind, values)) if several else kind(value)
