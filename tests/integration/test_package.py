"""The wheel, installed into a fresh environment and used outside the clone."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv

import check_versions
import pytest
from check_versions import ROOT

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a program of an environment with the wheel, in a directory outside the clone."""
    folder, here = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("elsewhere")
    wheel = check_versions.build_wheel(folder)
    binaries = folder / "venv" / "bin"
    venv.create(folder / "venv", symlinks=True)
    where = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    site = sysconfig.get_path("purelib", "posix_prefix", where)
    pip = [sys.executable, "-m", "pip", "--python", binaries / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    # TensorFlow and the others are those of this environment; the wheel comes first.
    with open(f"{site}/others.pth", "w", encoding="utf-8") as file:
        file.write(sysconfig.get_path("purelib"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(program, *arguments):
        command = [binaries / program, *arguments]
        return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)

    run.here = here
    return run


def test_the_package_is_that_of_the_wheel(installed):
    code = "import importlib.util; print(importlib.util.find_spec('candle_tf').origin)"
    origin = installed("python", "-c", code).stdout
    assert "wheel" in origin and "site-packages/candle_tf/__init__.py" in origin


@pytest.mark.parametrize("start", [["candle-tf"], ["python", "-m", "candle_tf"]])
def test_the_commands_are_listed(start, installed):
    for arguments in ([], ["--help"]):
        done = installed(*start, *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "  train      Calibrates a teacher" in done.stdout
        assert "  compare    Prints finished runs" in done.stdout
    done = installed(*start, "trian")
    assert done.returncode == 1 and "did you mean 'train'?" in done.stderr


def test_maintainers_tools_stay_in_the_clone(installed):
    code = "import importlib.metadata as m; print(*m.files('candle_tf'), sep='\\n')"
    files = installed("python", "-c", code).stdout.split()
    assert "candle_tf/cli/flags.json" in files and "candle_tf/configs/paper/flowers_lt.cfg" in files
    entries = {f"candle_tf/zoo/files/{path.name}" for path in (ROOT / "zoo").iterdir()}
    assert entries and entries <= set(files)
    folders = {name.split("/")[0] for name in files if not name.startswith("..")}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"candle_tf"}


def test_the_page_of_the_index_has_no_link_that_breaks(installed):
    code = "import importlib.metadata as m; print(m.metadata('candle_tf').get_payload())"
    page = installed("python", "-c", code).stdout
    assert page.startswith("# candle_tf") and "## Start" in page and "[Larq](https" in page
    assert not re.findall(r"\]\((?!https?:)", page)


def test_the_zoo(installed):
    code = "import candle_tf as ct; print(ct.zoo.list(), ct.zoo.load('digits_lt').output_shape)"
    done = installed("python", "-c", code)
    assert "'digits_lt'" in done.stdout and "(None, 10)" in done.stdout, done.stderr[-2000:]


def test_the_main_job(installed):
    small = "--student=resnet_e:width=0.125 --steps_per_epoch=3 --calibration_epochs=2".split()
    done = installed(
        "python", "-m", "candle_tf", "train", "--config=digits_lt", "--epochs=1", *small,
        "--workdir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    overall = json.loads((installed.here / "run" / "metrics.json").read_text())["student"]["test"]
    row = f"{100 * overall['overall']:.1f} |"
    assert row in done.stdout
    done = installed("candle-tf", "export", "--workdir=run", "--output=student")
    assert "Wrote student" in done.stdout, done.stderr[-3000:]
    done = installed("candle-tf", "evaluate", "--workdir=run", "--exported=student")
    assert row in done.stdout and "classes equal the Keras student's" in done.stdout, done.stderr
