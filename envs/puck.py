"""A puck on a table that pushes itself: the body of the small MuJoCo tasks.

Two slides carry a ball of 1 kg. An action is the velocity asked for in m/s along x and y; a servo
of 20 N s/m pulls the puck to it with a time constant of 1 kg / (20 N s/m) = 0.05 s, so that a
control step of 0.1 s ends near the velocity asked for and the state is position and velocity.
The table ends at |x| = |y| = 1, where the slides do.
"""

from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from numpy.typing import NDArray

from offrl.envs.layout import cut

RADIUS = 0.05  # m, of the puck
EDGE = 1.0  # m, from the middle of the table to its sides
FAST = 3.0  # m/s, a bound that velocities do not reach
CONTROL = 0.1  # s between actions
SUBSTEPS = 5  # of the simulation in a control step

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_XML = """
<mujoco model="puck">
  <option timestep="{timestep}" integrator="implicitfast" gravity="0 0 0"/>
  <visual><global offwidth="640" offheight="640"/></visual>
  <default>
    <joint damping="0" range="-{edge} {edge}" limited="true"/>
    <velocity kv="20" ctrllimited="true" ctrlrange="-{speed} {speed}"/>
  </default>
  <worldbody>
    <light pos="0 0 4" dir="0 0 -1" diffuse="0.8 0.8 0.8"/>
    <camera name="above" pos="0 0 3" fovy="42"/>
    <geom name="table" type="plane" size="1.1 1.1 0.1" rgba="0.92 0.92 0.9 1" contype="0"
          conaffinity="0"/>
    {walls}
    <body name="target" mocap="true" pos="0 0 0.01">
      <geom type="cylinder" size="{reach} 0.005" rgba="0.2 0.7 0.3 1" contype="0"
            conaffinity="0"/>
    </body>
    <body name="puck" pos="0 0 {radius}">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom name="puck" type="sphere" size="{radius}" mass="1" rgba="0.8 0.25 0.2 1"/>
    </body>
  </worldbody>
  <actuator>
    <velocity joint="x"/>
    <velocity joint="y"/>
  </actuator>
</mujoco>
"""
_WALL = '<geom type="box" pos="{x} {y} 0.05" size="{dx} {dy} 0.05" rgba="0.3 0.3 0.35 1"/>'

Wall = tuple[float, float, float, float]  # x, y of the middle and half its extent in each, in m


class Puck(gymnasium.Env[Any, F32]):
    """The table, its walls and a target; a task says what is seen, paid and over.

    Raises gymnasium's error for a `render_mode` other than None and "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / CONTROL)}  # noqa: RUF012

    def __init__(
        self, walls: tuple[Wall, ...], reach: float, speed: float, render_mode: str | None
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise gymnasium.error.UnregisteredEnv(
                f"render_mode {render_mode!r} is not one of {self.metadata['render_modes']}"
            )
        self.render_mode, self.reach, self.speed = render_mode, reach, speed
        text = _XML.format(
            timestep=CONTROL / SUBSTEPS,
            edge=EDGE - RADIUS,
            radius=RADIUS,
            reach=reach,
            speed=speed,
            walls="\n    ".join(_WALL.format(x=x, y=y, dx=a, dy=b) for x, y, a, b in walls),
        )
        self.model = mujoco.MjModel.from_xml_string(text)
        self.data = mujoco.MjData(self.model)
        self.mujoco_renderer: Any = MujocoRenderer(
            self.model, self.data, width=480, height=480, camera_name="above"
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.target = np.zeros(2)

    @property
    def position(self) -> F64:
        """(2,) of the puck, in m."""
        return np.asarray(self.data.qpos, np.float64).copy()

    @property
    def velocity(self) -> F64:
        """(2,) of the puck, in m/s."""
        return np.asarray(self.data.qvel, np.float64).copy()

    @property
    def touching(self) -> bool:
        """Whether the puck is in contact with a wall."""
        return bool(self.data.ncon > 0)

    @property
    def distance(self) -> float:
        """From puck to target, in m."""
        return float(np.linalg.norm(self.data.qpos - self.target))

    def place(self, position: F64, target: F64) -> None:
        """Put the puck at rest at `position`, and the target at its place."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = position
        self.target = np.asarray(target, np.float64)
        self.data.mocap_pos[0, :2] = self.target
        mujoco.mj_forward(self.model, self.data)

    def push(self, action: NDArray[Any]) -> None:
        """One control step at the velocity `speed * action`, the action cut to its bounds.

        Raises DataError for an action that is not finite.
        """
        self.data.ctrl[:] = self.speed * cut(action)
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)

    def render(self) -> Any:
        """The table from above, (480, 480, 3) bytes; None without a render mode."""
        return None if self.render_mode is None else self.mujoco_renderer.render(self.render_mode)

    def close(self) -> None:
        self.mujoco_renderer.close()
        super().close()


def bounded(values: F64, limit: float) -> F32:
    """As float32 within [-limit, limit], which soft contacts overstep by a hair."""
    return np.clip(values, -limit, limit).astype(np.float32)


def towards(position: F64, goal: F64, speed: float) -> F64:
    """The action that heads for `goal` at full speed, and arrives there within a step if near."""
    way = goal - position
    asked: F64 = way / max(float(np.linalg.norm(way)), speed * CONTROL)
    return asked
