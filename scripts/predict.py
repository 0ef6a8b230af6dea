"""See candle_tf/cli/predict.py, or --help."""

from command import run

if __name__ == "__main__":
    run("predict")
