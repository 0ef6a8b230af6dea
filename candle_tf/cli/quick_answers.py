"""Answers --help and wrong command lines before the import of TensorFlow, which takes seconds.

The import of `candle_tf` calls `answer` first if the process is a command. The flags of the
commands are in flags.json, which scripts/maintainers/write_flags.py writes.
"""

import json
import os
import sys
from pathlib import Path

from absl import app, flags
from candle_tf.utils import configs
from candle_tf.utils.names import lookup

PROGRAM = "candle-tf"
FLAGS_FILE = Path(__file__).with_name("flags.json")
HELP = {"--help", "-help", "--helpshort", "-helpshort", "-h", "-?"}
USAGE = """Trains, evaluates and exports binary neural networks for long-tailed data.

    {program} COMMAND --FLAG=VALUE ...

commands:
{commands}

Try {program} COMMAND --help to get the flags of a command."""


def is_command() -> bool:
    """Returns whether this process was started as `candle-tf` or `python -m candle_tf`."""
    if sys.argv[:1] == ["-m"]:  # Python imports the package before it runs __main__.py
        return sys.orig_argv[-len(sys.argv)].endswith("candle_tf")
    return Path((sys.argv or [""])[0]).name == PROGRAM


def answer():
    """Exits if the command line asks for help or is wrong."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors are raised as exceptions
    commands = json.loads(FLAGS_FILE.read_text(encoding="utf-8"))
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in HELP:
        lines = (f"  {name:<10} {known['doc'].splitlines()[0]}" for name, known in commands.items())
        end_with(USAGE.format(program=PROGRAM, commands="\n".join(lines)))
    try:
        answer_flags(arguments, lookup("command", command, commands))
    except ValueError as error:
        sys.exit(f"ValueError: {error}")


def answer_flags(arguments: list[str], known: dict):
    """Exits if the arguments of a command ask for help or are wrong.

    Args:
        arguments: The command line after the name of the command.
        known: The docstring, the arguments and the flags of the command.

    Raises:
        ValueError: If a name or a number is not one that the command takes.
    """
    values = flags.FlagValues()
    app.define_help_flags()
    values.append_flag_values(flags.FLAGS)
    for flag in known["flags"]:
        define = getattr(flags, f"DEFINE_{flag['kind']}")
        given = {"module_name": flag["section"], "required": flag["required"]}
        given |= {"enum_values": flag["choices"]} if flag["kind"] == "enum" else {}
        names = [flag["name"], flag["default"]]
        define(*names, help=flag["help"], flag_values=values, **given)
    if HELP & set(arguments):
        sections = dict.fromkeys(flag["section"] for flag in known["flags"])
        listed = "\n".join(map(values.module_help, sections))
        end_with(f"{known['doc']}\nflags:\n{listed}\n\nTry --helpfull to get a list of all flags.")
    try:
        rest = values([PROGRAM, *configs.expand(arguments, values)])[1:]
    except flags.Error as error:
        sys.exit(f"FATAL Flags parsing error: {error}\nPass --help to see the flags.")
    if rest and not known["arguments"]:
        sys.exit(f"Not a flag: {rest[0]!r}; flags begin with --.")
    if known["arguments"] and not rest:
        sys.exit(f"Nothing to work on: give {known['arguments']} after the flags.")
    for flag in known["flags"]:
        value = values[flag["name"]].value
        if problem := out_of_range(flag, value):
            raise ValueError(f"--{flag['name']} is {problem}.")
        if flag["choices"] and flag["kind"] == "string" and value is not None:
            lookup(flag["name"], value, dict.fromkeys(flag["choices"]))


def end_with(text: str):
    """Prints a text and exits, also if the reader of a pipe closes it early, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
    sys.exit(0)


def out_of_range(flag: dict, value) -> str | None:
    """Returns the mistake in a number, or in the numbers of a list, or None."""
    least = flag["least"]
    if least is not None and value is not None and not least <= value < float("inf"):
        return f"{value} but must be finite and at least {least}"
    try:
        for part in value if flag["parts"] else ():
            (int if flag["parts"] == "int" else float)(part)
    except ValueError:
        whole = "whole " if flag["parts"] == "int" else ""
        return f"{','.join(value)} but must be {whole}numbers with commas between"
    return None
