import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from offrl import plotting_cli
from offrl.curves import learners, lines, read_curve
from offrl.errors import ConfigError, OffrlError, RunError
from offrl.plotting import draw, plot

REFERENCE = {"min": 100.0, "max": 300.0, "source": "a table"}


def fake_run(
    folder: Path,
    returns: Mapping[int, float],
    *,
    agent: str = "td3_bc",
    seed: int = 0,
    dataset: str = "hopper-medium-replay",
    reference: Any = REFERENCE,
    settings: Mapping[str, Any] | None = None,
    env: str | None = "Hopper-v5",
    data: Mapping[str, Any] | None = None,
    fingerprint: str = "0123456789abcdef",
    behaviour: float = 150.0,
) -> Path:
    folder.mkdir(parents=True)
    config = {
        "agent": agent,
        "agent_config": dict(settings or {}),
        "train": {"steps": 3000, "seed": seed, "seeds": 1},
        "data": dict(data or {}),
        "dataset": {
            **{"name": dataset, "fingerprint": fingerprint, "reference": reference},
            "behaviour_return_mean": behaviour,
        },
        "env": env,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rows = ["step,name,value"]
    for step, value in returns.items():
        rows += [f"{step},train/actor_loss,0.5", f"{step},eval/return,{value}"]
        if reference:
            rows.append(f"{step},eval/score,{(value - 100) / 2}")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return folder


def seeds(folder: Path, values: list[float], **keywords: Any) -> Path:
    for s, v in enumerate(values):
        fake_run(folder / f"seed-{s}", {1000: v, 2000: 2 * v}, seed=s, **keywords)
    return folder


def test_lines_are_means_with_a_band_by_hand(tmp_path: Path) -> None:
    run = seeds(tmp_path / "run", [100.0, 200.0, 600.0])
    curves = [read_curve(p, "eval/return") for p in learners(run)]
    (line,) = lines(curves)
    assert (line.label, line.seeds, line.steps.tolist()) == ("td3_bc", 3, [1000, 2000])
    np.testing.assert_array_equal(line.mean, [300, 600])
    # Three seeds: the range.
    np.testing.assert_array_equal([line.low, line.high], [[100, 200], [600, 1200]])


def test_the_band_of_many_seeds_is_a_bootstrap(tmp_path: Path) -> None:
    run = seeds(tmp_path / "run", [float(v) for v in range(0, 120, 10)])
    (line,) = lines([read_curve(p, "eval/return") for p in learners(run)])
    # Standard error of the mean of 0, 10, ..., 110: 34.5 / sqrt(12) = 10; 1.96 of them.
    assert line.mean[0] == 55
    assert line.low[0] == pytest.approx(55 - 19.6, abs=2)
    assert line.high[0] == pytest.approx(55 + 19.6, abs=2)


def test_only_steps_that_all_seeds_have_are_averaged(tmp_path: Path) -> None:
    a = fake_run(tmp_path / "a", {1000: 1.0, 2000: 2.0, 3000: 3.0}, seed=0)
    b = fake_run(tmp_path / "b", {1000: 3.0, 3000: 5.0, 4000: 7.0}, seed=1)
    (line,) = lines([read_curve(p, "eval/return") for p in (a, b)])
    assert line.steps.tolist() == [1000, 3000] and line.mean.tolist() == [2, 4]
    c = fake_run(tmp_path / "c", {500: 3.0}, seed=2)
    with pytest.raises(RunError, match="no evaluated step together"):
        lines([read_curve(p, "eval/return") for p in (a, c)])


def test_runs_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    a = fake_run(tmp_path / "a", {1000: 1.0}, settings={"alpha": 2.5, "beta": 2.0})
    b = fake_run(tmp_path / "b", {1000: 1.0}, settings={"alpha": 40.0, "beta": 2.0})
    c = fake_run(tmp_path / "c", {1000: 1.0}, agent="bc")
    found = [line.label for line in lines([read_curve(p, "eval/return") for p in (a, b, c)])]
    assert found == ["td3_bc (alpha 2.5)", "td3_bc (alpha 40.0)", "bc"]
    again = fake_run(tmp_path / "d", {1000: 1.0}, agent="bc")
    with pytest.raises(RunError, match="are both seed 0 of bc"):
        lines([read_curve(p, "eval/return") for p in (c, again)])


def test_runs_elsewhere_or_on_other_data_are_never_averaged(tmp_path: Path) -> None:
    def found(*changes: Mapping[str, Any]) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        runs = [
            fake_run(folder / str(i), {1000: 1.0}, seed=i, agent="bc", **change)
            for i, change in enumerate(changes)
        ]
        return [line.label for line in lines([read_curve(run, "eval/return") for run in runs])]

    assert found({"env": "Hopper-v4"}, {"env": None}) == ["bc (env Hopper-v4)", "bc (env none)"]
    other = {"fingerprint": "fedcba9876543210"}
    assert found({}, other) == ["bc (data 01234567)", "bc (data fedcba98)"]
    held_out = {"validation": 0.1, "split_seed": 1}
    assert found({"data": held_out}, {"data": {**held_out, "split_seed": 2}}) == [
        "bc (split_seed 1)",
        "bc (split_seed 2)",
    ]
    cut = [{"data": {"out_of_bounds": how}} for how in ("clip", "keep")]
    assert found(*cut) == ["bc (out_of_bounds clip)", "bc (out_of_bounds keep)"]
    # Where data lay, and the seed of a split that there was not, say nothing of the numbers.
    unused = {"data_dir": "/data", "validation": None, "split_seed": 3}
    assert found({"data": {"validation": None, "split_seed": 0}}, {"data": unused}) == ["bc"]
    # An agent that stands alone in its environment is named by it as well.
    agents = [
        fake_run(tmp_path / name, {1000: 1.0}, agent=name, env=env)
        for name, env in (("iql", "Hopper-v4"), ("td3_bc", "Hopper-v5"))
    ]
    named = [line.label for line in lines([read_curve(run, "eval/return") for run in agents])]
    assert named == ["iql (env Hopper-v4)", "td3_bc (env Hopper-v5)"]


def test_each_data_has_its_own_mean_return_drawn(tmp_path: Path) -> None:
    data = ({"fingerprint": "a", "behaviour": 150.0}, {"fingerprint": "b", "behaviour": 170.0})
    runs = [
        fake_run(tmp_path / str(i), {1000: 200.0}, seed=i // 2, agent="bc", **data[i % 2])
        for i in range(4)
    ]
    (axes,) = draw([read_curve(run, "eval/return") for run in runs], "eval/return").axes
    means = [line for line in axes.lines if line.get_label() == "data (mean)"]
    assert [float(np.asarray(line.get_ydata())[0]) for line in means] == [150.0, 170.0]


def test_panels_scores_and_the_datas_return(tmp_path: Path) -> None:
    runs = [
        seeds(tmp_path / "prdc", [100.0, 200.0], agent="prdc"),
        fake_run(tmp_path / "bc", {1000: 150.0, 2000: 160.0}, agent="bc"),
        fake_run(tmp_path / "other", {1000: 150.0}, agent="bc", dataset="walker2d"),
    ]
    folders = [p for run in runs for p in learners(run)]
    figure = draw([read_curve(p, "eval/score") for p in folders], "eval/score")
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("hopper-medium-replay", "walker2d")
    assert first.get_ylabel() == "normalised score" and first.get_xlabel() == "gradient steps"
    drawn = {line.get_label(): line for line in first.lines}
    assert list(drawn) == ["prdc", "bc", "data (mean)"]
    # 100 (150 - 100) / (300 - 100).
    assert np.allclose(np.asarray(drawn["data (mean)"].get_ydata(), float), 25)
    # One agent has one look in all panels; the looks of two differ in colour and in line style.
    again = {line.get_label(): line for line in second.lines}
    assert again["bc"].get_color() == drawn["bc"].get_color() != drawn["prdc"].get_color()
    assert drawn["bc"].get_linestyle() != drawn["prdc"].get_linestyle()
    assert len(first.collections) == 1  # the band of prdc's two seeds
    assert first.get_ylim()[0] <= 0
    (legend,) = figure.legends
    note = legend.get_title().get_text()
    assert "mean of 1 to 2 seeds" in note and "range" in note and "a table" in note
    figure.draw_without_rendering()
    below = legend.get_window_extent().y1
    assert all(axes.get_tightbbox().y0 >= below - 1 for axes in figure.axes)  # type: ignore[union-attr]


def test_many_lines_have_their_names_at_their_ends(tmp_path: Path) -> None:
    # All end within a point of each other, where names would lie on top of one another.
    runs = [
        fake_run(tmp_path / str(i), {1000: 150.0, 2000: 200.0 + i / 10}, agent=f"agent_{i}")
        for i in range(14)
    ]
    curves = [read_curve(run, "eval/score") for run in runs]
    figure = draw(curves, "eval/score")
    (axes,), (legend,) = figure.axes, figure.legends
    figure.draw_without_rendering()
    names = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    assert list(names) == [f"agent_{i}" for i in range(14)]
    boxes = list(names.values())
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    assert all(box.x1 <= figure.bbox.x1 and box.x0 >= axes.bbox.x1 for box in boxes)
    assert [text.get_text() for text in legend.get_texts()] == ["data (mean)"]


@pytest.mark.parametrize("end", [100.0, 300.0])
def test_names_stay_beside_the_panel(tmp_path: Path, end: float) -> None:
    # Lines that all end at the bottom of the panel, or all at its top.
    runs = [
        fake_run(tmp_path / str(i), {1000: 400.0 - end, 2000: end}, agent=f"agent_{i}")
        for i in range(14)
    ]
    figure = draw([read_curve(run, "eval/score") for run in runs], "eval/score")
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    assert len(boxes) == 14
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    assert axes.bbox.y0 - 1 <= min(middles) and max(middles) <= axes.bbox.y1 + 1


def test_long_names_stay_in_the_picture(tmp_path: Path) -> None:
    settings = [{"hidden": [256] * 9, "alpha": 2.5 + i} for i in range(3)]
    runs = [
        fake_run(tmp_path / str(i), {1000: 150.0}, env=f"Hopper-v{i}", settings=own)
        for i, own in enumerate([*settings, {"hidden": [1]}])
    ]
    figure = draw([read_curve(run, "eval/score") for run in runs], "eval/score")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert legend.get_texts()[0].get_text().startswith("td3_bc (hidden [256, 256,")


def test_a_logarithmic_axis_of_steps_begins_at_the_first_step_above_zero(tmp_path: Path) -> None:
    runs = [
        fake_run(tmp_path / "long", {0: 90.0, 50_000: 150.0, 100_000: 250.0}, agent="iql"),
        fake_run(tmp_path / "short", {400: 120.0, 1000: 200.0}, agent="dt"),
    ]
    curves = [read_curve(run, "eval/return") for run in runs]
    (plain,), (axes,) = draw(curves, "eval/return").axes, draw(curves, "eval/return", True).axes
    assert (plain.get_xscale(), plain.get_xlim()) == ("linear", (0, 102_000))
    left, right = axes.get_xlim()
    assert axes.get_xscale() == "log" and 300 < left < 400 and 100_000 < right < 110_000
    # 1k lies a sixth of the way, log 2.5 / log 250; on a linear axis it would be a hundredth.
    place = axes.transAxes.inverted().transform(axes.transData.transform((1000, 0)))[0]
    assert 0.15 < place < 0.2
    axes.figure.draw_without_rendering()
    shown = [tick.get_text() for tick in axes.get_xticklabels()]
    assert {"1k", "3k", "10k", "30k", "100k"} <= set(shown)


def test_files_are_written_and_never_replaced(tmp_path: Path) -> None:
    run = seeds(tmp_path / "run", [100.0, 200.0])
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        out = plot([run], tmp_path / name)
        content = out.read_bytes()
        assert content.startswith(start)
        with pytest.raises(RunError, match="exists already"):
            plot([run], out)
        assert plot([run], out, force=True).read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg", "run"]
    with pytest.raises(RunError, match="cannot be written"):
        plot([run], tmp_path / "none" / "a.png")
    with pytest.raises(ConfigError, match="must end in"):
        plot([run], tmp_path / "a.jpeg")


def test_the_score_is_drawn_only_where_every_run_has_one(tmp_path: Path) -> None:
    scored = fake_run(tmp_path / "scored", {1000: 200.0})
    plain = fake_run(tmp_path / "plain", {1000: 200.0}, dataset="mine", reference=None)
    plot([scored], tmp_path / "score.svg")
    assert "normalised score" in (tmp_path / "score.svg").read_text()
    plot([scored, plain], tmp_path / "return.svg")
    text = (tmp_path / "return.svg").read_text()
    assert "normalised score" not in text and ">return<" in text


def test_a_run_that_is_still_writing_can_be_drawn(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", {1000: 200.0})
    with (run / "metrics.csv").open("a") as f:
        f.write("2000,eval/ret")
    assert read_curve(run, "eval/return").steps.tolist() == [1000]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(fake_run(tmp_path / "run", {1000: 200.0}))
    out = str(tmp_path / "loss.png")
    assert plotting_cli.main([run, "--out", out, "--metric", "train/actor_loss"]) == 0
    assert capsys.readouterr().out == f"{out}\n" and Path(out).exists()
    with pytest.raises(RunError, match="exists already"):
        plotting_cli.main([run, "--out", out])
    assert plotting_cli.main([run, "--out", out, "--force"]) == 0
    linear = Path(out).read_bytes()
    assert plotting_cli.main([run, "--out", out, "--force", "--log-steps"]) == 0
    assert Path(out).read_bytes() != linear


def test_runs_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    def message(change: Any, metric: str = "eval/return") -> str:
        run = fake_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", {1000: 200.0})
        change(run)
        with pytest.raises(OffrlError) as caught:
            plot([run], tmp_path / "x.png", metric)
        assert not (tmp_path / "x.png").exists()
        return str(caught.value)

    def keep(run: Path) -> None:
        pass

    assert "no metric 'eval/returns', did you mean 'eval/return'" in message(keep, "eval/returns")
    empty = message(lambda run: (run / "metrics.csv").write_text("step,name,value\n"))
    assert "has no metric 'eval/return' (it has no rows yet)" in empty
    assert "cannot be read" in message(lambda run: (run / "metrics.csv").unlink())
    assert "must be step,name,value" in message(lambda run: (run / "metrics.csv").write_text(""))
    torn = message(lambda run: (run / "metrics.csv").write_text("step,name,value\n1,eval/re\n"))
    assert "metrics.csv, line 2: '1,eval/re' is not a row" in torn
    assert "not a run: it has no config.json" in message(lambda run: (run / "config.json").unlink())
    assert "has no entry" in message(lambda run: (run / "config.json").write_text("{}"))
    assert "cannot be read" in message(lambda run: (run / "config.json").write_text("["))
    with pytest.raises(RunError, match="no such directory"):
        plot([tmp_path / "none"], tmp_path / "x.png")
