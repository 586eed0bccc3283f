"""From the name of an agent to its class and settings."""

import importlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from offrl.agent import Agent
from offrl.agents import AGENTS
from offrl.errors import ConfigError, near


def find_agent(name: str | type[Agent]) -> tuple[str, type[Agent], Any]:
    """The agent's name, its class, and its default settings.

    `name` is one of offrl's agents, `package.module:Class`, or the class itself; a class of your
    own names its frozen dataclass of settings as `config_class`. Raises ConfigError otherwise.
    """
    if isinstance(name, str):
        if name in AGENTS:
            cls, config = AGENTS[name]
            return name, cls, config
        cls = _imported(name)
    else:
        cls = name
        for known, (known_cls, config) in AGENTS.items():
            if known_cls is cls:
                return known, cls, config
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ConfigError(f"{name} is not a subclass of offrl.Agent")
    if not hasattr(cls, "config_class"):
        raise ConfigError(
            f"{cls.__name__} has no attribute 'config_class'; set it to the frozen dataclass of "
            "the agent's settings"
        )
    try:
        config = cls.config_class()
    except TypeError as error:
        raise ConfigError(
            f"{cls.__name__}.config_class needs a default for every field: {error}"
        ) from None
    if not is_dataclass(config):
        raise ConfigError(f"{cls.__name__}.config_class is not a dataclass")
    return f"{cls.__module__}:{cls.__qualname__}", cls, config


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(
            f"there is no agent {name!r}{near(name, AGENTS) or ';'} offrl has "
            f"{', '.join(AGENTS)}; an agent of your own is given as package.module:Class"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the agent {name!r} cannot be imported: {error}") from None


def find_recipe(
    cls: type[Agent], recipe: str, families: list[str]
) -> tuple[str, Mapping[str, Any]]:
    """The name and the settings of a recipe: 'auto' by the run's families, or 'none'.

    The settings are those of the agent and of training (`batch_size`, `steps`), so that a recipe
    states all that a paper does; 'auto' is the first family, from the most specific on, that the
    agent has a recipe for.
    """
    if recipe == "none":
        return "none", {}
    if recipe == "auto":
        for family in families:
            if family in cls.recipes:
                return family, cls.recipes[family]
        return "none", {}
    if recipe not in cls.recipes:
        raise ConfigError(
            f"{cls.__name__} has no recipe {recipe!r}{near(recipe, cls.recipes) or ';'} it has "
            f"{', '.join(cls.recipes) or 'none'}; 'auto' chooses by dataset and environment"
        )
    return recipe, cls.recipes[recipe]
