"""AdaptiveDPOTrainer: Eq. 16 by hand, plain DPO where weights are neutral, columns that arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("trl", reason="TRL is not installed: pip install 'noisescope[trl]'")

from datasets import Dataset, IterableDataset
from helpers.tiny_models import tiny_llama, tiny_tokenizer
from helpers.toy_run import toy
from trl import DPOConfig, DPOTrainer

from noisescope.errors import DataError, UsageError
from noisescope.export.trl import export_trl
from noisescope.training.objectives import AdaptiveDPO, AdaptiveIPO, ForwardDPO, SoftDPO
from noisescope.training.trl import AdaptiveDPOTrainer, WeightedCollator

BETA = 0.3
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def rows(*, weights: bool = True) -> Any:
    items = [
        {
            "prompt": f"How do I bake {i}?",
            "chosen": " Knead the dough." * (1 + i % 2),
            "rejected": " no idea",
        }
        | ({"weight": 0.2 + i / 4, "gamma": -0.5 * i, "pair_id": f"p{i}"} if weights else {})
        for i in range(4)
    ]
    return Dataset.from_list(items)


def trainer(kind: type, data: Any, folder: Path, **options: Any) -> Any:
    changes = options.pop("args", {})
    arguments = DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        per_device_train_batch_size=4,
        max_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        **changes,
    )
    return kind(
        model=tiny_llama(0),
        ref_model=options.pop("ref_model", tiny_llama(1)),
        args=arguments,
        train_dataset=data,
        processing_class=tiny_tokenizer(None),
        **options,
    )


def batch_of(made: Any) -> Any:
    return made._prepare_inputs(next(iter(made.get_train_dataloader())))


def logps_by_hand(model: Any, batch: Any) -> torch.Tensor:
    """Sum over response tokens of log softmax, [2 B]."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = F.log_softmax(logits[:, :-1], -1)
    tokens = logps.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    return (tokens * batch["completion_mask"][:, 1:]).sum(1)


def test_one_steps_loss_is_eq_16_by_hand(tmp_path: Path) -> None:
    made = trainer(AdaptiveDPOTrainer, rows(), tmp_path)
    batch = batch_of(made)
    assert sorted(batch["weight"].tolist()) == pytest.approx([0.2, 0.45, 0.7, 0.95])
    policy, reference = logps_by_hand(tiny_llama(0), batch), logps_by_hand(tiny_llama(1), batch)
    chosen, rejected = (policy - reference).chunk(2)
    terms = -batch["weight"] * F.logsigmoid(BETA * (chosen - rejected) - batch["gamma"])
    loss = made.compute_loss(made.model, batch)
    assert loss.item() == pytest.approx(terms.mean().item(), rel=1e-5)
    loss.backward()
    assert sum(p.grad.abs().sum() for p in made.model.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("precompute", [False, True])
def test_neutral_weights_are_trls_own_loss(tmp_path: Path, precompute: bool) -> None:
    data = rows(weights=False)
    args = {"precompute_ref_log_probs": precompute}
    plain = trainer(DPOTrainer, data, tmp_path / "a", args=args)
    neutral = data.add_column("weight", [1.0] * 4).add_column("gamma", [0.0] * 4)
    ours = trainer(AdaptiveDPOTrainer, neutral, tmp_path / "b", args=args)
    mine = ours.compute_loss(ours.model, batch_of(ours))
    theirs = plain.compute_loss(plain.model, batch_of(plain))
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_an_export_trains_and_logs(tmp_path: Path) -> None:
    export_trl(toy(tmp_path), tmp_path / "t.parquet")
    data = Dataset.from_parquet(str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "cache"))
    made = trainer(AdaptiveDPOTrainer, data.select(range(8)), tmp_path / "out")
    made.train()
    logged = next(entry for entry in made.state.log_history if "loss" in entry)
    assert 0 < logged["weights/mean"] <= 1
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen"} <= set(logged)


