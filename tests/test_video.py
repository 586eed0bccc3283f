"""Pictures are made in a process of their own, as MuJoCo's OpenGL library is chosen at import."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from offrl import video
from offrl.errors import MissingDependencyError, RunError

FILM = """
import sys
from offrl import video
video.headless()
import numpy as np
still = lambda obs: np.zeros(3, np.float32)
filmed = video.record(still, "Hopper-v5", sys.argv[1], seed=2)
from offrl.evaluation import evaluate
result = evaluate(still, "Hopper-v5", 1, seed=2)
assert filmed.returns == result.returns, (filmed, result)
print(int(result.lengths[0]))
"""


def test_a_film_of_mujoco_shows_the_start_that_is_evaluated(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("tried with EGL on Linux alone")
    out = tmp_path / "hopper.gif"
    done = subprocess.run(
        [sys.executable, "-c", FILM, str(out)], capture_output=True, text=True, check=False
    )
    if "OpenGL" in done.stderr or "EGL" in done.stderr:
        pytest.skip("this machine has no EGL")
    assert done.returncode == 0, done.stderr
    with Image.open(out) as film:
        # 125 steps a second, of which every fourth is a picture, and the start.
        assert film.n_frames == 1 + int(done.stdout) // 4  # type: ignore[attr-defined]
        first = np.asarray(film.convert("RGB"))
        film.seek(film.n_frames - 1)  # type: ignore[attr-defined]
        last = np.asarray(film.convert("RGB"))
    assert first.std() > 10 and (first != last).any()


class Lamp(gymnasium.Env[Any, Any]):
    """Renders its step as a shade of grey; black at step `dark`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode: str | None = None, dark: int = -1) -> None:
        self.render_mode, self.dark, self.t = render_mode, dark, 0

    def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), 1.0, False, self.t == 20, {}

    def render(self) -> Any:
        shade = 0 if self.t == self.dark else 10 + 10 * self.t
        return np.full((31, 21, 3), shade, np.uint8)


def still(obs: Any) -> Any:
    return np.zeros(1, np.float32)


def test_frames_are_thinned_to_thirty_a_second(tmp_path: Path) -> None:
    result = video.record(still, Lamp, tmp_path / "lamp.gif")
    assert result.returns.tolist() == [20.0]
    with Image.open(tmp_path / "lamp.gif") as film:
        # 60 a second: steps 0, 2, ..., 20, each for 1/30 s, to the format's hundredth.
        assert film.n_frames == 11 and film.info["duration"] == 30  # type: ignore[attr-defined]
    assert [p.name for p in tmp_path.iterdir()] == ["lamp.gif"]


def test_films_in_mp4(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra `video`")
    video.record(still, Lamp, tmp_path / "lamp.mp4")
    assert b"ftyp" in (tmp_path / "lamp.mp4").read_bytes()[:16]


def test_a_film_that_cannot_be_written_says_why_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, frames: Any, rate: float) -> None:
        raise OSError("[Errno 32] Broken pipe\n\nFFMPEG COMMAND:\nffmpeg -y")

    monkeypatch.setattr(video, "_write_gif", full)
    with pytest.raises(RunError, match=r"lamp.gif cannot be written: .* is the disk full\?$"):
        video.record(still, Lamp, tmp_path / "lamp.gif")
    assert list(tmp_path.iterdir()) == []


def test_black_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="black picture"):
        video.record(still, lambda render_mode: Lamp(render_mode, dark=4), tmp_path / "lamp.gif")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_encoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingDependencyError, match=r"offrl\[video\]'.*\.gif"):
        video.record(still, Lamp, tmp_path / "lamp.mp4")


def test_an_environment_that_fails_to_render_is_an_error(tmp_path: Path) -> None:
    class Blind(Lamp):
        def render(self) -> Any:
            raise RuntimeError("no OpenGL")

    with pytest.raises(RunError, match="cannot be rendered: no OpenGL"):
        video.record(still, Blind, tmp_path / "lamp.gif")


def test_headless_leaves_a_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for display, chosen, expected in (
        (None, None, "egl"),
        (None, "osmesa", "osmesa"),
        (":0", None, None),
    ):
        for name, value in (("DISPLAY", display), ("MUJOCO_GL", chosen)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        video.headless()
        assert os.environ.get("MUJOCO_GL") == expected


def test_the_camera_follows_and_light_is_cheap() -> None:
    base: Any = video.Camera(gymnasium.make("Hopper-v5", render_mode="rgb_array")).unwrapped
    assert base.mujoco_renderer.camera_id == base.model.camera("track").id
    quality = base.model.vis.quality
    assert (quality.offsamples, quality.shadowsize, base.model.mat_reflectance.max()) == (0, 0, 0)
