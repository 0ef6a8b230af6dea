"""See candle_tf/cli/evaluate.py, or --help."""

from quick_answers import start

if __name__ == "__main__":
    start("evaluate")
