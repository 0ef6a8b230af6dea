"""The user's own images: folders, lists and tables are found, checked and read."""
