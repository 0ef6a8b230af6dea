import csv
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from candle_tf import data
from candle_tf.data.own_images import files
from PIL import Image

COUNTS = {"cat": (6, 2), "dog": (4, 2), "emu": (2, 2)}  # training and test images


@pytest.fixture
def tree(tmp_path):
    """Class folders of both splits; every image has a color of its own."""
    root = tmp_path / "animals"
    for split, part in (("train", 0), ("test", 1)):
        number = 0
        for i, (name, counts) in enumerate(COUNTS.items()):
            for _ in range(counts[part]):
                save(root / split / name / f"{number:03}.png", (40 * i, number, 100 * part))
                number += 1
    return root


def save(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), color).save(path)


def rows(tree, split, number=False):
    """(path below the tree, class) of every image of a split."""
    found = []
    for i, name in enumerate(COUNTS):
        for path in sorted((tree / split / name).iterdir()):
            found.append((str(path.relative_to(tree)), str(i) if number else name))
    return found


def write_list(tree, split, lines=None):
    lines = [f"{path} {label}" for path, label in rows(tree, split, True)] + (lines or [])
    path = tree / f"{split}.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_csv(path, columns, lines):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *lines])
    return path


def as_folder(tree):
    return f"folder:{tree}", None


def as_list(tree):
    return f"list:{write_list(tree, 'train')},{write_list(tree, 'test')}", str(tree)


def as_csv(tree):
    lines = [(label, s, path) for s in ("train", "test") for path, label in rows(tree, s)]
    return f"csv:{write_csv(tree / 'all.csv', ('label', 'split', 'path'), lines)}", None


def as_two_csv(tree):
    for split in ("train", "test"):
        write_csv(tree / f"{split}.csv", ("path", "label"), rows(tree, split))
    return "csv:train.csv,test.csv", str(tree)


KINDS = pytest.mark.parametrize("kind", [as_folder, as_list, as_csv, as_two_csv])


@KINDS
def test_every_kind_reads_the_same(tree, kind):
    loaded = data.load(*kind(tree))
    names = ["0", "1", "2"] if kind is as_list else list(COUNTS)
    assert loaded.class_names == names
    assert loaded.class_counts.tolist() == [6, 4, 2]
    for part, split in ((0, loaded.train), (1, loaded.test)):
        np.testing.assert_array_equal(np.bincount(split.labels), [c[part] for c in COUNTS.values()])
        for i, label in enumerate(split.labels):
            image = split.image(i).numpy()
            np.testing.assert_array_equal(image, np.broadcast_to(image[:1, :1], (8, 10, 3)))
            assert image[0, 0].tolist() == [40 * label, i, 100 * part]


@KINDS
def test_a_set_of_ones_own_is_made_long_tailed_as_any(tree, kind):
    loaded = data.load(*kind(tree), imbalance_ratio=4, n_max=4)
    assert loaded.class_counts.tolist() == [4, 2, 1]


@pytest.mark.slow
def test_cifar10_as_files_gives_the_batches_of_tfds(shared_data, tmp_path):
    cifar = data.load("tfds:cifar10", str(shared_data / "tfds"))
    some = {"train": cifar.train.take(np.arange(120)), "test": cifar.test.take(np.arange(40))}
    lines = []
    for split, part in some.items():
        for i, (pixels, label) in enumerate(zip(part.images.numpy(), part.labels)):
            path = tmp_path / split / str(label) / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            lines.append((split, str(path.relative_to(tmp_path)), str(label)))
    for split in some:
        text = "".join(f"{path} {label}\n" for s, path, label in lines if s == split)
        (tmp_path / f"{split}.txt").write_text(text)
    write_csv(tmp_path / "all.csv", ("split", "path", "label"), lines)
    how = {"augmentation": data.Augmentation(color_jitter=0.2), "seed": 5, "num_examples": 200}
    for sampler in ("instance_balanced", "class_balanced"):
        expected = list(data.training_batches(some["train"], 28, 64, sampler=sampler, **how))
        for spec in (
            f"folder:{tmp_path}",
            f"list:{tmp_path}/train.txt,{tmp_path}/test.txt",
            f"csv:{tmp_path}/all.csv",
        ):
            loaded = data.load(spec)
            np.testing.assert_array_equal(loaded.test.labels, some["test"].labels)
            batches = data.training_batches(loaded.train, 28, 64, sampler=sampler, **how)
            for (images, labels), (x, y) in zip(batches, expected, strict=True):
                np.testing.assert_array_equal(labels, y)
                np.testing.assert_array_equal(images, x)


