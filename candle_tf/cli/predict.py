"""Prints the classes of images by an exported student, a SavedModel or a .tflite file.

python scripts/predict.py --model=runs/digits/saved_model digit.png
python scripts/predict.py --model=student.tflite --centre_square=0.875 --top=3 *.jpg
"""

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.data.images import open_image
from candle_tf.data.pipeline import centre_square
from candle_tf.export.loaded import Exported


def predict(paths: list[str]):
    images = {path: open_image(path) for path in paths}  # all, before the model is loaded
    model = Exported(flags.FLAGS.model)
    for path, image in images.items():
        if flags.FLAGS.centre_square:
            image = centre_square(image, flags.FLAGS.centre_square)
        probabilities = model.predict(image[None])[0]
        best = probabilities.argsort()[::-1][: flags.FLAGS.top]
        ranking = ", ".join(f"{model.class_names[c]} {100 * probabilities[c]:.1f} %" for c in best)
        print(f"{path}: {ranking}")


def main():
    flags.DEFINE_string("model", None, "SavedModel directory or .tflite file.", required=True)
    flags.DEFINE_float(
        "centre_square",
        None,
        "Look at the central square of this share of the shorter side alone: 0.875 is what is "
        "measured of photographs (--crop=resized); the whole image if not given.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_integer("top", 3, "How many classes to print, the most probable first.", 1)
    run_flags.start(predict, "IMAGE...")


if __name__ == "__main__":
    main()
