"""Errors that a user can cause and mend."""


class UserError(ValueError):
    """One sentence that names the file, key or value, and what was expected.

    `iterinf.main` prints it without a traceback and exits with status 1.
    """
