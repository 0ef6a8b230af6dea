"""Images of the user's own: folders, lists and tables found, looked at and read."""
