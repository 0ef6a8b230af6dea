"""The flags of a run: one for each field of `candle_tf.runs.settings.Settings`."""

import dataclasses
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import tensorflow as tf
from absl import app, flags, logging
from candle_tf.data.entrance import reading_errors
from candle_tf.data.own_images.files import places_below
from candle_tf.runs.checkpoints import INTERRUPTED
from candle_tf.runs.run import Run
from candle_tf.runs.settings import Settings, kind_of
from candle_tf.utils import configs
from candle_tf.utils.distribution import first_line
from candle_tf.utils.files import read_text
from candle_tf.utils.run_files import FLAG_FILE

DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define(
    values: flags.FlagValues = flags.FLAGS,
    omit: Sequence[str] = (),
    texts: Mapping[str, str] = MappingProxyType({}),
):
    """Defines the flags of a run, except those to omit.

    Args:
        values: Flags to which they are added.
        omit: Names of flags that the command does not have.
        texts: Help of flags that have another one in the command, by name.
    """
    for field in dataclasses.fields(Settings):
        if field.name not in omit:
            kind, several = kind_of(field)
            define_one = flags.DEFINE_list if several else DEFINE[kind]
            text = as_flags(texts.get(field.name, field.metadata["help"]))
            define_one(field.name, field.default, text, flag_values=values)


def as_flags(text: str) -> str:
    """Returns a sentence of the library with its settings as flags: `epochs=0` as --epochs=0."""
    names = {field.name for field in dataclasses.fields(Settings)} | set(flags.FLAGS)

    def flag(found: re.Match) -> str:
        return f"--{found[1]}{found[2] or ''}" if found[1] in names else found[0]

    return re.sub(r"`(\w+)(=[^`]*)?`", flag, text)


def settings(values: flags.FlagValues = flags.FLAGS) -> Settings:
    """Returns the settings of the parsed flags, with defaults where no flag is defined."""
    given = {}
    for field in dataclasses.fields(Settings):
        if field.name not in values:
            continue
        value, (kind, several) = getattr(values, field.name), kind_of(field)
        try:
            given[field.name] = tuple(map(kind, value)) if several else value
        except ValueError as error:
            raise ValueError(
                f"--{field.name} is {','.join(value)} but must be "
                f"{'whole ' if kind is int else ''}numbers with commas between."
            ) from error
    return Settings(**given)


def define_data_dir():
    """Defines the flag that says where the data of a finished run are now."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Directory of the data now, or the folder itself for a run on a folder; by default where "
        "the run read them.",
    )


def run_of(workdir: str, data_dir: str | None = None) -> Run:
    """Returns the run in a workdir.

    Args:
        workdir: Directory of the run.
        data_dir: Directory in which the data are now; by default where the run read them. For a
            run on a folder, the folder itself or the directory that holds it.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If the file of its flags is damaged, or of a newer version.
    """
    path = os.path.join(os.path.expanduser(workdir), FLAG_FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist: `workdir` names no run of train.py.")
    if "--dataset=" not in read_text(Path(path)):
        raise ValueError(f"{path} is damaged: restore the file, or train in another `workdir`.")
    values = flags.FlagValues()
    define(values)
    try:
        values(["run", f"--flagfile={path}"])
        given = dataclasses.replace(settings(values), workdir=workdir)
    except (ValueError, flags.Error) as error:
        raise ValueError(
            f"{path} is damaged, or comes from a newer version ({error}): restore the file."
        ) from error
    if data_dir:
        kind, _, name = given.dataset.partition(":")
        below = places_below(data_dir, name)
        itself = kind == "folder" and not any(map(os.path.isdir, below))
        dataset = f"folder:{data_dir}" if itself else given.dataset
        given = dataclasses.replace(given, data_dir=data_dir, dataset=dataset)
    return Run(given)


def start(job, arguments: str | None = None):
    """Runs a job from the command line; `--help` prints the docstring and flags of its module.

    Args:
        job: Function without parameters, or of the arguments that follow the flags.
        arguments: Names of the arguments that must follow the flags; none by default.
    """
    module = sys.modules[job.__module__]
    sys.modules["__main__"].__doc__ = module.__doc__  # which is what absl prints
    for name in (__name__, module.__name__):
        for flag in flags.FLAGS.get_key_flags_for_module(name):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        argv = [sys.argv[0], *configs.expand(sys.argv[1:], flags.FLAGS)]
    except ValueError as error:
        sys.exit(f"ValueError: {error}")
    app.run(main_of(job, arguments), argv=argv)


def stop_at_signals():
    """Ends a job that the same command continues at SIGTERM, as clusters send it, and at Ctrl-C.

    A training saves its update first (`candle_tf.runs.checkpoints`).
    """
    message = "Stopped: the same command continues."

    def terminated(*_):
        print(f"\n{message}", flush=True)
        sys.exit(INTERRUPTED)

    def interrupted(*_):
        raise KeyboardInterrupt(message)

    signal.signal(signal.SIGTERM, terminated)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a script's background jobs
        signal.signal(signal.SIGINT, interrupted)


def main_of(job, arguments: str | None = None):
    """Returns a main function that ends with exit code 1 after a one-sentence error of the job.

    `--verbosity=1` shows the traceback.

    Args:
        job: Function without parameters, or of the arguments that follow the flags.
        arguments: Names of the arguments that must follow the flags; none by default.
    """

    def main(argv):
        if arguments is None and len(argv) > 1:
            sys.exit(f"Not a flag: {argv[1]!r}; flags begin with --.")
        if arguments and len(argv) < 2:
            sys.exit(f"Nothing to work on: give {arguments} after the flags.")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            with reading_errors():
                job(argv[1:]) if arguments else job()
        except (ValueError, OSError, ImportError, tf.errors.OpError, flags.Error) as error:
            logging.debug("The error arose here:", exc_info=True)
            said = first_line(error) if isinstance(error, tf.errors.OpError) else error
            sys.exit(f"{type(error).__name__}: {as_flags(str(said))}")
        except KeyboardInterrupt as stopped:
            sys.exit(str(stopped) or "Stopped.")

    return main
