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
from sklearn.datasets import load_digits

PROGRAMS = Path(__file__).parents[1] / "fixtures" / "c_programs"
SANITIZERS = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
PACKAGES = (
    "gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross "
    "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-user qemu-system-arm clang"
)


@pytest.fixture(scope="module")
def images(cifar10):
    return cifar10("test[:1000]")[0]


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


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits' student of `make demo` after a few updates: (source, images, logits here)."""
    needs("cc")
    tf.keras.utils.set_random_seed(0)
    examples = load_digits()
    images = np.repeat(np.uint8(np.round(examples.images * (255 / 16)))[..., None], 3, axis=-1)
    images = np.rint(tf.image.resize(images, (24, 24)).numpy())
    model = ct.StudentModel(resnet_e(10, 24))
    model.compile(tf.keras.optimizers.Adam(1e-2))
    model.fit(images[:512], examples.target[:512], batch_size=64, epochs=2, verbose=0)
    path = tmp_path_factory.mktemp("digits")
    export_c(model.student, path / "student", 24)
    images = images[512:532].astype(np.uint8)
    return path / "student", images, logits_of([built(path / "student", path, "cc", "-O3")], images)


@pytest.mark.long
def test_the_source_gives_the_students_classes_and_logits(here, student, images):
    expected = np.concatenate([student(part.astype(np.float32)) for part in np.split(images, 10)])
    assert len(set(expected.argmax(-1))) > 4, "most images alike: this test proves nothing"
    assert np.sum(here.argmax(-1) == expected.argmax(-1)) >= 999
    assert np.median(np.abs(here - expected)) < 1e-4 * expected.std()


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


def test_the_fastest_instructions_of_this_machine_run(digits, tmp_path):
    needs("cc")
    processor = Path("/proc/cpuinfo").read_text()
    program = built(digits[0], tmp_path, "cc", program="instructions.c")
    done = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True)
    names = {"avx512_vpopcntdq": "AVX-512 VPOPCNTDQ", "avx2": "AVX2"}
    expected = [name for flag, name in names.items() if f" {flag} " in processor]
    if not expected:
        pytest.skip("this processor has neither AVX2 nor AVX-512")
    assert done.stdout.strip() == expected[0]


@pytest.mark.long
def test_clang_accepts_the_source_and_gives_the_same_bits(source, here, images, tmp_path):
    needs("clang")
    program = built(source, tmp_path, "clang", "-O2")
    np.testing.assert_array_equal(logits_of([program], images[:20]), here[:20])


@pytest.mark.long
def test_the_sanitizers_find_nothing(source, here, images, tmp_path):
    needs("cc")
    program = built(source, tmp_path, "cc", *SANITIZERS)
    np.testing.assert_array_equal(logits_of([program], images[:20]), here[:20])


@pytest.mark.long
@pytest.mark.parametrize("instructions", [[], ["-DSTUDENT_PORTABLE"]])
def test_null_pointers_and_old_bytes_do_no_harm(instructions, digits, tmp_path):
    program = built(digits[0], tmp_path, "cc", *SANITIZERS, *instructions, program="hostile.c")
    subprocess.run([program], check=True)


@pytest.mark.long
def test_its_own_program_refuses_what_is_not_an_image(digits, tmp_path):
    source, images, logits = digits
    program = str(tmp_path / "program")
    command = ["cc", *STRICT, *SANITIZERS, "-DSTUDENT_MAIN", str(source / "student.c")]
    subprocess.run([*command, "-o", program], check=True)
    whole, size = images[0].tobytes(), images[0].size
    for given in (b"", whole[:1], whole[:-1], whole + b"x"):
        done = subprocess.run([program], input=given, capture_output=True)
        answers, wrong = divmod(len(given), size)
        assert done.returncode == (wrong > 0)
        assert len(done.stdout.splitlines()) == answers
        assert (b"bytes are not an image of 24 x 24 pixels" in done.stderr) == (wrong > 0)
    (tmp_path / "image.rgb").write_bytes(whole)
    done = subprocess.run([program, tmp_path / "image.rgb"], capture_output=True, check=True)
    assert done.stdout.split()[0] == str(logits[0].argmax()).encode()
    done = subprocess.run([program, tmp_path / "none.rgb"], capture_output=True)
    assert done.returncode == 1 and b"none.rgb cannot be read" in done.stderr


def test_aarch64_gives_the_same_bits(source, here, images, tmp_path):
    needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
    program = built(source, tmp_path, "aarch64-linux-gnu-gcc", "-O2", "-static")
    np.testing.assert_array_equal(logits_of(["qemu-aarch64", program], images[:100]), here[:100])


@pytest.mark.parametrize(
    "neon", [["-mfpu=neon"], pytest.param(["-mfpu=vfpv3-d16"], marks=pytest.mark.long)]
)
def test_armv7_gives_the_same_bits(neon, digits, tmp_path, capsys):
    needs("arm-linux-gnueabihf-gcc", "arm-linux-gnueabihf-size", "qemu-arm")
    source, images, logits = digits
    flags = ["-O2", "-static", "-march=armv7-a", *neon]
    program = built(source, tmp_path, "arm-linux-gnueabihf-gcc", *flags)
    np.testing.assert_array_equal(logits_of(["qemu-arm", program], images), logits)
    subprocess.run(
        ["arm-linux-gnueabihf-gcc", "-Os", *flags[2:], "-c", str(source / "student.c")],
        check=True,
        cwd=tmp_path,
    )
    with capsys.disabled():
        print_sizes("arm-linux-gnueabihf-size", f"armv7 {neon[0]}", tmp_path / "student.o")


def test_a_cortex_m4_gives_the_same_bits(digits, tmp_path, capsys):
    needs("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
    source, images, logits = digits
    rows = ",\n".join("{" + ",".join(map(str, image.ravel())) + "}" for image in images[:5])
    text = f"static const unsigned char images[5][{images[0].size}] = {{\n{rows}}};\n"
    (tmp_path / "images.h").write_text(text)
    flags = ["-Os", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
    flags += ["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"]
    flags += ["-nostartfiles", "-specs=nosys.specs", f"-T{PROGRAMS / 'cortex_m4.ld'}"]
    program = built(source, tmp_path, "arm-none-eabi-gcc", *flags, program="cortex_m4.c")
    machine = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none"]
    machine += ["-serial", "none", "-semihosting-config", "enable=on,target=native"]
    done = subprocess.run(
        [*machine, "-kernel", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )
    np.testing.assert_array_equal(parsed(done.stdout or done.stderr), logits[:5])
    with capsys.disabled():
        print_sizes("arm-none-eabi-size", "Cortex-M4", program, without=images[:5].size)


def print_sizes(tool, machine, file, without=0):
    """Prints the flash and the RAM of the digits' student, without its test images."""
    sizes = subprocess.run([tool, file], capture_output=True, text=True, check=True).stdout
    text, data, zeroed = map(int, sizes.splitlines()[1].split()[:3])
    flash, ram = text + data - without, data + zeroed
    assert 0 < flash < 200_000 and 0 < ram < 200_000  # for 256 kB of either
    print(f"\n{machine}: the digits' student takes {flash:,} bytes of flash and {ram:,} of RAM")
