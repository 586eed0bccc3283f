"""Validation of settings, in one form."""

from dataclasses import fields
from typing import Any

from offrl.errors import ConfigError


def check_intervals(config: Any, **intervals: str) -> None:
    """Raise ConfigError, naming class, field and value, unless each field lies in its interval.

    An interval is written as in mathematics: "[0, 1)", "(0, inf)".
    """
    for field, interval in intervals.items():
        value = getattr(config, field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{type(config).__name__}.{field} is {value!r}; it must be a number")
        low, high = (float(x) for x in interval[1:-1].split(","))
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ConfigError(
                f"{type(config).__name__}.{field} is {value!r}; it must be in {interval}"
            )


def check_choice(config: Any, field: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless the field is one of the choices."""
    value = getattr(config, field)
    if value not in choices:
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; it must be one of {list(choices)}"
        )


def check_types(config: Any) -> None:
    """Raise ConfigError unless each field that is declared a plain number, text or choice is one.

    A parser of the command line has made sure of it; values from Python or from a file may be
    anything. An integer stands for a float.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type in (int, float, bool, str):
            kind = (int, float) if field.type is float else field.type
            fits = isinstance(value, kind) and (field.type is bool or not isinstance(value, bool))
            expected = field.type.__name__
        elif field.type == tuple[int, ...]:
            fits = isinstance(value, tuple) and all(type(v) is int for v in value)
            expected = "a sequence of int"
        else:
            continue
        if not fits:
            raise ConfigError(
                f"{type(config).__name__}.{field.name} is {value!r}; it must be {expected}"
            )
