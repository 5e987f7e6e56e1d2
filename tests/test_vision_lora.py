"""LoRA on vision-language models: log-probabilities, gradients and steps equal peft's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.tiny_vision import FAMILIES, photo, save_vision, tiny_vision
from helpers.vision_pairs import A, B, C, plain, policy_of
from typer.testing import CliRunner

from noisescope.cli import app
from noisescope.models.causal_lm import CausalLMPolicy
from noisescope.pairs import Pair, to_table
from noisescope.replicas.config import LoraConfig
from noisescope.replicas.gather_adapters import scores_of
from noisescope.replicas.lora_text import encoded_corpus, make_adapters, train_lora
from noisescope.replicas.packed import PackedReplicas
from noisescope.replicas.train import halves, make_streams
from noisescope.training.config import TrainConfig
from noisescope.training.lora.activations import Activations
from noisescope.training.pair_data import pair_data

#: PEFT asks transformers a deprecated question when it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

CONFIG = LoraConfig(replicas=2, rank=3, top_layers=2, batch=8, save_every=1)
#: Equal words about several pictures, of one size and of two; no picture.
PAIRS = to_table(
    [
        Pair(f"<image:{A}>\nWhat is it?", "A red square.", "No."),
        Pair(f"<image:{B}>\nWhat is it?", "A red square.", "No, nothing."),
        Pair(f"<image:{C}>\nWhat is it?", "Tall.", "A red square."),
        Pair(f"<image:{A}>\nand <image:{C}> or\n<image:{B}>", "The last.", "The first one."),
        Pair("How are you?", "Fine.", "Not fine at all."),
        Pair(f"<image:{C}>\nHow tall?", "Very.", "Hm."),
    ]
)


def cases(*settings: object) -> list[tuple[str, object]]:
    """Families, each with one of some settings."""
    return list(zip(FAMILIES, settings, strict=True))


def learner(
    family: str, folder: Path, config: LoraConfig = CONFIG, *, warm: bool = True
) -> tuple[CausalLMPolicy, PackedReplicas]:
    """Replicas whose adapters are, if `warm`, far from their start."""
    policy, data = policy_of(family), pair_data(PAIRS)
    corpus = encoded_corpus(policy, data.items)
    first = 0 if config.top_layers is None else 3 - config.top_layers
    activations = Activations(policy.model, first, corpus, checkpointing=config.checkpointing)
    adapters = make_adapters(policy.model, first, config)
    if warm:
        torch.manual_seed(0)
        for _, tensor in adapters.parameters():
            torch.nn.init.normal_(tensor, std=0.2)
    held = halves(data, config)
    streams = make_streams(data, held, config.seed, config.cluster, range(config.replicas))
    one = PackedReplicas(activations, adapters, data, config, streams)
    activations.fill(folder / "trunk", family, data.items)
    return policy, one


def tuned(family: str, folder: Path, *, train: bool = False) -> peft.PeftModel:
    """A fresh model with an adapter, by peft."""
    model = tiny_vision(family)[0]
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=train).eval()


def sums(policy: CausalLMPolicy, one: PackedReplicas, model: object = None) -> torch.Tensor:
    """log pi of every response by the processor and a plain forward, [I]."""
    return torch.stack([plain(policy, item, model).sum() for item in one.data.items])


@pytest.mark.parametrize(("family", "top_layers"), cases(None, 2, 2, None))
def test_replicas_equal_peft_on_a_plain_forward(
    family: str, top_layers: int | None, tmp_path: Path
) -> None:
    config = replace(CONFIG, top_layers=top_layers)
    policy, one = learner(family, tmp_path, config)
    assert not any("vision" in name for name in one.adapters.layers)
    assert one.activations.split.cut == 0  # states of equal tokens, other pictures are not shared
    found = one.logps()
    for m in range(2):
        one.save(m, tmp_path / str(m), one.trainable())
    with torch.no_grad(), one.adapters.placement.of(()):
        reference = sums(policy, one)
    torch.testing.assert_close(one.activations.reference, reference, atol=1e-4, rtol=0)
    for m in range(2):
        with torch.no_grad():
            own = sums(policy, one, tuned(family, tmp_path / str(m)))
        torch.testing.assert_close(found[m], own, atol=1e-4, rtol=1e-5)
        assert (own - reference).abs().max() > 1e-2
    one.adapters.detach()
    with scores_of(policy, [tmp_path / "0", tmp_path / "1"]) as scores:  # --from-adapters
        rows = scores.features(one.data.items)
    np.testing.assert_allclose(rows["logps"].T, found, atol=1e-4)
    np.testing.assert_allclose(rows["reference"], reference, atol=1e-4)


@pytest.mark.parametrize(("family", "checkpointing"), cases(False, True, True, False))
def test_log_ratio_is_zero_at_first_and_gradients_equal_pefts(
    family: str, checkpointing: bool, tmp_path: Path
) -> None:
    config = replace(CONFIG, checkpointing=checkpointing)
    _, start = learner(family, tmp_path, config, warm=False)
    assert np.abs(start.margins()).max() < 1e-6
    policy, one = learner(family, tmp_path, config)
    one.save(1, tmp_path / "adapter", one.trainable())
    model = tuned(family, tmp_path / "adapter", train=True)
    parts = [part for batch in one.batches(0) for part in batch if part.replica == 1]
    pairs = np.concatenate([part.pairs for part in parts])
    for part in parts:
        for piece in one.pieces([part]):
            (-torch.nn.functional.logsigmoid(0.1 * piece.values.logratio)).sum().backward()
    own = sums(policy, one, model)
    ratio = own - one.activations.reference
    l = ratio[one.data.chosen[pairs]] - ratio[one.data.rejected[pairs]]  # noqa: E741
    (-torch.nn.functional.logsigmoid(0.1 * l)).sum().backward()
    theirs = dict(model.named_parameters())
    for name, layer in one.adapters.layers.items():
        for part, tensor in (("A", layer.a), ("B", layer.b)):
            grad = theirs[f"base_model.model.{name}.lora_{part}.default.weight"].grad
            torch.testing.assert_close(
                tensor.grad[1], grad, atol=1e-4 * float(grad.abs().max()), rtol=1e-4
            )
    assert all(p.grad is None for n, p in policy.model.named_parameters() if "vision" in n)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_equal_a_plain_dpo_of_peft(family: str, tmp_path: Path) -> None:
    """-log sigmoid(beta l), AdamW, gradients clipped to norm 1: written out on peft's layers."""
    config = replace(
        CONFIG, steps=2, warmup=0.0, schedule="constant", learning_rate=0.01, top_layers=None
    )
    policy, one = learner(family, tmp_path, config, warm=False)
    one.save(0, tmp_path / "start", one.trainable())
    held, reference = one.held_out[0], one.activations.reference
    one.adapters.detach()
    train_lora(policy, PAIRS, config, tmp_path / "run")
    model, plan = tuned(family, tmp_path / "start", train=True), TrainConfig(2)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=0.01, betas=plan.adam_betas, eps=plan.adam_eps, weight_decay=0.0
    )
    chosen, rejected = one.data.chosen[~held], one.data.rejected[~held]
    for _ in range(2):
        optimiser.zero_grad()
        ratio = sums(policy, one, model) - reference
        loss = -torch.nn.functional.logsigmoid(config.beta * (ratio[chosen] - ratio[rejected]))
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimiser.step()
    ours = tuned(family, tmp_path / "run" / "replicas" / "0")
    with torch.no_grad():
        moved = (sums(policy, one, ours) - reference).abs().max()
        torch.testing.assert_close(
            sums(policy, one, ours), sums(policy, one, model), atol=1e-4, rtol=0
        )
    assert moved > 1e-2


