"""See candle_tf/cli/export.py, or --help."""

from quick_answers import start

if __name__ == "__main__":
    start("export")
