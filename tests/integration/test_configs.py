import pathlib

import pytest
from absl import flags
from candle_tf.cli import run_flags
from candle_tf.runs import benchmark

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.cfg")), ids=lambda p: p.stem)
def test_every_flag_file_can_be_run(path, tmp_path):
    values = flags.FlagValues()
    run_flags.define(values)
    flags.DEFINE_multi_string("methods", [], "", flag_values=values)
    flags.DEFINE_multi_string("datasets", [], "", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "", flag_values=values)
    flags.DEFINE_string("output", None, "", flag_values=values)
    values(["run", f"--flagfile={path}", "--workdir=out"])
    base = run_flags.settings(values)
    if values.methods:
        cells = benchmark.plan(base, values.methods, values.datasets, [0], str(tmp_path))
        assert values.output and len(cells) >= len(values.methods) * len(values.datasets) > 0
        runs = {cell.settings for cell in cells}  # a ceiling may serve several data sets
        assert len({run.workdir for run in runs}) == len(runs) >= len(values.methods)
    else:
        base.check()
    assert f"--flagfile={path.relative_to(ROOT)}" in path.read_text()
