"""The student as one C99 source and one header, which need no library."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.export.c_plan import Step, Value, plan
from candle_tf.export.saved_model import check_share, names_text, writing
from candle_tf.utils.files import directory_beside

KERNELS = Path(__file__).parents[1] / "assets" / "kernels.c"
PIXELS = 4  # pixels computed at a time, so that they share each load of a weight
LANES = 8  # outputs computed at a time, with their weights side by side in memory
WEIGHTS = {32: "float", 16: "int16_t", 8: "int8_t"}
LOADS = {
    32: "_mm256_loadu_ps(at)",
    16: "_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)(at))))",
    8: "_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(at))))",
}
FAST = ("binary", "real", "depthwise")  # kernels that are compiled for each set of instructions
MARK = "/* A network in C, written by candle_tf. */"


def export_c(
    student: tf.keras.Model,
    path: str | os.PathLike,
    image_size: int,
    class_names: Sequence[str] | None = None,
    centre_square: float = 1.0,
    *,
    weight_bits: int = 32,
):
    """Writes the student as C99 source: NAME.c and NAME.h in a directory NAME.

    Binary convolutions run as XOR and popcount on packed bits. Stem and classifier compute in
    float32. The weights of the classifier have 16 bits, as no sign depends on its results. The
    results are equal on all machines, bit for bit.

    Args:
        student: Keras model from images to logits.
        path: Directory to write. An earlier export there is replaced once the new one is complete.
        image_size: Side of the images in pixels.
        class_names: Names in class order; by default the class numbers.
        centre_square: Side of the central square to cut out of a photograph, as a fraction of its
            shorter side; a constant in the header.
        weight_bits: Bits of the weights of other convolutions that are not binary, such as the
            stem's: 32 (float32), 16 or 8 (integers with one scale per output). Rounding them turns
            signs, so 16 bits change the class of about 3 images of 1,000.

    Raises:
        ValueError: If the numbers of names and classes differ. Also for a layer that the C source
            cannot compute; the message names the layer.
        OSError: If the directory cannot be written, or holds other files, which are kept.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> ct.export.export_c(student, "export/pets", image_size=16)
        >>> sorted(os.listdir("export/pets"))
        ['pets.c', 'pets.h']
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not is_c_export(path) and (not path.is_dir() or os.listdir(path)):
        raise FileExistsError(
            f"{path} is not an earlier export of C source: export to a new directory."
        )
    names = names_text(student, class_names).splitlines()
    check_share(centre_square)
    name = identifier(path.name)
    values = plan(student, image_size)
    source, header = c_source(values, name, image_size, names, centre_square, weight_bits)
    with writing(path), directory_beside(path) as written:
        (written / f"{name}.c").write_text(source, encoding="ascii")
        (written / f"{name}.h").write_text(header, encoding="ascii")


def is_c_export(path: Path) -> bool:
    """Returns whether a directory holds the two files of `export_c` and nothing else."""
    files = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    if len(files) != 2 or [Path(file).suffix for file in files] != [".c", ".h"]:
        return False
    with open(path / files[1], "rb") as header:
        return header.readline().decode("ascii", "replace").strip() == MARK


def scratch_bytes(path: str | os.PathLike) -> int:
    """Returns the bytes of working memory that the network in a directory of C source needs."""
    (header,) = Path(path).glob("*.h")
    return int(re.search(r"_SCRATCH_BYTES (\d+)", header.read_text(encoding="ascii"))[1])


def identifier(name: str) -> str:
    """Turns the name of a file into an identifier of C.

    Example:
        >>> identifier("10 digits.v2")
        'student_10_digits_v2'
    """
    name = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")
    return name if name[:1].isalpha() else f"student_{name}".rstrip("_")


