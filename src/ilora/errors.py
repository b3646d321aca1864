"""Errors that reach the user as one clear message instead of a traceback."""


class IloraError(Exception):
    """The work met a problem (command exit code 1): a lost loss, a full disk, a failed check."""

    code = 1


class InputError(IloraError):
    """What the user gave cannot be used (command exit code 2). The message names the place and what is allowed."""

    code = 2


class NoRoomError(IloraError):
    """The device's memory does not suffice (command exit code 75): with more of it the same run goes on."""

    code = 75
