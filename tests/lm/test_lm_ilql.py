"""ILQL from a file to a policy: what it must learn, what is kept of it, and what it refuses."""

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
from torch import Tensor

from offrl import cli
from offrl.lm.data import load_examples
from offrl.lm.demo import METRICS, DemoConfig, run
from offrl.lm.losses import tokens as losses
from offrl.lm.models import load_model
from offrl.lm.objectives import objective
from offrl.lm.runs import LmRun, start
from offrl.lm.scoring import score_answers
from offrl.lm.sorting import digit_tokenizer, tiny_model
from offrl.lm.tokens import tokenize
from offrl.lm.trainer import LmTrainConfig, Plan, fit
from offrl.lm.values import FILE, answer_states, load_values, steered, values_of

# peft 0.21 uses a name that transformers 5.23 has another for.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
FAST = ("--batch", "4", "--micro-batch", "2", "--learning-rate", "1e-3", "--cpu", "--warmup", "0")

# -- two tokens -----------------------------------------------------------------------------------

# First 1: then 1 is worth 0, thrice, and 2 is worth 1, once. First 2: 0.4, whatever follows.
WORTH = {"11": 0.0, "12": 1.0, "21": 0.4, "22": 0.4}
TIMES = {"11": 3, "12": 1, "21": 3, "22": 3}
ANSWERS = [text for text, times in TIMES.items() for _ in range(times)]
TREE = [{"prompt": "0>", "completions": ANSWERS, "rewards": [WORTH[text] for text in ANSWERS]}]
LEARNING = {"expectile": 0.9, "gamma": 1.0, "cql_weight": 0.0, "polyak": 0.1}


def learned(folder: Path, **options: float) -> Any:
    """A model that has seen the ten answers 200 times."""
    tokenizer, goal = digit_tokenizer(), objective("ilql", {**LEARNING, **options})
    items = tokenize(load_examples(TREE), tokenizer, max_length=32, steps=True)
    torch.manual_seed(0)
    config = LmTrainConfig(
        steps=200,
        batch=1,
        micro_batch=1,
        learning_rate=3e-3,
        schedule="constant",
        max_length=32,
        save_every=0,
        cpu=True,
    )
    model = tiny_model(hidden=16, layers=1, heads=2)
    return fit(Plan(model, goal, items, tokenizer, config), folder).model.eval()


def answered(model: Any, beta: float) -> str:
    """The likeliest answer, token by token, as `generate` finds it."""
    tokenizer = digit_tokenizer()
    ids = tokenizer("0>", return_tensors="pt")["input_ids"]
    with steered(model, beta):
        out = model.generate(ids, max_new_tokens=2, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :]))


def seen(model: Any, text: str) -> tuple[Tensor, float, Tensor]:
    """At the end of a text: the least Q' of 1 and 2, V, and the cloned law of 1 and 2."""
    ids = torch.tensor([digit_tokenizer()(text + "0")["input_ids"]])
    ones = torch.ones_like(ids)
    batch = {"input_ids": ids, "attention_mask": ones, "mask": ones, "first": ids.shape[1] - 1}
    with torch.no_grad():
        logits, _, _, hidden = answer_states(model, batch, model)
    heads, choices = values_of(model), digit_tokenizer()("12")["input_ids"]
    q = heads.target(hidden)[:, 0, 0, choices].amin(0)
    return q, heads.state_value(hidden).item(), logits[0, 0].softmax(-1)[choices]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return learned(tmp_path_factory.mktemp("taught"))


def test_values_are_those_of_the_tree(taught: Any) -> None:
    # After 1 the 0.9 expectile of (0, 0, 0, 1): 0.9 (1 - V) = 0.1 * 3 V, so V = 3/4.
    q, value, law = seen(taught, "0>1")
    assert value == pytest.approx(0.75, abs=0.1)
    torch.testing.assert_close(q, torch.tensor([0.0, 1.0]), rtol=0, atol=0.12)
    torch.testing.assert_close(law, torch.tensor([0.75, 0.25]), rtol=0, atol=0.08)
    q, _, law = seen(taught, "0>")
    torch.testing.assert_close(q, torch.tensor([0.75, 0.4]), rtol=0, atol=0.12)
    torch.testing.assert_close(law, torch.tensor([0.4, 0.6]), rtol=0, atol=0.08)


