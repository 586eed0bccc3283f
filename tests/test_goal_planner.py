"""Plans towards a goal: what is known stays known, what is hidden has no influence."""

from dataclasses import replace

import pytest
import torch
from problems import build, small_config, walk
from torch import Tensor

from offrl.backbones import Blocks
from offrl.denoising import Number, Point
from offrl.errors import ConfigError
from offrl.generation import Generation, by_step
from offrl.goal_planner import GoalPlanner, goal_backbone
from offrl.guidance import blend
from offrl.networks import Learners
from offrl.planners import planner_from_spec
from offrl.processes import DDPM, EDM
from offrl.types import Context, Noise

N, HISTORY, OBS, ACT, TIMES, SIZE, ACHIEVED = 4, 3, 5, 2, 2, 2, 1
PROCESS = EDM(0.5, 0.05, 1.0, "linear", density="loglogistic")
KINDS: list[Blocks | None] = [None, "film"]


def planner(
    blocks: Blocks | None, guidance: float = 1.0, noised: bool = False, sampler: str = "ddim"
) -> GoalPlanner:
    sizes = {"history": HISTORY, "act_dim": ACT, "obs_dim": OBS, "goal": (TIMES, SIZE)}
    sizes |= {"width": 12, "depth": 2, "heads": 2, "steps": None}
    net = goal_backbone(blocks, learners=Learners((2,)), **sizes)  # type: ignore[arg-type]
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.4, torch.Generator().manual_seed(parameter.numel()))
    generation = Generation(PROCESS, sampler, 3, clip=None)
    return GoalPlanner(net, generation, OBS, ACT, HISTORY, ACHIEVED, guidance, noised).double()


def context() -> Context:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(N, *shape, generator=draw, dtype=torch.float64)

    real = torch.ones(N, HISTORY, dtype=torch.float64)
    real[0, :2] = 0.0  # the first step of an episode
    past = normal(HISTORY - 1, ACT).clamp(-0.9, 0.9)
    return Context(
        obs=normal(HISTORY, OBS),
        obs_real=real,
        past_action=past,
        past_real=real[:, :-1],
        goal=normal(TIMES, SIZE),
        goal_real=torch.ones(N, dtype=torch.float64),
    )


def noise_of(made: GoalPlanner) -> Noise:
    draw = torch.Generator().manual_seed(1)
    shapes = made.noise().items()
    return {k: torch.randn(N, *s, generator=draw, dtype=torch.float64) for k, s in shapes}


def plan(made: GoalPlanner, known: Context) -> Tensor:
    return made.plan(known, noise_of(made))


@pytest.mark.parametrize("blocks", KINDS)
def test_neutral_weights_change_nothing(blocks: Blocks | None) -> None:
    made, known = planner(blocks), context()
    toward = made._under(known, known.goal_real)
    free = made._under(known, torch.zeros(N, dtype=torch.float64))
    for weight in (0.0, 1.0):
        made.guidance = weight
        start = by_step(noise_of(made))
        # The guided denoiser itself, at its neutral weights, and what is run in its place.
        guided = made.generation.run(blend(free, toward, weight), start)
        assert torch.equal(made.generation.run(made._denoise(known), start).x, guided.x)
    made.guidance = 1.0
    unguided = made.generation.run(toward, by_step(noise_of(made))).x
    assert not torch.equal(unguided, made.generation.run(free, by_step(noise_of(made))).x)
    hidden = replace(known, goal_real=torch.zeros(N, dtype=torch.float64))
    assert torch.equal(plan(made, hidden), plan(planner(blocks, 0.0), known))
    # Without a goal there is nothing to guide by, whatever the weight.
    torch.testing.assert_close(plan(planner(blocks, 3.0), hidden), plan(made, hidden))


@pytest.mark.parametrize("blocks", KINDS)
def test_no_goal_is_not_a_goal_of_zeros(blocks: Blocks | None) -> None:
    made, known = planner(blocks), context()
    none = replace(known, goal_real=torch.zeros(N, dtype=torch.float64))
    zeros = replace(known, goal=torch.zeros_like(known.goal))
    assert torch.equal(plan(made, none), plan(made, replace(none, goal=-3.0 * known.goal)))
    difference = (plan(made, none) - plan(made, zeros))[:, -1].abs().amax(-1)
    assert (difference > 1e-6).all()
    assert not torch.equal(plan(made, zeros), plan(made, known))


