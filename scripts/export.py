"""See candle_tf/cli/export.py, or --help."""

from command import run

if __name__ == "__main__":
    run("export")
