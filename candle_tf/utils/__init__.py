"""Helpers that do not depend on the method: files, devices, names, optimizers."""