@pytest.mark.parametrize("blocks", KINDS)
def test_steps_before_the_episode_have_no_influence(blocks: Blocks | None) -> None:
    made, known = planner(blocks), context()
    obs, past = known.obs.clone(), known.past_action.clone()
    obs[0, :2], past[0, :2] = 7.0, 0.5
    changed = replace(known, obs=obs, past_action=past)
    newest = plan(made, known)[:, -1]
    torch.testing.assert_close(plan(made, changed)[:, -1], newest, rtol=0, atol=1e-12)
    obs[1, 0] = 7.0
    assert not torch.equal(plan(made, replace(known, obs=obs))[1, -1], newest[1])


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "heun", "dpm2"])
@pytest.mark.parametrize("blocks", KINDS)
def test_past_actions_are_what_was_done_and_matter(blocks: Blocks | None, sampler: str) -> None:
    made, known = planner(blocks, sampler=sampler), context()
    found = plan(made, known)
    assert torch.equal(found[:, :-1], known.past_action)
    other = replace(known, past_action=-known.past_action)
    assert not torch.equal(plan(made, other)[1:, -1], found[1:, -1])
    assert found.abs().max() <= 1.0


@pytest.mark.parametrize("noised", [False, True])
def test_how_the_past_enters(noised: bool) -> None:
    made, known = planner("film", noised=noised), context()
    noise, seen = noise_of(made), []
    hook = made.net.register_forward_hook(lambda _, given, out: seen.append(given))
    made.plan(known, noise)
    hook.remove()
    eps = noise["past"][:, :-1] if noised else torch.zeros_like(known.past_action)
    for (x, level, *_), sigma in zip(seen, (1.0, 0.525, 0.05), strict=True):
        expected = (known.past_action + sigma * eps) / (sigma**2 + 0.25) ** 0.5
        torch.testing.assert_close(x[1:, :-1], expected[1:], rtol=0, atol=1e-12)
        torch.testing.assert_close(level, torch.full_like(level, sigma).log() / 4)


@pytest.mark.parametrize(("guidance", "passes"), [(0.0, 3), (1.0, 3), (1.5, 6)])
def test_evaluations_are_three_and_twice_as_many_if_guided(guidance: float, passes: int) -> None:
    made, count = planner(None, guidance), []
    made.net.register_forward_hook(lambda *_: count.append(1))
    start = by_step(noise_of(made))
    sample = made.generation.run(made._denoise(context()), start)
    assert sample.evaluations == passes == len(count)


def test_guidance_moves_in_a_straight_line_and_is_bounded_after() -> None:
    known = context()
    x = torch.randn(N, HISTORY, ACT, dtype=torch.float64)
    point = Point(0.7, 1.0, 0.7)

    def believed(weight: float, clip: float | None = None) -> Tensor:
        made = planner("film", weight)
        made.generation = replace(made.generation, clip=clip)
        return made._denoise(known)(x, point).x0

    free, toward = believed(0.0), believed(1.0)
    torch.testing.assert_close(believed(2.5), free + 2.5 * (toward - free))
    torch.testing.assert_close(believed(2.5, 0.3), believed(2.5).clamp(-0.3, 0.3))
    evaluations: Number = planner("film", 2.5)._denoise(known)(x, point).evaluations
    assert evaluations == 2


@pytest.mark.parametrize("blocks", KINDS)
@pytest.mark.parametrize("process", [PROCESS, DDPM(20, spacing="leading")], ids=["edm", "ddpm"])
def test_a_planner_is_made_again_from_its_spec(blocks: Blocks | None, process: EDM | DDPM) -> None:
    made = planner(blocks, 1.5, True)
    made.generation = Generation(process, "ancestral", 4)
    again = planner_from_spec(made.spec())
    assert isinstance(again, GoalPlanner) and again.spec() == made.spec()
    again.load_state_dict(made.state_dict())
    assert torch.equal(plan(again.double(), context()), plan(made, context()))


def test_the_learning_rate_falls_with_every_hundred_updates() -> None:
    agent, _ = build("beso", walk(), config=small_config("beso", lr=1e-3, lr_decay=0.5))
    (optimizer,) = agent.optimizers().values()
    for step, rate in ((0, 1e-3), (100, 5e-4), (150, 1e-3 * 0.5**1.5), (300, 1.25e-4)):
        agent.schedule(step, 1_000)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(rate)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"BESOConfig.sampler_steps is 30; .* \[1, 20\]"):
        small_config("beso", process="ddpm", levels=20, sampler_steps=30)
    with pytest.raises(ConfigError, match=r"BESOConfig.sigma_max is 0.001; .*\(0.005, inf\)"):
        small_config("beso", sigma_max=0.001)
    with pytest.raises(ConfigError, match=r"BESOConfig.goal_dropout is 1.5"):
        small_config("beso", goal_dropout=1.5)
