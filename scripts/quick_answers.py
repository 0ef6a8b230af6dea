"""Starts a command, and answers --help and wrong flags before TensorFlow takes its seconds.

The flags of the commands are in flags.json, which scripts/maintainers/write_flags.py writes.
"""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

from absl import app, flags

HERE = Path(__file__).parent
HELP = {"--help", "-help", "--helpshort", "-helpshort", "-h", "-?"}


def start(command: str):
    """Runs a command of `candle_tf.cli`, unless the command line can be answered without it.

    Args:
        command: Name of the script.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors are raised as exceptions
    answer(command)
    importlib.import_module(f"candle_tf.cli.{command}").main()


def answer(command: str):
    """Exits if the command line asks for help or is wrong.

    Args:
        command: Name of the script.
    """
    known = json.loads((HERE / "flags.json").read_text(encoding="utf-8"))[command]
    values = flags.FlagValues()
    app.define_help_flags()
    values.append_flag_values(flags.FLAGS)
    for flag in known["flags"]:
        define = getattr(flags, f"DEFINE_{flag['kind']}")
        given = {"module_name": command, "required": flag["required"]}
        given |= {"enum_values": flag["choices"]} if flag["kind"] == "enum" else {}
        names = [flag["name"], flag["default"]]
        define(*names, help=flag["help"], flag_values=values, **given)
    if HELP & set(sys.argv[1:]):
        print(f"{known['doc']}\nflags:\n{values.module_help(command)}")
        print("\nTry --helpfull to get a list of all flags.")
        sys.exit(0)
    try:
        rest = values(sys.argv)[1:]
    except flags.Error as error:
        sys.exit(f"FATAL Flags parsing error: {error}\nPass --help to see the flags.")
    if rest and not known["arguments"]:
        sys.exit(f"Not a flag: {rest[0]!r}; flags begin with --.")
    if known["arguments"] and not rest:
        sys.exit(f"Nothing to work on: give {known['arguments']} after the flags.")
    for flag in known["flags"]:
        value = values[flag["name"]].value
        if problem := out_of_range(flag, value):
            sys.exit(f"ValueError: --{flag['name']} is {problem}.")
        if flag["choices"] and flag["kind"] == "string" and value is not None:
            try:
                names_module().lookup(flag["name"], value, dict.fromkeys(flag["choices"]))
            except ValueError as error:
                sys.exit(f"ValueError: {error}")


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


def names_module():
    """Returns `candle_tf.utils.names` without the package, which imports TensorFlow."""
    path = HERE.parent / "candle_tf" / "utils" / "names.py"
    spec = importlib.util.spec_from_file_location("names", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
