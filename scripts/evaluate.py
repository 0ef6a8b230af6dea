"""See candle_tf/cli/evaluate.py, or --help."""

from command import run

if __name__ == "__main__":
    run("evaluate")
