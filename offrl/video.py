"""Videos of a policy, made without a screen.

MuJoCo chooses its OpenGL library when it is first imported, from the variable MUJOCO_GL, so
`headless` must come before. Multisampling, shadows and reflections are switched off: in software
rendering they are nine tenths of the time. One renderer is alive at a time: where an older one is
collected, MuJoCo's next frames come out black, without an error; such frames are refused here.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from offrl.envs.making import Env, make
from offrl.envs.references import reference_for
from offrl.errors import ConfigError, MissingDependencyError, RunError
from offrl.evaluation import Evaluation, evaluate

FRAMES_PER_SECOND = 30  # at most; faster simulations are thinned, at their true speed
SUFFIXES = (".mp4", ".gif")

Frame = NDArray[np.uint8]


def headless() -> None:
    """Have MuJoCo render through EGL on Linux where there is no display; call before its import."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not display:
        os.environ.setdefault("MUJOCO_GL", "egl")


def record(
    policy: Any,
    env: str | Callable[..., Env],
    path: str | os.PathLike[str],
    seed: int = 0,
    *,
    force: bool = False,
    target_return: float | None = None,
) -> Evaluation:
    """Film start 0 of the evaluation with this seed, and return its result.

    `env` is an id, or a function that takes `render_mode`. A `.gif` can always be written, an
    `.mp4` with the extra `video`. `target_return` is that of `evaluate`. Raises ConfigError for
    another ending, RunError where the file exists and not `force`, or nothing could be rendered.
    """
    target = Path(path)
    check_target(target, force)
    headless()
    camera = Camera(make(env, render_mode="rgb_array"))
    reference = reference_for(env) if isinstance(env, str) else None
    try:
        result = evaluate(policy, camera, 1, seed, reference=reference, target_return=target_return)
    finally:
        camera.close()
    write_video(target, camera.frames, camera.rate)
    return result


def check_target(path: Path, force: bool = False) -> None:
    """Refuse a file that could not be written, before the work that leads to it."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a video's name must end in {' or '.join(SUFFIXES)}")
    if path.exists() and not force:
        raise RunError(f"{path} exists already; choose another name, or --force to replace it")
    if not path.parent.is_dir():
        raise RunError(f"{path.parent} is not a directory; make it first")
    if path.suffix == ".mp4":
        try:
            import imageio_ffmpeg  # type: ignore[import-untyped]  # noqa: F401
        except ImportError as e:
            raise MissingDependencyError(
                f"{path} needs ffmpeg: pip install 'offrl[video]', or choose a name in .gif"
            ) from e


class Camera(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the pictures of the episode being played, at most 30 a second of simulated time."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        own = float(env.metadata.get("render_fps") or FRAMES_PER_SECOND)
        self._every = max(1, round(own / FRAMES_PER_SECOND))
        self.rate = own / self._every
        self.frames: list[Frame] = []
        self._steps = 0
        _set_up(env)

    def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**keywords)
        self._steps, self.frames = 0, [self._picture()]
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._steps += 1
        if self._steps % self._every == 0:
            self.frames.append(self._picture())
        return result

    def _picture(self) -> Frame:
        try:
            frame: Any = self.env.render()
        except gymnasium.error.DependencyNotInstalled as e:
            raise MissingDependencyError(f"this environment cannot be rendered: {e}") from e
        except Exception as e:  # what a failing OpenGL library raises has no common base
            raise RunError(
                f"this environment cannot be rendered: {e}. Without a display, MuJoCo needs "
                "MUJOCO_GL=egl in the environment (Debian: libegl1, libegl-mesa0) before it is "
                "first imported"
            ) from e
        if not isinstance(frame, np.ndarray):
            raise RunError(f"the environment rendered {type(frame).__name__}, not a picture")
        if not frame.any():
            raise RunError(
                "the environment rendered a black picture: another renderer of this process has "
                "taken its OpenGL context; record in a process that renders nothing else"
            )
        return frame


def _set_up(env: Env) -> None:
    """Make MuJoCo's pictures cheap, and have its camera follow; without effect on physics."""
    base: Any = env.unwrapped
    model, renderer = getattr(base, "model", None), getattr(base, "mujoco_renderer", None)
    if model is None or renderer is None:
        return
    # These act when the renderer is made, at the first frame.
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    model.mat_reflectance[:] = 0.0
    # Gymnasium 1.4 passes over the model's own camera for a fixed one, and the robot walks away.
    cameras = {model.camera(i).name: i for i in range(model.ncam)}
    if renderer.camera_id == -1 and "track" in cameras:
        renderer.camera_id = cameras["track"]


def write_video(path: Path, frames: list[Frame], rate: float) -> None:
    """Write frames (height, width, 3) as .mp4 or .gif at `rate` a second, whole or not at all."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        partial.touch()  # so that a folder that cannot be written says so itself
        (_write_mp4 if path.suffix == ".mp4" else _write_gif)(partial, frames, rate)
        os.replace(partial, path)
    except OSError as e:
        why = str(e).partition("\n")[0]
        why += "; ffmpeg ended early: is the disk full?" if "Broken pipe" in why else ""
        raise RunError(f"{path} cannot be written: {why}") from e
    finally:
        with suppress(OSError):  # which would hide the error that is under way
            partial.unlink()


def _write_mp4(path: Path, frames: list[Frame], rate: float) -> None:
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    # Sizes must be even for the codec; ffmpeg's own default rounds them to 16 and says so.
    even = [np.ascontiguousarray(f[: height // 2 * 2, : width // 2 * 2]) for f in frames]
    size = (even[0].shape[1], even[0].shape[0])
    writer = imageio_ffmpeg.write_frames(
        str(path), size, fps=rate, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    for frame in even:
        writer.send(frame)
    writer.close()


def _write_gif(path: Path, frames: list[Frame], rate: float) -> None:
    from PIL import Image

    pictures = [Image.fromarray(f) for f in frames]
    # GIF times are hundredths of a second; one is the least that viewers respect.
    milliseconds = max(20, round(100 / rate) * 10)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
