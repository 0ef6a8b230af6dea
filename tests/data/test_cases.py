"""The inputs of ../shared/cases, on which the library once failed: read, or refused in words."""

import importlib.util

import numpy as np
import pytest
from candle_tf import data


@pytest.fixture(scope="session")
def cases(shared_data, tmp_path_factory):
    """Where the files are, made by the script that comes with them."""
    script = shared_data.parent / "cases" / "make_cases.py"
    spec = importlib.util.spec_from_file_location("make_cases", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, images = tmp_path_factory.mktemp("cases"), module.photos()
    for make in ("folders", "suffixes", "lists", "tables", "damaged", "twins"):
        (out / make).mkdir()
        getattr(module, make)(out / make, images)
    return out


def spec_of(cases, name):
    kind, _, name = name.partition(":")
    if kind == "list":
        root = cases / "lists" / name
        return f"list:{root}/train.txt,{root}/test.txt"
    return f"{kind}:{cases / name}"


NINE = "3 classes (bonsai 9, camera 9, dolphin 9), 9 test images, 0 files left out"
FIFTH = "3 classes (bonsai 10, camera 10, dolphin 10), 6 test images, 0 files left out"
NUMBERED = "3 classes (0 9, 1 9, 2 9), 9 test images, 0 files left out"


@pytest.mark.parametrize(
    "name, said",
    [
        ("folder:folders/seg", NINE.replace("0 files", "4 files")),
        ("folder:folders/sets", NINE),
        ("folder:folders/dev", NINE),
        ("folder:folders/wrapped", NINE),
        ("folder:folders/doubled", NINE),
        ("folder:folders/linked", FIFTH),
        ("folder:suffixes/suffix", FIFTH),
        (
            "folder:suffixes/all_ppm",
            "3 classes (00000 10, 00001 10, 00002 10), 6 test images, 0 files left out",
        ),
        ("list:list_backslash", NUMBERED),
        ("list:list_padded", NUMBERED),
        ("list:list_absolute", NUMBERED),
        ("csv:tables/blank_cells.csv", NINE),
        ("csv:tables/blank_header.csv", NINE),
        ("csv:tables/semicolons.csv", NINE),
        ("csv:tables/upper_case.csv", NINE),
        ("csv:tables/only_train.csv", FIFTH),
    ],
)
def test_what_is_read_is_said(name, said, cases, capsys):
    loaded = data.load(spec_of(cases, name))
    assert said in capsys.readouterr().out.splitlines()
    assert repr(loaded).splitlines()[0] == said
    assert loaded.train.image(0).numpy().ptp() > 0


@pytest.mark.parametrize(
    "name, message",
    [
        ("folder:folders/flat", "27 images are directly in train/ .*DIR/train/CLASS/IMAGE and .*"),
        ("list:list_from_1", "labels start at 1"),
        ("list:list_gap", "label 1 is missing"),
        ("list:list_comma", "a comma is before the label"),
        ("csv:tables/several_labels.csv", "one label per image is supported"),
        ("folder:damaged/damaged_scan", "camera/2.jpg is truncated or damaged"),
        ("folder:damaged/damaged_process", "camera/2.jpg is truncated or damaged"),
        ("folder:damaged/damaged_huffman", "camera/2.jpg is truncated or damaged"),
    ],
)
def test_what_is_refused_says_why(name, message, cases):
    with pytest.raises(ValueError, match=message) as error:
        data.load(spec_of(cases, name))
    assert "\n" not in str(error.value)


def test_a_list_of_another_root(cases, tmp_path):
    with pytest.raises(ValueError, match=r"None of the 27 train images .*\(`data_dir`\)"):
        data.load(spec_of(cases, "list:list_padded"), str(tmp_path))


@pytest.mark.parametrize("damage", ["scan", "process", "huffman"])
def test_damaged_images_are_skipped_and_the_others_decoded(damage, cases, capsys):
    loaded = data.load(spec_of(cases, f"folder:damaged/damaged_{damage}"), on_bad_image="skip")
    assert "Skipped 1 of 36 train images: 1 of class camera" in capsys.readouterr().out
    assert loaded.summary().endswith("6 test images, 1 file left out")
    batches = data.training_batches(loaded.train, 32, 8, num_examples=len(loaded.train))
    assert sum(len(labels) for _, labels in batches) == 29


def test_twins_are_counted_and_said(cases, capsys):
    loaded = data.load(spec_of(cases, "folder:twins/twins"))
    assert loaded.overlap == {
        "train_images_in_two_classes": 1,
        "train_images_twice": 0,
        "test_images_in_train": 9,
        "test_images_nearly_in_train": 0,
    }
    said = capsys.readouterr().out
    assert "1 training image is in two classes with equal pixels (bonsai/0.jpg and" in said
    assert "9 of 9 test images equal a training image" in said
    np.testing.assert_array_equal(loaded.class_counts, [12, 13, 12])