def test_without_a_test_split_a_fifth_of_each_class_is_it(tmp_path, capsys):
    for i in range(12):
        save(tmp_path / "a" / f"{i}.png", (i, 0, 0))
        save(tmp_path / "b" / "deeper" / f"{i}.png", (i, 1, 0)) if i < 3 else None
    loaded, again = (data.load(f"folder:{tmp_path}", seed=seed) for seed in (0, 1))
    assert np.bincount(loaded.test.labels).tolist() == [2, 1]
    assert loaded.class_counts.tolist() == [10, 2]
    names = {*loaded.train.images.numpy(), *loaded.test.images.numpy()}
    assert len(names) == 15
    np.testing.assert_array_equal(loaded.test.images, again.test.images)  # whatever the seed
    assert "3 of 15 images, one fifth of each class" in capsys.readouterr().out


def test_the_only_image_of_a_class_is_trained_on(tmp_path, capsys):
    for i in range(6):
        save(tmp_path / "a" / f"{i}.png", (i, 0, 0))
    save(tmp_path / "b" / "0.png", (0, 1, 0))
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.class_counts.tolist() == [5, 1] and loaded.test.labels.tolist() == [0]
    said = capsys.readouterr().out
    assert (
        "1 of 2 classes: one test image each. 1 of 2 classes (b): one image, for training." in said
    )


def test_the_only_good_image_of_a_class_is_trained_on(tmp_path, capsys):
    for i in range(6):
        save(tmp_path / "a" / f"{i}.png", (i, 0, 0))
    for name in "bc":
        for i in range(2):
            save(tmp_path / name / f"{i}.png", (i, 1, 0))
        corrupt(tmp_path / name / f"{'bc'.index(name)}.png")
    loaded = data.load(f"folder:{tmp_path}", on_bad_image="skip")
    assert loaded.class_counts.tolist() == [5, 1, 1] and loaded.test.labels.tolist() == [0]
    assert capsys.readouterr().out.count("Skipped 2 of 10 train images") == 1


def test_each_note_is_printed_once_where_bad_images_are_skipped(tmp_path, capsys):
    for i in range(6):
        save(tmp_path / "a" / "deeper" / f"{i}.png", (i, 0, 0))
        save(tmp_path / "b" / f"{i}.png", (i, 1, 0))
    corrupt(tmp_path / "b" / "0.png")
    data.load(f"folder:{tmp_path}", on_bad_image="skip")
    said = capsys.readouterr().out
    for note in ("Images in 1 subfolders", "Skipped 1 of 12 train images", "No test split"):
        assert said.count(note) == 1, note


def test_numbers_as_names_are_ordered_as_numbers(tree):
    lines = [(f"train/cat/{i:03}.png", str(10 - i), "train") for i in range(6)]
    lines += [("test/cat/000.png", "9", "test")]
    path = write_csv(tree / "n.csv", ("path", "label", "split"), lines)
    assert data.load(f"csv:{path}").class_names == ["5", "6", "7", "8", "9", "10"]


