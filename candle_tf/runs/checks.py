"""Checks of a run's settings before any work starts: tables of choices, least values and rules.

The sentence of an error writes the name of a setting between backticks, as in "`epochs` is -1". The
command line shows this name as a flag.
"""

import os
from collections.abc import Callable

from candle_tf import data
from candle_tf.calibration import CALIBRATIONS
from candle_tf.students import bits
from candle_tf.teacher import PREPROCESSING

ON_NAN = ("stop", "skip")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
OF_DISTILLATION = (  # read only by a run with a teacher
    "label_weight",
    "prior_adjusted",
    "temperature",
    "calibration",
    "lambda_per_sample",
    "teacher_views",
    "teacher_store",
)

CHOICES = {
    "calibration": CALIBRATIONS,
    "on_bad_image": data.ON_BAD_IMAGE,
    "on_nan": ON_NAN,
    "precision": PRECISIONS,
    "profile": data.PROFILES,
    "sampler": data.SAMPLERS,
    "student_bits": bits.BITS,
    "teacher_preprocessing": PREPROCESSING,
}

LEAST = {
    **dict.fromkeys(
        "epochs label_weight minutes mixup seed teacher_views warmup_epochs".split(), 0
    ),
    **dict.fromkeys(
        "batch_size calibration_epochs calibration_views checkpoint_every image_size "
        "imbalance_ratio n_max steps_per_epoch teacher_image_size".split(),
        1,
    ),
}

# The sentence of an error about settings `s`, and a function of `s` and their method `m`: whether
# they break the rule.
Rule = tuple[str, Callable[..., bool]]


def needs_teacher(name: str) -> Rule:
    """Returns the rule for a setting that only methods with a teacher read."""
    return (
        f"`{name}` needs a method with a teacher, and `method={{s.method}}` has none: leave "
        f"`{name}` out, or choose another method.",
        lambda s, m: getattr(s, name) not in (None, False) and not s.calibrates,
    )


