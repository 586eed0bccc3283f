"""What a critic's last features look like: BEER's bound on their cosine, and their rank.

The features phi are the activations before the critic's last layer, Q = w' phi. Where the Bellman
equation r = w' (phi - gamma phi') holds, Cauchy and Schwarz give |r| <= |w| |phi - gamma phi'|,
and squaring bounds how alike the features of consecutive pairs can be:

    cos(phi, phi') <= (|phi|^2 + gamma^2 |phi'|^2 - r^2 / |w|^2) / (2 gamma |phi| |phi'|)

BEER (He et al., ICLR 2024, arXiv:2404.12754) adds beta E[relu(cos - bound)] to the critic's loss:
it pushes features apart only where they are more alike than the equation allows. The bound is a
constant for the gradient. In the authors' code phi' has two meanings: pi(s') from the online
networks in the numerator, the targets' in the denominator and in the cosine. That form is the one
used here. Their gamma is written as 0.99; here it is the agent's. pi(s) is the action that the
policy plays at evaluation, and an agent without a target policy has its policy's in both places.
A terminal transition has no consecutive pair, and no penalty; the tasks of the paper never end.
Where the term is added, the critics' own error is a metric beside their loss, `td_error`; without
it the two are the same. Validation reports that error, whatever the settings.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.critics import Critic, td_regression
from offrl.types import Batch, Metrics

EPS = 1e-6  # below which a norm counts as zero, as in the authors' code
ENERGY = 0.01  # share of the singular values' sum that the rank may miss


@runtime_checkable
class Regularised(Protocol):
    """An agent with a policy and critics, whose settings have `gamma` and BEER's beta, `beer`."""

    @property
    def config(self) -> Any: ...
    @property
    def actor(self) -> Any: ...
    @property
    def critic(self) -> Critic: ...
    @property
    def critic_target(self) -> Critic: ...


def critic_regression(
    agent: Regularised, batch: Batch, target: Float[Tensor, "*seed batch"]
) -> tuple[Float[Tensor, "*seed"], Metrics]:
    """`td_regression` of the agent's critics to this target, with BEER's term; they pass once."""
    features = agent.critic.features(batch.obs, batch.action)
    return with_beer(agent, batch, features, *td_regression(agent.critic.read(features), target))


def held_out_error(regression: tuple[Float[Tensor, "*seed"], Metrics]) -> Metrics:
    """Of the critics' loss and its metrics on held-out transitions: TD error and mean Q."""
    loss, metrics = regression
    return {"td_error": metrics.get("td_error", loss), "q": metrics["q_data"]}


def with_beer(
    agent: Regularised,
    batch: Batch,
    features: Float[Tensor, "ensemble *seed batch features"],
    loss: Float[Tensor, "*seed"],
    metrics: Metrics,
    share: float = 1.0,
) -> tuple[Float[Tensor, "*seed"], Metrics]:
    """The critics' loss and its metrics, with BEER's term where `config.beer` is not 0.

    `features` are those of (s, a), from which the loss was read: the critics pass once. The loss
    is one that is summed over the critics: each critic's own gets its own penalty. `share` is
    what such a loss has of each, 1 / K where it is the mean of K.
    """
    if not agent.config.beer:
        return loss, metrics
    penalty, measured = _penalty(agent, batch, features)
    measured["td_error"] = loss
    return loss + share * agent.config.beer * penalty.mean(-1), {**metrics, **measured}


def measured_representation(agent: Any, batch: Batch) -> Metrics:
    """Cosine, bound and rank of the first critic's features, for an agent that uses BEER."""
    if not getattr(agent.config, "beer", 0.0):
        return {}
    features = agent.critic.features(batch.obs, batch.action)
    _, measured = _penalty(agent, batch, features)
    return {**measured, "feature_rank": representation_rank(features[0])}


