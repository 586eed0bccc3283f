"""Plans that are checked by the past: by hand, row by row, and by the actions really executed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from problems import ACT, OBS, build, narrow, small_config, updates, walk
from torch import Tensor

from offrl.backbones import Backbone, MLPDenoiser
from offrl.datasets.offline import OfflineDataset
from offrl.errors import ConfigError
from offrl.experiment import resume_run, train
from offrl.generation import Generation
from offrl.networks import Learners
from offrl.past_planner import Encoder, PastPlanner, agreement, asked
from offrl.planners import ChunkPlanner, planner_from_spec
from offrl.processes import DDPM
from offrl.samplers import Sample
from offrl.transformer import CrossTransformer
from offrl.types import Context, Noise

N, HISTORY, HORIZON = 3, 3, 5
GENERATION = Generation(DDPM(10), "ddpm", 4)


def backbone(kind: str, token: int = OBS) -> Backbone:
    learners = Learners((3,))
    if kind == "mlp":
        return MLPDenoiser(HORIZON, ACT, HISTORY * token, learners, hidden=16)
    return CrossTransformer(HORIZON, ACT, HISTORY, token, learners, layers=2, heads=2, width=8)


def planner(kind: str = "mlp", samples: int = 1, past_steps: int = -1) -> PastPlanner:
    sizes = {"obs_dim": OBS, "act_dim": ACT, "horizon": HORIZON}
    made = PastPlanner(
        backbone(kind), GENERATION, None, **sizes, past_steps=past_steps, samples=samples
    )
    for parameter in made.parameters():  # a transformer's first outputs are all but zero
        torch.nn.init.normal_(parameter, 0.0, 0.4, torch.Generator().manual_seed(parameter.numel()))
    return made.double()


def context(past_real: float = 1.0) -> Context:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(N, *shape, generator=draw, dtype=torch.float64)

    one = torch.ones(N, HISTORY, dtype=torch.float64)
    return Context(
        obs=normal(HISTORY, OBS),
        obs_real=one,
        past_action=normal(HISTORY - 1, ACT).clamp(-1, 1),
        past_real=past_real * one[:, 1:],
        goal=normal(0, OBS),
        goal_real=torch.zeros(N, dtype=torch.float64),
    )


def noise_of(made: PastPlanner, n: int = N) -> Noise:
    draw = torch.Generator().manual_seed(1)
    shapes = made.noise().items()
    return {k: torch.randn(n, *s, generator=draw, dtype=torch.float64) for k, s in shapes}


def test_which_past_steps_are_asked_for() -> None:
    like = torch.zeros(1)
    assert asked(3, -1, like).tolist() == [1, 1, 1]
    assert asked(3, 0, like).tolist() == [0, 0, 0]
    assert asked(3, 2, like).tolist() == [0, 1, 1]


def test_agreement_by_hand() -> None:
    executed = torch.tensor([[[0.5], [1.0]], [[0.0], [0.0]], [[9.0], [9.0]]])
    plans = torch.zeros(6, 3, 1)  # two of each history
    plans[0, :2, 0] = torch.tensor([0.5, 0.8])
    plans[2, :2, 0] = torch.tensor([0.3, 0.4])
    compared = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    # (0 + 0.04) / 2, (0.25 + 1) / 2; 0.16 of the newest alone, 0; nothing to compare.
    expected = torch.tensor([-0.02, -0.625, -0.16, 0.0, 0.0, 0.0])
    torch.testing.assert_close(agreement(plans, executed, compared), expected)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_of_several_the_one_is_taken_that_says_what_was_done(kind: str) -> None:
    several, alone = planner(kind, samples=4), planner(kind)
    noise, known = noise_of(several), context()
    plans = []
    for k in range(4):
        single = {"start": noise["start"][:, k : k + 1], "steps": noise["steps"][:, :, k : k + 1]}
        plans.append(alone.plan(known, single))
    stacked = torch.stack(plans, 1)  # (n, samples, horizon, act)
    error = (stacked[:, :, : HISTORY - 1] - known.past_action[:, None]).square().mean((2, 3))
    expected = stacked[torch.arange(N), error.argmin(1)]
    torch.testing.assert_close(several.plan(known, noise), expected, rtol=0, atol=1e-10)

    for planted in range(4):  # what was executed is what one of them says
        past = stacked[:, planted, : HISTORY - 1]
        told = Context(**{**vars(known), "past_action": past})
        found = several.plan(told, noise)
        torch.testing.assert_close(found, stacked[:, planted], rtol=0, atol=1e-10)


def test_only_what_was_trained_and_has_been_is_compared() -> None:
    noise = noise_of(planner(samples=4))
    known = context()
    stacked = {m: planner(samples=4, past_steps=m).plan(known, noise) for m in (-1, 1)}
    older = Context(**{**vars(known), "past_action": known.past_action.clone()})
    older.past_action[:, 0] = -older.past_action[:, 0].sign()
    again = planner(samples=4, past_steps=1).plan(older, noise)
    assert torch.equal(again, stacked[1])
    assert not torch.equal(planner(samples=4).plan(older, noise), stacked[-1])
    # Before the first action the first sample is as good as any.
    first = {k: v[:, :1] if k == "start" else v[:, :, :1] for k, v in noise.items()}
    found = planner(samples=4).plan(context(past_real=0.0), noise)
    torch.testing.assert_close(found, planner().plan(context(), first), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_one_sample_is_diffusion_policy_to_the_bit(kind: str) -> None:
    made = planner(kind)
    plain = ChunkPlanner(made.net, GENERATION, OBS, ACT, HORIZON)
    noise = noise_of(made)
    squeezed = {k: v.squeeze(1 if k == "start" else 2) for k, v in noise.items()}
    assert torch.equal(made.plan(context(), noise), plain.plan(context(), squeezed))


def test_a_plan_s_past_is_compared_with_the_steps_that_it_is_of() -> None:
    # Four plans tell of the same sequence, one of them in step with what was executed, the others
    # late by one, early by one, and reversed.
    sequence = torch.arange(-4, 6, dtype=torch.float64) / 10
    starts = [1, 0, 2]
    plans = torch.stack([sequence[s : s + HORIZON] for s in starts])[..., None].repeat(1, 1, ACT)
    plans = torch.cat([plans, plans[:1].flip(1)])
    made = planner(samples=4)
    run = lambda denoise, noise: Sample(plans.repeat(N, 1, 1), 1)  # noqa: E731
    made.generation = SimpleNamespace(run=run, denoiser=lambda *_: None)  # type: ignore[assignment]
    known = context()
    executed = plans[:1, : HISTORY - 1].repeat(N, 1, 1)
    start = torch.zeros(N, 4, HORIZON, ACT)
    found = made.plan(Context(**{**vars(known), "past_action": executed}), {"start": start})
    assert torch.equal(found, plans[:1].repeat(N, 1, 1))


def scaled(data: OfflineDataset, factor: float) -> OfflineDataset:
    episodes = [data.episode(e) for e in range(data.num_episodes)]
    return OfflineDataset.from_episodes(
        [
            {
                "obs": e["obs"],
                "action": factor * e["action"],
                "reward": e["reward"],
                "terminated": bool(e["terminated"][-1]),
                "truncated": bool(e["truncated"][-1]),
            }
            for e in episodes
        ],
        name="scaled",
    )


def test_the_choice_does_not_depend_on_the_units_of_actions() -> None:
    played = []
    for factor in (1.0, 0.125):
        data = scaled(walk(), factor)
        config = small_config("ptp", samples=3, execute=1, history=3, horizon=5)
        agent, replay = build("ptp", data, dtype=torch.float64, config=config)
        updates(agent, replay, 3)
        policy = agent.policy()
        state = policy.start(2)
        actions = []
        for t in range(5):
            obs = np.full((2, OBS), 0.3 * t, np.float32)
            action, state = policy.act(obs, state)
            actions.append(action / factor)
        played.append(np.stack(actions))
    np.testing.assert_allclose(played[0], played[1], rtol=0, atol=1e-5)


def test_a_planner_is_made_again_from_its_spec() -> None:
    encoder = Encoder(OBS, 6, 4, Learners((1,)))
    sizes: dict[str, Any] = {"obs_dim": OBS, "act_dim": ACT, "horizon": HORIZON}
    made = PastPlanner(
        backbone("transformer", 4), GENERATION, encoder, **sizes, samples=2, past_steps=1
    )
    again = planner_from_spec(made.spec())
    assert isinstance(again, PastPlanner)
    again.load_state_dict(made.state_dict())
    noise = noise_of(made)
    plans = [p.double().plan(context(), noise) for p in (made, again)]
    assert torch.equal(*plans) and again.spec() == made.spec()


# -- the encoder, frozen, and its features kept ---------------------------------------------------


def encoder_policy(tmp_path: Any, **changes: Any) -> str:
    config = small_config("ptp", **{"embedding": 4, "history": 1, **changes})
    agent, replay = build("ptp", walk(), (7,), torch.float32, config=config)
    updates(agent, replay, 3)
    agent.policy().save(tmp_path / "short")
    return str(tmp_path / "short")


def test_a_frozen_encoder_s_features_stand_in_the_rows(tmp_path: Any) -> None:
    path = encoder_policy(tmp_path)
    config = small_config("ptp", encoder=path, history=3)
    agent, replay = build("ptp", walk(), (0,), torch.float32, config=config)
    raw, _ = build("ptp", walk(), (0,), torch.float32, config=small_config("ptp", history=3))
    windows = raw.view(walk())
    row = replay.index[::7]
    from offrl.policy import load_policy

    policy = load_policy(path)
    obs = windows.sample(row).obs * windows.obs_std + windows.obs_mean
    mean, std = torch.from_numpy(policy.obs_mean), torch.from_numpy(policy.obs_std)
    expected = policy.actor.encoder((obs - mean) / std)
    torch.testing.assert_close(replay.sample(row).obs, expected, rtol=0, atol=1e-5)
    for name in ("action", "real"):
        left, right = getattr(replay.sample(row), name), getattr(windows.sample(row), name)
        assert torch.equal(left, right)
    assert replay.fingerprint != windows.fingerprint
    # Training leaves the encoder as it is, and the policy takes it along.
    before = {k: v.clone() for k, v in agent.encoder.state_dict().items()}
    updates(agent, replay, 3)
    kept = agent.policy().actor.encoder.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in before.items())
    np.testing.assert_array_equal(agent.policy().obs_mean, policy.obs_mean)


def test_a_run_finds_its_encoder_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder_policy(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = {**narrow("ptp"), "encoder": "short", "history": 3, "steps": 2, "batch_size": 4}
    train("ptp", walk(), env=None, out=tmp_path / "run", device="cpu", **settings)
    monkeypatch.chdir("/")
    resume_run(tmp_path / "run", dataset=walk())


def test_what_cannot_be_an_encoder_is_refused(tmp_path: Any) -> None:
    without, _ = build("ptp", walk(), (0,), torch.float32)
    without.policy().save(tmp_path / "plain")
    with pytest.raises(ConfigError, match="has no encoder: name the policy of a run"):
        build("ptp", walk(), config=small_config("ptp", encoder=str(tmp_path / "plain")))
    path = encoder_policy(tmp_path)
    with pytest.raises(ConfigError, match="leave embedding at 0"):
        small_config("ptp", encoder=path, embedding=3)
    with pytest.raises(ConfigError, match="no past action to compare; set samples to 1"):
        small_config("ptp", samples=2, past_steps=0)
