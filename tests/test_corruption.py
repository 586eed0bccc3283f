"""Corrupted data against the protocol: what changed, by how much, and that nothing else did."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from problems import walk
from torch import Tensor

from offrl.datasets.corruption import (
    ELEMENTS,
    Corruption,
    corrupt,
    families_of_data,
    masks_of,
)
from offrl.datasets.loading import load_dataset
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset, Reference
from offrl.datasets.replay import transitions
from offrl.errors import ConfigError, DataError

PAIRS = [(element, mode) for element in ELEMENTS for mode in ("random", "adversarial")]


class Bowls:
    """Three critics, -|s - c|^2 - |a - s_1|^2 about centres of their own; the policy plays s_1."""

    centres = torch.tensor([[0.5], [1.0], [2.5]])

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        near = -(obs - self.centres[:, None]).square().sum(-1)
        return near - (action - obs[:, :1]).square().sum(-1)

    def act(self, obs: Tensor) -> Tensor:
        return obs[:, :1].expand(-1, 2)

    def record(self) -> dict[str, Any]:
        return {"agent": "bowls"}


def data(episodes: int = 40) -> OfflineDataset:
    return walk(episodes, 25)


def columns(dataset: OfflineDataset) -> dict[str, NDArray[np.float32]]:
    rows = dataset.transition_rows()
    o = dataset.obs_dim
    return {
        "observations": dataset.rows[rows, :o],
        "actions": dataset.rows[rows, o:-3],
        "rewards": dataset.rows[rows, -3:-2],
        "dynamics": dataset.following(rows),
    }


def made(element: str, mode: str = "random", **settings: Any) -> OfflineDataset:
    return corrupt(data(), Corruption((element,), mode, **settings), Bowls())


@pytest.mark.parametrize(("element", "mode"), PAIRS)
def test_the_rows_of_the_mask_change_and_no_others(element: str, mode: str) -> None:
    clean, dirty = data(), made(element, mode)
    mask = masks_of(dirty)[element]
    assert np.array_equal(mask, masks_of(dirty)["any"])
    before, after = columns(clean), columns(dirty)
    for name in ELEMENTS:
        same = (before[name] == after[name]).all(1)
        assert np.array_equal(same, ~mask if name == element else np.ones_like(mask)), name
    # To the bit, and terminals and time limits everywhere.
    np.testing.assert_array_equal(before[element][~mask], after[element][~mask])
    np.testing.assert_array_equal(clean.rows[:, -2:], dirty.rows[:, -2:])
    assert clean.fingerprint == data().fingerprint != dirty.fingerprint


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_the_realised_rate_is_within_three_deviations(rate: float) -> None:
    clean = data(400)
    n = clean.num_steps
    for element in ELEMENTS:
        dirty = corrupt(clean, Corruption((element,), rate=rate, seed=3))
        realised = masks_of(dirty)[element].mean()
        assert abs(realised - rate) < 3 * np.sqrt(rate * (1 - rate) / n)


def test_no_rate_changes_nothing_and_the_whole_rate_everything() -> None:
    clean = data()
    none, every = made("actions", rate=0.0), made("actions", rate=1.0)
    np.testing.assert_array_equal(none.rows, clean.rows)
    assert not masks_of(none)["any"].any() and masks_of(every)["any"].all()


@pytest.mark.parametrize("element", ["observations", "actions", "dynamics"])
def test_random_noise_is_uniform_in_deviations(element: str) -> None:
    clean = data(400)
    dirty = corrupt(clean, Corruption((element,), scale=0.7, seed=5))
    before, after = columns(clean)[element], columns(dirty)[element]
    std = before.std(0, dtype=np.float64)
    moved = ((after.astype(np.float64) - before) / std)[masks_of(dirty)[element]]
    assert np.abs(moved).max() <= 0.7 + 1e-5
    # Kolmogorov's distance of n uniform numbers exceeds 1.95 / sqrt(n) once in a thousand times.
    unit = np.sort((moved.ravel() / 0.7 + 1) / 2)
    place = np.arange(1, len(unit) + 1) / len(unit)
    assert np.abs(unit - place).max() < 1.95 / np.sqrt(len(unit))


def test_random_rewards_replace_and_do_not_add() -> None:
    clean = data(400)
    rows = clean.rows.copy()
    rows[:, -3] += 1e4
    for dataset in (clean, replace(clean, rows=rows)):
        dirty = corrupt(dataset, Corruption(("rewards",), scale=0.5, seed=2))
        reward = dirty.reward[masks_of(dirty)["rewards"]]
        assert np.abs(reward).max() <= 15.0 and np.abs(reward).max() > 14.5
        assert reward.mean() == pytest.approx(0.0, abs=3 * 15 / np.sqrt(3 * len(reward)))


def test_adversarial_rewards_are_turned_over() -> None:
    clean, dirty = data(), made("rewards", "adversarial", scale=2.0)
    mask = masks_of(dirty)["rewards"]
    np.testing.assert_array_equal(dirty.reward[mask], -2.0 * clean.reward[mask])


def mean_q(columns: dict[str, NDArray[np.float32]], element: str) -> NDArray[np.float32]:
    obs, action, after = (
        torch.from_numpy(columns[k]) for k in ("observations", "actions", "dynamics")
    )
    bowls = Bowls()
    q = bowls.q(after, bowls.act(after)) if element == "dynamics" else bowls.q(obs, action)
    found: NDArray[np.float32] = q.mean(0).numpy()
    return found


@pytest.mark.parametrize("element", ["observations", "actions", "dynamics"])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_an_attack_lowers_the_value_within_its_range(element: str, scale: float) -> None:
    clean, dirty = data(), made(element, "adversarial", scale=scale)
    mask = masks_of(dirty)[element]
    before, after = columns(clean), columns(dirty)
    lowered = mean_q(before, element)[mask] - mean_q(after, element)[mask]
    assert lowered.mean() > 0.0
    std = before[element].std(0, dtype=np.float64)
    moved = ((after[element].astype(np.float64) - before[element]) / std)[mask]
    assert np.abs(moved).max() <= scale * (1 + 1e-5)
    # The value is a bowl, least at a corner of the box, which steps from the near half reach.
    corner = np.isclose(np.abs(moved), scale, rtol=1e-3)
    assert corner.mean() > 0.4


def test_the_attack_by_hand() -> None:
    # One critic, Q = 3 s_1: the slope is 3 / 4 in a part of four rows, and a hundred steps of
    # 0.01 scale go down from the start, 2 scale sigma (U - 1/2), which the first cut brings into
    # the range: by 0.01 scale before it and 0.99 after, as far as -scale.
    class Slope(Bowls):
        def q(self, obs: Tensor, action: Tensor) -> Tensor:
            return 3.0 * obs[None, :, 0]

    clean = walk(4, 10)
    dirty = corrupt(clean, Corruption(("observations",), "adversarial", 1.0, 0.5), Slope())
    moved = columns(dirty)["observations"] - columns(clean)["observations"]
    std = columns(clean)["observations"].std(0, dtype=np.float64)
    generator = torch.Generator().manual_seed(0)
    first = torch.cat([torch.rand((4, 3), generator=generator) for _ in range(10)]).numpy() - 0.5
    start = 2 * 0.5 * std * first
    down = np.maximum(np.clip(start - 0.005, -0.5, 0.5) - 0.495, -0.5) * std
    np.testing.assert_allclose(moved[:, 0], down[:, 0], rtol=1e-3, atol=1e-5)
    # The other components have no slope and stay where they began, cut to the range.
    stay = np.clip(start, -0.5, 0.5) * std
    np.testing.assert_allclose(moved[:, 1:], stay[:, 1:], rtol=1e-3, atol=1e-5)


def test_the_attack_is_on_the_mean_of_the_critics_and_on_what_the_policy_would_do() -> None:
    # Slopes -1 and 3 in s_1, whose mean goes up: down with s_1. And for dynamics the value of the
    # action that the policy, s_1, would take there, not of the logged one.
    class Opposed(Bowls):
        def q(self, obs: Tensor, action: Tensor) -> Tensor:
            return torch.tensor([[-1.0], [3.0]]) * obs[:, 0]

    class Followed(Bowls):
        def q(self, obs: Tensor, action: Tensor) -> Tensor:
            return action[None, :, 0]

    clean = walk(4, 10)
    before = columns(clean)
    for element, attacker in (("observations", Opposed()), ("dynamics", Followed())):
        dirty = corrupt(clean, Corruption((element,), "adversarial", 1.0), attacker)
        moved = (columns(dirty)[element] - before[element])[:, 0]
        # Half of the starts are below zero, from where a hundred steps reach the end of the range.
        lowest = -before[element].std(0, dtype=np.float64)[0]
        assert np.isclose(moved, lowest, rtol=1e-3).mean() > 0.3 and moved.max() < 0.1


def test_masks_and_noise_are_those_of_the_authors_generator() -> None:
    clean = data()
    numbers = np.random.RandomState(11)
    first = numbers.random_sample(1000) < 0.3
    noise = numbers.uniform(-1.0, 1.0, (int(first.sum()), 3))
    second = numbers.random_sample(1000) < 0.3
    rewards = 30 * numbers.uniform(-1.0, 1.0, int(second.sum()))
    dirty = corrupt(clean, Corruption(("rewards", "observations"), seed=11))
    masks = masks_of(dirty)
    np.testing.assert_array_equal(masks["observations"], first)
    np.testing.assert_array_equal(masks["rewards"], second)
    np.testing.assert_array_equal(masks["any"], first | second)
    std = clean.obs.std(0, dtype=np.float64)
    np.testing.assert_allclose(dirty.obs[first], clean.obs[first] + noise * std, rtol=1e-5)
    np.testing.assert_allclose(dirty.reward[second], rewards, rtol=1e-6)


@pytest.mark.parametrize("mode", ["random", "adversarial"])
def test_the_same_seed_gives_the_same_and_another_another(mode: str) -> None:
    for element in ELEMENTS:
        one, two, other = (made(element, mode, seed=s) for s in (4, 4, 5))
        assert one.fingerprint == two.fingerprint != other.fingerprint
        assert not np.array_equal(masks_of(one)["any"], masks_of(other)["any"])


def test_the_order_in_which_elements_are_named_makes_no_difference() -> None:
    one = corrupt(data(), Corruption(("dynamics", "actions", "observations", "rewards")))
    two = corrupt(data(), Corruption(("rewards", "observations", "actions", "dynamics")))
    assert one.fingerprint == two.fingerprint and list(one.marks) == list(two.marks)
    # What comes first is what it is alone; each element has a mask of its own.
    alone = corrupt(data(), Corruption(("observations",)))
    np.testing.assert_array_equal(one.obs, alone.obs)
    masks = masks_of(one)
    assert len({masks[element].tobytes() for element in ELEMENTS}) == 4
    union = np.logical_or.reduce([masks[element] for element in ELEMENTS])
    np.testing.assert_array_equal(masks["any"], union)


def test_what_followed_is_apart_from_what_was_seen() -> None:
    # s' of step t and s of step t + 1 were one number; corruption moves one and leaves the other.
    clean = data()
    inner = clean.transition_rows()[:24]  # of the first episode, whose last step has no next one
    for element in ("observations", "dynamics"):
        dirty = made(element)
        view = transitions(dirty)
        batch = view.batch(torch.from_numpy(inner))
        before = transitions(clean).batch(torch.from_numpy(inner))
        moved, still = ("next_obs", "obs") if element == "dynamics" else ("obs", "next_obs")
        assert torch.equal(getattr(batch, still), getattr(before, still))
        assert not torch.equal(getattr(batch, moved), getattr(before, moved))
        assert torch.equal(batch.mask, before.mask)


def test_episodes_stay_episodes() -> None:
    clean, dirty = data(), made("dynamics")
    np.testing.assert_array_equal(dirty.returns(), clean.returns())
    np.testing.assert_array_equal(dirty.lengths, clean.lengths)
    truncated = dirty.truncated & ~dirty.terminated
    assert transitions(dirty).batch(torch.from_numpy(dirty.step_rows[truncated])).mask.all()


def test_steps_that_cannot_be_learnt_from_are_left_alone() -> None:
    clean = data()
    unknown = replace(clean, final_known=np.zeros(clean.num_episodes, np.bool_))
    dirty = corrupt(unknown, Corruption(("observations", "actions"), rate=1.0))
    last = unknown.starts + unknown.lengths - 1
    cut = last[unknown.rows[last, -2] == 0]
    np.testing.assert_array_equal(dirty.rows[cut], unknown.rows[cut])
    assert len(cut) == clean.num_steps - len(dirty.transition_rows())
    assert masks_of(dirty)["any"].sum() == clean.num_steps - len(cut)


def test_the_provenance_says_all() -> None:
    dirty = made("observations", "adversarial", rate=0.2, scale=0.5, seed=9)
    record = dirty.provenance["corruption"]
    assert record["elements"] == ["observations"] and record["mode"] == "adversarial"
    assert (record["rate"], record["scale"], record["seed"]) == (0.2, 0.5, 9)
    assert record["attacker"] == {"agent": "bowls"}
    assert record["clean"]["name"] == "walk"
    assert record["clean"]["fingerprint"] == data().fingerprint
    assert record["clean"]["return_mean"] == pytest.approx(data().returns().mean())
    masks = masks_of(dirty)
    assert record["corrupted"] == {k: int(m.sum()) for k, m in masks.items()}
    assert dirty.name == "walk-adversarial-observations"
    assert any("corrupted on purpose" in problem for problem in dirty.problems)


def test_a_fresh_process_reads_data_masks_and_provenance(tmp_path: Path) -> None:
    dirty = corrupt(data(), Corruption(ELEMENTS, seed=1))
    write_minari(dirty, tmp_path / "dirty")
    script = (
        "import sys, numpy as np\n"
        "from offrl.datasets.corruption import masks_of\n"
        "from offrl.datasets.loading import load_dataset\n"
        "read = load_dataset(sys.argv[1], time_limit='keep')\n"
        "print(read.fingerprint, read.provenance['corruption']['seed'])\n"
        "print(*(f'{k}={int(m.sum())}' for k, m in masks_of(read).items()))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "dirty")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0] == f"{dirty.fingerprint} 1"
    assert lines[1] == " ".join(f"{k}={int(m.sum())}" for k, m in masks_of(dirty).items())
    # Actions beyond their bounds are meant, and reading does not refuse them.
    read = load_dataset(tmp_path / "dirty", time_limit="keep")
    assert np.abs(read.action).max() > 1.0
    assert read.provenance["out_of_bounds"]["treatment"] == "kept"
    assert read.provenance["corruption"] == dirty.provenance["corruption"]


def test_progress_goes_to_the_end() -> None:
    told: list[float] = []
    corrupt(data(), Corruption(ELEMENTS, "adversarial"), Bowls(), told.append)
    assert told == pytest.approx([(i + 1) / 30 for i in range(30)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elements": ("reward",)}, r"no element 'reward', did you mean 'rewards'"),
        ({"elements": ("wind",)}, r"no element 'wind'; choose from observations, actions, "),
        ({"elements": ()}, r"no element to corrupt was named"),
        ({"mode": "adverserial"}, r"no mode 'adverserial', did you mean 'adversarial'"),
        ({"rate": 1.5}, r"the rate 1.5 is not a share between 0 and 1"),
        ({"rate": -0.1}, r"the rate -0.1 is not a share between 0 and 1"),
        ({"rate": float("nan")}, r"the rate nan is not a share between 0 and 1"),
        ({"scale": 0.0}, r"the scale 0.0 is not a positive number"),
        ({"scale": float("inf")}, r"the scale inf is not a positive number"),
        ({"seed": -1}, r"the seed -1 is not between 0 and"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Corruption(**{"elements": ("rewards",), **settings})


def test_corrupted_data_is_not_corrupted_again() -> None:
    with pytest.raises(DataError, match="is corrupted already, by random-rewards; corrupt the cle"):
        corrupt(made("rewards"), Corruption(("actions",)))


def test_an_attack_without_an_attacker_is_refused() -> None:
    with pytest.raises(ConfigError, match="adversarial actions need an attacker"):
        corrupt(data(), Corruption(("actions",), "adversarial"))
    corrupt(data(), Corruption(("rewards",), "adversarial"))


def test_noise_on_discrete_actions_is_refused() -> None:
    clean = data()
    spec = replace(clean.spec, action_low=(0.0, 0.0), action_high=(1.0, 1.0))
    rows = np.delete(clean.rows, 4, axis=1)
    discrete = replace(clean, rows=rows, spec=replace(spec, action_kind="discrete"))
    with pytest.raises(DataError, match="walk has discrete actions"):
        corrupt(discrete, Corruption(("actions",)))
    with pytest.raises(DataError, match="walk has discrete actions"):
        corrupt(discrete, Corruption(("dynamics",), "adversarial"), Bowls())
    assert masks_of(corrupt(discrete, Corruption(("dynamics",))))["any"].any()


def test_clean_data_has_no_masks() -> None:
    assert masks_of(data()) == {}


def test_families_of_corrupted_data_name_the_corruption_first() -> None:
    clean = replace(
        data(), name="hopper-medium-replay", env_id="Hopper-v5", reference=Reference(0.0, 1.0, "x")
    )
    assert families_of_data("Hopper-v5", clean) == ["hopper-medium-replay", "hopper", "locomotion"]
    dirty = corrupt(clean, Corruption(("dynamics", "rewards")))
    assert families_of_data("Hopper-v5", dirty) == [
        *("hopper-medium-replay-random-rewards", "hopper-random-rewards"),
        *("locomotion-random-rewards", "hopper-medium-replay", "hopper", "locomotion"),
    ]
    assert families_of_data(None, corrupt(data(), Corruption(("rewards",)))) == []
