"""The one base of every error that a user can cause."""


class SenoneError(ValueError):
    """One clear sentence naming the file, the key or the argument at fault.

    The command line prints it and exits with 2; library users may catch it, or its subclasses, as a ValueError.
    """
