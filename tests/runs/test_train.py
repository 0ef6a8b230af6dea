"""`ct.train`, and what a finished run offers."""

import dataclasses

import candle_tf as ct
import pytest
from tiny_runs import TINY, tiny

GIVEN = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}
GIVEN = {name: GIVEN[name] for name in GIVEN if name not in ("dataset", "workdir")}


@pytest.fixture(scope="module")
def run(finished):
    return ct.train("digits", workdir=finished[0], **{**GIVEN, "resolutions": (12, 16, 20)})


def test_a_finished_run_says_how_it_ended(run, finished):
    workdir, results = finished
    assert isinstance(run, ct.Run)
    assert run.results["student"] == results["student"]  # other tests made its seconds new
    head, *rows = run.summary().splitlines()
    assert head == "|  | overall | head | medium | tail | kB of weights |"
    assert f"{100 * results['student']['test']['overall']:.1f}" in rows[-1]
    assert run.report == workdir / "report" / "report.html"
    assert len(repr(run).splitlines()) <= 3 and "finished" in repr(run)


@pytest.mark.long
def test_a_finished_run_is_evaluated_and_exported(run, tmp_path):
    assert run.evaluate()["test"] == run.results["student"]["test"]
    run.export(tmp_path / "student.tflite", format="tflite")
    assert (tmp_path / "student.tflite").stat().st_size > 1000
    with pytest.raises(ValueError, match="Unknown format 'onnx'"):
        run.export(tmp_path / "student.onnx", format="onnx")


def test_a_run_resolves_each_thing_once(tmp_path):
    run = ct.Run(tiny(tmp_path, method="crt", resolutions=(12, 16, 20)))
    for name in ("method", "examples", "resolution", "strategy", "first_stage", "augmentation"):
        assert getattr(run, name) is getattr(run, name)
    assert run.first_stage.settings.workdir == str(tmp_path / "first_stage")
    assert run.teacher is None and run.view_size == 8  # no larger than the digits


def test_what_is_not_finished_says_so(tmp_path):
    run = ct.Run(tiny(tmp_path))
    assert "not finished" in repr(run)
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        run.summary()
    with pytest.raises(FileNotFoundError, match="written at the end of a run"):
        assert run.report


def test_an_unknown_setting_is_named(tmp_path):
    with pytest.raises(ValueError, match="Unknown setting 'epoch': did you mean 'epochs'"):
        ct.train("digits", workdir=tmp_path / "run", epoch=3)
    with pytest.raises(ValueError, match="`epochs` is -1"):
        ct.train("digits", workdir=tmp_path / "run", epochs=-1)
    assert not (tmp_path / "run").exists()
