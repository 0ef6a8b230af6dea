"""Prints finished runs side by side as a Markdown table.

    candle-tf compare runs/cross_entropy runs/candle

Each run is named by its workdir.
"""

from absl import flags
from candle_tf.cli import run_flags
from candle_tf.reports.tables import comparison_table


def compare(workdirs: list[str]):
    """Prints one table of the runs in these workdirs."""
    print(comparison_table(workdirs, flags.FLAGS.split, flags.FLAGS.per_class))


def main():
    """Defines the flags and starts the comparison."""
    flags.DEFINE_enum(
        "split", "test", ["test", "validation"], "The images that accuracy is taken on."
    )
    flags.DEFINE_bool("per_class", False, "A column a class, instead of overall and groups.")
    run_flags.start(compare, "WORKDIR...")


if __name__ == "__main__":
    main()
