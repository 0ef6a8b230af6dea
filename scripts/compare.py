"""See candle_tf/cli/compare.py, or --help."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what matters comes as an exception

from quick_answers import answer  # noqa: E402

if __name__ == "__main__":
    answer("compare")  # before TensorFlow is imported
    from candle_tf.cli import compare

    compare.main()
