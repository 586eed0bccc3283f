"""The command that a maintainer runs where there is a GPU, on the CPU."""

import sys
from pathlib import Path
from typing import Any

import pytest

from offrl.agents import AGENTS

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import check_device

CHECK = ["--device", "cpu", "--agents", "bc", "--backends", "eager"]
CHECK += ["--updates", "2", "--batch-size", "8"]


def test_a_sound_device_passes_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_device.main(CHECK) == 0
    assert "| 0e+00 | 0e+00 | 0e+00 | 0 | yes |" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["another loss", "another end", "an error"])
def test_a_faulty_device_fails_the_check(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, load, calls = check_device.read, check_device.load_file, []
    if fault == "another loss":

        def on_one_of_two(metrics: Any) -> Any:
            calls.append(0)
            return [{k: v + 1e-3 * len(calls) for k, v in m.items()} for m in read(metrics)]

        monkeypatch.setattr(check_device, "read", on_one_of_two)
    elif fault == "another end":

        def drifted(path: Path) -> Any:
            calls.append(0)
            return {k: v + 1e-5 * len(calls) for k, v in load(path).items()}

        monkeypatch.setattr(check_device, "load_file", drifted)
    else:

        def update(*_: Any) -> None:
            raise RuntimeError("no kernel image is available")

        monkeypatch.setattr(AGENTS["bc"][0], "update", update)
    assert check_device.main(CHECK) == 1
    said = capsys.readouterr().out
    assert "failed: bc" in said and "NO |" in said
    assert ("no kernel image" in said) is (fault == "an error")
