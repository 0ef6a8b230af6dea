"""Trees of folders that people have: read, or refused in a sentence that names the layout."""

import os
import unicodedata

import pytest
from candle_tf.data.own_images.layout import Layout, clean, read_layout, said_of, split_of


def is_image(path):
    return path.endswith(".jpg")


@pytest.fixture
def make(tmp_path):
    """Makes empty files at paths below a directory, and reads its layout."""

    def write(*paths) -> str:
        for path in paths:
            file = tmp_path / "photos" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return str(tmp_path / "photos")

    return write


def counts(layout: Layout) -> dict:
    return {
        split: {name: len(paths) for name, paths in classes.items()}
        for split, classes in layout.splits.items()
    }


def both(train="train", test="test", names=("cat", "dog")):
    return [f"{split}/{name}/{i}.jpg" for split in (train, test) for name in names for i in "ab"]


BOTH = {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}}


@pytest.mark.parametrize(
    "name, split",
    [("train", "train"), ("Training", "train"), ("training_set", "train"), ("seg_train", "train")]
    + [("train_images", "train"), ("images-train", "train"), ("TrainSet", "train")]
    + [("trainset", "train"), ("ILSVRC2012_img_val", "validation"), ("train2017", "train")]
    + [("test", "test"), ("TEST", "test"), (" testing ", "test"), ("test_set", "test")]
    + [("Test Data", "test"), ("eval", "test"), ("holdout", "test"), ("hold-out", "test")]
    + [("val", "validation"), ("valid", "validation"), ("Validation", "validation")]
    + [("dev", "validation"), ("train_station", None), ("test tube", None), ("cat", None)]
    + [("train_test", None), ("devil", None), ("trainer", None), ("images", None), ("2012", None)],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    "train, test",
    [("train", "test"), ("Train", "TEST"), ("training_set", "test_set"), ("train", "eval")]
    + [("seg_train/seg_train", "seg_test/seg_test"), ("train/train", "test/test")]
    + [("GTSRB/Final_Training", "GTSRB/Final_Test"), ("trainval", "test")]
    + [("dataset/train", "dataset/test"), ("a/b/c/train", "a/b/c/test"), ("train ", "test ")]
    + [("train/images", "test/images"), ("train", "test/images/all")],
)
def test_splits_are_found_below_what_wraps_them(train, test, make):
    layout = read_layout(make(*both(train, test)), is_image)
    assert counts(layout) == BOTH and not layout.left_out
    plain = (train, test) == ("train", "test")
    assert bool(layout.notes) != plain
    assert plain or f"train from {train}/" in layout.notes[0] or "/" not in train


def test_a_wrapper_above_classes(make):
    layout = read_layout(make("animals/cat/1.jpg", "animals/dog/2.jpg", "readme.txt"), is_image)
    assert counts(layout) == {"train": {"cat": 1, "dog": 1}}
    assert layout.notes == ["Read its classes from animals/"]
    assert said_of(layout.left_out) == ["Left out, no image: 1 files (readme.txt)"]


def test_splits_by_validation(make):
    paths = both(test="dev")
    layout = read_layout(make(*paths), is_image)
    assert counts(layout) == BOTH
    assert "No test split: dev/ is used as the test split." in layout.notes
    layout = read_layout(make(*both()), is_image)
    assert counts(layout) == {**BOTH, "validation": BOTH["test"]}


def test_training_images_alone(make):
    paths = ["train/cat/1.jpg", "train/dog/1.jpg"]
    assert counts(read_layout(make(*paths), is_image)) == {"train": {"cat": 1, "dog": 1}}


def test_what_is_beside_splits_is_left_out_and_counted(make):
    root = make(*both(), "pred/1.jpg", "pred/deep/2.jpg", "notes.txt", "labels.csv", ".DS_Store")
    layout = read_layout(root, is_image)
    assert counts(layout) == BOTH
    assert sum(each.files for each in layout.left_out) == 5
    said = " ".join(said_of(layout.left_out))
    assert "beside train and test: 2 files (pred/)" in said and "notes.txt" in said
    assert "Left out, hidden: 1 files (.DS_Store)" in said


def test_a_test_folder_without_classes_has_no_labels(make):
    paths = ["train/cat/1.jpg", "train/dog/1.jpg", "test/1.jpg", "test/2.jpg"]
    layout = read_layout(make(*paths), is_image)
    assert list(layout.splits) == ["train"]
    assert said_of(layout.left_out) == [
        "Left out, without class folders, so without labels: 2 files (test/)"
    ]
    layout = read_layout(make(*both(test="val"), "test/images/3.jpg"), is_image)
    assert counts(layout)["test"] == {"cat": 2, "dog": 2}


def test_files_in_class_folders_that_are_no_images_are_counted_by_class(make):
    root = make(*both(), "train/cat/1.heic", "train/cat/2.heic", "train/dog/x.mov")
    (said,) = said_of(read_layout(root, is_image).left_out)
    assert said.startswith("Left out, no image: 3 files (train/cat/1.heic, ")
    assert "2 of class cat, 1 of class dog" in said


def test_hidden_and_system_files_are_no_images(make):
    hidden = [
        "__MACOSX/train/cat/._1.jpg",
        "__MACOSX/x",
        "train/cat/._1.jpg",
        "train/dog/Thumbs.db",
    ]
    layout = read_layout(make(*both(), *hidden), is_image)
    assert counts(layout) == BOTH and {each.why for each in layout.left_out} == {"hidden"}
    assert sum(each.files for each in layout.left_out) == 4