def test_soft_labels_are_learnt_and_never_read_as_a_shift(tmp_path: Path) -> None:
    export_trl(toy(tmp_path), tmp_path / "t.parquet", scheme="soft")
    data = Dataset.from_parquet(str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "cache"))
    assert "gamma" not in data.column_names
    made = trainer(AdaptiveDPOTrainer, data.select(range(4)), tmp_path / "out")
    batch = batch_of(made)
    assert min(batch["belief"].tolist()) < 0 < max(batch["belief"].tolist())
    policy, reference = logps_by_hand(tiny_llama(0), batch), logps_by_hand(tiny_llama(1), batch)
    chosen, rejected = (policy - reference).chunk(2)
    h, p_wrong = BETA * (chosen - rejected), torch.sigmoid(-batch["belief"])
    terms = -(1 - p_wrong) * F.logsigmoid(h) - p_wrong * F.logsigmoid(-h)
    loss = made.compute_loss(made.model, batch)
    assert loss.item() == pytest.approx(terms.mean().item(), rel=1e-5)
    with pytest.raises(UsageError, match="AdaptiveIPO does not work"):
        trainer(AdaptiveDPOTrainer, data, tmp_path, objective=AdaptiveIPO(beta=BETA))
    with pytest.raises(UsageError, match="it has the column gamma, and not belief"):
        trainer(AdaptiveDPOTrainer, rows(), tmp_path, objective=SoftDPO(beta=BETA))
    with pytest.raises(UsageError, match="it has the column belief, and not prior"):
        trainer(AdaptiveDPOTrainer, data, tmp_path, objective=ForwardDPO(beta=BETA))
    for other in (rows(), {"a": rows()}):
        with pytest.raises(UsageError, match="evaluation set has the column gamma"):
            trainer(AdaptiveDPOTrainer, data, tmp_path, eval_dataset=other)
    plain = trainer(DPOTrainer, data.select(range(4)), tmp_path / "plain")
    plain.train()  # TRL alone ignores our columns
    assert any("loss" in entry for entry in plain.state.log_history)


def test_what_is_known_of_a_label_beside_its_responses_enters_its_likelihood(
    tmp_path: Path,
) -> None:
    scores = toy(tmp_path)
    scores.columns["p_prior"][:] = np.linspace(0.05, 0.6, len(scores))
    export_trl(scores, tmp_path / "t.parquet", scheme="prior")
    data = Dataset.from_parquet(str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "cache"))
    made = trainer(AdaptiveDPOTrainer, data.select(range(4)), tmp_path / "out")
    batch = batch_of(made)
    policy, reference = logps_by_hand(tiny_llama(0), batch), logps_by_hand(tiny_llama(1), batch)
    chosen, rejected = (policy - reference).chunk(2)
    h, p = BETA * (chosen - rejected), torch.sigmoid(-batch["prior"])
    expected = -((1 - p) * h.sigmoid() + p * (-h).sigmoid()).log().mean()
    loss = made.compute_loss(made.model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("scheme", "expected"), [("soft", SoftDPO), ("prior", ForwardDPO), ("p_wrong", AdaptiveDPO)]
)
def test_a_stream_without_names_trains_as_its_columns_mean(
    tmp_path: Path, scheme: str, expected: type
) -> None:
    export_trl(toy(tmp_path), tmp_path / "t.parquet", scheme=scheme)
    items = pq.read_table(tmp_path / "t.parquet").to_pylist()[:8]
    stream = IterableDataset.from_generator(lambda: iter(items))
    assert stream.column_names is None
    made = trainer(AdaptiveDPOTrainer, stream, tmp_path / "out")
    assert type(made.objective) is expected
    name = {"soft": "belief", "prior": "prior"}.get(scheme, "gamma")
    assert batch_of(made)[name].tolist() == pytest.approx([row[name] for row in items[:4]])
    bare = IterableDataset.from_generator(
        lambda: ({"prompt": "p", "chosen": "c", "rejected": "r"},)
    )
    with pytest.raises(UsageError, match="no column weight"):
        trainer(AdaptiveDPOTrainer, bare, tmp_path / "bare")


def test_any_objective_and_peft(tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    options = {"objective": AdaptiveIPO(beta=BETA), "peft_config": lora, "ref_model": None}
    made = trainer(AdaptiveDPOTrainer, rows(), tmp_path, **options)
    batch = batch_of(made)
    # Fresh adapters: the policy is its reference, so l = 0.
    expected = batch["weight"] * (batch["gamma"] + 1 / (2 * BETA)) ** 2
    loss = made.compute_loss(made.model, batch)
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-4)
    assert made.compute_loss(made.model, batch, return_outputs=True)[1].logits is not None


def test_an_evaluation_set_may_be_without_weights(tmp_path: Path) -> None:
    made = trainer(AdaptiveDPOTrainer, rows(), tmp_path, eval_dataset=rows(weights=False))
    assert made.evaluate()["eval_loss"] > 0


def test_the_collator_keeps_the_columns_and_refuses_bad_ones() -> None:
    collator = WeightedCollator(lambda examples: {"n": len(examples)})
    batch = collator([{"weight": 0.5, "gamma": -1.0}, {}])
    assert batch["weight"].tolist() == [0.5, 1.0]
    assert batch["gamma"].tolist() == [-1.0, 0.0]
    assert batch["n"] == 2
    for bad in (None, float("nan"), -0.1):
        with pytest.raises(DataError, match="weight"):
            collator([{"weight": bad}])


def test_what_would_be_ignored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column weight"):
        trainer(AdaptiveDPOTrainer, rows(weights=False), tmp_path)
    with pytest.raises(UsageError, match="loss_type"):
        trainer(AdaptiveDPOTrainer, rows(), tmp_path, args={"loss_type": ["ipo"]})