def test_values_find_the_answer_that_cloning_does_not(taught: Any) -> None:
    """Most answers begin with 2, and those with 1 are worth less on average: 0.25 against 0.4."""
    assert WORTH[answered(taught, 0.0)] == 0.4
    assert answered(taught, 4.0) == "12"
    assert WORTH[answered(taught, 0.0)] == 0.4  # nothing is left of the steering


def test_the_mean_or_no_next_value_would_not_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WORTH[answered(learned(tmp_path / "mean", expectile=0.5), 4.0)] == 0.4

    def nothing(value: Tensor, mask: Tensor) -> Tensor:
        return torch.zeros_like(value)

    monkeypatch.setattr(losses, "next_values", nothing)
    assert WORTH[answered(learned(tmp_path / "myopic"), 4.0)] == 0.4


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_lm.model(0).save_pretrained(tmp_path / "model")
    digit_tokenizer().save_pretrained(tmp_path / "model")
    write(tmp_path / "groups.jsonl", tiny_lm.GROUPS)
    return tmp_path


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def words(folder: Path, out: str, *more: str) -> list[str]:
    place = ("--data", str(folder / "groups.jsonl"), "--out", str(folder / out))
    start = ("--method", "ilql", "--model", str(folder / "model"))
    return ["lm", "train", *start, *place, *FAST, *more]


