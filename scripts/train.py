"""See candle_tf/cli/train.py, or --help."""

from command import run

if __name__ == "__main__":
    run("train")
