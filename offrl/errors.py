"""Errors that a user can act on: each names the file, field and value, and says what to do."""

import difflib
from collections.abc import Iterable


class OffrlError(Exception):
    """Base of the errors that the command line prints as one line, without a traceback."""

    exit_code = 2


class DataError(OffrlError):
    """A dataset that is missing, damaged, or not what was asked for."""


class ConfigError(OffrlError):
    """A setting, name or combination of settings that cannot work."""


class RunError(OffrlError):
    """A run directory, checkpoint or policy that is missing, damaged, or in the way."""


class MissingDependencyError(OffrlError):
    """An optional package that the request needs."""


def near(name: str, known: Iterable[str]) -> str:
    """A clause that offers the known names closest to `name`; empty where none is close."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not matches:
        return ""
    return ", did you mean " + " or ".join(repr(m) for m in matches) + "?"
