"""Prints finished runs side by side as a Markdown table.

python scripts/compare.py runs/cross_entropy runs/candle
"""

import sys

from absl import app, flags
from candle_tf.report import comparison_table

flags.DEFINE_enum("split", "test", ["test", "validation"], "The images that accuracy is taken on.")
flags.DEFINE_bool("per_class", False, "A column a class, instead of overall and groups.")


def main(argv):
    if len(argv) < 2:
        sys.exit("Name the workdirs to compare: compare.py WORKDIR...")
    try:
        print(comparison_table(argv[1:], flags.FLAGS.split, flags.FLAGS.per_class))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    app.run(main)
