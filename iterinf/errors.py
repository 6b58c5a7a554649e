"""Errors that a user can cause and fix."""

from collections.abc import Collection


class UserError(ValueError):
    """A one-line error that names the file, key or value, and the expected value.

    `iterinf.main` prints it without a traceback and exits with code 1.
    """


def summarise(error: BaseException) -> str:
    """Returns the first line of an error's message, or its name if there is none."""
    return (str(error) or repr(error)).splitlines()[0]


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Raises UserError if a name is not among the known ones."""
    if name not in known:
        raise UserError(f"unknown {what} {name!r}; known: {', '.join(known) or 'none'}")
