"""--help and refused flags are answered without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from candle_tf.cli.quick_answers import FLAGS_FILE

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def python(tmp_path):
    """Runs Python where importing TensorFlow is an error."""
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    path = os.pathsep.join([str(tmp_path), str(SCRIPTS.parent)])

    def python(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return python


@pytest.fixture
def run(python):
    """Runs a script where importing TensorFlow is an error."""
    return lambda name, *arguments: python(SCRIPTS / f"{name}.py", *arguments)


@pytest.mark.parametrize(
    "name, flag", [("train", "--teacher_preprocessing:"), ("export", "--format:")]
)
def test_help(name, flag, run):
    done = run(name, "--help")
    assert done.returncode == 0 and flag in done.stdout
    assert done.stdout.startswith(("Calibrates a teacher", "Exports the student"))


def test_a_pipe_that_is_closed_is_no_error():
    command = f"{sys.executable} {SCRIPTS / 'train.py'} --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("train", ["--epoch=3"], "Unknown command line flag 'epoch'. Did you mean: epochs ?"),
        ("train", ["--epochs=many"], "flag --epochs=many"),
        ("train", ["--method=candel"], "Unknown method 'candel': did you mean 'candle'?"),
        ("train", ["--flagfile=/nowhere.cfg"], "/nowhere.cfg"),
        ("train", ["--epochs=-1"], "--epochs is -1 but must be finite and at least 0"),
        ("train", ["--mixup=nan"], "--mixup is nan but must be finite and at least 0"),
        ("train", ["--resolutions=a,b"], "--resolutions is a,b but must be whole numbers"),
        ("predict", ["a.png"], "Flag --model must have a value"),
        ("export", ["--workdir=x", "--format=onnx"], "--format=onnx"),
        ("train", ["--workdir=x", "digits"], "Not a flag: 'digits'"),
        ("train", ["--config=digit_lt"], "did you mean 'digits_lt'?"),
        ("train", ["--config"], "Missing value for flag --config"),
        ("evaluate", ["--config=digits_lt"], "Unknown command line flag 'config'"),
        ("predict", ["--model=x"], "give IMAGE... after the flags"),
    ],
)
def test_what_no_command_takes(name, arguments, message, run):
    done = run(name, *arguments)
    assert done.returncode == 1 and message in done.stderr
    assert "Traceback" not in done.stderr and "TensorFlow" not in done.stderr


def test_other_flags_are_the_commands(run):
    done = run("train", "--workdir=x", "--epochs=3", "--resolutions=24,32", "--verbosity=1")
    assert "TensorFlow was imported" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(arguments, python):
    done = python("-m", "candle_tf", *arguments)
    assert done.returncode == 0, done.stderr
    for command in json.loads(FLAGS_FILE.read_text()):
        assert f"\n  {command} " in done.stdout and (SCRIPTS / f"{command}.py").is_file()


def test_the_module_and_the_scripts_answer_alike(python, run):
    assert python("-m", "candle_tf", "train", "--help").stdout == run("train", "--help").stdout
    done = python("-m", "candle_tf", "trian", "--help")
    assert done.returncode == 1 and "did you mean 'train'?" in done.stderr


@pytest.mark.parametrize(
    "program",
    [["-c", "import candle_tf"], ["-m", "candle_tf.cli.train"], ["-m", "candle_tf.data"]],
    ids=lambda program: program[-1],
)
def test_the_command_line_of_another_program_is_not_answered(program, python):
    done = python(*program, "--help")
    assert "TensorFlow was imported" in done.stderr and not done.stdout


@pytest.mark.long
def test_what_the_commands_take_is_written_down():
    """`python scripts/maintainers/write_flags.py` writes it anew."""
    code = "import write_flags; print(write_flags.FLAGS_FILE.read_text() == write_flags.text())"
    path = os.pathsep.join(map(str, (SCRIPTS / "maintainers", SCRIPTS.parent)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["True"], done.stderr[-2000:]
