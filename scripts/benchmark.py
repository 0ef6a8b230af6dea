"""See candle_tf/cli/benchmark.py, or --help."""

from command import run

if __name__ == "__main__":
    run("benchmark")