def test_subfolders_of_a_class_count_to_it(make):
    layout = read_layout(make("cat/2019/1.jpg", "cat/2.jpg", "dog/a/b/3.jpg"), is_image)
    assert counts(layout) == {"train": {"cat": 2, "dog": 1}}
    assert layout.notes == ["Images in 2 subfolders belong to the class above: cat/2019/, dog/a/"]
    root = make("bird/images/1.jpg", "cat/images/1.jpg", "dog/images/1.jpg")  # Tiny-ImageNet
    assert counts(read_layout(root, is_image))["train"] == {"bird": 1, "cat": 3, "dog": 2}


@pytest.mark.parametrize(
    "paths, message",
    [
        (["train/cat.1.jpg", "test/cat.2.jpg"], "1 images are directly in train/ .cat.1.jpg"),
        (["train/train/cat.1.jpg", "test/test/2.jpg"], "directly in train/train/"),
        (["1.jpg", "2.jpg"], "2 images are directly in photos/"),
        (["images/1.jpg", "images/2.jpg"], "images/ is where class folders are"),
        (["images/1.jpg", "masks/1.jpg"], "images/, masks/ is where class folders are"),
        (["cat/1.jpg", "dog/1.jpg", "unlabeled/3.jpg"], "unlabeled/ is where"),
        (["cat/train/1.jpg", "cat/test/1.jpg", "dog/train/1.jpg"], "are splits inside cat/"),
        (["data/train/cat/1.jpg", "data/test/cat/1.jpg", "more/2.jpg"], "are splits inside data/"),
        ([f"fold{i}/{c}/1.jpg" for i in (1, 2) for c in "ab"], "each of fold1/, fold2/ holds the"),
        ([f"{s}/{c}/1.jpg" for s in ("lehren", "pruefen") for c in "ab"], "seem not to be classes"),
        (
            [f"{s}/images/{c}/1.jpg" for s in ("web", "dslr") for c in "ab"],
            "seem not to be classes",
        ),
        (both("a_train", "a_test") + both("b_train", "b_test"), "are several sets of splits"),
        (both() + both("training", "x"), "train/ and training/ are both a train split"),
        (["train/train/cat/1.jpg", "train/val/cat/1.jpg", "test/cat/2.jpg"], "holds train/train/"),
        (["test/cat/1.jpg", "test/dog/1.jpg"], "there is test/ but no train/"),
        (["notes.txt"], "has no image that can be read"),
    ],
)
def test_what_can_be_read_in_no_way_or_in_two(paths, message, make):
    with pytest.raises(ValueError, match=message) as error:
        read_layout(make(*paths), is_image)
    assert "\n" not in str(error.value)


def test_an_empty_class_folder(make):
    root = make(*both(), "train/emu/notes.txt")
    with pytest.raises(ValueError, match="1 class folders with no image .*train/emu.: delete"):
        read_layout(root, is_image)


def test_a_class_may_be_called_train(make):
    layout = read_layout(make("train/1.jpg", "bus/1.jpg", "car/1.jpg"), is_image)
    assert counts(layout) == {"train": {"train": 1, "bus": 1, "car": 1}}
    assert layout.notes == ["train/ is read as a class, because it is beside classes."]
    layout = read_layout(make(*both("s/train", "s/test", ("train", "bus"))) + "/s", is_image)
    assert counts(layout)["train"] == {"train": 2, "bus": 2}


def test_names_of_classes_are_compared_in_one_form(make):
    decomposed = unicodedata.normalize("NFD", "Café")
    root = make(
        "train/Café/1.jpg", f"train/{decomposed}/2.jpg", "train/dog/1.jpg", "train/dog /2.jpg"
    )
    layout = read_layout(make("test/dog/1.jpg", f"test/{decomposed} /2.jpg"), is_image)
    assert root and counts(layout) == {
        "train": {"Café": 2, "dog": 2},
        "test": {"Café": 1, "dog": 1},
    }
    assert (
        "2 folders are the class 'dog': their names differ only in blanks or Unicode form."
        in layout.notes
    )
    assert clean("\u200b a\u00a0\ufeff") == "a"


def test_links_are_followed_once_and_loops_end(make, tmp_path):
    root = make("cat/1.jpg", "dog/1.jpg")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "2.jpg").touch()
    os.symlink("../../more", f"{root}/cat/more")
    os.symlink("../../more", f"{root}/dog/more")  # the same again
    os.symlink("..", f"{root}/dog/loop")
    os.symlink("../photos", f"{tmp_path}/more/back")
    os.symlink(f"{root}/cat/1.jpg", f"{root}/cat/copy.jpg")
    os.symlink("nowhere", f"{root}/cat/broken.jpg")
    layout = read_layout(root, is_image)
    assert counts(layout) == {"train": {"cat": 3, "dog": 1}}
    left = {each.path: each.why for each in layout.left_out}
    again = "a link to a folder that is read anyway"
    assert left == {
        "cat/broken.jpg": "a link to nothing",
        "cat/more/back": again,
        "dog/loop": again,
        "dog/more": again,
    }


def test_every_file_is_accounted_for(make):
    paths = [*both("a/seg_train/x", "a/seg_test/y"), "a/pred/1.jpg", "b/z.txt", "q.jpg"]
    paths += ["a/seg_train/x/stray.jpg", "a/seg_train/x/cat/.h", "a/seg_train/list.txt"]
    root = make(*paths)
    layout = read_layout(root, is_image)
    read = sum(len(files) for classes in layout.splits.values() for files in classes.values())
    assert read + sum(each.files for each in layout.left_out) == len(paths)