def c_source(
    values: list[Value],
    name: str,
    image_size: int,
    names: list[str],
    centre_square: float,
    weight_bits: int,
) -> tuple[str, str]:
    """Returns the source and the header of a plan.

    Args:
        values: From `plan`.
        name: C identifier that all public names start with.
        image_size: Side of the images in pixels.
        names: Name of each class.
        centre_square: Side of the central square, as a fraction of a photograph's shorter side.
        weight_bits: Bits of the weights of convolutions that are not binary: 32, 16 or 8.

    Raises:
        ValueError: For another number of bits.
    """
    if weight_bits not in WEIGHTS:
        raise ValueError(f"weight_bits must be 8, 16 or 32, not {weight_bits}.")
    places = Places(values)
    fields, scratch_bytes = places.fields()
    layers = [Layer(value, index, places, weight_bits) for index, value in enumerate(values)]
    layers = [layer for layer in layers if layer.value.kind != "view"]
    used = {layer.value.kind for layer in layers} | ({"pack"} if places.bits_size else set())
    used |= {"strip"} if used & {"binary", "real"} else set()
    kernels = sections(KERNELS.read_text(encoding="ascii"))
    fast = {kind: kernels.pop(kind) for kind in FAST}
    fill = {
        "MARK": MARK,
        "NAME": name,
        "UPPER": name.upper(),
        "SIZE": str(image_size),
        "THOUSANDTHS": str(round(1000 * centre_square)),
        "CLASSES": str(len(names)),
        "NAMES": "".join(f"    {c_string(text)},\n" for text in names),
        "WEIGHT": WEIGHTS[weight_bits],
        "LOAD": LOADS[weight_bits],
        "COMMON": kernels.pop("common"),
        "HAS_BINARY": "#define BINARY\n" if "binary" in used else "",
        "BINARY": fast["binary"] if "binary" in used else "",
        "FAST": "".join(fast[kind] for kind in ("real", "depthwise") if kind in used),
        "KERNELS_OF": ", ".join(f"FN({kind})" if kind in used else "NULL" for kind in FAST),
        "WITH_AVX512": ", ".join(
            f"{kind}_{'avx512' if kind == 'binary' else 'avx2'}" if kind in used else "NULL"
            for kind in FAST
        ),
        "SHARED": "".join(text for kind, text in kernels.items() if kind in used),
        "TABLES": zeros(values) + "".join(table for layer in layers for table in layer.tables()),
        "FINISHES": "\n".join(layer.finish() for layer in layers),
        "CALLS": "".join(layer.call() for layer in layers),
        "LOGITS": str(places.maps[values[-1]]),
        "PIXELS": str(PIXELS),
        "STRIP": str(places.strip),
        "FIELDS": fields,
        "BYTES": str(scratch_bytes),
    }
    return substitute(SOURCE, fill), substitute(HEADER, fill)


def substitute(template: str, fill: dict[str, str]) -> str:
    """Replaces each @NAME@ in a template by its text."""
    return re.sub(r"@(\w+)@", lambda match: fill[match[1]], template)


def sections(kernels: str) -> dict[str, str]:
    """Returns the sections of the kernels' file: name -> C code."""
    parts = re.split(r"^/\* section: (\w+) \*/\n", kernels, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def c_string(text: str) -> str:
    """Returns a text as a C string literal of plain ASCII."""
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode("utf-8")
    )
    return f'"{plain}"'


def table(kind: str, name: str, numbers: Sequence[str], a_line: int = 8) -> str:
    """Returns a constant C array, with `a_line` numbers per line."""
    lines = (", ".join(numbers[i : i + a_line]) for i in range(0, len(numbers), a_line))
    body = ",\n    ".join(lines)
    return f"static const {kind} {name}[{len(numbers)}] = {{\n    {body}}};\n"


def floats(numbers: np.ndarray) -> list[str]:
    """Returns numbers as C literals that give the same float32."""
    texts = (format(float(np.float32(x)), ".9g") for x in np.ravel(numbers))
    return [f"{text}f" if re.search(r"[.e]", text) else f"{text}.0f" for text in texts]


def zeros(values: list[Value]) -> str:
    """Returns the table of zeros that all values share whose thresholds are 0."""
    signed = any(not np.any(pack) for value in values for pack in value.packs)
    return f"static const float zeros[{LANES}] = {{0.0f}};\n" if signed else ""