def process(*arguments: str) -> str:
    """What another Python prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, Tensor]:
    """Every number of a model's folder."""
    return {
        f"{file.name}/{name}": tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def scores(model: Any) -> Tensor:
    """log L of every answer of the examples."""
    found = score_answers(model, tiny_lm.items(objective("ilql")), 0, 8)
    return torch.tensor([sum(logps) for logps in found])


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    printed = capsys.readouterr()
    assert code == 2, printed.out
    assert printed.err.startswith("offrl: ") and printed.err.count("\n") == 1, printed.err
    return printed.err


def test_another_process_reads_what_was_learned(folder: Path) -> None:
    config = LmTrainConfig(steps=3, batch=4, micro_batch=4, learning_rate=1e-2, cpu=True)
    run = LmRun("ilql", str(folder / "model"), str(folder / "groups.jsonl"), config=config)
    trained = start(run, folder / "run").model.eval()
    kept = folder / "run" / "model"
    assert {f.name for f in kept.glob("*.safetensors")} == {"model.safetensors", FILE}
    assert set(load_file(kept / "model.safetensors")) == set(
        load_file(folder / "model" / "model.safetensors")
    )
    assert not [f for f in kept.iterdir() if f.suffix in (".bin", ".partial")]
    out = folder / "scored.jsonl"
    ask = ("--data", str(folder / "groups.jsonl"), "--out", str(out), "--cpu", "--beta", "2")
    process("-m", "offrl", "lm", "score", "--model", str(kept), *ask)
    lines = [json.loads(line)["logps"] for line in out.read_text().splitlines()]
    found = torch.tensor([logp for logps in lines for logp in logps])
    with steered(trained, 2.0):
        assert bool((scores(trained) == found).all())
    assert float((scores(trained) - found).abs().max()) > 1e-2
    # A run from that folder goes on from its values.
    again = LmRun("ilql", str(kept), run.data, config=LmTrainConfig(1, learning_rate=1e-9))
    start(again, folder / "next")
    before = files(kept)
    for name, tensor in files(folder / "next" / "model").items():
        if "target" not in name:  # which move in any case
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore:mtime may not be reliable")  # checkpoints within a second
@pytest.mark.parametrize("lora", [0, 2])
def test_a_stopped_run_ends_where_it_would_have_ended(
    lora: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    more = ("--steps", "6", "--save-every", "2", "--polyak", "0.3", "--lora", str(lora))
    if lora:
        pytest.importorskip("peft")
    assert cli.main(words(folder, "whole", *more)) == 0

    class Stop(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    import offrl.lm.runs as runs

    log = runs._log
    monkeypatch.setattr(runs, "_log", lambda path: Stop())
    assert cli.main(words(folder, "cut", *more)) == 130
    monkeypatch.setattr(runs, "_log", log)
    assert cli.main(["lm", "train", "--resume", str(folder / "cut")]) == 0
    whole, cut = (files(folder / name / "model") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and any(name.startswith(FILE) for name in whole)
    for name, tensor in whole.items():
        assert bool((tensor == cut[name]).all()), name
    if lora:
        model = load_model(str(folder / "whole" / "model"))
        load_values(folder / "whole" / "model", model)
        plain = scores(model)
        with steered(model, 0.0):
            torch.testing.assert_close(scores(model), plain)
        with steered(model, 8.0):
            assert float((scores(model) - plain).abs().max()) > 1e-2
            ids = torch.tensor([tiny_lm.items(objective("ilql"))[0].prompt])
            picked = int(model(input_ids=ids).logits[0, -1].argmax())
            made = model.generate(input_ids=ids, max_new_tokens=1, do_sample=False)
            assert int(made[0, -1]) == picked


def test_two_processes_reach_the_weights_of_one(folder: Path) -> None:
    settings = ("--steps", "3", "--save-every", "0", "--polyak", "0.3")
    assert cli.main(words(folder, "one", *settings)) == 0
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "offrl")
    process(*launch, *words(folder, "two", *settings))
    one, two = (files(folder / name / "model") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=2e-5)


def test_what_it_cannot_use(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = ["lm", "score", "--model", str(folder / "model"), "--cpu", "--beta", "1"]
    score += ["--data", str(folder / "groups.jsonl"), "--out", str(folder / "scored.jsonl")]
    assert "holds no values.safetensors" in refusal(capsys, cli.main(score))
    assert "in (0, 1)" in refusal(capsys, cli.main(words(folder, "run", "--expectile", "1.5")))
    reference = words(folder, "other", "--reference-model", str(folder / "model"))
    assert "no reference" in refusal(capsys, cli.main(reference))
    sizes = {"vocab_size": 14, "hidden_size": 8, "intermediate_size": 8, "head_dim": 8}
    sizes |= dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)
    transformers = pytest.importorskip("transformers")
    bounded = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes))
    bounded.save_pretrained(folder / "bounded")
    gemma = words(folder, "run", "--tokenizer", str(folder / "model"))
    gemma[gemma.index("--model") + 1] = str(folder / "bounded")
    assert "changes its logits" in refusal(capsys, cli.main(gemma))
    assert not (folder / "run").exists()
    rows = [dict(row) for row in tiny_lm.GROUPS]
    for changed, message in (
        ({"rewards": ...}, "has no column 'rewards'"),
        ({"rewards": [1.0]}, "1 rewards for 3 completions"),
        ({"rewards": [1.0, "high", 0.0]}, "rewards[1] is 'high'; it must be a number"),
        ({"token_rewards": [[0.0]] * 3}, "answer 1 has 1 token_rewards and 4 tokens"),
    ):
        row = {**rows[0], **changed}
        broken = {name: value for name, value in row.items() if value is not ...}
        write(folder / "groups.jsonl", [*rows[1:], broken])
        assert message in refusal(capsys, cli.main(words(folder, "run"))), message
        assert not (folder / "run").exists()
    write(folder / "groups.jsonl", tiny_lm.PAIRS)
    assert "has no column 'completions'" in refusal(capsys, cli.main(words(folder, "run")))
    # A reward that is no number is dropped with its answer, and counted.
    some = {**rows[0], "rewards": [math.nan, 0.0, 1.0]}
    write(folder / "groups.jsonl", [*rows[1:], some])
    assert cli.main(words(folder, "run", "--steps", "1", "--learning-rate", "1e-6")) == 0
    said = capsys.readouterr().out
    assert "answers dropped: 1, a reward is not a finite number" in said
    assert "new heads learn little at a rate of 1e-06" in said


def test_the_demonstration_measures_the_policy_that_is_decoded_from() -> None:
    small: dict[str, Any] = {
        "seeds": 1,
        "digits": 3,
        "prompts": 8,
        "flips": (0.0,),
        "sft_steps": 2,
        "points": 1,
    }
    small |= {"steps": 2, "judged": 8, "batch": 8, "methods": ("ilql",), "sft_learning_rate": 1e-2}
    steered_far, plain = (run(DemoConfig(**small, beta=beta))[-1] for beta in (50.0, 0.0))
    assert all(math.isfinite(steered_far[name]) for name in METRICS)
    assert steered_far["kl"] != plain["kl"]
