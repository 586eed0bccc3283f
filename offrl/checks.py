"""Validation of settings, in one form."""

from typing import Any

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


def check_choice(config: Any, field: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless the field is one of the choices."""
    value = getattr(config, field)
    if value not in choices:
        raise ConfigError(
            f"{type(config).__name__}.{field} is {value!r}; it must be one of {list(choices)}"
        )
