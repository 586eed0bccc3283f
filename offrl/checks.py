"""Validation of settings, in one form."""

import os
from dataclasses import Field
from pathlib import Path
from typing import Any

import numpy as np

from offrl.errors import ConfigError


def check_intervals(config: Any, **intervals: str) -> None:
    """Raise ConfigError, naming class, field and value, unless each field lies in its interval.

    An interval is written as in mathematics: "[0, 1)", "(0, inf)".
    """
    for field, interval in intervals.items():
        value = getattr(config, field)
        low, high = (float(x) for x in interval[1:-1].split(","))
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ConfigError(
                f"{type(config).__name__}.{field} is {value!r}; it must be in {interval}"
            )


def check_that(config: Any, field: str, holds: bool, must: str) -> None:
    """Raise ConfigError, naming class, field, value and what it must be, unless `holds`."""
    if not holds:
        raise ConfigError(f"{type(config).__name__}.{field} is {getattr(config, field)!r}; {must}")


def check_multiple(config: Any, field: str, of: int, why: str) -> None:
    """Raise ConfigError unless the field is a multiple of this number; `why` says who needs it."""
    check_that(config, field, getattr(config, field) % of == 0, f"{why} needs a multiple of {of}")


def check_choice(config: Any, field: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless the field is one of the choices."""
    value = getattr(config, field)
    if value not in choices:
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; it must be one of {list(choices)}"
        )


def make_lasting(config: Any, field: str) -> None:
    """Make the path in this field absolute, if there is such a file or folder.

    A run that is resumed in another working directory then finds it again.
    """
    text = getattr(config, field)
    path = Path(text).expanduser()
    if text and path.exists():
        object.__setattr__(config, field, os.path.abspath(path))


def as_declared(config: Any, field: Field[Any], value: Any) -> Any:
    """The value for this field of `config`, in the type that the field declares.

    For what comes from Python or from a file; a parser of the command line has seen to it. A
    numpy scalar becomes a number, an integer a float and a list a tuple where that is declared.
    Types other than plain ones are left to the config itself. Raises ConfigError.
    """
    value = value.item() if isinstance(value, np.generic) else value
    value = tuple(value) if isinstance(value, list) else value
    value = float(value) if field.type is float and type(value) is int else value
    if field.type in (int, float, bool, str):
        fits, expected = type(value) is field.type, field.type.__name__
    elif field.type == tuple[int, ...]:
        fits = isinstance(value, tuple) and all(type(v) is int for v in value)
        expected = "a sequence of int"
    else:
        return value
    if not fits:
        raise ConfigError(
            f"{type(config).__name__}.{field.name} is {value!r}; it must be {expected}"
        )
    return value
