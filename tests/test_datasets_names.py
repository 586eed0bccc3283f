"""D4RL's names, files, references and families."""

import re

import pytest

from offrl.datasets.names import layout_of, named_by_file, named_sets
from offrl.envs.references import families, families_of, reference_for, returns_note

SUITES = {
    "gym": [
        f"{task}-{kind}-{version}"
        for task in ("hopper", "halfcheetah", "walker2d", "ant")
        for kind in ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
        for version in ("v0", "v1", "v2")
        if (kind, version) != ("full-replay", "v0")
    ],
    "adroit": [
        f"{task}-{kind}-{version}"
        for task in ("pen", "hammer", "door", "relocate")
        for kind in ("human", "cloned", "expert")
        for version in ("v0", "v1")
    ],
    "antmaze": [
        f"antmaze-{maze}-{version}"
        for maze in (
            *("umaze", "umaze-diverse", "medium-play"),
            *("medium-diverse", "large-play", "large-diverse"),
        )
        for version in ("v0", "v1", "v2")
    ],
    "maze2d": [
        f"maze2d-{maze}{dense}-v1"
        for maze in ("umaze", "medium", "large")
        for dense in ("", "-dense")
    ],
    "kitchen": [f"kitchen-{kind}-v0" for kind in ("complete", "partial", "mixed")],
}


@pytest.mark.parametrize("suite", SUITES)
def test_every_name_has_a_file_an_environment_a_limit_references_and_families(suite: str) -> None:
    for name in SUITES[suite]:
        named = named_sets()[name]
        assert re.fullmatch(
            r"http://rail\.eecs\.berkeley\.edu/datasets/offline_rl/[\w-]+/[\w-]+\.hdf5", named.url
        )
        assert named.env_id
        assert named.time_limit > 0
        reference = reference_for(name)
        assert reference is not None and reference.min < reference.max
        assert families(name)
        assert named.sha256 is None or re.fullmatch("[0-9a-f]{64}", named.sha256)


def test_files_have_names_of_their_own() -> None:
    urls: dict[str, str] = {}
    for named in named_sets().values():
        assert urls.setdefault(named.filename, named.url) == named.url


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("hopper-medium-v2", -20.272305, 3234.3),
        ("Hopper-v5", -20.272305, 3234.3),
        ("halfcheetah-medium-replay", -280.178953, 12135.0),
        ("walker2d-expert-v0", 1.629008, 4592.3),
        ("door-human-v1", -56.512833, 2880.5693087298737),
        ("AdroitHandDoor-v1", -56.512833, 2880.5693087298737),
        ("pen-cloned-v0", 96.262799, 3076.8331017826877),
        ("antmaze-large-play-v2", 0.0, 1.0),
        ("kitchen-mixed-v0", 0.0, 4.0),
        ("maze2d-umaze-v1", 23.85, 161.86),
        ("maze2d-umaze-dense-v1", 68.537689, 193.66285642381482),
    ],
)
def test_references(name: str, low: float, high: float) -> None:
    reference = reference_for(name)
    assert reference is not None
    assert (reference.min, reference.max) == (low, high)
    assert "D4RL" in reference.source


def test_what_has_no_reference() -> None:
    assert reference_for("CartPole-v1") is None
    # Gymnasium's mazes pay every step at the goal, so D4RL's scale of success is not theirs.
    assert reference_for("AntMaze_UMaze-v4") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Hopper-v5", ["hopper", "locomotion"]),
        ("hopper-medium-v2", ["hopper-medium", "hopper", "locomotion"]),
        ("hopper-medium-replay", ["hopper-medium-replay", "hopper", "locomotion"]),
        ("mujoco/hopper/medium-v0", ["hopper-medium", "hopper", "locomotion"]),
        ("HalfCheetah-v4", ["halfcheetah", "locomotion"]),
        ("antmaze-umaze-v2", ["antmaze-umaze", "antmaze"]),
        ("AntMaze_Large_Diverse_GR-v5", ["antmaze"]),
        ("door-human-v1", ["door-human", "door", "adroit"]),
        ("AdroitHandDoor-v1", ["door", "adroit"]),
        ("D4RL/pen/cloned-v2", ["pen-cloned", "pen", "adroit"]),
        ("maze2d-large-v1", ["maze2d-large", "maze2d"]),
        ("FrankaKitchen-v1", ["kitchen"]),
        ("MyHopper-v5", []),
    ],
)
def test_families_are_most_specific_first(name: str, expected: list[str]) -> None:
    assert families(name) == expected


@pytest.mark.parametrize(
    ("env", "dataset", "expected"),
    [
        ("Hopper-v5", "hopper-medium-v2", ["hopper-medium", "hopper", "locomotion"]),
        ("AntMaze_UMaze-v5", "antmaze-umaze-v2", ["antmaze-umaze", "antmaze"]),
        (None, "hopper-medium-v2", ["hopper-medium", "hopper", "locomotion"]),
        ("MyHopper-v5", "hopper-medium-v2", ["hopper-medium", "hopper", "locomotion"]),
        ("Hopper-v5", "my-own", ["hopper", "locomotion"]),
        ("HalfCheetah-v5", "hopper-medium-v2", ["halfcheetah", "locomotion"]),
        (None, "my-own", []),
    ],
)
def test_a_runs_families_are_the_datasets_where_it_is_of_that_task(
    env: str | None, dataset: str, expected: list[str]
) -> None:
    assert families_of(env, dataset) == expected


def test_a_returned_list_is_the_callers_own() -> None:
    families("Hopper-v5").clear()
    assert families("Hopper-v5") == ["hopper", "locomotion"]


def test_kitchens_file_returns_are_not_on_the_references_scale() -> None:
    note = returns_note("kitchen-mixed-v0")
    assert note is not None and "sub-tasks" in note
    assert returns_note("hopper-medium-v2") is None


def test_names_by_file_and_layout() -> None:
    found = named_by_file("halfcheetah_medium_replay-v2.hdf5")
    assert found is not None and found.name == "halfcheetah-medium-replay-v2"
    assert named_by_file("mine.hdf5") is None
    layout = layout_of(["qpos", "qvel", "door_body_pos"], 39, 28)
    assert layout is not None
    assert layout.env_id == "AdroitHandDoor-v1"
    assert (layout.time_limit(200), layout.time_limit(201), layout.time_limit(301)) == (
        200,
        300,
        None,
    )
    assert layout_of(["door_body_pos"], 39, 30) is None
