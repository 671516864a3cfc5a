"""Checkpoints of others: read without running a line of theirs, and written for them."""

from senone.errors import SenoneError


class InteropError(SenoneError):
    """A foreign checkpoint that is cut short, dangerous, or of a net that senone does not have."""
