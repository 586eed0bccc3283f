"""Policy-guided diffusion: pieces of episodes, guidance by hand, data that says it is made up."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import ACT, OBS, build, small_config, updates, walk
from torch import Tensor

from offrl import cli
from offrl.actors import DeterministicActor, GaussianActor, SquashedGaussianActor
from offrl.datasets.loading import load_dataset
from offrl.datasets.minari import write_minari
from offrl.datasets.offline import OfflineDataset
from offrl.denoising import Denoised, Point, matching_error
from offrl.errors import ConfigError, DataError
from offrl.networks import Learners
from offrl.policy_guidance import Guidance, action_slope, guided
from offrl.processes import EDM
from offrl.synthesis import (
    Generator,
    GeneratorConfig,
    log_density,
    policy_likelihood,
    sample,
    with_source,
)
from offrl.trajectories import begins, episodes_of, trajectories

TINY = GeneratorConfig(length=8, stride=4, channels=8, steps=3, batch_size=4, ema_every=1)


# -- pieces ---------------------------------------------------------------------------------------


def known() -> OfflineDataset:
    """An episode of 5 steps that terminates and one of 6 that is cut; 2 steps are too few."""
    episodes = []
    for e, steps in enumerate((5, 6, 2)):
        episodes.append(
            {
                "obs": 100.0 * e + np.arange(steps + 1.0)[:, None],
                "action": np.linspace(-1.0, 1.0, steps)[:, None],
                "reward": 0.5 * np.arange(steps),
                "terminated": e == 0,
                "truncated": e != 0,
            }
        )
    return OfflineDataset.from_episodes(episodes, name="known")


def test_pieces_begin_every_stride_and_one_ends_with_each_episode() -> None:
    data = known()
    assert begins(data, 4, 2).tolist() == [0, 2, 6, 8, 9]
    assert begins(data, 6, 8).tolist() == [0, 6, 7]
    with pytest.raises(DataError, match=r"no episode of 7 steps.*the longest has 6"):
        begins(data, 8, 1)
    # Where the observation after the last step is not known, it is not part of a piece.
    unknown = OfflineDataset.from_episodes(
        [{"obs": np.zeros((6, 1)), "action": np.zeros((6, 1)), "reward": np.zeros(6)}], name="u"
    )
    assert begins(unknown, 6, 8).tolist() == [0]


def test_a_piece_says_what_was_seen_done_earned_and_ended() -> None:
    data = known()
    view = trajectories(data, 4, 2)
    assert view.x.shape == (5, 4, 4)
    raw = view.raw(view.x)
    np.testing.assert_allclose(raw[1, :, 0], [2.0, 3.0, 4.0, 5.0], atol=1e-4)
    # The third action is 0, the last one 1 and kept inside, and the last row has none.
    np.testing.assert_allclose(raw[1, :, 1], [0.0, 0.5, 0.999, 0.0], atol=1e-4)
    np.testing.assert_allclose(raw[1, :, 2], [1.0, 1.5, 2.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(raw[:, :, 3].sum(1), [0.0, 1.0, 0.0, 0.0, 0.0], atol=1e-4)
    flat = view.x.flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(flat.std(0), torch.ones(4), rtol=0, atol=1e-4)


def test_what_never_varies_is_not_made_up() -> None:
    data = known()
    rows = data.rows.copy()
    rows[:, -3], rows[:, -2] = 0.1, 0.0  # every reward, and no termination
    view = trajectories(replace(data, rows=rows), 4, 2)
    assert view.x.isfinite().all() and view.x[..., 2:].abs().max() < 1e-3
    made = view.raw(view.x + 3.0)
    torch.testing.assert_close(made[..., 2], torch.full_like(made[..., 2], 0.1))
    assert not made[..., 3].any() and made[..., 0].std() > 0


def test_data_that_has_no_trajectories_is_refused() -> None:
    data = known()
    torn = replace(data, next_obs=data.rows[:, :1].copy())
    with pytest.raises(DataError, match="not corrupted"):
        trajectories(torn, 4)
    spec = replace(data.spec, action_kind="discrete")
    with pytest.raises(DataError, match="discrete actions, not continuous"):
        trajectories(replace(data, spec=spec), 4)


def test_pieces_are_episodes_again_cut_where_they_terminate() -> None:
    data = known()
    view = trajectories(data, 4, 2)
    raw = view.raw(view.x)
    raw[0, 1, 3] = 0.6
    first, second, third, *_ = episodes_of(raw, view, data)
    assert first["terminated"] and len(first["reward"]) == 2 and len(first["obs"]) == 3
    assert second["terminated"] and len(second["reward"]) == 3
    assert third["truncated"] and not third["terminated"] and len(third["reward"]) == 3
    np.testing.assert_allclose(third["obs"][:, 0], [100.0, 101.0, 102.0, 103.0], atol=1e-3)


# -- guidance -------------------------------------------------------------------------------------


def test_the_schedule_by_hand() -> None:
    rates = [Guidance(weight=2.0).rate(i, 4) for i in range(4)]
    half = math.sqrt(0.5)
    expected = [2.0 + 0.6 * half, 1.5 + 0.6, 1.0 + 0.6 * half, 0.0]
    assert rates == pytest.approx(expected)
    with pytest.raises(ConfigError, match=r"Guidance\.weight is -1"):
        Guidance(weight=-1.0)


@pytest.mark.parametrize("unit", [True, False])
def test_the_gradient_is_of_the_actions_alone(unit: bool) -> None:
    # log pi = -sum (a - 2 s)^2 / 2: the slope in a is 2 s - a, and that in s is left out.
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    slope = action_slope(
        lambda x: -0.5 * (x[..., 1] - 2 * x[..., 0]).square().sum(-1), x, slice(1, 2), unit
    )
    expected = 2 * x[..., 0] - x[..., 1]
    expected = expected / expected.norm(dim=1, keepdim=True) if unit else expected
    torch.testing.assert_close(slope[..., 1], expected)
    assert torch.equal(slope[..., [0, 2, 3]], torch.zeros(3, 5, 3))
    still = action_slope(lambda x: 0.0 * x[..., 1].sum(-1), x, slice(1, 2), unit)
    assert torch.equal(still, torch.zeros_like(x))


MEAN, SPREAD, POLICY = 0.5, 0.6, 2.0


def exact(x: Tensor, point: Point) -> Denoised:
    """Of trajectories whose channels are all N(0.5, 0.6^2)."""
    kept = SPREAD**2 / (SPREAD**2 + float(point.sigma) ** 2)
    x0 = MEAN + kept * (x - MEAN)
    return Denoised(x0, (x - x0) / float(point.sigma))


def made(weight: float, **settings: Any) -> Tensor:
    g = torch.Generator().manual_seed(0)
    start, *noise = (torch.randn(256, 4, 3, generator=g, dtype=torch.float64) for _ in range(41))
    guidance = Guidance(weight=weight, **settings)

    def likelihood(x: Tensor) -> Tensor:
        return -0.5 * (x[..., 1] - POLICY).square().sum(-1)

    return sample(exact, EDM(sigma_data=1.0), start, noise, slice(1, 2), likelihood, guidance)


@pytest.mark.parametrize("denoised", [False, True])
def test_guided_actions_lie_between_the_data_s_and_the_policy_s(denoised: bool) -> None:
    free = made(0.0)
    assert float(free[..., 1].mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(free[..., 1].std()) == pytest.approx(SPREAD, abs=0.05)
    means = [float(made(c, denoised=denoised)[..., 1].mean()) for c in (0.0, 0.05, 0.1, 0.2, 0.4)]
    assert means == sorted(means) and len(set(means)) == 5
    assert means[1] > MEAN + 0.03 and means[-1] < POLICY
    # States and rewards are those of the unguided trajectories: nothing pulls at them.
    assert torch.equal(made(0.4, denoised=denoised)[..., [0, 2]], free[..., [0, 2]])


def test_the_last_step_is_not_guided() -> None:
    before = guided(lambda x: x.sum((-2, -1)), slice(0, 1), 3, Guidance(unit=False))
    x = torch.zeros(1, 2, 2)
    point = Point(1.0, 1.0, 1.0)
    assert float(before(x, 0, point)[0, 0, 0]) > 0.0
    assert torch.equal(before(x, 2, point), x)


# -- policies -------------------------------------------------------------------------------------


def test_densities_of_policies_by_hand() -> None:
    obs, action = torch.randn(2, 5, OBS), torch.rand(2, 5, ACT) - 0.5
    flat = DeterministicActor(OBS, ACT, [8], Learners())
    expected = -0.5 * (action - flat(obs.flatten(0, 1)).reshape(action.shape)).square().sum(-1)
    torch.testing.assert_close(log_density(flat, obs, action), expected)
    gaussian = GaussianActor(OBS, ACT, [8], Learners())
    normal = torch.distributions.Normal(gaussian.mean(obs.flatten(0, 1)), gaussian.spread())
    expected = normal.log_prob(action.flatten(0, 1)).sum(-1).reshape(2, 5)
    torch.testing.assert_close(log_density(gaussian, obs, action), expected)
    squashed = SquashedGaussianActor(OBS, ACT, [8], Learners())
    assert log_density(squashed, obs, action).shape == (2, 5)


def test_policies_that_cannot_guide_are_refused() -> None:
    view = trajectories(walk(), 8)
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="ValuePlanner has no likelihood"):
        policy_likelihood(build("idql", walk())[0].policy(), view, cpu)
    other = trajectories(known(), 4)
    with pytest.raises(ConfigError, match=r"observations of 3 and actions of 2.*dataset 1 and 1"):
        policy_likelihood(build("td3_bc", walk())[0].policy(), other, cpu)


# -- the model and its data -----------------------------------------------------------------------


def error(generator: Generator) -> float:
    """Of the model on all its pieces, with the same noise each time."""
    g, x = torch.Generator().manual_seed(0), generator.view.x
    noise, level = torch.randn(x.shape, generator=g), torch.randn(len(x), generator=g)
    given = noise, generator.process.draw(level), torch.zeros(len(x), 0)
    with torch.no_grad():
        return float(matching_error(generator.process, generator.net, x, *given).mean())


def test_the_generator_learns_and_is_the_same_each_time() -> None:
    wave = np.sin(np.arange(9.0))[:, None]
    episode = {"obs": wave, "action": 0.5 * wave[:8], "reward": wave[1:, 0]}
    data = OfflineDataset.from_episodes([episode] * 32, name="wave")
    config = GeneratorConfig(length=8, channels=8, steps=40, batch_size=16, lr=1e-2)
    generators = [Generator(data, config, seed) for seed in (1, 1)]
    untrained = error(generators[0])
    for generator in generators:
        generator.fit()
    first, second = (g.average.net.state_dict() for g in generators)
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    other = Generator(data, config, 2).net.state_dict()
    assert any(not torch.equal(v, other[k]) for k, v in first.items())
    assert error(generators[0]) < 0.8 * untrained


def test_what_is_made_says_so_and_can_be_learned_from() -> None:
    data = walk(6, 20)
    generator = Generator(data, TINY)
    generator.fit()
    policy = build("iql", data, dtype=torch.float32)[0].policy(provenance={"agent": "iql"})
    synthetic = generator.make(5, policy, Guidance(weight=0.5), sampler_steps=4, batch_size=3)
    assert synthetic.name == "walk-synthetic" and synthetic.num_episodes == 5
    record: Any = synthetic.provenance["synthetic"]
    assert record["source"] == "walk" and record["source_fingerprint"] == data.fingerprint
    assert record["towards"]["policy"] == {"agent": "iql"}
    assert record["towards"]["guidance"]["weight"] == 0.5
    assert synthetic.provenance["description"].startswith("Synthetic: 5 trajectories")
    assert np.abs(synthetic.action).max() <= 1.0
    again = generator.make(5, policy, Guidance(weight=0.5), sampler_steps=4, batch_size=3)
    assert again.fingerprint == synthetic.fingerprint
    free = generator.make(5, None, sampler_steps=4, batch_size=3)
    assert free.provenance["synthetic"]["towards"] is None  # type: ignore[index]
    assert free.fingerprint != synthetic.fingerprint
    assert synthetic.marks["synthetic"].all()
    mixed = with_source(synthetic, data)
    assert mixed.num_episodes == 11 and mixed.provenance["real_transitions"] == 120
    assert mixed.marks["synthetic"].sum() == len(synthetic.rows)
    for e in (0, 4, 5, 10):
        whole = synthetic.episode(e) if e < 5 else data.episode(e - 5)
        assert all(np.array_equal(v, mixed.episode(e)[k]) for k, v in whole.items())
    agent, replay = build("td3_bc", mixed, config=small_config("td3_bc"))
    assert all(v.isfinite() for m in updates(agent, replay, 2) for v in m.values())


def test_the_command_writes_a_labelled_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OFFRL_CACHE", str(tmp_path / "cache"))
    data = walk(6, 20)
    write_minari(data, tmp_path / "walk")
    agent = build("td3_bc", data, dtype=torch.float32)[0]
    agent.policy(provenance={"agent": "td3_bc"}).save(tmp_path / "policy")
    common = ["data", "synthesize", "--from", str(tmp_path / "walk"), "--time-limit", "keep"]
    common += ["--length", "8", "--channels", "8", "--train-steps", "2", "--device", "cpu"]
    common += ["--trajectories", "6", "--sampler-steps", "3"]
    guide = ["--policy", str(tmp_path / "policy"), "--weight", "0.5"]
    assert cli.main([*common, *guide, "--out", str(tmp_path / "made")]) == 0
    assert "synthetic transitions" in capsys.readouterr().out
    written = load_dataset(tmp_path / "made", time_limit="keep")
    assert written.num_episodes == 6
    record: Any = written.provenance["synthetic"]
    assert record["towards"]["policy"]["agent"] == "td3_bc" and record["trajectories"] == 6
    folders = list((tmp_path / "cache" / "generators").iterdir())
    assert len(folders) == 1
    # A second dataset trains no second model, and what is there is not overwritten.
    assert cli.main([*common, "--with-source", "--out", str(tmp_path / "free")]) == 0
    assert "and 120 real ones" in capsys.readouterr().out
    both = load_dataset(tmp_path / "free", time_limit="keep")
    assert both.num_episodes == 12 and not both.marks["synthetic"][-21:].any()
    assert list((tmp_path / "cache" / "generators").iterdir()) == folders
    for arguments, message in (
        ([*common, "--out", str(tmp_path / "made")], "is not overwritten"),
        ([*common[:-1], "0", "--out", str(tmp_path / "n")], "--sampler-steps is 0"),
        (["data", "synthesize", "--out", str(tmp_path / "n")], "--from"),
    ):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err
    # What cannot be used is said before another model is trained.
    build("idql", data, dtype=torch.float32)[0].policy().save(tmp_path / "idql")
    build("td3_bc", known(), dtype=torch.float32)[0].policy().save(tmp_path / "known")
    for more, message in (
        (["--policy", str(tmp_path / "idql")], "has no likelihood"),
        (["--policy", str(tmp_path / "known")], "the dataset 3 and 2"),
        (["--length", "10"], "GeneratorConfig.length is 10"),
        (["--channels", "9"], "GeneratorConfig.channels is 9"),
        (["--id", "no id"], "'no id' is not a Minari id"),
        (["--out", str(tmp_path / "walk" / "data" / "metadata.json" / "n")], "cannot be written"),
    ):
        assert cli.main([*common, "--seed", "5", "--out", str(tmp_path / "n"), *more]) == 2
        assert message in capsys.readouterr().err
    assert list((tmp_path / "cache" / "generators").iterdir()) == folders
    (folders[0] / "generator.safetensors").write_bytes(b"no")
    assert cli.main([*common, "--out", str(tmp_path / "n")]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert json.loads((folders[0] / "losses.json").read_text())
