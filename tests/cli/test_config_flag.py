"""--config=NAME includes a flag file that the package contains."""

import re
from pathlib import Path

import pytest
from absl import flags
from candle_tf.cli import run_flags
from candle_tf.utils import configs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parse():
    """Parses a command line, and returns its settings."""

    def settings(*arguments):
        values = flags.FlagValues()
        configs.define(values)
        run_flags.define(values)
        values(["train", *configs.expand(arguments, values)])
        return run_flags.settings(values)

    return settings


def test_every_flag_file_has_a_name():
    files = (ROOT / "configs").rglob("*.cfg")
    assert set(configs.paths()) == {
        str(path.relative_to(ROOT / "configs")).removesuffix(".cfg") for path in files
    }
    assert {"flowers_lt", "paper/flowers_lt", "benchmark/small"} <= set(configs.paths())


@pytest.mark.parametrize("given", [["--config=digits_lt"], ["--config", "digits_lt"]])
def test_a_name_is_its_flag_file(given, parse):
    assert parse(*given) == parse(f"--flagfile={ROOT / 'configs' / 'digits_lt.cfg'}")


def test_the_last_flag_counts_as_with_flag_files(parse, tmp_path):
    own = tmp_path / "own.cfg"
    own.write_text("--epochs=7\n--config=paper/flowers_lt\n--batch_size=3\n")
    named, file = "--config=digits_lt", f"--flagfile={own}"
    assert parse(named).epochs == 60 and parse(named, "--epochs=2").epochs == 2
    assert parse("--epochs=2", named).epochs == 60
    last_own, last_named = parse(named, file), parse(file, named)
    assert (last_own.dataset, last_own.epochs, last_own.batch_size) == (
        "tfds:oxford_flowers102,train+validation,test",
        400,
        3,
    )
    assert (last_named.dataset, last_named.epochs, last_named.batch_size) == ("digits", 60, 64)
    assert last_named.method == "candle" and last_own.method == "candle_paper"


def test_paths_in_an_own_flag_file_start_in_the_working_directory(parse, tmp_path, monkeypatch):
    (tmp_path / "flags").mkdir()
    (tmp_path / "flags" / "own.cfg").write_text("--config=digits_lt\n--flagfile=more.cfg\n")
    (tmp_path / "more.cfg").write_text("--dataset=folder:photos\n")
    monkeypatch.chdir(tmp_path)
    assert parse("--flagfile=flags/own.cfg").dataset == "folder:photos"


@pytest.mark.parametrize(
    "name, guess",
    [
        ("flowers", "did you mean 'flowers_lt'?"),
        ("digits_lt.cfg", "did you mean 'digits_lt'?"),
        ("../setup", "choose from aircraft_lt"),
        ("", "choose from aircraft_lt"),
    ],
)
def test_an_unknown_name_gets_a_guess_and_all_names(name, guess, parse):
    with pytest.raises(ValueError, match=re.escape(guess)) as error:
        parse(f"--config={name}")
    assert all(name in str(error.value) for name in configs.paths())


def test_a_command_without_the_flag_takes_no_name():
    values = flags.FlagValues()
    assert configs.expand(["--config=digits_lt"], values) == ["--config=digits_lt"]


def test_home_is_known_after_the_sign(parse, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    read = parse("--teacher=~/t.keras", "--dataset=list:~/train.txt,~/test.txt", "--cache=a~/b")
    assert read.teacher == "/home/me/t.keras" and read.cache == "a~/b"
    assert read.dataset == "list:/home/me/train.txt,/home/me/test.txt"


def test_a_flag_file_in_another_encoding(parse, tmp_path):
    path = tmp_path / "own.cfg"
    for text in ("--epochs=7\n", "# mine\n--epochs=7\n", "--config=digits_lt\n--epochs=7\n"):
        path.write_text(text, encoding="utf-8-sig")
        assert parse(f"--flagfile={path}").epochs == 7
    path.write_text("# é\n", encoding="latin-1")
    with pytest.raises(ValueError, match="own.cfg is not UTF-8 .*save the file as UTF-8"):
        parse(f"--flagfile={path}")
