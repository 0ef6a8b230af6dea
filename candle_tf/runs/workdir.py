"""The workdir of a run: which run it belongs to, and from which images."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from candle_tf.data import LongTailedData
from candle_tf.runs.settings import OWN, PLANNED, Settings, kind_of
from candle_tf.utils.files import locked, read_text, write_text
from candle_tf.utils.run_files import (
    CALIBRATION_FILE,
    CLASSES_FILE,
    CLASSIFIER_FILE,
    FLAG_FILE,
    HISTORY_FILE,
    IMAGES_FILE,
    PREDICTIONS_FILE,
    has_begun,
)

MOVABLE = tuple(
    f"--{name}="
    for name in "checkpoint_every data_dir download first_stage on_nan strategy "
    "teacher_store".split()
)

REPLACED = (CLASSES_FILE, HISTORY_FILE, IMAGES_FILE, PREDICTIONS_FILE)


def identity(flags: str) -> tuple[str, ...]:
    """Returns the lines of a flag file that make the run: neither defaults nor `MOVABLE` ones.

    A new flag at its default does not make another run.
    """
    defaults = Settings(**PLANNED).to_flags().splitlines()
    lines = (line for line in flags.splitlines() if not line.startswith(MOVABLE))
    return tuple(line for line in lines if line not in defaults)


def filled(flags: str) -> list[str]:
    """Returns a flag file's lines, with a default for each flag that it does not give."""
    lines = [*Settings(**PLANNED).to_flags().splitlines(), *flags.splitlines()]
    by_name = {line.partition("=")[0]: line for line in lines}
    return [line for line in by_name.values() if not line.startswith(MOVABLE)]


def as_begun(settings: Settings) -> Settings:
    """Returns the settings with the values of the run in the workdir where they give none.

    A method's own values may change with a new version; a run that has begun keeps its values.
    """
    path = Path(settings.workdir) / FLAG_FILE
    if not settings.workdir or not has_begun(path.parent) or not path.exists():
        return settings
    lines = read_text(path).splitlines()
    begun = {name: str(value) for name, value in PLANNED.items()}
    begun |= dict(line.removeprefix("--").split("=", 1) for line in lines if "=" in line)
    if begun["epochs"] == "0":
        del begun["epochs"]  # no training began
    taken = {}
    may_be_open = [*OWN, *PLANNED, "teacher_views"]
    if settings.epochs is None:
        may_be_open.append("steps_per_epoch")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "steps_per_epoch" and settings.minutes is not None:
            value = None  # fewer may have fitted
        if field.name in may_be_open and value is None and field.name in begun:
            kind, _ = kind_of(field)
            text = begun[field.name]
            taken[field.name] = text == "True" if kind is bool else kind(text)
    if "epochs" in taken:
        taken["minutes"] = None  # they were planned
    if begun.get("teacher_views") == "0":
        taken["teacher_store"] = None  # no views were planned, so it is not used
    return dataclasses.replace(settings, **taken)


def of_earlier_version(workdir: Path) -> bool:
    """Returns whether the workdir's teacher was calibrated before there was a label term."""
    return (workdir / CLASSIFIER_FILE).exists() and not (workdir / CALIBRATION_FILE).exists()


def check_workdir(workdir: Path, flags: str):
    """Refuses a workdir in which another run has begun.

    Args:
        workdir: Directory of the run.
        flags: Flag file of the run's canonical settings.

    Raises:
        ValueError: If another run has begun there, or one without its flag file.
    """
    path = workdir / FLAG_FILE
    if not has_begun(workdir):
        if not path.exists():
            check_free(workdir)
        return
    if not path.exists():
        raise ValueError(
            f"{workdir} holds a run without its {FLAG_FILE}: name another directory, or delete it."
        )
    old, new = (set(filled(text)) for text in (read_text(path), flags))
    if old != new:
        there, here = (" ".join(sorted(x)) or "not given" for x in (old - new, new - old))
        raise ValueError(
            f"{workdir} holds another run ({there} there, {here} here): give the values that it "
            "has, or name another directory."
        )


def check_free(workdir: Path):
    """Refuses a workdir without a run in which a run would replace files.

    Raises:
        FileExistsError: Names one of these files.
        NotADirectoryError: If the workdir is a file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"{workdir} is a file: name another directory.")
    for name in REPLACED:
        if (workdir / name).exists():
            raise FileExistsError(
                f"{workdir} holds a file {name} that no run wrote: name another directory."
            )


def check_images(
    workdir: Path, digest: str, remedy: str = "name another directory, or delete that one"
):
    """Refuses images of another digest than those that the run in the workdir began on.

    Args:
        workdir: Directory of the run.
        digest: Digest of the images at hand.
        remedy: What the user can do, the end of the message.

    Raises:
        ValueError: If the digests differ.
    """
    path = workdir / IMAGES_FILE
    if has_begun(workdir) and path.exists() and read_text(path).strip() != digest:
        raise ValueError(
            f"The data set has other images or classes than when the run in {workdir} began: "
            f"{remedy}."
        )


@contextlib.contextmanager
def claimed_workdir(
    workdir: Path, flags: str, examples: LongTailedData, first: Path | None = None
) -> Iterator[Path]:
    """Makes the workdir, writes what the run is, and keeps other processes out of it.

    Args:
        workdir: Directory of the run.
        flags: Flag file of the run's canonical settings.
        examples: Images of the run.
        first: Workdir of the first stage, for a method of two stages.

    Raises:
        ValueError: If either run has begun on other images, or with other classes.
    """
    digest = examples.fingerprint()
    if first:
        check_images(first, digest)
    with locked(workdir):
        check_images(workdir, digest)
        write_text(workdir / FLAG_FILE, flags)  # the first file, by which the others are a run's
        write_text(workdir / IMAGES_FILE, digest + "\n")
        write_text(workdir / CLASSES_FILE, json.dumps(examples.class_names) + "\n")
        yield workdir
