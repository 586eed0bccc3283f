"""Environments, by name or from a function, with the rewards and limits that datasets assume."""

if __name__ != "offrl.envs":
    raise ImportError(f"this package is offrl.envs, not {__name__}")

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offrl.envs.making import make, spaces_match

__all__ = ["make", "spaces_match"]


def __getattr__(name: str) -> Any:
    # Reference scores live here too, and reading a table should not import Gymnasium.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from offrl.envs import making

    return getattr(making, name)