ROWS = [
    {
        "images": [{"bytes": photo(at % 6), "path": None}],
        "prompt": f"What is it, {at}?",
        "chosen": f"Good {at}",
        "rejected": f"A bad one {at}",
    }
    for at in range(24)
]


def test_the_commands_train_audit_and_evaluate_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_vision("llava", tmp_path / "model")
    pq.write_table(pa.Table.from_pylist(ROWS), "pairs.parquet")

    def run(line: str) -> dict:
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout)

    made = run(
        "train pairs.parquet --model model --objective dpo --output tuned --json --batch-size 8 "
        "--epochs 6 --learning-rate 0.01 --lora-r 4 --validation 0.25"
    )
    assert made["result"]["last"]["accuracy"] > 0.9
    assert made["result"]["first"]["loss"] > made["result"]["last"]["loss"]
    assert "AutoModelForImageTextToText" in (tmp_path / "tuned" / "README.md").read_text()
    assert made["next"].endswith("--prompts pairs.parquet --labelled pairs.parquet")
    found = run(f"{made['next'].removeprefix('noisescope ')} --json")["labelled"]
    assert found["implicit_reward"]["estimate"] > 0.9
    assert found["pairs"] == 24
    theirs = run(
        "fine-tune pairs.parquet --model model --from-adapters tuned --runs-dir theirs --json"
    )
    margins = pq.read_table(Path(theirs["run"]) / "margins")["margin"].to_numpy()
    assert np.mean(margins > 0) == found["implicit_reward"]["estimate"]
    audit = run(
        "score pairs.parquet --model model --evidence lora --replicas 2 --folds 2 --json "
        "--runs-dir runs"
    )
    assert audit["pairs"] == 24
