"""Runs the main job with each version of Python and of TensorFlow, and prints the table.

    python scripts/maintainers/check_versions.py --output=/tmp/versions

Each pair gets a fresh environment with the wheel of this clone, about 2 GB, which is removed after
the pair. The same command continues where it was stopped: pairs that work are not run again, and
pairs that failed are. The output of a pair is in OUTPUT/PAIR.log. setup.py excludes pairs that
cannot work.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from absl import app, flags
from packaging.requirements import Requirement

flags.DEFINE_string("output", None, "Directory of the results and logs.", required=True)
flags.DEFINE_list("pythons", "3.10,3.11,3.12", "Versions of Python.")
flags.DEFINE_list("tensorflows", "2.16,2.17,2.18,2.19", "Versions of TensorFlow and tf-keras.")

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("candle_tf", "configs", "zoo", "setup.py", "pyproject.toml", "README.md", "LICENSE")
RUN, FLATBUFFER = "--workdir=run", "student.tflite"
JOB = (  # with the student's SavedModel, which the training writes, in TensorFlow alone
    ("candle-tf", "train", "--config=digits_lt", "--epochs=1", RUN),
    ("candle-tf", "export", RUN, "--format=lce", f"--output={FLATBUFFER}"),
    ("candle-tf", "evaluate", RUN, f"--exported={FLATBUFFER}"),
    ("python", "-c", "import tensorflow as tf; tf.saved_model.load('run/saved_model')"),
)


def build_wheel(folder: Path) -> Path:
    """Builds the wheel in a folder, from a copy: a build/ in the clone would enter later wheels."""
    with_sources = folder / "sources"
    for name in SOURCES:
        source, target = ROOT / name, with_sources / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, f"--wheel-dir={folder}", with_sources], check=True)
    shutil.rmtree(with_sources)
    return next(folder.glob("*.whl"))


def admits(requirements: Iterable[str], python: str, tensorflow: str) -> bool:
    """Returns whether requirements of a package allow these versions of Python and TensorFlow."""
    every = map(Requirement, requirements)
    where = {"python_version": python, "extra": ""}
    return all(
        asked.specifier.contains(f"{tensorflow}.0")
        for asked in every
        if asked.name == "tensorflow" and (not asked.marker or asked.marker.evaluate(where))
    )


def interpreter(version: str) -> str:
    """Returns the path of a Python of this version, on the PATH or of pyenv."""
    found = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")
    for path in (shutil.which(f"python{version}"), *sorted(found)):
        asked = [path, "-c", f"import sys; sys.exit(not sys.version.startswith('{version}.'))"]
        if path and subprocess.run(asked, capture_output=True).returncode == 0:
            return str(path)
    raise FileNotFoundError(f"Python {version} is not here: install it, or set --pythons.")


def check(python: str, tensorflow: str, wheel: Path, output: Path) -> dict:
    """Returns what happened with a pair of versions: "works", or the command that failed."""
    pair = output / name_of(python, tensorflow)
    shutil.rmtree(pair, ignore_errors=True)
    pair.mkdir()
    binaries = pair / "venv" / "bin"
    asked = [f"{wheel}[edge]", f"tensorflow=={tensorflow}.*", f"tf-keras=={tensorflow}.*"]
    commands = [
        [interpreter(python), "-m", "venv", pair / "venv"],
        [binaries / "pip", "install", "--quiet", "--upgrade", "pip"],
        [binaries / "pip", "install", "--quiet", "--no-compile", *asked],
        [binaries / "pip", "check"],
        [binaries / "pip", "list"],
        *([binaries / program, *arguments] for program, *arguments in JOB),
    ]
    switches = ("PYTHONPATH", "TF_USE_LEGACY_KERAS")
    environment = {key: value for key, value in os.environ.items() if key not in switches}
    started, outcome = time.time(), "works"
    with Path(f"{pair}.log").open("w+", encoding="utf-8") as log:
        for command in commands:
            streams = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            done = subprocess.run(command, cwd=pair, env=environment, **streams)
            if done.returncode:
                outcome = f"failed: {' '.join([Path(command[0]).name, *map(str, command[1:])])}"
                break
        log.seek(0)
        text = log.read()
    shutil.rmtree(pair)
    return {
        "python": python,
        "tensorflow": tensorflow,
        "outcome": outcome,
        "versions": dict(re.findall(r"^(tensorflow|tf[_-]keras|numpy) +([\d.]+)", text, re.M)),
        "equal": re.findall(r"(\d+ of \d+) classes equal", text),
        "minutes": round((time.time() - started) / 60, 1),
    }


def name_of(python: str, tensorflow: str) -> str:
    return f"python_{python}_tensorflow_{tensorflow}"


def table(results: Iterable[dict]) -> str:
    """Returns a Markdown table, a row per Python and a column per TensorFlow, then the failures."""
    results = list(results)
    outcomes = {(each["python"], each["tensorflow"]): each["outcome"] for each in results}
    pythons, tensorflows = (
        sorted({pair[n] for pair in outcomes}, key=lambda version: int(version.split(".")[1]))
        for n in (0, 1)
    )
    head = [f"| TensorFlow | {' | '.join(tensorflows)} |", "| --- |" + " --- |" * len(tensorflows)]
    rows = [
        f"| Python {python} | "
        + " | ".join(outcomes.get((python, each), "not run").split(":")[0] for each in tensorflows)
        + " |"
        for python in pythons
    ]
    failures = [
        f"Python {python}, TensorFlow {tensorflow} {outcome}"
        for (python, tensorflow), outcome in outcomes.items()
        if outcome.startswith("failed")
    ]
    return "\n".join([*head, *rows, *(["", *failures] if failures else [])])


def main(_):
    output = Path(flags.FLAGS.output).expanduser().resolve()
    output.mkdir(parents=True, exist_ok=True)
    pairs = [(python, each) for python in flags.FLAGS.pythons for each in flags.FLAGS.tensorflows]
    wheel, results = build_wheel(output), []
    [requirements] = [each.requires for each in importlib.metadata.distributions(path=[str(wheel)])]
    for python, tensorflow in pairs:
        file = output / f"{name_of(python, tensorflow)}.json"
        result = json.loads(file.read_text()) if file.exists() else {}
        if not admits(requirements, python, tensorflow):
            result = {"python": python, "tensorflow": tensorflow, "outcome": "excluded"}
        elif result.get("outcome") != "works":
            result = check(python, tensorflow, wheel, output)
            file.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{file.stem}: {result['outcome']}, {result['minutes']} min", flush=True)
        results.append(result)
    print(table(results))


if __name__ == "__main__":
    app.run(main)
