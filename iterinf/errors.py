"""Errors that a user can cause and fix."""


class UserError(ValueError):
    """A one-line error that names the file, key or value, and the expected value.

    `iterinf.main` prints it without a traceback and exits with code 1.
    """
