"""The C source of a trained student on other machines, under QEMU: the same bits everywhere."""

import os
import shutil
import subprocess
from pathlib import Path

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.export.c_source import export_c
from candle_tf.students import resnet_e

PROGRAMS = Path(__file__).parents[1] / "fixtures" / "c_programs"
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
PACKAGES = (
    "gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross "
    "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-user qemu-system-arm"
)


@pytest.fixture(scope="module")
def images(cifar10):
    return cifar10("test[:100]")[0]


@pytest.fixture(scope="module")
def student(cifar10):
    """A binary student that has learned a little."""
    tf.keras.utils.set_random_seed(0)
    model = ct.StudentModel(resnet_e(10, 32, width=0.5))
    model.compile(tf.keras.optimizers.Adam(1e-2))
    images, labels = cifar10("train[:256]")
    model.fit(images.astype(np.float32), labels, batch_size=32, epochs=4, verbose=0)
    return model.student


@pytest.fixture(scope="module")
def source(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("c") / "student"
    export_c(student, path, 32)
    return path


def needs(*tools: str):
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        message = f"needs {', '.join(missing)}: apt-get install {PACKAGES}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


def built(source, tmp_path, compiler, *flags, program="logits.c"):
    out = tmp_path / "program"
    command = [compiler, *STRICT, f"-I{source}", f"-I{tmp_path}", *flags]
    subprocess.run(
        [*command, str(PROGRAMS / program), str(source / "student.c"), "-o", str(out)], check=True
    )
    return str(out)


def logits_of(command, images):
    text = subprocess.run(command, input=images.tobytes(), stdout=subprocess.PIPE, check=True)
    return parsed(text.stdout)


def parsed(text: bytes) -> np.ndarray:
    words = [[int(word, 16) for word in line.split()] for line in text.splitlines()]
    return np.array(words, np.uint32).view(np.float32)


@pytest.fixture(scope="module")
def here(source, images, tmp_path_factory):
    """The logits on this machine, by its fastest instructions."""
    needs("cc")
    return logits_of([built(source, tmp_path_factory.mktemp("here"), "cc", "-O3")], images)


@pytest.mark.long
def test_the_source_gives_the_students_classes_and_logits(here, student, images):
    expected = student(images.astype(np.float32)).numpy()
    assert np.ptp(expected.argmax(-1)) > 0, "all images alike: this test proves nothing"
    assert np.sum(here.argmax(-1) == expected.argmax(-1)) >= 99
    assert np.median(np.abs(here - expected)) < 0.02 * expected.std()


@pytest.mark.parametrize(
    "level, flags",
    [
        pytest.param("-O0", ["-DSTUDENT_PORTABLE"], marks=pytest.mark.long),
        pytest.param("-Os", [], marks=pytest.mark.long),
        ("-O2", ["-DSTUDENT_NO_AVX512"]),
    ],
)
def test_every_set_of_instructions_gives_the_same_bits(
    flags, level, source, here, images, tmp_path
):
    program = built(source, tmp_path, "cc", level, *flags)
    np.testing.assert_array_equal(logits_of([program], images[:20]), here[:20])


@pytest.mark.long
def test_the_sanitizers_find_nothing(source, here, images, tmp_path):
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = built(source, tmp_path, "cc", *flags)
    np.testing.assert_array_equal(logits_of([program], images[:20]), here[:20])


def test_aarch64_gives_the_same_bits(source, here, images, tmp_path):
    needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
    program = built(source, tmp_path, "aarch64-linux-gnu-gcc", "-O2", "-static")
    np.testing.assert_array_equal(logits_of(["qemu-aarch64", program], images), here)


@pytest.mark.parametrize("neon", [["-mfpu=neon"], ["-mfpu=vfpv3-d16"]])
def test_armv7_gives_the_same_bits(neon, source, here, images, tmp_path):
    needs("arm-linux-gnueabihf-gcc", "qemu-arm")
    flags = ["-O2", "-static", "-march=armv7-a", *neon]
    program = built(source, tmp_path, "arm-linux-gnueabihf-gcc", *flags)
    np.testing.assert_array_equal(logits_of(["qemu-arm", program], images[:20]), here[:20])


def test_a_cortex_m4_gives_the_same_bits(source, here, images, tmp_path, capsys):
    needs("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
    rows = ",\n".join("{" + ",".join(map(str, image.ravel())) + "}" for image in images[:5])
    text = f"static const unsigned char images[5][3072] = {{\n{rows}}};\n"
    (tmp_path / "images.h").write_text(text)
    flags = ["-O2", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
    flags += ["-nostartfiles", "-specs=nosys.specs", f"-T{PROGRAMS / 'cortex_m4.ld'}"]
    program = built(source, tmp_path, "arm-none-eabi-gcc", *flags, program="cortex_m4.c")
    machine = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none"]
    machine += ["-serial", "none", "-semihosting-config", "enable=on,target=native"]
    done = subprocess.run(
        [*machine, "-kernel", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    np.testing.assert_array_equal(parsed(done.stdout or done.stderr), here[:5])
    sizes = subprocess.run(["arm-none-eabi-size", program], capture_output=True, text=True).stdout
    with capsys.disabled():
        print(f"\nCortex-M4, 5 images among the text:\n{sizes}")
