"""The directory of a run: what lies in it, and whose it is."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from candle_tf.data import LongTailedData
from candle_tf.runs.settings import OWN, Settings, kind_of
from candle_tf.utils.files import locked, read_text, write_text
from candle_tf.utils.run_files import (
    CALIBRATION_FILE,
    CLASSES_FILE,
    CLASSIFIER_FILE,
    FLAG_FILE,
    IMAGES_FILE,
    has_begun,
)

MOVABLE = tuple(
    f"--{name}="
    for name in "cache checkpoint_every data_dir download first_stage on_nan strategy "
    "teacher_store".split()
)


def identity(flags: str) -> tuple[str, ...]:
    """What decides a run of a flag file's text: all but defaults, and what may change with time.

    Without the defaults, so that a flag that is new does not make it another run.
    """
    defaults = Settings().to_flags().splitlines()
    lines = (line for line in flags.splitlines() if not line.startswith(MOVABLE))
    return tuple(line for line in lines if line not in defaults)


def filled(flags: str) -> list[str]:
    """A flag file's lines, with the defaults of the flags that it does not give."""
    lines = [*Settings().to_flags().splitlines(), *flags.splitlines()]
    by_name = {line.partition("=")[0]: line for line in lines}
    return [line for line in by_name.values() if not line.startswith(MOVABLE)]


def as_begun(settings: Settings) -> Settings:
    """Returns the settings with what they leave open as the run in the workdir began with it.

    A method's own values may change with a new version; a run that has begun keeps its own.
    """
    path = Path(settings.workdir) / FLAG_FILE
    if not settings.workdir or not has_begun(path.parent) or not path.exists():
        return settings
    lines = read_text(path).splitlines()
    begun = dict(line.removeprefix("--").split("=", 1) for line in lines if "=" in line)
    taken = {}
    for field in dataclasses.fields(settings):
        left_open = field.name in (*OWN, "teacher_views") and getattr(settings, field.name) is None
        if left_open and field.name in begun:
            kind, _ = kind_of(field)
            text = begun[field.name]
            taken[field.name] = text == "True" if kind is bool else kind(text)
    return dataclasses.replace(settings, **taken)


def of_earlier_version(settings: Settings) -> bool:
    """Returns whether the workdir's teacher was calibrated before there was a label term."""
    workdir = Path(settings.workdir)
    return (workdir / CLASSIFIER_FILE).exists() and not (workdir / CALIBRATION_FILE).exists()


def check_workdir(settings: Settings):
    """Refuses the workdir of canonical settings if another run has begun in it."""
    workdir = Path(settings.workdir)
    path = workdir / FLAG_FILE
    if not has_begun(workdir):
        return
    if not path.exists():
        raise ValueError(
            f"{workdir} holds a run without its {FLAG_FILE}: name another directory, or delete it."
        )
    old, new = (set(filled(text)) for text in (read_text(path), settings.to_flags()))
    if old != new:
        there, here = (" ".join(sorted(x)) or "not given" for x in (old - new, new - old))
        raise ValueError(
            f"{settings.workdir} holds another run ({there} there, {here} here): name another "
            "directory, or delete that one."
        )


def check_images(settings: Settings, digest: str):
    """Refuses images of another digest than those that the run in the workdir began on."""
    workdir = Path(settings.workdir)
    path = workdir / IMAGES_FILE
    if has_begun(workdir) and path.exists() and read_text(path).strip() != digest:
        raise ValueError(
            f"{settings.dataset} has other images or classes than when the run in "
            f"{settings.workdir} began: name another directory, or delete that one."
        )


@contextlib.contextmanager
def claimed_workdir(
    settings: Settings, examples: LongTailedData, first: Settings | None = None
) -> Iterator[Path]:
    """Makes the workdir, writes down whose it is, and keeps other processes out of it.

    Args:
        first: the run that this one starts from, if it does.

    Raises:
        ValueError: if either has begun on other images, or with other classes: files change.
    """
    digest = examples.fingerprint()
    if first:
        check_images(first, digest)
    with locked(settings.workdir) as workdir:
        check_images(settings, digest)
        write_text(workdir / IMAGES_FILE, digest + "\n")
        write_text(workdir / CLASSES_FILE, json.dumps(examples.class_names) + "\n")
        write_text(workdir / FLAG_FILE, settings.to_flags())
        yield workdir
