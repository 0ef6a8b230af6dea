"""The flags of a run: one for each field of `candle_tf.training.Settings`."""

import dataclasses
import os
import sys
import typing

import candle_tf  # noqa: F401  before tensorflow
import tensorflow as tf
from absl import flags, logging
from candle_tf.settings import Settings
from candle_tf.workdir import FLAG_FILE

DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}


def define(values: flags.FlagValues = flags.FLAGS):
    """Defines the flags of a run."""
    for field in dataclasses.fields(Settings):
        kind = (typing.get_args(field.type) or (field.type,))[0]  # X of X | None
        kind = tuple if typing.get_origin(field.type) is tuple else kind
        DEFINE[kind](field.name, field.default, field.metadata["help"], flag_values=values)


def settings(values: flags.FlagValues = flags.FLAGS) -> Settings:
    """The settings that the parsed flags make."""
    given = {}
    for field in dataclasses.fields(Settings):
        value = getattr(values, field.name)
        if typing.get_origin(field.type) is tuple:
            kind = typing.get_args(field.type)[0]
            try:
                value = tuple(map(kind, value))
            except ValueError as error:
                raise ValueError(
                    f"--{field.name} is {','.join(value)} but must be of type {kind.__name__}, "
                    "with commas between."
                ) from error
        given[field.name] = value
    return Settings(**given)


def settings_of(workdir: str, data_dir: str | None = None) -> Settings:
    """The settings of the run in `workdir`, its data in `data_dir` where that is given.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = os.path.join(workdir, FLAG_FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: --workdir names no run of train.py.")
    values = flags.FlagValues()
    define(values)
    moved = [f"--data_dir={data_dir}"] if data_dir else []
    values(["run", f"--flagfile={path}", f"--workdir={workdir}", *moved])
    return settings(values)


def main_of(job, arguments: str | None = None):
    """Turns a job's one-sentence errors into exit code 1; `--verbosity=1` shows their trace.

    Args:
        job: called without arguments, or with those that follow the flags.
        arguments: what must follow the flags, if anything.
    """

    def main(argv):
        if arguments is None and len(argv) > 1:
            sys.exit(f"Not a flag: {argv[1]!r}; flags begin with --.")
        if arguments and len(argv) < 2:
            sys.exit(f"Nothing to work on: give {arguments} after the flags.")
        try:
            job(argv[1:]) if arguments else job()
        except (ValueError, OSError, ImportError, tf.errors.OpError, flags.Error) as error:
            logging.debug("The error arose here:", exc_info=True)
            sys.exit(f"{type(error).__name__}: {error}")

    return main