def test_a_validation_split_of_the_set_is_used(tree, capsys):
    for i in range(3):
        save(tree / "val" / "cat" / f"{i}.png", (0, 0, i))
    loaded = data.load(f"folder:{tree}")
    assert len(loaded.test) == 6 and loaded.validation.labels.tolist() == [0, 0, 0]
    assert "9 files" not in loaded.summary() and "3 validation images" in loaded.summary()
    assert "2 of 3 classes have no validation image (dog, emu)" in capsys.readouterr().out
    held_out = data.load(f"folder:{tree}", validation_split=0.5)
    assert np.bincount(held_out.validation.labels).tolist() == [3, 2, 1]
    assert "The set's own validation split, 3 images, is left out" in capsys.readouterr().out
    lines = [(path, label, s) for s in ("train", "test", "val") for path, label in rows_of(tree, s)]
    path = write_csv(tree / "three.csv", ("path", "label", "split"), lines)
    loaded = data.load(f"csv:{path}")
    assert len(loaded.test) == 6 and len(loaded.validation) == 3
    os.rename(tree / "test", tree.parent / "elsewhere")
    assert len(data.load(f"folder:{tree}").test) == 3
    assert "val/ is used as the test split" in capsys.readouterr().out


def rows_of(tree, split):
    return [(str(path.relative_to(tree)), path.parent.name) for path in (tree / split).rglob("*.*")]


def test_hidden_files_and_folders_are_no_images(tree):
    save(tree / "train" / "cat" / ".ipynb_checkpoints" / "0.png", (0, 0, 0))
    (tree / "train" / "cat" / "._0.png").write_bytes(b"macOS")
    assert data.load(f"folder:{tree}").class_counts.tolist() == [6, 4, 2]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        for i in range(5):
            save(tmp_path / name / f"{i}.png", (i, 0, 0))
    assert data.load(f"folder:{tmp_path}").class_names == ["bus", "train"]


def test_no_test_image_that_can_be_read(tree):
    for path in (tree / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="The test split .* has no image that can be read"):
        data.load(f"folder:{tree}", on_bad_image="skip")


def test_the_training_list_as_test_list(tree):
    train = write_list(tree, "train")
    with pytest.raises(ValueError, match="12 lines or images with an image listed twice"):
        data.load(f"list:{train},{train}")


def test_a_path_with_blanks(tree):
    save(tree / "train" / "cat" / "two  blanks.png", (1, 2, 3))
    train = write_list(tree, "train")
    assert "two  blanks.png 0" in train.read_text()
    loaded = data.load(f"list:{train},{write_list(tree, 'test')}")
    assert loaded.class_counts.tolist() == [7, 4, 2]


def corrupt(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_bad_images_are_all_named_before_anything_is_done(tree):
    corrupt(tree / "train" / "cat" / "001.png")
    (tree / "train" / "dog" / "006.png").write_text("not an image")
    (tree / "train" / "dog" / "007.png").write_bytes(b"")
    (tree / "train" / "dog" / "008.png").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        data.load(f"folder:{tree}")
    text = str(error.value)
    assert text.startswith(f"4 train images below {tree} with a fault (train/cat/001.png ")
    assert "006.png is not in a known format" in text and "007.png is empty; ...)" in text
    assert "`on_bad_image=skip`" in text


@KINDS
def test_bad_images_are_skipped_where_asked(tree, kind, capsys):
    spec = kind(tree)
    corrupt(tree / "train" / "cat" / "001.png")
    corrupt(tree / "train" / "dog" / "006.png")
    (tree / "test" / "emu" / "005.png").unlink()
    if kind is as_folder:
        (tree / "test" / "emu" / "005.png").write_bytes(b"")
    loaded = data.load(*spec, on_bad_image="skip")
    assert loaded.class_counts.tolist() == [5, 3, 2] and len(loaded.test) == 5
    said = capsys.readouterr().out
    dog, emu = ("1", "2") if kind is as_list else ("dog", "emu")
    assert re.search(rf"Skipped 2 of 12 train images: 1 of class \w+, 1 of class {dog}", said)
    assert f"Skipped 1 of 6 test images: 1 of class {emu}" in said


def test_a_class_whose_every_image_is_skipped_is_refused(tree):
    for path in (tree / "train" / "emu").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="1 classes with test images but no training .*emu"):
        data.load(f"folder:{tree}", on_bad_image="skip")


