"""See candle_tf/cli/compare.py, or --help."""

from command import run

if __name__ == "__main__":
    run("compare")
