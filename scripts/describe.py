"""See candle_tf/cli/describe.py, or --help."""

from command import run

if __name__ == "__main__":
    run("describe")
