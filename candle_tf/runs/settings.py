"""Everything that decides a run."""

import dataclasses
import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass

from candle_tf import data, students
from candle_tf.methods import METHODS, Method
from candle_tf.mixup import check_alpha
from candle_tf.students import bits
from candle_tf.teacher import CALIBRATIONS, PREPROCESSING
from candle_tf.utils.distribution import STRATEGIES
from candle_tf.utils.names import lookup, parse_spec
from candle_tf.utils.optimizers import build_optimizer

OWN = (
    "sampler",
    "label_weight",
    "mixup",
    "prior_adjusted",
    "temperature",
    "calibration",
)  # a method's, unless given
OF_VIEWS = ("crop", "flip", "color_jitter")  # a data set's, unless given
# What only a run with a teacher reads, and what one on a first stage's features reads too.
OF_TEACHER = ("teacher", "teacher_weights", "teacher_preprocessing", "allow_custom_code")
OF_DISTILLATION = (
    "label_weight",
    "prior_adjusted",
    "temperature",
    "calibration",
    "lambda_per_sample",
    "teacher_views",
    "teacher_store",
)
PATHS = ("cache", "data_dir", "first_stage", "teacher_store", "workdir")
ON_NAN = ("stop", "skip")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
OF_FEATURES = ("calibration_epochs", "calibration_views")
LEAST = {
    **dict.fromkeys("epochs label_weight mixup seed teacher_views warmup_epochs".split(), 0),
    **dict.fromkeys(
        "batch_size calibration_epochs calibration_views checkpoint_every image_size "
        "imbalance_ratio n_max steps_per_epoch teacher_image_size".split(),
        1,
    ),
}


