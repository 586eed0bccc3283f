"""Networks of a policy that is conditioned on a latent of the future (Dichotomy of Control).

    policy      pi(s_i, z) = tanh(net([h_i, z]))            h_i: what is known when a_i is due
    prior       p(z | h_t)                                  of latents that are formed at t
    value       V(h_t, z)                                   standardised return from t on
    posterior   q(z | h_t, s_t, a_t, r_t, .., s_(t+F-1), a_(t+F-1), r_(t+F-1))
    energy      u(r_i, s_(i+1), z, h_i, a_i) = <f([h_i, a_i, z]), g([r_i, s_(i+1)])> / sqrt(n)

What is known of the past, h, comes of one of two backbones: `gpt` reads s, a, r, s, a, r, .. in
the order of time and answers at each s (three of them, as published: for the policy, for prior and
value, and for the posterior); `mlp` lays the last `past` steps beside s, with the time, without
which a return that is still to come could not be told from one of a later step, and has no
parameters, so that learners stack. Nothing of step i but s_i and its time is in h_i.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from offrl.attention import GPT
from offrl.initial import redraw
from offrl.latents import Kind, latents_of
from offrl.networks import MLP, Learners
from offrl.types import SegmentBatch

Backbone = Literal["gpt", "mlp"]
SPREAD = 0.02  # of the weights of GPT's blocks when training begins


class Segment(NamedTuple):
    """Steps in a row as networks read them; the last ones' actions and rewards may be unknown."""

    obs: Float[Tensor, "*seed batch steps obs"]
    action: Float[Tensor, "*seed batch steps act"]
    reward: Float[Tensor, "*seed batch steps"]
    real: Float[Tensor, "*seed batch steps"]
    time: Int[Tensor, "*seed batch steps"]


def segment_of(batch: SegmentBatch) -> Segment:
    """All steps of a batch."""
    return Segment(batch.obs, batch.action, batch.reward, batch.real, batch.time)


def before(batch: SegmentBatch, past: int) -> Segment:
    """The steps of a batch up to now: its first `past`, and that of now."""
    axis = batch.real.ndim - 1
    return Segment(*(x.narrow(axis, 0, past + 1) for x in segment_of(batch)))


def told(segment: Segment) -> Float[Tensor, "*seed batch steps features"]:
    """Observation, action, reward and a 1 of each real step, and zeros of the others."""
    one = torch.ones_like(segment.reward)
    columns = [segment.obs, segment.action, torch.stack([segment.reward, one], -1)]
    return torch.cat(columns, -1) * segment.real[..., None]


class FlatHistory(nn.Module):
    """h_i = [told of steps i - past .. i - 1, s_i, min(time_i / (max_steps - 1), 1)].

    With a max_steps of 1 all steps have the same time, and h says nothing of it.
    """

    def __init__(self, obs_dim: int, act_dim: int, past: int, max_steps: int) -> None:
        super().__init__()
        self.past, self.last_time = past, max_steps - 1
        self.size = past * (obs_dim + act_dim + 2) + obs_dim + min(self.last_time, 1)

    def forward(self, segment: Segment, count: int) -> Float[Tensor, "*seed batch count size"]:
        """h of the last `count` steps, before which there are at least `past`."""
        known, steps = told(segment), segment.obs.shape[-2]
        first = steps - count
        before = [known[..., first - j : steps - j, :] for j in range(self.past, 0, -1)]
        now = segment.obs[..., first:, :]
        if not self.last_time:
            return torch.cat([*before, now], -1)
        clock = (segment.time[..., first:, None].to(now) / self.last_time).clamp(max=1.0)
        return torch.cat([*before, now, clock], -1)


