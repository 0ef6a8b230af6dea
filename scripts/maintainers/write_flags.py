"""Writes candle_tf/cli/flags.json, the flags of each command, for answers without TensorFlow.

python scripts/maintainers/write_flags.py
"""

import dataclasses
import importlib
import json
from unittest import mock

import candle_tf as ct
from absl import flags
from candle_tf.cli import run_flags
from candle_tf.cli.quick_answers import FLAGS_FILE
from candle_tf.data import CATALOG  # noqa: F401  before what follows
from candle_tf.data.views import CROPS
from candle_tf.methods import METHODS
from candle_tf.runs.checks import LEAST, ON_NAN, PRECISIONS
from candle_tf.runs.settings import Settings
from candle_tf.runs.settings import kind_of as kind_of_setting
from candle_tf.students.bits import BITS
from candle_tf.teacher import CALIBRATIONS, PREPROCESSING
from candle_tf.utils.distribution import STRATEGIES

COMMANDS = (
    "train",
    "pretrain",
    "evaluate",
    "export",
    "predict",
    "benchmark",
    "describe",
    "report",
    "compare",
)
# Sections of --help. The order of the settings themselves makes the names of a benchmark's runs.
SECTIONS = {
    "run": "workdir first_stage strategy sync_batch_norm checkpoint_every on_nan seed",
    "images": "dataset data_dir download cache on_bad_image imbalance_ratio profile n_max "
    "validation_split crop flip color_jitter",
    "method": "method sampler mixup label_weight prior_adjusted temperature lambda_per_sample",
    "teacher": "teacher teacher_weights teacher_preprocessing teacher_image_size teacher_views "
    "teacher_store allow_custom_code calibration calibration_epochs calibration_views "
    "label_smoothing",
    "student": "student student_bits image_size resolutions",
    "training": "epochs minutes steps_per_epoch batch_size learning_rate warmup_epochs "
    "binary_optimizer two_step precision",
}
SECTION_OF = {name: section for section, names in SECTIONS.items() for name in names.split()}
CHOICES = {  # of flags of a run that take a name
    "method": METHODS,
    "profile": ct.data.PROFILES,
    "sampler": ct.data.SAMPLERS,
    "crop": CROPS,
    "teacher_preprocessing": PREPROCESSING,
    "calibration": CALIBRATIONS,
    "student_bits": BITS,
    "precision": PRECISIONS,
    "strategy": STRATEGIES,
    "on_nan": ON_NAN,
    "on_bad_image": ct.data.ON_BAD_IMAGE,
}
PARTS = {  # the type of the numbers in a list
    field.name: kind.__name__
    for field in dataclasses.fields(Settings)
    for kind, several in [kind_of_setting(field)]
    if several
}
KINDS = {
    flags.BooleanFlag: "bool",
    flags.EnumFlag: "enum",
    flags.MultiFlag: "multi_string",
}


def kind_of(flag: flags.Flag) -> str:
    """Returns the end of the name of the absl function that defines such a flag."""
    if type(flag) in KINDS:
        return KINDS[type(flag)]
    if isinstance(flag.parser, flags.ListParser):
        return "list"
    return {"int": "integer"}.get(flag.parser.flag_type(), flag.parser.flag_type())


def flags_of(command: str) -> dict:
    """Returns a command's docstring, the arguments after its flags, and its flags by name."""
    module = importlib.import_module(f"candle_tf.cli.{command}")
    values, before = flags.FLAGS, set(flags.FLAGS)
    with mock.patch.object(run_flags, "start") as start:
        module.main()
    _, *arguments = start.call_args.args
    new = sorted(set(values) - before)
    order = [command, *SECTIONS]
    new.sort(key=lambda name: order.index(SECTION_OF.get(name, command)))
    found = [
        {
            "name": name,
            "section": SECTION_OF.get(name, command),
            "kind": kind_of(values[name]),
            "default": values[name].default,
            "help": values[name].help,
            "required": required(values, name),
            "choices": list(getattr(values[name].parser, "enum_values", CHOICES.get(name, ()))),
            "least": LEAST.get(name),
            "parts": PARTS.get(name),
        }
        for name in new
    ]
    for name in new:
        delattr(values, name)
    return {"doc": module.__doc__, "arguments": (arguments or [None])[0], "flags": found}


def required(values: flags.FlagValues, name: str) -> bool:
    return any("must have a value" in v.message for v in values[name].validators)


def text() -> str:
    """Returns the content of the file."""
    return json.dumps({name: flags_of(name) for name in COMMANDS}, indent=1) + "\n"


if __name__ == "__main__":
    FLAGS_FILE.write_text(text(), encoding="utf-8")