def setting(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run; scripts/train.py has a flag for each.

    Raises:
        ValueError: for a value of another type.
    """

    workdir: str = setting("", "Directory of this run: flags, logs, checkpoints, metrics, exports.")
    dataset: str = setting(
        "digits",
        f"{', '.join(name for name in data.CATALOG if ':' not in name)}; 'tfds:NAME' for a set of "
        "TFDS, 'tfds:NAME,TRAIN,TEST' for splits of it; or your own images: 'folder:DIR' of class "
        "folders, 'list:TRAIN.txt,TEST.txt' of 'path label' lines, 'csv:FILE' with columns path, "
        "label and maybe split.",
    )
    data_dir: str | None = setting(
        None,
        "Where TFDS keeps its sets, its own default if not given; the image root of lists and CSV "
        "files, where they lie if not given.",
    )
    on_bad_image: str = setting(
        "error",
        "What to do with image files that cannot be read: 'error' names them before anything is "
        "done, 'skip' goes on without them.",
    )
    cache: str | None = setting(
        None,
        "Directory where training images are kept decoded, for runs of the same images to share; "
        "decoded each time if not given.",
    )
    download: bool = setting(
        False, "Let TFDS download and prepare a set that is not in --data_dir."
    )
    imbalance_ratio: float | None = setting(
        None, "Largest over smallest class count to make; the set as published if not given."
    )
    profile: str = setting("exponential", f"Shape of the tail: {', '.join(data.PROFILES)}.")
    n_max: int | None = setting(
        None, "Images of the largest class; the most that every class can follow if not given."
    )
    validation_split: float = setting(
        0.0, "Share of each class to hold out, before the set is made long-tailed."
    )
    method: str = setting("candle", f"What trains the student: {', '.join(METHODS)}.")
    sampler: str | None = setting(
        None,
        f"What enters the batches: {', '.join(data.SAMPLERS)}; the method's own if not given. A "
        "second stage passes it on to its first.",
    )
    crop: str | None = setting(
        None,
        "How training images are cropped: 'pad', after padding by an eighth; 'resized', to 25 to "
        "100 % of the area, for photographs, of which evaluation takes the central 7/8; as the "
        "set's are if not given.",
    )
    flip: bool | None = setting(
        None, "Mirror half of the training images; as the set's are if not given."
    )
    color_jitter: float | None = setting(
        None,
        "Largest relative change of training images' brightness, contrast and saturation; as the "
        "set's are if not given.",
    )
    prior_adjusted: bool | None = setting(
        None, "Add the log prior to both sides of the KL; as the method does if not given."
    )
    temperature: float | None = setting(None, "T of the KL term; the method's own if not given.")
    lambda_per_sample: bool = setting(False, "One adversarial lambda an image, not one a batch.")
    mixup: float | None = setting(
        None,
        "Alpha of mixup of images and labels, and of the teacher's outputs where there is a "
        "teacher; 0 for none; the method's own if not given. A second stage passes it on to its "
        "first.",
    )
    label_weight: float | None = setting(
        None,
        "Weight of the labels beside the teacher's word, 0 for none; as the teacher's "
        "cross-validated accuracy says if the method has none of its own.",
    )
    teacher_views: int | None = setting(
        None,
        "Views of each image that the teacher sees once, before the training goes through them in "
        "turn; 0 shows the teacher every batch. If not given, the run plans it from the number of "
        "images, the length of the training and the teacher's measured speed.",
    )
    teacher_store: str | None = setting(
        None,
        "Directory of what the teacher makes of --teacher_views, for runs of the same images, "
        "seed and calibration to share; teacher_store in --workdir if not given.",
    )
    teacher: str = setting(
        "letters",
        "'keras:NAME' of tf.keras.applications, 'larq_zoo:NAME', both with arguments as in "
        "'keras:MobileNet:alpha=0.25'; the path of a saved Keras model; or 'letters', the small "
        "network that this package ships.",
    )
    teacher_weights: str = setting(
        "imagenet", "'imagenet' or a weights file, for a named teacher; empty for random weights."
    )
    teacher_preprocessing: str | None = setting(
        None,
        f"What the teacher wants of images, as in Keras: {', '.join(PREPROCESSING)}"
        "; an application's own, and 'tf' for a file, if not given.",
    )
    teacher_image_size: int = setting(32, "Side in pixels of the images that the teacher sees.")
    allow_custom_code: bool = setting(False, "Trust a teacher file that carries code of its own.")
    calibration: str | None = setting(
        None,
        f"Loss of the calibration: {', '.join(CALIBRATIONS)}; the method's own if not given.",
    )
    calibration_epochs: int = setting(
        30, "Passes over the features of all views, in second stages."
    )
    calibration_views: int = setting(
        4, "Augmented views of each image, in a teacher's calibration and in second stages."
    )
    label_smoothing: tuple[float, ...] = setting(
        (), "Factors of head and tail in label-aware smoothing; the set's own if not given."
    )
    student: str = setting(
        "resnet_e",
        f"{', '.join(students.STUDENTS)}, or 'larq_zoo:NAME'; with arguments as in "
        "'resnet_e:width=0.5' or 'larq_zoo:QuickNet:weights=\"imagenet\"'.",
    )
    student_bits: str = setting(
        "1", f"Width of the student's weights and activations: {', '.join(bits.BITS)}."
    )
    precision: str = setting(
        "float32",
        f"Of the computations in training, and of the teacher: {', '.join(PRECISIONS)}; weights, "
        "losses and the student that is evaluated and exported stay in float32.",
    )
    image_size: int = setting(32, "Side in pixels of the images that the student sees.")
    resolutions: tuple[int, ...] = setting(
        (), "Student sizes to draw from, such as 24,32,40; --image_size alone if not given."
    )
    epochs: int = setting(20, "Epochs of the student; 0 stops after the calibration.")
    steps_per_epoch: int | None = setting(
        None, "Updates an epoch; one pass over the images if not given."
    )
    batch_size: int = setting(128, "Images an update.")
    learning_rate: float = setting(1e-2, "Adam's, annealed by cosine to 0.")
    warmup_epochs: int = setting(0, "Epochs in which the learning rate rises from 0 first.")
    binary_optimizer: str = setting(
        "adam",
        "What trains the binary weights: 'adam' on latent weights, or Larq's 'bop', with arguments "
        "as in 'bop:gamma=1e-3,threshold=1e-8'.",
    )
    two_step: bool = setting(
        False, "Real-valued weights for the first half of the epochs (binary activations first)."
    )
    first_stage: str | None = setting(
        None,
        "Workdir of the run that a method of two stages starts from, made if it is not there; "
        "first_stage in --workdir if not given.",
    )
    strategy: str | None = setting(
        None,
        f"Train on several devices: {', '.join(STRATEGIES)} (docs/scaling.md); on one if not "
        "given. --batch_size is over all of them, --learning_rate what is used.",
    )
    sync_batch_norm: bool = setting(
        False, "With --strategy: batch norm over all devices' images, not over each one's."
    )
    checkpoint_every: int | None = setting(
        None, "Updates between two checkpoints, beside those at the end of each epoch."
    )
    on_nan: str = setting(
        "stop",
        "When a loss becomes NaN or Inf: 'stop', or 'skip' to go on from the last checkpoint "
        "without that batch.",
    )
    seed: int = setting(0, "Of everything random: on a processor the same seed gives the same run.")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = typed(field, getattr(self, field.name))
            if field.name in PATHS and value:
                value = os.path.expanduser(value)
            object.__setattr__(self, field.name, value)

    @property
    def calibrates(self) -> bool:
        """Whether the run has a teacher: to distill, or, where nothing is trained, to measure."""
        return lookup("method", self.method, METHODS).distills or not self.epochs

    def given(self, names: Sequence[str]) -> dict:
        """Those of the settings that are not left to what they belong to."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def to_flags(self) -> str:
        """A flag file that makes the same run in another workdir."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "workdir" or value in (None, ()):
                continue
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            lines.append(f"--{field.name}={text}\n")
        return "".join(lines)

    def check(self):
        """Refuses, before any work, names that do not exist and numbers out of range.

        Raises:
            ValueError: one sentence that names cause and remedy.
        """
        if not self.workdir:
            raise ValueError("--workdir is missing: name the directory that the run writes to.")
        method = resolve(self)
        lookup("profile", self.profile, data.PROFILES)
        lookup("sampler", method.sampler, data.SAMPLERS)
        students.find(parse_spec(self.student)[0])
        lookup("student_bits", self.student_bits, bits.BITS)
        lookup("on_bad_image", self.on_bad_image, dict.fromkeys(data.ON_BAD_IMAGE))
        lookup("on_nan", self.on_nan, dict.fromkeys(ON_NAN))
        lookup("precision", self.precision, dict.fromkeys(PRECISIONS))
        build_optimizer(self.binary_optimizer, self.learning_rate)
        lookup("calibration", method.calibration, dict.fromkeys(CALIBRATIONS))
        for name in OF_DISTILLATION:
            if getattr(self, name) not in (None, False) and not self.calibrates:
                raise ValueError(
                    f"--{name} is of methods with a teacher, and --method={self.method} has none: "
                    "leave it out, or give it to those that have."
                )
        if self.lambda_per_sample and method.fixed_lambda is not None:
            raise ValueError(
                f"--lambda_per_sample is of the adversarial lambda; --method={self.method} has a "
                "fixed one, so leave it out."
            )
        named = self.teacher.startswith(("keras:", "larq_zoo:"))
        if self.calibrates and self.teacher_weights != "imagenet" and not named:
            raise ValueError(
                f"--teacher_weights is of a network by name, and --teacher={self.teacher} brings "
                "its own: leave it out."
            )
        if self.sync_batch_norm and not self.strategy:
            raise ValueError("--sync_batch_norm is of several devices: give --strategy too.")
        if self.profile != "exponential" and self.imbalance_ratio is None:
            raise ValueError(
                "--profile is of a set that is made long-tailed: give --imbalance_ratio too."
            )
        if self.on_nan == "skip" and method.sampler == "progressively_balanced":
            raise ValueError(
                "--on_nan=skip moves what follows up, which changes the batches of the sampler "
                "progressively_balanced: leave one of the two out."
            )
        if self.teacher_store and self.teacher_views == 0:
            raise ValueError(
                "--teacher_store is where --teacher_views are kept, and there are none with "
                "--teacher_views=0: leave one of the two out."
            )
        if self.teacher_store and within(self.teacher_store, self.workdir):
            raise ValueError(
                "--teacher_store is the --workdir or in it: give it a directory of its own, or "
                "leave it out."
            )
        if self.first_stage:
            if method.starts_from is None:
                raise ValueError(
                    f"--first_stage is of methods of two stages, and --method={self.method} has "
                    "one: leave it out."
                )
            if real(self.first_stage) == real(self.workdir):
                raise ValueError("--first_stage is the --workdir: each run has its own.")
        if self.teacher_preprocessing is not None:
            lookup("preprocessing", self.teacher_preprocessing, dict.fromkeys(PREPROCESSING))
        if method.mixup and not method.mixes:
            raise ValueError(
                f"--mixup is of methods with a teacher or a loss alone, and --method={self.method} "
                "trains otherwise: leave it out."
            )
        for name, minimum in LEAST.items():
            value = getattr(self, name)
            if value is not None and not minimum <= value < float("inf"):
                raise ValueError(f"--{name} is {value} but must be finite and at least {minimum}.")
        data.Augmentation(**self.given(OF_VIEWS))
        check_alpha(method.mixup)
        if self.seed >= 2**32:
            raise ValueError(f"--seed is {self.seed} but must be below 2^32.")
        if not 0 <= self.validation_split < 1:
            raise ValueError(
                f"--validation_split is {self.validation_split:g} but must be a share from 0 to "
                "below 1."
            )
        rates = {"learning_rate": self.learning_rate, "temperature": method.temperature}
        for name, value in rates.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"--{name} is {value} but must be above 0.")
        smoothing = self.label_smoothing
        if smoothing and not (len(smoothing) == 2 and all(0 <= e < 1 for e in smoothing)):
            raise ValueError(
                f"--label_smoothing is {','.join(map(str, smoothing))} but must be two numbers of "
                "0 to below 1, the head's and the tail's, such as 0.3,0.0."
            )
        if self.two_step and self.epochs == 1:
            raise ValueError("--two_step needs at least 2 --epochs, one for each step.")
        if self.two_step and self.student_bits == "32":
            raise ValueError(
                "--two_step begins with real-valued weights, as --student_bits=32 has them "
                "throughout: leave one of the two out."
            )
        if self.student_bits != "1" and not self.binary_optimizer.startswith("adam"):
            raise ValueError(
                f"--binary_optimizer={self.binary_optimizer} trains binary weights: there are none "
                f"at --student_bits={self.student_bits}, so leave one of the two out."
            )
        if method.second_stage == "tau_norm" and not self.validation_split:
            raise ValueError(
                f"--method={self.method} chooses tau on held-out images: give --validation_split, "
                "such as 0.1."
            )
        shortest = self.epochs // 2 if self.two_step else self.epochs
        if self.epochs and self.warmup_epochs >= shortest:
            raise ValueError(
                f"--warmup_epochs is {self.warmup_epochs} but must be below the {shortest} epochs "
                "that the learning rate is annealed over."
            )


def resolve(settings: Settings) -> Method:
    """The method's row, with what the settings change of it."""
    method = lookup("method", settings.method, METHODS)
    return dataclasses.replace(method, **settings.given(OWN))


def resolved(settings: Settings) -> Settings:
    """The settings as their run reads them, so that the same run has the same ones.

    The method's own values stand where none are given, defaults where the method reads nothing.
    """
    method = resolve(settings)
    paths = {name: absolute(getattr(settings, name)) for name in PATHS if name != "workdir"}
    paths["dataset"] = data.absolute(settings.dataset)
    for name, ours in (("teacher", "letters"), ("teacher_weights", "imagenet")):
        value = getattr(settings, name)
        if value != ours and os.path.exists(file := absolute(value) or ""):
            paths[name] = file
    own = {name: getattr(method, name) for name in OWN}
    unread = () if settings.calibrates else (*OF_TEACHER, *OF_DISTILLATION)
    if not settings.calibrates and method.starts_from is None:
        unread += OF_FEATURES
    smoothed = (method.second_stage, method.calibration, settings.method)
    if "mislas" not in smoothed and "label_aware_smoothing" not in smoothed:
        unread += ("label_smoothing",)
    fields = dataclasses.fields(settings)
    defaults = {field.name: field.default for field in fields if field.name in unread}
    if "teacher_views" in defaults:
        defaults["teacher_views"] = 0  # and none to plan
    return dataclasses.replace(settings, **(paths | own | defaults))


def absolute(path: str | None) -> str | None:
    return path and os.path.abspath(os.path.expanduser(path))


def real(path: str) -> str:
    return os.path.realpath(absolute(path))


def within(path: str, directory: str) -> bool:
    return os.path.commonpath([real(path), real(directory)]) == real(directory)


def first_stage(settings: Settings) -> Settings | None:
    """The run that a method of two stages starts from."""
    method = lookup("method", settings.method, METHODS)
    if method.starts_from is None:
        return None
    workdir = settings.first_stage or os.path.join(settings.workdir, "first_stage")
    mixup = resolve(settings).mixup
    given = {"workdir": workdir, "first_stage": None, "mixup": mixup, **method.starts_from}
    if not method.second_stage:
        given["sampler"] = None  # the given one is of the stage that follows
    return dataclasses.replace(settings, **given)


def kind_of(field: dataclasses.Field) -> tuple[type, bool]:
    """The type of a setting's value, or of its parts, and whether it has parts."""
    several = typing.get_origin(field.type) is tuple
    return (typing.get_args(field.type) or (field.type,))[0], several  # (X, ...), X | None or X


def typed(field: dataclasses.Field, value):
    """The value that a flag would have; whole numbers stand for 10.0 and "10", 24 for (24,)."""
    if value is None and field.default is None:
        return None
    kind, several = kind_of(field)
    values = value if several and isinstance(value, (tuple, list)) else [value]
    if any(type(v) is not kind and (type(v) is not int or kind is bool) for v in values):
        takes = f"({kind.__name__}, ...)" if several else kind.__name__
        raise ValueError(f"--{field.name} cannot be {value!r}: it takes {takes}.")
    return tuple(map(kind, values)) if several else kind(value)
