"""What is known about flat data beside its columns: the environment, its bounds and limit."""

from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np

from offrl.datasets.flat import Episodes, FlatColumns, read_flat
from offrl.datasets.names import Layout, Named, layout_of
from offrl.datasets.offline import OfflineDataset, Reference, Spec
from offrl.datasets.screening import action_pair
from offrl.envs.references import reference_for
from offrl.errors import DataError

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Origin:
    """Where flat columns come from, as far as it is known or was said."""

    name: str
    named: Named | None = None  # the D4RL name of the file
    env_id: str | None = None  # as the user says
    default_env: str | None = None  # what env_id is where nothing tells the environment
    action_bounds: Bounds | None = None  # as the user says, for every component
    time_limit: int | None = None  # steps, as the user says
    infos: tuple[str, ...] = ()  # names of the file's further columns
    provenance: dict[str, Any] = field(default_factory=dict)

    def read(self, columns: FlatColumns) -> OfflineDataset:
        """The dataset of these columns, not yet screened."""
        layout = self._layout(columns)
        if self.default_env is not None and (self.env_id, self.named, layout) == (None, None, None):
            return replace(self, env_id=self.default_env, default_env=None).read(columns)
        low, high, limit = self._environment()
        if limit is None and layout is not None:
            limit = layout.time_limits[0]
        if low is None and layout is not None:
            low, high = -1.0, 1.0  # as in every environment of D4RL
        episodes = read_flat(columns, self.time_limit or limit)
        env_id, reference, provenance = self._identity(layout)
        if layout is not None and self.env_id is None:
            limit = layout.time_limit(int(episodes.lengths.max()))
        spec = self._spec(columns, episodes, low, high)
        if spec.action_kind == "box" and low is None:
            provenance["action_bounds"] = "not stated: [-1, 1] is assumed"
        return OfflineDataset(
            episodes.rows,
            episodes.starts,
            episodes.lengths,
            episodes.final_known,
            spec,
            name=self.name,
            env_id=env_id,
            reference=reference,
            time_limit=self.time_limit or limit,
            provenance={
                **self.provenance,
                **provenance,
                "timeouts_in_file": columns.timeouts is not None or columns.ends is not None,
            },
            problems=episodes.problems,
        )

    def _layout(self, columns: FlatColumns) -> Layout | None:
        shape = columns.actions.shape
        if self.named is not None or len(shape) != 2 or len(columns.observations.shape) != 2:
            return None
        return layout_of(self.infos, columns.observations.shape[1], shape[1])

    def _environment(self) -> tuple[Any, Any, int | None]:
        """Bounds of the actions (None: unknown; a count of discrete actions twice), and limit."""
        low: Any = None
        high: Any = None
        limit = None if self.named is None else self.named.time_limit
        if self.named is not None:
            low, high = -1.0, 1.0
        if self.env_id is not None:
            import gymnasium  # costs half a second, and most files need no environment

            from offrl.envs import make

            env = make(self.env_id)
            limit = None if env.spec is None else env.spec.max_episode_steps
            space = env.action_space
            env.close()
            if isinstance(space, gymnasium.spaces.Box):
                low, high = space.low.ravel(), space.high.ravel()
            elif isinstance(space, gymnasium.spaces.Discrete):
                low = high = int(space.n)
        if self.action_bounds is not None:
            low, high = action_pair(self.action_bounds)
        return low, high, limit

    def _identity(
        self, layout: Layout | None
    ) -> tuple[str | None, Reference | None, dict[str, Any]]:
        if self.env_id is not None:
            name = self.name if self.named is None else self.named.name
            return self.env_id, reference_for(self.env_id) or reference_for(name), {}
        if self.named is not None:
            record: dict[str, Any] = {"d4rl_name": self.named.name, "url": self.named.url}
            if self.named.differs is not None:
                record["nearest_environment"] = self.named.env_id
                record["differs"] = self.named.differs
            env_id = self.named.env_id if self.named.differs is None else None
            return env_id, reference_for(self.named.name), record
        if layout is not None:
            how = f"recognised by its dimensions and infos/{', infos/'.join(layout.infos)}"
            return layout.env_id, reference_for(layout.env_id), {"environment": how}
        return None, reference_for(self.name), {}

    def _spec(self, columns: FlatColumns, episodes: Episodes, low: Any, high: Any) -> Spec:
        obs_dim, act_dim = columns.observations.shape[1], episodes.rows.shape[1]
        act_dim -= obs_dim + 3
        unbounded = Spec.unbounded(obs_dim, act_dim)
        if len(columns.actions.shape) == 1 and self.action_bounds is None:
            n = low if isinstance(low, int) else int(episodes.rows[:, obs_dim].max()) + 1
            return Spec(unbounded.obs_low, unbounded.obs_high, (0.0,) * n, (1.0,) * n, "discrete")
        if low is None:
            return unbounded
        if isinstance(low, int):
            self._refuse(
                columns, f"actions: {low} discrete ones, dataset a vector of {act_dim} entries"
            )
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if low.ndim and low.shape != (act_dim,):
            self._refuse(columns, f"actions: {low.shape[0]} entries, dataset {act_dim}")
        bounds = (tuple(np.broadcast_to(b, (act_dim,)).tolist()) for b in (low, high))
        action_low, action_high = bounds
        return Spec(unbounded.obs_low, unbounded.obs_high, action_low, action_high)

    def _refuse(self, columns: FlatColumns, difference: str) -> NoReturn:
        raise DataError(
            f"{columns.source}: environment {self.env_id} does not match the dataset: "
            f"{difference}. Choose the environment that the data came from (env_id, or "
            "env of offrl.train; --env)"
        )