def lists(tree, train=(), test=()):
    return f"list:{write_list(tree, 'train', list(train))},{write_list(tree, 'test', list(test))}"


@pytest.mark.parametrize(
    "train, test, message",
    [
        (["train/cat/nolabel.png"], [], r"1 lines or images with no label \(.*train.txt, line 13"),
        (["train/x.png -1"], [], r"train.txt, line 13: -1\): number the classes from 0"),
        (["train/x.png 900"], [], r"a label that is not in 0 to 3, the 4 .*line 13: 900"),
        (["train/x.png one"], [], r"line 13: one"),
        ([], ["test/x.png 3"], r"not in 0 to 2, the 3 classes .*test.txt, line 7: 3"),
        (["../x.png 0"], [], r"a path that leaves the image root \(.*line 13: \.\./x.png"),
        (["/etc/passwd 0"], [], "leaves the image root"),
        (["train/../../x.png 0"], [], "leaves the image root"),
        (["..\\x.png 0"], [], "leaves the image root"),
        (["train/cat/000.png 0"], [], r"listed twice \(.*line 13: train/cat/000.png"),
        (["train/./cat/000.png 1"], [], r"with two labels \(.*line 13: .*000.png, 0 and 1"),
        ([], ["train/cat/000.png 0"], r"listed twice \(.*test.txt, line 7"),
        (["train/none.png 0"] * 1, [], "1 train images .*train/none.png does not exist"),
    ],
)
def test_bad_lists(tree, train, test, message):
    with pytest.raises(ValueError, match=message):
        data.load(lists(tree, train, test))


def test_what_is_wrong_is_counted(tree):
    with pytest.raises(ValueError, match=r"^5 lines or images with a path that leaves .*; \.\.\."):
        data.load(lists(tree, [f"../{i}.png 0" for i in range(5)]))


@pytest.mark.parametrize(
    "columns, lines, message",
    [
        (("file", "label"), [("a.png", "x")], "has the columns file, label: its first line must"),
        (("path", "label"), [], "bad.csv has no row below its header"),
        (
            ("path", "label"),
            [("a.png", "black\ncat"), ("b.png", "black\ncat")],
            r"not one line of text \('black\\ncat'\): rename the class",
        ),
        (("path", "label"), [("a.png", "")], "no path or no label .*line 2"),
        (("path", "label", "split"), [("a.png", "x", "extra")], "no split .*line 2: 'extra'"),
        (
            ("path", "label", "split"),
            [("train/cat/000.png", "x", "train"), ("test/cat/000.png", "y", "test")],
            "test images but no training image that can be read .*y",
        ),
        (
            ("path", "label", "split"),
            [("train/cat/000.png", "x", "train"), ("train/cat/001.png", "X", "train")]
            + [("test/cat/000.png", "x", "test")],
            r"names that differ in case alone \(X and x",
        ),
        (("path", "label"), [("train/cat/000.png", "x")], "No class has two images, and there"),
        (
            ("path", "label", "split"),
            [("train/cat/000.png", "x", "train")],
            "No class has two images, and there is no test split",
        ),
    ],
)
def test_bad_csv(tree, columns, lines, message):
    with pytest.raises(ValueError, match=message):
        data.load(f"csv:{write_csv(tree / 'bad.csv', columns, lines)}")


def test_images_that_were_moved_are_found_in_data_dir(tree, tmp_path):
    before = data.load(f"folder:{tree}").fingerprint()
    (tmp_path / "elsewhere").mkdir()
    tree.rename(tmp_path / "elsewhere" / tree.name)
    after = data.load(f"folder:{tree}", str(tmp_path / "elsewhere"))
    assert after.fingerprint() == before


