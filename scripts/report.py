"""See candle_tf/cli/report.py, or --help."""

from command import run

if __name__ == "__main__":
    run("report")