RULES: tuple[Rule, ...] = (
    *map(needs_teacher, OF_DISTILLATION),
    (
        "`lambda_per_sample` changes the adversarial lambda, but `method={s.method}` has a fixed "
        "one: leave `lambda_per_sample` out.",
        lambda s, m: s.lambda_per_sample and m.fixed_lambda is not None,
    ),
    (
        "`teacher_weights` is for networks by name, and `teacher={s.teacher}` has its own weights: "
        "leave `teacher_weights` out.",
        lambda s, m: (
            s.calibrates
            and s.teacher_weights != "imagenet"
            and s.teacher is not None
            and not s.teacher.startswith(("keras:", "larq_zoo:"))
        ),
    ),
    (
        "`teacher=letters` knows handwritten digits only, and `dataset={s.dataset}` holds other "
        "images: give `teacher=keras:MobileNet` with `teacher_image_size=128`, or another network.",
        lambda s, m: s.calibrates and s.teacher == "letters" and s.dataset != "digits",
    ),
    (
        "`sync_batch_norm` works on several devices: give `strategy` too.",
        lambda s, m: s.sync_batch_norm and not s.strategy,
    ),
    (
        "`profile` shapes a set that is made long-tailed: give `imbalance_ratio` too.",
        lambda s, m: s.profile != "exponential" and s.imbalance_ratio is None,
    ),
    (
        "`on_nan=skip` moves later batches forward, which changes those of the sampler "
        "progressively_balanced: leave one of the two out.",
        lambda s, m: s.on_nan == "skip" and m.sampler == "progressively_balanced",
    ),
    (
        "`teacher_store` keeps the teacher's views, but there are none with `teacher_views=0`: "
        "leave one of the two out.",
        lambda s, m: bool(s.teacher_store) and s.teacher_views == 0,
    ),
    (
        "`teacher_store` is the `workdir` or inside it: give the store a directory of its own, "
        "or leave `teacher_store` out.",
        lambda s, m: bool(s.teacher_store) and within(s.teacher_store, s.workdir),
    ),
    (
        "`first_stage` is for methods of two stages, and `method={s.method}` has one: leave "
        "`first_stage` out.",
        lambda s, m: bool(s.first_stage) and m.starts_from is None,
    ),
    (
        "`first_stage` is the `workdir`: give each run a directory of its own.",
        lambda s, m: bool(s.first_stage) and real(s.first_stage) == real(s.workdir),
    ),
    (
        "`mixup` works with a teacher or with a loss alone, and `method={s.method}` trains "
        "otherwise: leave `mixup` out.",
        lambda s, m: bool(m.mixup) and not m.mixes,
    ),
    ("`seed` is {s.seed} but must be below 2^32.", lambda s, m: s.seed >= 2**32),
    (
        "`validation_split` is {s.validation_split:g} but must be at least 0 and below 1.",
        lambda s, m: not 0 <= s.validation_split < 1,
    ),
    (
        "`learning_rate` is {s.learning_rate} but must be finite and above 0.",
        lambda s, m: not 0 < s.learning_rate < float("inf"),
    ),
    (
        "`temperature` is {s.temperature} but must be finite and above 0.",
        lambda s, m: not 0 < m.temperature < float("inf"),
    ),
    (
        "`label_smoothing` is {s.label_smoothing} but must be two numbers of at least 0 and below "
        "1, for head and tail, such as 0.3,0.0.",
        lambda s, m: (
            bool(s.label_smoothing)
            and not (len(s.label_smoothing) == 2 and all(0 <= e < 1 for e in s.label_smoothing))
        ),
    ),
    (
        "`minutes` plans the number of updates: leave `epochs` out, or `minutes`.",
        lambda s, m: s.minutes is not None and s.epochs is not None,
    ),
    (
        "`minutes` is {s.minutes} but must be above 0.",
        lambda s, m: s.minutes == 0,
    ),
    (
        "`minutes` plans a training of one stage on one device: give `epochs` for "
        "`method={s.method}` or `strategy`.",
        lambda s, m: s.minutes is not None and (m.starts_from is not None or bool(s.strategy)),
    ),
    (
        "`minutes` plans updates of one batch of images: give `epochs` for `method={s.method}`, "
        "whose updates take more.",
        lambda s, m: s.minutes is not None and (m.views > 1 or m.partner_sampler is not None),
    ),
    (
        "`two_step` needs at least 2 `epochs`, one for each step.",
        lambda s, m: s.two_step and s.epochs == 1,
    ),
    (
        "`two_step` begins with real-valued weights, and `student_bits=32` keeps them real-valued: "
        "leave one of the two out.",
        lambda s, m: s.two_step and s.student_bits == "32",
    ),
    (
        "`binary_optimizer={s.binary_optimizer}` trains binary weights, and there are none at "
        "`student_bits={s.student_bits}`: leave one of the two out.",
        lambda s, m: s.student_bits != "1" and not s.binary_optimizer.startswith("adam"),
    ),
    (
        "`method={s.method}` chooses a parameter on held-out images: give `validation_split`, such "
        "as 0.1.",
        lambda s, m: m.held_out and not s.validation_split,
    ),
    (
        "`warmup_epochs` is {s.warmup_epochs} but must be below the {s.shortest_step} epochs in "
        "which the learning rate is annealed.",
        lambda s, m: bool(s.epochs) and s.warmup_epochs >= s.shortest_step,
    ),
)


def absolute(path: str | None) -> str | None:
    """Returns the absolute path, with ~ replaced by the home directory."""
    return path and os.path.abspath(os.path.expanduser(path))


def real(path: str) -> str:
    """Returns the absolute path without symbolic links."""
    return os.path.realpath(absolute(path))


def within(path: str, directory: str) -> bool:
    """Returns whether a path is a directory or below it."""
    return os.path.commonpath([real(path), real(directory)]) == real(directory)
