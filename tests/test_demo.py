"""The demo, in the short form that every test run can afford."""

from pathlib import Path

import pytest

from offrl.cli import main
from offrl.files import read_json

SHORT = ["demo", "--steps", "120", "--episodes", "2"]


def test_the_demo_trains_plays_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main([*SHORT, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "the same 2 starts for both" in printed and "prdc - bc" in printed
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    for agent in ("bc", "prdc"):
        assert (out / agent / "policy" / "policy.safetensors").stat().st_size > 0
        assert read_json(out / agent / "summary.json")["step"] == 120

    before = (out / "prdc" / "metrics.csv").read_bytes()
    assert main([*SHORT, "--out", str(out)]) == 0  # a demo that was stopped goes on
    assert (out / "prdc" / "metrics.csv").read_bytes() == before

    assert main(["demo", "--steps", "130", "--out", str(out)]) == 2
    assert "begun with other settings" in capsys.readouterr().err
    assert main([*SHORT, "--out", str(out / "bc")]) == 2
    assert "is the folder of a run" in capsys.readouterr().err and not (out / "bc" / "bc").exists()
