"""Windows of features: a frozen encoder's, computed once for every row."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from offrl.datasets.rows import CHUNK
from offrl.datasets.windows import Windows


def embedded(
    view: Windows,
    encode: Callable[[Float[Tensor, "rows obs"]], Float[Tensor, "rows features"]],
    name: str,
) -> Windows:
    """The same windows, their observations replaced by what `encode` makes of the raw ones.

    Long histories then cost as little to train on as the features are small. The view's maps of
    observations are the identity from here on, and `name`, of the encoder, is in its fingerprint.
    """
    o = len(view.obs_mean)
    with torch.no_grad():
        starts = range(0, len(view.rows), CHUNK)
        parts = [encode(view.rows[i : i + CHUNK, :o]).to(view.rows) for i in starts]
        following = None if view.next_obs is None else encode(view.next_obs).to(view.rows)
    features = torch.cat(parts)
    rest = view.rows[:, o:]
    return replace(
        view,
        rows=torch.cat([features, rest], 1),
        obs_mean=torch.zeros(features.shape[1]),
        obs_std=torch.ones(features.shape[1]),
        next_obs=following,
        fingerprint=f"{view.fingerprint}/features {name}",
    )