class TokenHistory(nn.Module):
    """h_i = GPT(.., s_(i-1), a_(i-1), r_(i-1), s_i), which sees no padding."""

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        learners: Learners,
        *,
        layers: int,
        heads: int,
        width: int,
        max_steps: int,
    ) -> None:
        super().__init__()
        self.size = width
        self.obs, self.action = nn.Linear(obs_dim, width), nn.Linear(act_dim, width)
        self.reward, self.time = nn.Linear(1, width), nn.Embedding(max_steps, width)
        self.norm = nn.LayerNorm(width)
        self.gpt = GPT(width, layers, heads, "relu")
        redraw(self, learners)
        redraw(self.gpt, learners, SPREAD)

    def forward(self, segment: Segment, count: int) -> Float[Tensor, "batch count size"]:
        """h of the last `count` steps."""
        return self.tokens(segment)[:, -count:, 0]

    def tokens(self, segment: Segment) -> Float[Tensor, "batch steps 3 size"]:
        """What is known at each of s, a and r."""
        time = self.time(segment.time.clamp(max=self.time.num_embeddings - 1))
        parts = (
            self.obs(segment.obs),
            self.action(segment.action),
            self.reward(segment.reward[..., None]),
        )
        x = self.norm(torch.stack(parts, 2) + time[:, :, None])
        real = segment.real.repeat_interleave(3, 1)
        y: Tensor = self.gpt(x.flatten(1, 2), real).unflatten(1, (-1, 3))
        return y


class FlatReader(nn.Module):
    """[h_t, told of steps t .. t + future - 1]."""

    def __init__(self, history: FlatHistory, step: int, future: int) -> None:
        super().__init__()
        self.history, self.future = history, future
        self.size = history.size + future * step

    def forward(self, segment: Segment) -> Float[Tensor, "*seed batch size"]:
        now = self.history(segment, self.future)[..., 0, :]
        return torch.cat([now, told(segment)[..., -self.future :, :].flatten(-2)], -1)


class TokenReader(nn.Module):
    """Mean over the real tokens from now on of a GPT that has read the past as well."""

    def __init__(self, history: TokenHistory, future: int) -> None:
        super().__init__()
        self.history, self.future, self.size = history, future, history.size

    def forward(self, segment: Segment) -> Float[Tensor, "batch size"]:
        y = self.history.tokens(segment)[:, -self.future :]
        real = segment.real[:, -self.future :, None, None]
        return (y * real).sum((1, 2)) / (3.0 * real.sum((1, 2)))


def over_rows(net: MLP, x: Float[Tensor, "*axes features"]) -> Float[Tensor, "*axes outputs"]:
    """The net on all axes between those of learners and features as one batch."""
    first = net[0]
    seeds = first.weight.ndim - 2 if isinstance(first.weight, Tensor) else 0
    rows: Tensor = net(x.reshape(*x.shape[:seeds], -1, x.shape[-1]))
    return rows.reshape(*x.shape[:-1], -1)


def with_latents(
    h: Float[Tensor, "*batch steps size"], z: Float[Tensor, "*batch draws latent"]
) -> Float[Tensor, "*batch steps draws both"]:
    """Each of several features of a sample with each of its latents."""
    steps, draws = h.shape[-2], z.shape[-2]
    left = h[..., :, None, :].expand(*h.shape[:-1], draws, h.shape[-1])
    right = z[..., None, :, :].expand(*z.shape[:-2], steps, *z.shape[-2:])
    return torch.cat([left, right], -1)


