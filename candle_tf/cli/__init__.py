"""The commands of scripts/: flags in, one call of the library, files out."""
