"""Helpers that know nothing of the method: files, devices, names, optimizers."""
