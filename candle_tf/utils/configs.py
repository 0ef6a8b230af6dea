"""The flag files of configs/, included by name: --config=flowers_lt."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from candle_tf.utils.names import lookup

PACKAGE = Path(__file__).parents[1]
PLACES = PACKAGE / "configs", PACKAGE.parent / "configs"  # in a wheel, in a clone

MARK = "\ufeff"  # with which some editors begin a file


def paths() -> Mapping[str, Path]:
    """Returns the paths of the flag files by name, such as "flowers_lt" or "paper/flowers_lt"."""
    folder = next((place for place in PLACES if place.is_dir()), PLACES[0])
    found = sorted(folder.rglob("*.cfg"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def define(values: flags.FlagValues = flags.FLAGS):
    """Defines the flag --config, which `expand` replaces before the flags are parsed."""
    flags.DEFINE_string(
        "config",
        None,
        "Name of a flag file that candle_tf contains, such as flowers_lt or paper/flowers_lt. The "
        "run reads it like --flagfile, so later flags override it.",
        flag_values=values,
    )


def expand(arguments: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Returns the arguments with the flags of each --flagfile and --config in its place.

    A path after "=" may start with ~, which a shell does not replace there.

    Args:
        arguments: The command line without the program's name.
        values: The flags of the command; without a flag `config`, --config is not replaced.

    Raises:
        ValueError: If there is no such flag file, where the message has all names; or if a file is
            not UTF-8.
        absl.flags.Error: If a file of --flagfile cannot be read.
    """
    try:
        arguments = values.read_flags_from_files(list(arguments), force_gnu=False)
    except UnicodeDecodeError as error:
        files = " ".join(argument for argument in arguments if "flagfile" in argument)
        raise ValueError(f"{files} is not UTF-8 ({error}): save the file as UTF-8.") from error
    if any(argument.startswith(MARK) for argument in arguments):
        lines = (argument.removeprefix(MARK) for argument in arguments)
        return expand([line for line in lines if line and not line.startswith("#")], values)
    home = os.path.expanduser("~")
    arguments = [re.sub(r"(?<=[=:,])~(?=/)", home, argument) for argument in arguments]
    if "config" not in values:
        return arguments
    for at, argument in enumerate(arguments):
        flag, sign, name = argument.partition("=")
        end = at + (1 if sign else 2)
        if flag in ("--config", "-config") and end <= len(arguments):
            path = find(name if sign else arguments[at + 1])
            return expand([*arguments[:at], f"--flagfile={path}", *arguments[end:]], values)
    return arguments


def find(name: str) -> Path:
    """Returns the path of the flag file with this name."""
    known = paths()
    try:
        return lookup("config", name, known)
    except ValueError as error:
        raise ValueError(f"{error}\nThe configs are {', '.join(known)}.") from None
