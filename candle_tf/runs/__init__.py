"""One run in one workdir, from its settings to its metrics, and many runs compared."""
