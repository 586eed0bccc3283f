"""`offrl lm train` and `offrl lm score`: what they write, how they go on, and what they refuse."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import tiny_lm
import torch
from safetensors.torch import load_file

from offrl import cli
from offrl.lm.models import load_model
from offrl.lm.objectives import names
from offrl.lm.sorting import digit_tokenizer

# peft 0.21 uses a name that transformers 5.23 has another for.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
FAST = ("--batch", "4", "--micro-batch", "2", "--learning-rate", "1e-3", "--cpu", "--warmup", "0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_lm.model(0).save_pretrained(tmp_path / "model")
    digit_tokenizer().save_pretrained(tmp_path / "model")
    for form, records in tiny_lm.RECORDS.items():
        write(tmp_path / f"{form}.jsonl", records)
    return tmp_path


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def train(folder: Path, method: str, data: str, *more: str, out: str = "run") -> int:
    words = ("--method", method, "--model", str(folder / "model"))
    place = ("--data", str(folder / data), "--out", str(folder / out))
    return cli.main(["lm", "train", *words, *place, *FAST, *more])


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    printed = capsys.readouterr()
    assert code == 2, printed.out
    assert printed.err.startswith("offrl: ") and printed.err.count("\n") == 1, printed.err
    return printed.err


def weights(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


# -- what is written ----------------------------------------------------------------------------


def test_a_run_is_written_and_its_model_can_be_read(folder: Path) -> None:
    assert train(folder, "rpo", "pairs.jsonl", "--steps", "2", "--eta", "0.1") == 0
    run = folder / "run"
    record = json.loads((run / "config.json").read_text())
    assert record["options"] == {"eta": 0.1} and record["config"]["steps"] == 2
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any({"loss", "accuracy", "gap", "log_ratio"} <= set(line) for line in logged)
    assert not list((run / "model").glob("*.bin"))
    before, after = weights(folder / "model"), weights(run / "model")
    assert set(before) == set(after) and any(bool((before[k] != after[k]).any()) for k in before)
    load_model(str(run / "model"))
    assert train(folder, "sft", "demonstrations.jsonl", "--steps", "1", out="next") == 0


def test_two_processes_reach_the_weights_of_one(folder: Path) -> None:
    settings = ("--steps", "3", "--reference", "stored", "--save-every", "0")
    assert train(folder, "rpo", "pairs.jsonl", *settings, out="one") == 0
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "offrl", "lm", "train"]
    words += ["--method", "rpo", "--model", str(folder / "model"), *FAST, *settings]
    words += ["--data", str(folder / "pairs.jsonl"), "--out", str(folder / "two")]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 of 4 examples are usable") == 1
    one, two = (weights(folder / name / "model") for name in ("one", "two"))
    start = weights(folder / "model")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-5)
    assert any(float((one[name] - start[name]).abs().max()) > 1e-3 for name in one)


@pytest.mark.filterwarnings("ignore:mtime may not be reliable")  # checkpoints within a second
def test_a_stopped_run_ends_where_it_would_have_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    settings = ("--steps", "6", "--save-every", "2", "--batch", "2", "--reference", "stored")
    assert train(folder, "dpo", "pairs.jsonl", *settings, out="whole") == 0

    class Stop(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    import offrl.lm.runs as runs

    log = runs._log
    monkeypatch.setattr(runs, "_log", lambda path: Stop())
    assert train(folder, "dpo", "pairs.jsonl", *settings, out="cut") == 130
    assert not (folder / "cut" / "model").exists()
    monkeypatch.setattr(runs, "_log", log)
    assert cli.main(["lm", "train", "--resume", str(folder / "cut")]) == 0
    whole, cut = (weights(folder / name / "model") for name in ("whole", "cut"))
    assert all(bool((whole[k] == cut[k]).all()) for k in whole)


def test_lora_writes_an_adapter_that_is_read_onto_its_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    assert train(folder, "dpo", "pairs.jsonl", "--steps", "2", "--lora", "2") == 0
    assert (folder / "run" / "model" / "adapter_config.json").exists()
    assert "lora" in "".join(weights(folder / "run" / "model"))
    capsys.readouterr()
    scored = score(folder, "pairs.jsonl", model="run/model", more=("--reference-model",))
    assert scored and "log-ratio" in capsys.readouterr().out
    assert any(row["chosen_logp"] != row["chosen_ref_logp"] for row in scored)


def score(
    folder: Path, data: str, *, model: str = "model", more: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    if "--reference-model" in more:
        more = (*more, str(folder / "model"))
    out, words = folder / "scored.jsonl", ("--data", str(folder / data), "--cpu")
    code = cli.main(
        ["lm", "score", "--model", str(folder / model), *words, "--out", str(out), *more]
    )
    assert code == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    out.unlink()
    return records


def test_scores_become_what_off_policy_methods_need(folder: Path) -> None:
    rows = score(folder, "groups.jsonl", more=("--behavior",))
    for row in rows:
        for text, logps, total in zip(
            row["completions"], row["behavior_logps"], row["logps"], strict=True
        ):
            assert len(logps) == len(text) + 1 and math.fsum(logps) == pytest.approx(total)
    write(folder / "sampled.jsonl", rows)
    # The first loss of GRPO on its own samples is 0 in every group: ratios are 1.
    assert train(folder, "grpo", "sampled.jsonl", "--steps", "1") == 0
    logged = (folder / "run" / "log.jsonl").read_text().splitlines()
    assert abs(json.loads(logged[0])["loss"]) < 1e-5


def test_ches_is_a_column_to_filter_by(folder: Path) -> None:
    rows = score(folder, "pairs.jsonl", more=("--ches",))
    assert len({row["ches"] for row in rows}) == len(rows)
    write(folder / "with.jsonl", rows)
    words = ("--lowest", "ches", "--share", "0.5", "--out", str(folder / "low.jsonl"))
    assert cli.main(["lm", "data", "filter", str(folder / "with.jsonl"), *words]) == 0


# -- help ---------------------------------------------------------------------------------------


def test_help_lists_methods_and_then_the_settings_of_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["lm", "train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text.split() for name in names())
    for name in ("chi_po", "adpo", "grpo", "sft", "f_dpo"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["lm", "train", "--method", name, "--help"])
        assert not stop.value.code
        assert "--learning-rate" in capsys.readouterr().out


# -- bad input ----------------------------------------------------------------------------------


def test_names_and_files_that_are_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "did you mean 'dpo'": ("dop", "pairs.jsonl"),
        "does not exist": ("dpo", "no.jsonl"),
        "labels": ("kto", "pairs.jsonl"),
        "must be a number": ("dpo", "pairs.jsonl", "--beta", "high"),
        "--batch": ("dpo", "pairs.jsonl", "--batch", "many"),
        "column 'gap_column'": ("dpo", "pairs.jsonl", "--margin", "gap_column"),
        "no behavior_logps": ("topr", "groups.jsonl"),
        "compares with no reference": ("sft", "demonstrations.jsonl", "--reference", "copy"),
        "a micro_batch of 1 has none": ("kto", "labels.jsonl", "--micro-batch", "1"),
    }
    for words, (method, data, *more) in cases.items():
        assert words in refusal(capsys, train(folder, method, data, *more)), words
        assert not (folder / "run").exists(), words


def test_a_tokenizer_of_another_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_lm.model(0, vocabulary=5).save_pretrained(folder / "small")
    words = ("--tokenizer", str(folder / "model"))
    place = ("--data", str(folder / "pairs.jsonl"), "--out", str(folder / "out.jsonl"))
    code = cli.main(["lm", "score", "--model", str(folder / "small"), *place, *words])
    assert "do not belong together" in refusal(capsys, code)
    code = train(folder, "dpo", "pairs.jsonl", "--reference-model", str(folder / "small"))
    assert "the reference" in refusal(capsys, code)
    assert "no tokenizer" in refusal(
        capsys, train(folder, "dpo", "pairs.jsonl", "--tokenizer", str(folder / "small"))
    )
    rows = [{**tiny_lm.GROUPS[0], "behavior_logps": [[-1.0], [-1.0], [-1.0]]}]
    write(folder / "other.jsonl", rows)
    assert "tokens by this tokenizer" in refusal(capsys, train(folder, "grpo", "other.jsonl"))


def test_what_cannot_be_used_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [
        {"prompt": "12>", "chosen": "1 2", "rejected": "21"},
        {"prompt": "12>", "chosen": "12" * 30, "rejected": "21"},
        {"prompt": "12>", "chosen": "12", "rejected": "12"},
    ]
    write(folder / "mixed.jsonl", [*tiny_lm.PAIRS, *more])
    limits = ("--steps", "1", "--max-length", "20")
    assert train(folder, "dpo", "mixed.jsonl", *limits) == 0
    text = capsys.readouterr().out
    for words in ("4 of 7", "does not know", "longer than 20 tokens", "are the same"):
        assert words in text
    code = train(folder, "dpo", "mixed.jsonl", *limits, "--strict", out="strict")
    assert "line 7" in refusal(capsys, code)


def test_weights_that_are_pickled_are_not_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (folder / "model").glob("*.safetensors")
    file.rename(folder / "model" / "pytorch_model.bin")
    assert "safetensors" in refusal(capsys, train(folder, "dpo", "pairs.jsonl"))


def test_code_of_a_model_is_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = folder / "ran"
    (folder / "model" / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "evil"}
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    path.write_text(json.dumps(config))
    refusal(capsys, train(folder, "dpo", "pairs.jsonl"))
    assert not ran.exists()


def test_a_run_is_not_overwritten_nor_continued_on_other_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, "dpo", "pairs.jsonl", "--steps", "1") == 0
    capsys.readouterr()
    assert "not overwritten" in refusal(capsys, train(folder, "dpo", "pairs.jsonl"))
    write(folder / "pairs.jsonl", tiny_lm.PAIRS[:2])
    resumed = cli.main(["lm", "train", "--resume", str(folder / "run")])
    assert "has changed" in refusal(capsys, resumed)
    missing = cli.main(["lm", "train", "--resume", str(folder / "nothing")])
    assert "does not exist" in refusal(capsys, missing)