def words_of(channels: int) -> int:
    """Returns the number of 64-bit words that the bits of one pixel fill."""
    return -(-channels // 64)


def padded(outputs: int) -> int:
    """Returns a number of outputs, rounded up to a multiple of `LANES`."""
    return -(-outputs // LANES) * LANES


def strip_pixels(value: Value) -> int:
    """Returns the pixels of the strip that a convolution copies for each row of outputs."""
    window, width = value.window, value.shape[1]
    row = (width - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilation[1] + 1
    return window.kernel[0] * row


class Places:
    """The place of each map in the scratch memory, which is reused after a map's last reader.

    Args:
        values: Values in the order of their computation.

    Attributes:
        maps: First float of each stored value.
        bits: First word of each value's packed signs, by (value, index of the pack).
    """

    def __init__(self, values: list[Value]):
        self.values = values
        last: dict = {}
        for index, value in enumerate(values):
            for read in (*value.inputs, *(step.value for step in value.steps if step.value)):
                while read.kind == "view":
                    last[read] = index
                    (read,) = read.inputs
                last[read] = index
            if value.kind == "binary":
                last[value.inputs[0], value.bits] = index
        last[values[-1]] = len(values)
        self.maps: dict[Value, int] = {}
        self.bits: dict[tuple[Value, int], int] = {}
        real, packed = Arena(), Arena()
        for index, value in enumerate(values):
            if value.kind == "view":
                self.maps[value] = self.maps[value.inputs[0]]
                continue
            size = int(np.prod(value.shape))
            if value.stored:
                over = self.in_place(value, index, last)
                if over is None:
                    self.maps[value] = real.take(size, index, last[value])
                else:
                    self.maps[value] = self.maps[over]
                    real.keep(self.maps[over], last[value])
            words = value.shape[0] * value.shape[1] * words_of(value.shape[2])
            for pack in range(len(value.packs)):
                self.bits[value, pack] = packed.take(words, index, last[value, pack])
        self.maps_size, self.bits_size = real.size, packed.size

    @staticmethod
    def in_place(value: Value, index: int, last: dict) -> Value | None:
        """Returns the shortcut that a value may be written over, pixel by pixel."""
        for step in value.steps:
            other = step.value
            if other and other.kind != "view" and other.shape == value.shape:
                # An operation that reads the pixels around needs their old numbers.
                if last[other] == index and (value.kind == "binary" or other not in value.inputs):
                    return other
        return None

    def fields(self) -> tuple[str, int]:
        """Returns the fields of the scratch struct, and the size of the struct in bytes."""
        binary, real, dense = (
            [v for v in self.values if v.kind == kind] for kind in ("binary", "real", "dense")
        )
        channels = max(v.shape[2] for v in self.values)
        words = [(strip_pixels(v), len(v.weights), words_of(v.weights.shape[1])) for v in binary]
        reals = [(strip_pixels(v), *v.weights.shape[:2]) for v in real]
        places = max((taps * unit for _, taps, unit in words + reals), default=0)
        words, reals = (max((s * u for s, _, u in x), default=1) for x in (words, reals))
        sums = PIXELS * max((padded(v.shape[2]) for v in binary), default=0)
        products = PIXELS * max((padded(v.shape[2]) for v in real), default=0)
        products = max([products, *(v.shape[2] for v in dense)])
        self.strip = words
        strip = f"union {{ uint64_t bits[{2 * words}]; float reals[{reals}]; }}"
        fields = {
            f"uint64_t bits[{self.bits_size}]": 8 * self.bits_size,
            f"{strip} strip": -(-max(16 * words, 4 * reals) // 8) * 8,
            f"float maps[{self.maps_size}]": 4 * self.maps_size,
            f"int32_t from[{places}]": 4 * places,
            f"int32_t at[{places}]": 4 * places,
            f"float row[{channels}]": 4 * channels,
            f"float out[{channels}]": 4 * channels,
            f"int32_t sums[{sums}]": 4 * sums,
            f"float products[{products}]": 4 * products,
        }
        text = "".join(f"    {field};\n" for field, size in fields.items() if size)
        return text, -(-sum(fields.values()) // 8) * 8


class Arena:
    """Memory that is given out in blocks, each from one point in time to another."""

    def __init__(self):
        self.size = 0
        self.taken: list[list[int]] = []  # first, one past the last, until when

    def take(self, size: int, now: int, until: int) -> int:
        """Returns the start of the first free block of `size`, taken from `now` to `until`."""
        size = -(-size // 16) * 16
        self.taken = sorted(part for part in self.taken if part[2] >= now)
        first = 0
        for begin, end, _ in self.taken:
            if first + size <= begin:
                break
            first = max(first, end)
        self.taken.append([first, first + size, until])
        self.size = max(self.size, first + size)
        return first

    def keep(self, first: int, until: int):
        """Keeps the block that starts at `first` at least to `until`."""
        for part in self.taken:
            if part[0] == first:
                part[2] = max(part[2], until)


class Layer:
    """The C code of one value: its tables, its call and its steps on each pixel."""

    def __init__(self, value: Value, index: int, places: Places, weight_bits: int):
        self.value, self.index, self.places = value, index, places
        self.steps = list(value.steps)
        self.weights: tuple[str, list[str]] | None = None
        if value.kind in ("real", "dense"):
            bits = weight_bits if value.kind == "real" else 16
            numbers, scale = rounded(value.weights, bits)
            numbers = side_by_side(numbers) if value.kind == "real" else numbers.ravel()
            texts = floats(numbers) if bits == 32 else [str(int(x)) for x in numbers]
            self.weights = WEIGHTS[bits], texts
            first = self.steps[0]
            self.steps[0] = Step("affine", first.a * scale, first.b)
        elif value.kind == "binary":
            self.weights = "uint64_t", [f"0x{x:016x}ULL" for x in packed_words(value.weights)]
        elif value.kind == "depthwise":
            self.weights = "float", floats(value.weights)
        self.channels = value.shape[2]
        numbers = [x for step in self.steps for x in (step.a, step.b, step.value) if x is not None]
        if value.kind == "pixels" and not value.packs and not any(map(self.varies, numbers)):
            self.channels = int(np.prod(value.shape))  # all pixels in one loop

    def tables(self) -> Iterator[str]:
        """Yields the constant arrays: weights, factors and thresholds."""
        value, i = self.value, self.index
        yield f"\n/* {comment(value.layer)}: {value.kind}, {' x '.join(map(str, value.shape))} */\n"
        if value.inputs and value.kind not in ("copy", "dense"):
            yield self.shape()
        if self.weights:
            kind, numbers = self.weights
            yield table(kind, f"weights_{i}", numbers, 4 if kind == "uint64_t" else 8)
        for j, step in enumerate(self.steps):
            for letter, numbers in (("a", step.a), ("b", step.b)):
                if self.varies(numbers):
                    yield table("float", f"{letter}_{i}_{j}", floats(numbers))
        for j, thresholds in enumerate(value.packs):
            if np.any(thresholds):
                yield table("float", f"below_{i}_{j}", floats(thresholds))

    @staticmethod
    def varies(numbers: np.ndarray | None) -> bool:
        """Returns whether a table is needed, because the channels have different numbers."""
        return numbers is not None and np.any(numbers != numbers[0])

    def factor(self, letter: str, j: int, numbers: np.ndarray) -> str:
        """Returns the C expression of a step's number for channel c."""
        return f"{letter}_{self.index}_{j}[c]" if self.varies(numbers) else floats(numbers[:1])[0]

    def shape(self) -> str:
        """Returns the constant struct with the sizes of the maps and of the window."""
        window, given = self.value.window, self.value.inputs[0].shape
        pairs = (window.kernel, window.strides, window.dilation, window.before)
        braced = ", ".join(f"{{{a}, {b}}}" for a, b in pairs)
        sizes = f"{given[0]}, {given[1]}, {self.value.shape[0]}, {self.value.shape[1]}"
        return f"static const struct shape shape_{self.index} = {{{sizes}, {braced}}};\n"

    def finish(self) -> str:
        """Returns the C function that applies the steps to a pixel and stores its channels."""
        value, i = self.value, self.index
        channels = self.channels
        raw = {"pixels": "uint8_t", "binary": "int32_t"}.get(value.kind, "float")
        lines = [f"const {raw} *restrict in = row;"]
        if value.stored:
            lines.append(f"float *out = s->maps + {self.places.maps[value]} + pixel * {channels};")
        else:
            lines.append("float *out = s->out;")
        first = "in[c]" if raw == "float" else "(float)in[c]"
        body = [f"float x = {first};"]
        for j, step in enumerate(self.steps):
            if step.kind == "affine":
                a, b = self.factor("a", j, step.a), self.factor("b", j, step.b)
                times = "" if a == "1.0f" else f" * {a}"
                plus = "" if b in ("0.0f", "-0.0f") else f" + {b}"
                if times or plus:
                    body.append(f"x = x{times}{plus};")
            elif step.kind == "prelu":
                a = self.factor("a", j, step.a)
                body.append("positive = x > 0.0f ? x : 0.0f;")
                below = "" if a == "0.0f" else f" + (x - positive) * {a}"
                body.append(f"x = positive{below};")
            elif step.kind == "sigmoid":
                body.append("x = 1.0f / (1.0f + exponential(-x));")
            else:
                at = "" if step.value.shape[:2] == (1, 1) else f" + pixel * {channels}"
                other = f"s->maps + {self.places.maps[step.value]}{at}"
                lines.append(f"const float *other_{j} = {other};")
                body.append(f"x = x {'+' if step.kind == 'add' else '*'} other_{j}[c];")
        if any(step.kind == "prelu" for step in self.steps):
            body.insert(0, "float positive;")
            body[:2] = [f"float x = {first}, positive;"]
        unused = [] if any("pixel" in line for line in lines) or value.packs else ["(void)pixel;"]
        packs = []
        for j in range(len(value.packs)):
            thresholds = f"below_{i}_{j}, 1" if np.any(value.packs[j]) else "zeros, 0"
            at = f"s->bits + {self.places.bits[value, j]} + pixel * {words_of(channels)}"
            packs.append(f"pack(out, {thresholds}, {channels}, {at});")
        text = [
            f"static ONCE void finish_{i}(struct SCRATCH *s, const void *row, size_t pixel)",
            "{",
        ]
        text += [f"    {line}" for line in (*lines, "int c;")]
        text += [f"    {line}" for line in unused]
        text += [f"    for (c = 0; c < {channels}; c++) {{"]
        text += [f"        {line}" for line in (*body, "out[c] = x;")]
        text += ["    }", *(f"    {line}" for line in packs), "}", ""]
        return "\n".join(text)

    def call(self) -> str:
        """Returns the statements that compute the value."""
        value, i, places = self.value, self.index, self.places
        then = f"finish_{i}"
        if value.kind == "pixels":
            if self.channels > value.shape[2]:
                return f"    {then}(s, rgb, 0);\n"
            return self.each_pixel(f"{then}(s, rgb + 3 * pixel, pixel);")
        if value.kind == "copy":
            return self.copy(then)
        given = value.inputs[0]
        channels = given.shape[2]
        if value.kind == "binary":
            bits, words = places.bits[given, value.bits], f"weights_{i}, {padded(value.shape[2])}"
            where = f"s, &shape_{i}, s->bits + {bits}, {channels}"
            return f"    kernels->binary({where}, {words}, {int(value.pad == 0)}, {then});\n"
        by = f"kernels->{value.kind}" if value.kind in FAST else value.kind
        start = f"    {by}(s, &shape_{i}, s->maps + {places.maps[given]}, {channels}, "
        if value.kind == "real":
            outputs = padded(value.shape[2])
            return f"{start}weights_{i}, {outputs}, {then});\n"
        if value.kind == "dense":
            where = f"s->maps + {places.maps[given]}, {channels}"
            return f"    dense(s, {where}, weights_{i}, {value.shape[2]}, {then});\n"
        if value.kind == "depthwise":
            return f"{start}weights_{i}, {then});\n"
        return f"{start}{then});\n"

    def copy(self, then: str) -> str:
        """Returns the loop that copies the parts of other maps, then calls the function `then`."""
        value, places = self.value, self.places
        lines, at = [], 0
        for number, first, last in value.parts:
            count = last - first
            if number is None:
                lines.append(f"memset((char *)(s->row + {at}), 0, {count} * sizeof(float));")
            else:
                given = value.inputs[number]
                start = f"s->maps + {places.maps[given]} + pixel * {given.shape[2]} + {first}"
                if count == value.shape[2]:
                    return self.each_pixel(f"{then}(s, {start}, pixel);")
                lines.append(f"memcpy(s->row + {at}, {start}, {count} * sizeof(float));")
            at += count
        return self.each_pixel(*lines, f"{then}(s, s->row, pixel);")

    def each_pixel(self, *statements: str) -> str:
        """Returns a loop over the pixels of the value."""
        pixels = self.value.shape[0] * self.value.shape[1]
        body = "".join(f"        {statement}\n" for statement in statements)
        return f"    for (size_t pixel = 0; pixel < {pixels}; pixel++) {{\n{body}    }}\n"


def comment(text: str) -> str:
    """Returns a text that cannot end the C comment around it."""
    return re.sub(r"[^\w ./-]", "_", text, flags=re.ASCII)


def packed_words(negative: np.ndarray) -> np.ndarray:
    """Returns the weights of a binary convolution as 64-bit words, 8 outputs side by side.

    Args:
        negative: Whether each weight is -1, bool (taps, inputs, outputs).
    """
    taps, inputs, outputs = negative.shape
    full = np.zeros((taps, words_of(inputs) * 64, padded(outputs)), bool)
    full[:, :inputs, :outputs] = negative
    full = full.reshape(-1, 64, padded(outputs) // LANES, LANES)  # word, bit, group, lane
    powers = np.uint64(1) << np.arange(64, dtype=np.uint64)
    words = (full * powers[:, None, None]).sum(axis=1, dtype=np.uint64)
    return words.transpose(1, 0, 2).ravel()


def rounded(weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of a convolution in multiples of each output's scale, and the scales.

    Args:
        weights: Weights of the convolution, float64 (taps, inputs, outputs).
        bits: 32 for float32 weights with scales of 1; 16 or 8 for integers.

    Returns:
        (float64 (taps * inputs, outputs), float64 (outputs,)).
    """
    flat = weights.reshape(-1, weights.shape[-1])
    if bits == 32:
        return flat, np.ones(flat.shape[1])
    most = np.max(np.abs(flat), axis=0)
    scale = np.where(most > 0, most, 1.0) / (2 ** (bits - 1) - 1)
    return np.rint(flat / scale), scale


def side_by_side(weights: np.ndarray) -> np.ndarray:
    """Returns the numbers of a matrix (inputs, outputs), 8 outputs side by side."""
    full = np.zeros((len(weights), padded(weights.shape[1])))
    full[:, : weights.shape[1]] = weights
    return full.reshape(len(weights), -1, LANES).transpose(1, 0, 2).ravel()


HEADER = """\
@MARK@
#ifndef @UPPER@_H
#define @UPPER@_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @UPPER@_HEIGHT @SIZE@
#define @UPPER@_WIDTH @SIZE@
#define @UPPER@_CLASSES @CLASSES@
#define @UPPER@_SCRATCH_BYTES @BYTES@
/* Cut this central square out of a photograph first: side in thousandths of the shorter side. */
#define @UPPER@_CENTRE @THOUSANDTHS@

/* The working memory of one call. */
struct @NAME@_scratch {
@FIELDS@};

extern const char *const @NAME@_class_names[@UPPER@_CLASSES];

/* Returns the most probable class of an image and writes the probabilities of all classes.
 *
 * Returns -1 and writes nothing if a pointer is null.
 *
 * rgb: @UPPER@_HEIGHT rows of @UPPER@_WIDTH pixels of 3 bytes, red first.
 * Only one call at a time: the function uses static memory. */
int @NAME@_predict(const uint8_t *rgb, float *probabilities);

/* The same with logits and with the caller's memory, so that several calls can run at a time. */
int @NAME@_logits(const uint8_t *rgb, float *logits, struct @NAME@_scratch *scratch);

/* Returns which instructions the binary convolutions use here. */
const char *@NAME@_instructions(void);

#ifdef __cplusplus
}
#endif

#endif
"""

SOURCE = """\
@MARK@
#ifndef ISA /* this file includes itself once for each set of instructions */
#include <stddef.h>
#include <string.h>

#include "@NAME@.h"

#define SCRATCH @NAME@_scratch
#define WEIGHT @WEIGHT@
#define LOAD(at) @LOAD@
#define PIXELS @PIXELS@ /* computed at a time */
#define STRIP @STRIP@ /* words of half a strip of bits */
#define PASTE(name, isa) name##_##isa
#define EXPAND(name, isa) PASTE(name, isa)
#define FN(name) EXPAND(name, ISA)

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif
#if defined(__GNUC__) && !defined(__clang__) /* clang unrolls by itself */
#define UNROLL _Pragma("GCC unroll 8")
#define ONCE __attribute__((noinline, noclone))
#define SMALL __attribute__((noinline, optimize("Os"))) /* "cold" would spread to what it calls */
#else
#define UNROLL
#define ONCE
#define SMALL
#endif
/* One rounding per operation, so that all machines compute the same numbers. The flags of inexact
 * operations are not used. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#endif

#if defined(__GNUC__) && defined(__x86_64__) && !defined(@UPPER@_PORTABLE)
#define DISPATCH
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

typedef char scratch_has_its_size[sizeof(struct SCRATCH) == @UPPER@_SCRATCH_BYTES ? 1 : -1];

const char *const @NAME@_class_names[@UPPER@_CLASSES] = {
@NAMES@};

@COMMON@@SHARED@@TABLES@
@FINISHES@
/* Runs the network. */
static SMALL void run(
    const uint8_t *rgb, float *logits, struct SCRATCH *s, const struct kernels *kernels)
{
    (void)kernels;
@CALLS@    memcpy(logits, s->maps + @LOGITS@, @UPPER@_CLASSES * sizeof *logits);
}

@HAS_BINARY@#if defined(DISPATCH)
#define BLOCK INLINE
#define ISA avx2
#define AVX2
#define TARGET __attribute__((target("avx2")))
#include "@NAME@.c"
#undef ISA
#undef TARGET
#if defined(BINARY) && !defined(@UPPER@_NO_AVX512)
#define ISA avx512
#define AVX512
#define TARGET __attribute__((target("avx2,avx512f,avx512vl,avx512vpopcntdq")))
#include "@NAME@.c"
#undef ISA
#undef TARGET
#undef AVX512
#endif
#undef AVX2
#undef BLOCK
#endif
#if defined(DISPATCH) && !defined(__clang__)
#pragma GCC optimize("Os") /* small code for machines from before 2013 */
#endif
#define ISA portable
#define TARGET
#if defined(__ARM_NEON)
#define BLOCK INLINE
#else
#define BLOCK ONCE
#endif
#include "@NAME@.c"

/* Returns the name of the fastest instructions of this machine, and their kernels. */
static SMALL const char *fastest(const struct kernels **kernels)
{
#if defined(DISPATCH)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) {
#if defined(BINARY) && !defined(@UPPER@_NO_AVX512)
        if (__builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vl")) {
            *kernels = &kernels_avx512;
            return "AVX-512 VPOPCNTDQ";
        }
#endif
        *kernels = &kernels_avx2;
        return "AVX2";
    }
#endif
    *kernels = &kernels_portable;
#if defined(__ARM_NEON)
    return "NEON";
#else
    return "portable";
#endif
}

const char *@NAME@_instructions(void)
{
    const struct kernels *kernels;
    return fastest(&kernels);
}

int @NAME@_logits(const uint8_t *rgb, float *logits, struct @NAME@_scratch *scratch)
{
    const struct kernels *kernels;
    int c, best = 0;
    if (!rgb || !logits || !scratch)
        return -1;
    fastest(&kernels);
    run(rgb, logits, scratch, kernels);
    for (c = 1; c < @UPPER@_CLASSES; c++)
        best = logits[c] > logits[best] ? c : best;
    return best;
}

int @NAME@_predict(const uint8_t *rgb, float *probabilities)
{
    static struct @NAME@_scratch scratch;
    float total = 0.0f, most;
    int c, best = @NAME@_logits(rgb, probabilities, &scratch);
    if (best < 0)
        return best;
    most = probabilities[best];
    for (c = 0; c < @UPPER@_CLASSES; c++) {
        probabilities[c] = exponential(probabilities[c] - most);
        total += probabilities[c];
    }
    for (c = 0; c < @UPPER@_CLASSES; c++)
        probabilities[c] /= total;
    return best;
}

#if defined(@UPPER@_MAIN)
#include <stdio.h>

/* Prints the class of each image in a file or on standard input: raw RGB, one after another. */
int main(int count, char **arguments)
{
    static uint8_t image[@UPPER@_HEIGHT * @UPPER@_WIDTH * 3];
    static float probabilities[@UPPER@_CLASSES];
    FILE *file = count > 1 ? fopen(arguments[1], "rb") : stdin;
    size_t size;
    if (!file) {
        fprintf(stderr, "%s cannot be read\\n", arguments[1]);
        return 1;
    }
    while ((size = fread(image, 1, sizeof image, file)) == sizeof image) {
        int best = @NAME@_predict(image, probabilities);
        printf("%s %.1f %%\\n", @NAME@_class_names[best], 100.0 * (double)probabilities[best]);
    }
    if (size)
        fprintf(
            stderr, "%lu bytes are not an image of %d x %d pixels of 3 bytes\\n",
            (unsigned long)size, @UPPER@_WIDTH, @UPPER@_HEIGHT);
    return size != 0;
}
#endif
#else
@BINARY@
#if defined(AVX512) /* it speeds up only the binary convolutions */
static const struct kernels kernels_avx512 = {@WITH_AVX512@};
#else
@FAST@
static const struct kernels FN(kernels) = {@KERNELS_OF@};
#endif
#endif
"""
