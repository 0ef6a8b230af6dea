"""See candle_tf/cli/pretrain.py, or --help."""

from command import run

if __name__ == "__main__":
    run("pretrain")
