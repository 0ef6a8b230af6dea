import dataclasses

import pytest
from absl import flags
from candle_tf.cli import run_flags
from candle_tf.methods import METHODS
from candle_tf.runs.settings import Settings, canonical, first_stage_of, method_of

RUN = Settings(workdir="run")


def of(method: str, **changes) -> Settings:
    return dataclasses.replace(RUN, method=method, **changes)


def test_settings_change_the_methods_row():
    method = method_of(of("candle_paper", sampler="square_root"))
    assert method == dataclasses.replace(METHODS["candle_paper"], sampler="square_root")
    assert method_of(of("candle", prior_adjusted=True, temperature=1.0)).prior_adjusted


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_run_again_from_its_flags(method):
    settings = canonical(of(method, validation_split=0.1, label_smoothing=(0.3, 0.0)))
    settings.check()
    values = flags.FlagValues()
    run_flags.define(values)
    values(["run", *settings.to_flags().splitlines(), "--workdir=run"])
    assert run_flags.settings(values) == canonical(settings) == settings
    assert settings.sampler == METHODS[method].sampler
    assert (settings.temperature is None) == (not METHODS[method].distills)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].starts_from])
def test_a_first_stage_is_the_same_run_whatever_its_second_reads(method):
    first = canonical(first_stage_of(of(method)))
    changes = {"calibration_epochs": 7, "label_smoothing": (0.3, 0.0), "teacher": "keras:MobileNet"}
    assert canonical(first_stage_of(of(method, **changes))) == first
    assert canonical(first_stage_of(canonical(of(method)))) == first
    alone = of(first.method, student_bits=first.student_bits, mixup=first.mixup)
    assert canonical(alone) == dataclasses.replace(first, workdir="run")


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", 4.0),
        ("prior_adjusted", True),
        ("calibration", "cross_entropy"),
        ("lambda_per_sample", True),
        ("teacher_views", 10),
        ("label_weight", 0.5),
    ],
)
def test_a_flag_of_methods_with_a_teacher_is_refused_by_the_others(name, value):
    of("candle", **{name: value}).check()
    with pytest.raises(ValueError, match=f"`{name}` needs .* `method=focal` has none"):
        of("focal", **{name: value}).check()


@pytest.mark.parametrize("method", ["candle", "focal", "crt", "mislas"])
def test_mixup_is_of_the_first_stage_where_there_is_one(method):
    settings = of(method, mixup=0.3)
    settings.check()
    trained = first_stage_of(canonical(settings)) or settings
    assert method_of(trained).mixup == 0.3
    assert method_of(first_stage_of(canonical(of("mislas")))).mixup == 1.0


@pytest.mark.parametrize("method", ["tade", "bbn", "paco", "dive", "oltr", "range_loss"])
def test_mixup_is_refused_by_schemes_of_their_own(method):
    with pytest.raises(ValueError, match=f"`mixup` works .* `method={method}` trains otherwise"):
        of(method, mixup=0.3).check()


def test_without_epochs_every_method_calibrates():
    settings = of("focal", epochs=0, calibration="label_aware_smoothing", teacher="keras:MobileNet")
    settings.check()
    assert canonical(settings).teacher == "keras:MobileNet"
    assert canonical(settings).calibration == "label_aware_smoothing"


@pytest.mark.parametrize(
    "settings, problem",
    [
        (of("candle_kl", lambda_per_sample=True), "`method=candle_kl` has a fixed one"),
        (of("focal", first_stage="there"), "`method=focal` has one"),
        (of("crt", first_stage="./run"), "`first_stage` is the `workdir`"),
        (of("focal", student_bits="32", two_step=True), "leave one of the two out"),
        (
            of("candle", teacher="letters", teacher_weights="w.h5"),
            "`teacher=letters` has its own weights",
        ),
        (of("focal", sync_batch_norm=True), "give `strategy` too"),
        (of("focal", profile="step"), "give `imbalance_ratio` too"),
    ],
)
def test_flags_without_effect_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        settings.check()