def _penalty(
    agent: Regularised, batch: Batch, features: Float[Tensor, "ensemble *seed batch features"]
) -> tuple[Float[Tensor, "*seed batch"], Metrics]:
    with torch.no_grad():
        next_action = agent.actor.mode(batch.next_obs)
        target_actor = getattr(agent, "actor_target", agent.actor)
        target_action = target_actor.mode(batch.next_obs)
    return beer_penalty(
        *(agent.critic, agent.critic_target, batch, features, next_action, target_action),
        agent.config.gamma,
    )


def feature_cosine(
    features: Float[Tensor, "*lead features"], other: Float[Tensor, "*lead features"]
) -> Float[Tensor, "*lead"]:
    """x'y / (|x| |y|); features that are all zero have cosine 0."""
    product = (features * other).sum(-1)
    return product / (_norm(features) * _norm(other))


def feature_cosine_bound(
    features: Float[Tensor, "ensemble *seed batch features"],
    next_features: Float[Tensor, "ensemble *seed batch features"],
    target_features: Float[Tensor, "ensemble *seed batch features"],
    reward: Float[Tensor, "*seed batch"],
    weight: Float[Tensor, "ensemble *seed features 1"],
    gamma: float,
    consistent: bool = False,
) -> Float[Tensor, "ensemble *seed batch"]:
    """(|phi|^2 + gamma^2 |phi'|^2 - r^2 / |w|^2) / (2 gamma |phi| |phi'_target|).

    phi' is `next_features`, of the online networks, as in BEER's code (see above); `consistent`
    takes `target_features` there too, so that the bound is the one of the inequality. The bound
    may lie below -1 or above 1.
    """
    following = target_features if consistent else next_features
    head = weight.square().sum((-2, -1)).clamp(min=EPS**2).unsqueeze(-1)
    size = features.square().sum(-1) + gamma**2 * following.square().sum(-1)
    return (size - reward.square() / head) / (
        2.0 * max(gamma, EPS) * _norm(features) * _norm(target_features)
    )


def beer_penalty(
    critic: Critic,
    critic_target: Critic,
    batch: Batch,
    features: Float[Tensor, "ensemble *seed batch features"],
    next_action: Float[Tensor, "*seed batch act"],
    target_action: Float[Tensor, "*seed batch act"],
    gamma: float,
) -> tuple[Float[Tensor, "*seed batch"], Metrics]:
    """BEER's penalty per sample, summed over the ensemble, and what to report of it.

    `features` are phi(s, a); `next_action` is the policy's at s', which the online critic sees,
    `target_action` the one that its target sees. The gradient passes through the features in
    the cosine alone. Reported are the first member's mean cosine and bound over the batch.
    """
    with torch.no_grad():
        target_features = critic_target.features(batch.next_obs, target_action)
        next_features = critic.features(batch.next_obs, next_action)
        bound = feature_cosine_bound(
            features, next_features, target_features, batch.reward, critic.head.weight, gamma
        )
    cosine = feature_cosine(features, target_features)
    penalty = (batch.mask * (cosine - bound).relu()).sum(0)
    measured = {"feature_cosine": cosine[0].mean(-1), "cosine_bound": bound[0].mean(-1)}
    return penalty, measured


def representation_rank(
    features: Float[Tensor, "*lead batch features"],
) -> Float[Tensor, "*lead"]:
    """srank: the least k with sigma_1 + ... + sigma_k >= 0.99 (sigma_1 + ... + sigma_n).

    sigma are the singular values of the feature matrix, in descending order; a matrix of zeros has
    rank 0. Source: Kumar et al., arXiv:2010.14498, section 3, with their threshold of 0.01.
    """
    sigma: Tensor = torch.linalg.svdvals(features)
    reached = sigma.cumsum(-1) >= (1.0 - ENERGY) * sigma.sum(-1, keepdim=True)
    rank = sigma.shape[-1] + 1 - reached.sum(-1)
    return torch.where(sigma[..., 0] > 0, rank, 0).to(features)


def _norm(x: Float[Tensor, "*lead features"]) -> Float[Tensor, "*lead"]:
    # Clamped beneath the root: there the gradient of a zero vector is 0 and not 0 / 0.
    return x.square().sum(-1).clamp(min=EPS**2).sqrt()
