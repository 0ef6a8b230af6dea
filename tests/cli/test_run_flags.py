"""Reading the flags of a run in a workdir."""

import pytest
from candle_tf.cli.run_flags import run_of
from candle_tf.reports.tables import summary_table


@pytest.fixture
def workdir(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "flags.cfg").write_text(f"--dataset=folder:{tmp_path}/photos\n--epochs=2\n")
    return path


@pytest.mark.parametrize("name", ["sub/photos", "sub/photos/"])
def test_a_folder_below_data_dir_stays_below_it(name, workdir, tmp_path):
    (workdir / "flags.cfg").write_text(f"--dataset=folder:{name}\n")
    (tmp_path / "disk" / "sub" / "photos").mkdir(parents=True)
    assert run_of(str(workdir), str(tmp_path / "disk")).given.dataset == f"folder:{name}"


def test_a_renamed_folder_with_a_slash_at_its_end(workdir, tmp_path):
    (workdir / "flags.cfg").write_text("--dataset=folder:sub/photos/\n")
    (tmp_path / "disk" / "cat").mkdir(parents=True)
    found = run_of(str(workdir), str(tmp_path / "disk")).given.dataset
    assert found == f"folder:{tmp_path}/disk"


@pytest.mark.parametrize(
    "moved, dataset",
    [
        (None, "folder:{root}/photos"),
        ("disk", "folder:{root}/photos"),  # DIR/photos, where the reader looks by the last name
        ("renamed", "folder:{root}/renamed"),
    ],
)
def test_data_dir_is_the_folder_or_holds_it(moved, dataset, workdir, tmp_path):
    (tmp_path / "disk" / "photos").mkdir(parents=True)
    (tmp_path / "renamed" / "cat").mkdir(parents=True)
    settings = run_of(str(workdir), moved and str(tmp_path / moved)).given
    assert settings.dataset == dataset.format(root=tmp_path)
    assert settings.data_dir == (moved and str(tmp_path / moved))


@pytest.mark.parametrize("line", ["--nosuch=1", "--epochs=abc", "--resolutions=a,b"])
def test_flags_of_another_version_are_named_with_their_file(line, workdir):
    with open(workdir / "flags.cfg", "a", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(ValueError, match="flags.cfg is damaged, or comes from a newer version"):
        run_of(str(workdir))


@pytest.mark.parametrize("content", ["{}", '{"method": "candle"}', "[]", "{"])
def test_results_without_what_every_run_writes_are_damaged(content, tmp_path):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match="metrics.json is damaged.*the run's command writes it"):
        summary_table(tmp_path)


def test_the_names_of_a_run_that_wrote_none(workdir):
    with pytest.raises(FileNotFoundError, match="class_names.json is missing: the run's command"):
        print(run_of(str(workdir)).class_names)