def test_bad_folders(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not there: give the path of the dir"):
        data.load(f"folder:{tmp_path}/nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere/ is not there nor in"):
        data.load("folder:nowhere/", str(tree))
    (tree / "train" / "yak").mkdir()
    (tree / "train" / "yak" / "notes.txt").write_text("none yet")
    with pytest.raises(ValueError, match="with no image .*train/yak.: delete the folder"):
        data.load(f"folder:{tree}")
    shutil.rmtree(tree / "test")
    shutil.rmtree(tree / "train" / "yak")
    assert len(data.load(f"folder:{tree}").test) == 3  # a fifth of each class
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no image"):
        data.load(f"folder:{tmp_path}/empty")


def test_names_that_are_not_utf8(tree):
    train = write_list(tree, "train")
    save(tree / "train" / "cat" / "é.png", (1, 2, 3))
    train.write_bytes(train.read_bytes() + "train/cat/é.png 0\n".encode("latin-1"))
    loaded = data.load(f"list:{train},{write_list(tree, 'test')}")
    assert loaded.class_counts.tolist() == [7, 4, 2]
    assert "train.txt is not UTF-8: it is read as Latin-1" in loaded.notes[0]
    save(tree / "train" / "cat" / "a.png", (0, 0, 0))
    os.rename(tree / "train/cat/a.png", os.fsencode(tree) + b"/train/cat/\xff.png")
    with pytest.raises(ValueError, match=r"a name that is not UTF-8 \('train/cat/.udcff.png'\)"):
        data.load(f"folder:{tree}")


def test_files_that_are_not_there(tree):
    with pytest.raises(FileNotFoundError, match="none.txt is not there nor in"):
        data.load("list:none.txt,test.txt", str(tree))
    with pytest.raises(ValueError, match="names only one list: give list:TRAIN.txt,TEST.txt"):
        data.load(f"list:{write_list(tree, 'train')}")
    with pytest.raises(ValueError, match="Unknown dataset"):
        data.load("folder:")
    with pytest.raises(ValueError, match="is a directory: give `dataset=folder:"):
        data.load(str(tree))
    with pytest.raises(ValueError, match="did you mean 'error'"):
        data.load(f"folder:{tree}", on_bad_image="eror")


def test_a_list_as_published_has_its_images_below_the_root(tree):
    """The lists of ImageNet-LT and others lie elsewhere than the images."""
    train, test = write_list(tree, "train"), write_list(tree, "test")
    lists_dir = tree.parent / "lists"
    lists_dir.mkdir()
    for path in (train, test):
        os.rename(path, lists_dir / path.name)
    loaded = data.load(f"list:{lists_dir}/train.txt,{lists_dir}/test.txt", str(tree))
    assert loaded.class_counts.tolist() == [6, 4, 2]


def test_large_lists_are_read_in_order(tmp_path):
    lines = [f"train_val2018/Aves/{i % 50}/{i}.jpg {i % 50}" for i in range(20_000)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "test.txt").write_text("\n".join(f"v/{i}.jpg {i}" for i in range(50)))
    own = files.read_list("train.txt", "test.txt", str(tmp_path))
    assert list(own.splits["train"].paths) == [line.split()[0] for line in lines]
    assert own.root == str(tmp_path)


def test_a_fingerprint_is_of_the_files_wherever_they_lie(tree):
    spec = f"folder:{tree}"
    first = data.load(spec).fingerprint()
    moved = tree.parent / "moved"
    shutil.copytree(tree, moved, copy_function=shutil.copyfile)  # with times of its own
    copy = data.load(f"folder:{moved}")
    assert copy.fingerprint() == first
    assert copy.train.fingerprint() == data.load(spec).train.fingerprint()
    assert replace(copy.train, marks=None).fingerprint() == copy.train.fingerprint()
    save(moved / "train" / "cat" / "000.png", (200, 100, 50))
    changed = data.load(f"folder:{moved}")
    assert changed.fingerprint() != first
    assert changed.train.fingerprint() != copy.train.fingerprint()
    os.rename(tree / "train" / "cat", tree / "train" / "zebra")
    os.rename(tree / "test" / "cat", tree / "test" / "zebra")
    assert data.load(spec).fingerprint() != first
