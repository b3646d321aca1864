"""Errors that reach the user as one clear message instead of a traceback."""


class IloraError(Exception):
    """The work met a problem (command exit code 1): a lost loss, a full disk, a failed check."""


class InputError(IloraError):
    """What the user gave cannot be used (command exit code 2). The message names the place and what is allowed."""
