"""Losses are found by family and name, and their docstrings say what a user has to know."""

import inspect
import re

import pytest

from offrl.errors import ConfigError
from offrl.lm.losses import LEFT_OUT, METHODS, describe, find_method
from offrl.lm.losses.contrast import cdpo, chi_po

ALL = [(family, name) for family in METHODS for name in METHODS[family]]
SURE = r"read in|derived|from memory|abstract"


def test_a_method_is_found_by_family_and_name() -> None:
    assert find_method("pair", "cdpo") is cdpo
    assert find_method("pair", "chi_po") is chi_po


def test_a_name_that_does_not_exist_is_answered_with_those_near_it() -> None:
    with pytest.raises(ConfigError, match="no pair loss 'chipo', did you mean 'chi_po'"):
        find_method("pair", "chipo")
    with pytest.raises(ConfigError, match="no family of losses 'pairs', did you mean 'pair'"):
        find_method("pairs", "dpo")
    with pytest.raises(ConfigError, match="no token loss 'zzz': those of this family are sft, dft"):
        find_method("token", "zzz")


@pytest.mark.parametrize(("family", "name"), ALL)
def test_every_method_says_its_equation_and_source(family: str, name: str) -> None:
    card = describe(METHODS[family][name])
    assert card.summary.endswith(".") and len(card.summary) < 101
    assert re.search(SURE, card.source), "how sure is the equation?"
    if family in ("pair", "list", "unary", "token"):
        assert card.data and card.twin
        assert len(card.data) < 90 and len(card.twin) < 90  # a line each
    assert METHODS[family][name].__name__ == name


def test_the_card_of_a_method() -> None:
    card = describe(cdpo)
    assert card.summary.startswith("Conservative DPO: -(1 - e) log S(beta D)")
    assert card.data == "pairs, reference"
    assert card.twin == "conservative labels"
    assert card.source.startswith("Mitchell's note of 2023; read in TRL 1.10's CPO trainer")


@pytest.mark.parametrize(("family", "name"), ALL)
def test_options_are_named(family: str, name: str) -> None:
    """Whatever is a number and not a tensor is given by keyword, so that a config can hold it."""
    for parameter in inspect.signature(METHODS[family][name]).parameters.values():
        if parameter.annotation in (int, float, bool, str):
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter.name


def test_what_is_left_out_has_a_reason() -> None:
    built = {name.replace("_", "") for _, name in ALL}
    for name, reason in LEFT_OUT.items():
        assert len(reason) > 40
        assert name.lower().replace("-", "") not in built