@pytest.mark.parametrize("sampler", [None, "class_balanced"])
def test_a_second_stages_sampler_is_that_of_its_first(sampler):
    assert first_stage_of(of("crt", sampler=sampler)).sampler == sampler


@pytest.mark.parametrize("method", ["oltr", "dive"])
def test_what_trains_anew_keeps_its_sampler_to_itself(method):
    first = first_stage_of(canonical(of(method, binary_optimizer="bop", two_step=True)))
    assert first.sampler is None
    first.check()


def test_only_label_aware_smoothing_reads_its_factors():
    factors = {"label_smoothing": (0.3, 0.0)}
    assert canonical(of("mislas", **factors)).label_smoothing == (0.3, 0.0)
    smoothing = of("candle", calibration="label_aware_smoothing", **factors)
    assert canonical(smoothing).label_smoothing == (0.3, 0.0)
    assert canonical(of("crt", **factors)) == canonical(of("crt"))


def test_a_home_directory_is_the_same_place_throughout(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    settings = canonical(of("crt", first_stage="~/first"))
    assert first_stage_of(settings).workdir == settings.first_stage == "/home/someone/first"
    with pytest.raises(ValueError, match="`first_stage` is the `workdir`"):
        Settings(workdir="/home/someone/first", method="crt", first_stage="~/first").check()
    assert Settings(workdir="~/run").workdir == "/home/someone/run"


def test_a_teachers_file_is_the_same_one_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "teacher.h5").touch()
    for name in ("imagenet", "letters", "saved_model"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("teacher.h5", "saved_model"):
        settings = canonical(of("candle", teacher=name, teacher_weights="imagenet"))
        assert settings.teacher == str(tmp_path / name)
        assert settings.teacher_weights == "imagenet"
    assert canonical(of("candle", teacher="letters")).teacher == "letters"


def test_no_first_stage():
    assert first_stage_of(of("candle")) is None


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("imbalance_ratio", 10, 10.0),
        ("imbalance_ratio", None, None),
        ("student_bits", 32, "32"),
        ("steps_per_epoch", 7, 7),
        ("two_step", True, True),
        ("resolutions", [24, 32, 40], (24, 32, 40)),
        ("resolutions", 24, (24,)),
        ("label_smoothing", (0.3, 0), (0.3, 0.0)),
    ],
)
def test_values_become_those_of_flags(name, value, expected):
    assert repr(getattr(Settings(**{name: value}), name)) == repr(expected)


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", "many"),
        ("epochs", 1.5),
        ("batch_size", None),
        ("two_step", 1),
        ("student", 0.5),
        ("resolutions", "24,32"),
        ("resolutions", (24.5, 32)),
        ("learning_rate", {}),
    ],
)
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` cannot be"):
        Settings(**{name: value})


def test_the_command_line_says_settings_as_flags():
    with pytest.raises(ValueError) as raised:
        of("focal", student_bits="32", two_step=True).check()
    said = run_flags.as_flags(f"{raised.value} `tf.data` and `nothing` stay.")
    assert "--two_step begins" in said and "--student_bits=32 keeps" in said
    assert said.endswith("`tf.data` and `nothing` stay.")


def test_only_the_named_weights_become_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("n", "generic"):
        (tmp_path / name).touch()
    settings = Settings("w", student="resnet_e:weights='n',blocks=(1,)")
    assert canonical(settings).student == f"resnet_e:weights='{tmp_path / 'n'}',blocks=(1,)"
    settings = Settings("w", student='resnet_e:weights="n"')
    assert canonical(settings).student == f'resnet_e:weights="{tmp_path / "n"}"'
    ours = "resnet_e:weights='generic'"
    assert canonical(Settings("w", student=ours)).student == ours


@pytest.mark.parametrize("name", ["dataset", "student", "teacher"])
def test_an_empty_name_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` is empty: give a name, or leave `{name}` out"):
        of("candle", **{name: ""}).check()
