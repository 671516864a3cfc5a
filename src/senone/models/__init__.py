"""One paper, one file; the files do not import one another."""
