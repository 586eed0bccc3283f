import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offrl import actors, policy, runtime
from offrl.actors import DeterministicActor, GaussianActor, SquashedGaussianActor
from offrl.datasets.offline import Spec
from offrl.errors import ConfigError, RunError
from offrl.networks import Learners

INF = float("inf")
SPEC = Spec((-INF,) * 11, (INF,) * 11, (-1.0, -2.0, 0.0), (1.0, 2.0, 1.0))

PREDICT = """
import sys
import numpy as np
import offrl.runtime
policy = offrl.runtime.load_policy(sys.argv[1])
action = policy.predict(np.linspace(-1, 1, 11))
heavy = {"torch", "gymnasium", "mujoco", "scipy", "matplotlib", "h5py", "minari", "jaxtyping"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(*action)
"""


def save(path: Path, kind: Any = DeterministicActor, **keywords: Any) -> policy.Policy:
    actor = kind(11, 3, [32, 32], Learners())
    if isinstance(actor, GaussianActor):
        with torch.no_grad():
            actor.spread.log_std[:] = torch.tensor([[-9.0, -1.0, 3.0]])
    g = np.random.default_rng(0)
    saved = policy.Policy(
        actor, SPEC, g.normal(size=11), g.uniform(0.5, 2.0, 11), {"agent": "td3_bc"}
    )
    saved.save(path)
    return saved


UNSQUASHED = partial(GaussianActor, squash_mean=False)


@pytest.mark.parametrize(
    "kind", [DeterministicActor, GaussianActor, UNSQUASHED, SquashedGaussianActor]
)
def test_numpy_and_torch_give_the_same_actions(tmp_path: Path, kind: Any) -> None:
    save(tmp_path / "policy", kind)
    theirs = policy.load_policy(tmp_path / "policy", seed=5)
    ours = runtime.load_policy(tmp_path, seed=5)
    obs = np.random.default_rng(1).normal(scale=3.0, size=(1000, 11))
    np.testing.assert_allclose(ours.predict(obs), theirs.predict(obs), atol=1e-5)
    np.testing.assert_allclose(ours.predict(obs[3]), theirs.predict(obs[3]), atol=1e-5)
    np.testing.assert_allclose(
        ours.predict(obs, deterministic=False), theirs.predict(obs, deterministic=False), atol=1e-5
    )
    a, _ = ours.act(obs, ours.start(1000), deterministic=False)
    b, _ = theirs.act(obs, theirs.start(1000), deterministic=False)
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert ours.provenance == {"agent": "td3_bc"}


def test_the_clamp_is_that_of_the_network() -> None:
    assert (runtime.LOG_STD_MIN, runtime.LOG_STD_MAX) == (
        actors.LOG_STD_MIN,
        actors.LOG_STD_MAX,
    )


def test_it_runs_where_torch_is_never_imported(tmp_path: Path) -> None:
    saved = save(tmp_path / "policy")
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = saved.predict(np.linspace(-1, 1, 11))
    np.testing.assert_allclose(np.array(done.stdout.split(), float), expected, atol=1e-5)


def test_other_actors_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    class Other(DeterministicActor):
        pass

    save(tmp_path / "other", Other)
    with pytest.raises(ConfigError, match="type 'Other', and offrl"):
        runtime.load_policy(tmp_path / "other")

    class Deeper(DeterministicActor):
        def spec(self) -> dict[str, Any]:
            return super().spec() | {"type": "DeterministicActor", "hidden": [32, 16]}

    save(tmp_path / "deeper", Deeper)
    with pytest.raises(RunError, match=r"'net.2.weight' is of shape \(32, 32\); expected"):
        runtime.load_policy(tmp_path / "deeper")
