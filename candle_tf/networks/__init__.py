"""Tools for any Keras network: surgery, checks, pretrained weights, and safe loading of files."""
