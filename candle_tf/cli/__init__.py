"""The commands of `candle-tf` and scripts/: flags in, one call of the library, files out."""
