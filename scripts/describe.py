"""See candle_tf/cli/describe.py, or --help."""

from quick_answers import start

if __name__ == "__main__":
    start("describe")
