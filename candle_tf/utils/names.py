"""Names that users give: their look-up, with a guess at a misspelled one."""

import ast
import contextlib
import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
SOURCES = ("keras:", "larq_zoo:", "tfds:", "folder:", "list:", "csv:")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Returns `table[name]`.

    Raises:
        ValueError: For an unknown name. The message suggests the nearest name, or lists some.

    Example:
        >>> lookup("sampler", "squareroot", ct.data.SAMPLERS)
        Traceback (most recent call last):
        ValueError: Unknown sampler 'squareroot': did you mean 'square_root'?
    """
    if name in table:
        return table[name]
    by_lower_case = {key.lower(): key for key in table}
    near = [key for key in by_lower_case if name and key.startswith(name.lower())]
    near = near or difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    some = ", ".join(list(table)[:12]) + (", ..." if len(table) > 12 else ".")
    hint = f"did you mean {by_lower_case[near[0]]!r}?" if near else f"choose from {some}"
    raise ValueError(f"Unknown {kind} {name!r}: {hint}")


def parse_spec(spec: str) -> tuple[str, dict]:
    """Splits a text such as "resnet_e:width=0.5" into a name and its arguments.

    The name may start with its source: "larq_zoo:QuickNet:weights='imagenet'".

    Raises:
        ValueError: If the text after the colon is not NAME=LITERAL, separated by commas.

    Example:
        >>> parse_spec("resnet_e:width=0.5")
        ('resnet_e', {'width': 0.5})
    """
    source = next((prefix for prefix in SOURCES if spec.startswith(prefix)), "")
    name, _, arguments = spec.removeprefix(source).partition(":")
    try:
        # The line break keeps a comment from swallowing the bracket.
        call = ast.parse(f"f({arguments}\n)", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("unbalanced brackets")
        if call.args or not all(k.arg for k in call.keywords):
            raise ValueError("an argument without a name")
        if len({k.arg for k in call.keywords}) < len(call.keywords):
            raise ValueError("an argument twice")
        return source + name, {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{spec!r} is not NAME or NAME:ARGUMENT=VALUE,... such as resnet_e:width=0.5 ({error})."
        ) from error


@contextlib.contextmanager
def arguments_of(setting: str, spec: str):
    """Turns an error about wrong arguments in its block into a sentence that names the setting.

    Raises:
        ValueError: Names the setting and its value.
    """
    try:
        yield
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"`{setting}={spec}` has arguments that do not fit: {error}.") from error


def one_line(name: str) -> bool:
    r"""Returns whether a name is one line of text, as exports keep names.

    Example:
        >>> one_line("black cat"), one_line("black\ncat"), one_line("")
        (True, False, False)
    """
    return name.splitlines() == [name]