class LatentPlanner(nn.Module):
    """Prior over latents, and the return that each is good for."""

    def __init__(
        self, history: FlatHistory | TokenHistory, prior: int, latent: int, *, learners: Learners,
        hidden: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        self.history = history
        self.prior = MLP([history.size, *hidden, prior], learners)
        self.value = MLP([history.size + latent, *hidden, 1], learners)

    def forward(
        self, h: Float[Tensor, "*batch size"], z: Float[Tensor, "*batch draws latent"]
    ) -> Float[Tensor, "*batch draws"]:
        """V(h, z)."""
        return over_rows(self.value, with_latents(h[..., None, :], z))[..., 0, :, 0]


class LatentActor(nn.Module):
    """What acts: the policy, and the prior and value by which it chooses a latent.

    `reward_map` and `return_map` hold mean and deviation of the data's rewards and returns.
    """

    reward_map: Tensor
    return_map: Tensor

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        learners: Learners,
        *,
        backbone: Backbone,
        latents: Kind,
        latent: int,
        past: int,
        hidden: tuple[int, ...] | list[int],
        layers: int = 3,
        heads: int = 1,
        width: int = 128,
        max_steps: int = 1000,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"obs_dim": obs_dim, "act_dim": act_dim, "backbone": backbone, "latents": latents},
            **{"latent": latent, "past": past, "hidden": list(hidden), "layers": layers},
            **{"heads": heads, "width": width, "max_steps": max_steps},
        }
        self.latents = latents_of(latents, latent)
        self.history = self.reads(learners)
        self.head = MLP([self.history.size + latent, *hidden, act_dim], learners)
        self.planner = LatentPlanner(
            self.reads(learners),
            self.latents.parameters,
            latent,
            learners=learners,
            hidden=tuple(hidden),
        )
        self.register_buffer("reward_map", torch.tensor([0.0, 1.0]))
        self.register_buffer("return_map", torch.tensor([0.0, 1.0]))

    def reads(self, learners: Learners) -> FlatHistory | TokenHistory:
        """A new network that reads the past, in the form of the others."""
        s = self.settings
        if s["backbone"] == "mlp":
            return FlatHistory(s["obs_dim"], s["act_dim"], s["past"], s["max_steps"])
        sizes = {name: s[name] for name in ("layers", "heads", "width", "max_steps")}
        return TokenHistory(s["obs_dim"], s["act_dim"], learners, **sizes)

    def acts(
        self, h: Float[Tensor, "*batch steps size"], z: Float[Tensor, "*batch draws latent"]
    ) -> Float[Tensor, "*batch steps draws act"]:
        """pi(s_i, z) for several steps and latents."""
        return torch.tanh(over_rows(self.head, with_latents(h, z)))

    def act(self, segment: Segment, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch act"]:
        """The action of the last step, whose own action and reward are not looked at."""
        return self.acts(self.history(segment, 1), z[:, None])[:, 0, 0]

    def choose(
        self,
        segment: Segment,
        noise: Float[Tensor, "batch draws latent"] | None,
        target: Float[Tensor, " batch"],
        mass: float,
        least: float,
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, " batch"]]:
        """The candidate of the prior at the last step of most value, and that value.

        Where there is a target, the one whose value is nearest to it. Values and targets are
        returns in the environment's units; a target of nan is none.
        """
        h = self.planner.history(segment, 1)[:, 0]
        prior = self.planner.prior(h)
        z, allowed = self.latents.candidates(prior, noise, mass, least)
        mean, std = self.return_map
        value = mean + std * self.planner(h, z)
        wish = torch.where(target.isnan()[:, None], value, -(value - target[:, None]).abs())
        best = wish.masked_fill(~allowed, -torch.inf).argmax(-1, keepdim=True)
        return z.take_along_dim(best[..., None], 1)[:, 0], value.take_along_dim(best, 1)[:, 0]

    def spec(self) -> dict[str, Any]:
        return {"type": type(self).__name__, **self.settings}


class Posterior(nn.Module):
    """Parameters of q(z | past, future)."""

    def __init__(
        self, actor: LatentActor, learners: Learners, future: int, hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        history, s = actor.reads(learners), actor.settings
        self.reader: FlatReader | TokenReader
        if isinstance(history, TokenHistory):
            self.reader = TokenReader(history, future)
        else:
            self.reader = FlatReader(history, s["obs_dim"] + s["act_dim"] + 2, future)
        self.head = MLP([self.reader.size, *hidden, actor.latents.parameters], learners)

    def forward(self, segment: Segment) -> Float[Tensor, "*seed batch parameters"]:
        return over_rows(self.head, self.reader(segment))


class Energy(nn.Module):
    """u of outcomes (r, s') and what they may depend on."""

    def __init__(
        self, context: int, obs_dim: int, features: int, hidden: tuple[int, ...], learners: Learners
    ) -> None:
        super().__init__()
        self.context = MLP([context, *hidden, features], learners)
        self.outcome = MLP([1 + obs_dim, *hidden, features], learners)

    def forward(
        self,
        known: Float[Tensor, "*seed batch steps draws context"],
        reward: Float[Tensor, "*seed batch steps"],
        next_obs: Float[Tensor, "*seed batch steps obs"],
    ) -> tuple[
        Float[Tensor, "*seed batch steps draws"], Float[Tensor, "*seed batch steps draws o"]
    ]:
        """u of each step with its own outcome, and with those of that step in all of the batch."""
        left = over_rows(self.context, known)
        right = over_rows(self.outcome, torch.cat([reward[..., None], next_obs], -1))
        scale = left.shape[-1] ** -0.5
        pair = scale * (left * right[..., None, :]).sum(-1)
        return pair, scale * torch.einsum("...bsnf,...csf->...bsnc", left, right)
