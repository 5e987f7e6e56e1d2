"""LoRA replicas on tiny real models: parity with transformers and PEFT, packing, honesty."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.lora import CONFIG, TinyPolicy, pairs, plain_logps, read
from helpers.tiny_models import save, tiny_gpt2, tiny_llama, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import noisescope
from noisescope.datasets import load
from noisescope.errors import DataError, ModelError, RunError, UsageError
from noisescope.models.forward import mask_of
from noisescope.models.packing import PADDING, corpus_of, pack, stack
from noisescope.pairs import Pair, to_table
from noisescope.replicas.config import LoraConfig
from noisescope.replicas.gather import EvidenceConfig
from noisescope.replicas.gather_adapters import scores_of
from noisescope.replicas.groups import default_halves
from noisescope.replicas.lora_text import make_adapters, train_lora
from noisescope.replicas.packed import PackedReplicas
from noisescope.replicas.train import make_streams
from noisescope.training.batch_order import Stream, clusters, groups_held_out, held_out_by
from noisescope.training.lora.activations import Activations
from noisescope.training.lora.adapters import attach_adapters, linear_names
from noisescope.training.lora.peft_files import save_peft
from noisescope.training.lora.split_model import SplitModel, frozen_head_logps
from noisescope.training.pair_data import pair_data

#: PEFT asks transformers a deprecated question when it wraps a model.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.integers(0, 5))
@settings(max_examples=50)
def test_groups_are_in_one_half_whole_and_halves_are_nearly_equal(sizes, seed):
    keys = np.repeat(np.arange(len(sizes), dtype=np.uint64) * 7919, sizes)
    held = groups_held_out(keys, seed=seed, replicas=4)
    for key in np.unique(keys):
        assert (np.ptp(held[:, keys == key].astype(int), axis=1) == 0).all()
    assert np.array_equal(held[::2], ~held[1::2])
    assert held.any(axis=1).all()
    assert (np.abs(held.mean(axis=1) - 0.5) * len(keys) <= max(sizes) / 2 + 1e-9).all()


def test_replicas_hold_out_whole_prompts_unless_told_otherwise(tmp_path):
    """The plan records it, so that runs with other halves are not taken for these."""
    names = [f"prompt {n % 5}" for n in range(40)]
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": p, "chosen": f"good {n}", "rejected": f"no {n}"} for n, p in enumerate(names)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = load(str(path))
    model = save(tmp_path / "model", tiny_llama(), tiny_tokenizer())
    lora = {"rank": 2, "top_layers": 1, "steps": 1, "batch": 4}
    mixed, plans = {}, set()
    for by in (None, "pair"):
        config = EvidenceConfig("lora", replicas=2, lora=lora, folds_by=by)
        run = noisescope.audit(dataset, str(model), evidence=config, runs_directory=tmp_path).run
        plans.add(run.directory)
        table = pa.concat_tables(pq.read_table(part) for part in run.margin_parts())
        both = (dataset.table[name].to_pylist() for name in ("pair_id", "prompt"))
        prompt = dict(zip(*both, strict=True))
        seen = {}
        for row in table.select(["pair_id", "replica", "held_out"]).to_pylist():
            seen.setdefault((row["replica"], prompt[row["pair_id"]]), set()).add(row["held_out"])
        mixed[by] = any(len(states) > 1 for states in seen.values())
    assert mixed == {None: False, "pair": True}
    assert len(plans) == 2


def test_one_prompt_for_all_pairs_holds_out_single_pairs():
    table = to_table([Pair("the same", f"good {n % 9}", f"bad {n}") for n in range(40)])
    remark = "100% of the pairs are of one prompt: LoRA replicas hold out single pairs."
    assert default_halves(table) == ("pair", remark)
    assert default_halves(to_table([Pair(f"p {n}", "good", "bad") for n in range(40)])) == (
        "pair",
        None,
    )


def learner(model, config: LoraConfig = CONFIG, *, warm: bool = True):
    """A learner whose adapters are, if `warm`, far from their start."""
    policy, data = TinyPolicy(model), pair_data(pairs())
    encoded = policy.encode(data.items)
    corpus = corpus_of([(item.prompt, item.response) for item in encoded])
    depth = model.config.num_hidden_layers
    first = 0 if config.top_layers is None else depth - config.top_layers
    activations = Activations(model, first, corpus)
    adapters = make_adapters(model, first, config)
    if warm:
        torch.manual_seed(0)
        for _, tensor in adapters.parameters():
            torch.nn.init.normal_(tensor, std=0.2)
    held = held_out_by(data.fold_key, seed=0, replicas=config.replicas)
    streams = make_streams(data, held, config.seed, config.cluster, range(config.replicas))
    return PackedReplicas(activations, adapters, data, config, streams), held


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("top_layers", [None, 2])
def test_log_ratios_equal_transformers_and_peft(tmp_path: Path, make, top_layers):
    """Activations, packing, packed adapters and chunked head change nothing: 1e-4 relative."""
    model = make()
    one, _ = learner(model, replace(CONFIG, top_layers=top_layers))
    one.activations.fill(tmp_path / "trunk", "tiny", one.data.items)
    found = one.logps()
    for m in range(CONFIG.replicas):
        save_peft(one.adapters, m, tmp_path / str(m), base="tiny", weights=one.trainable())
    one.adapters.detach()
    reference = plain_logps(make(), one.corpus)
    assert torch.allclose(one.activations.reference, reference, rtol=1e-4)
    for m in range(CONFIG.replicas):
        tuned = peft.PeftModel.from_pretrained(make(), tmp_path / str(m)).eval()
        expected = plain_logps(tuned, one.corpus)
        assert torch.allclose(found[m], expected, rtol=1e-4)
        assert not torch.allclose(expected, reference, rtol=1e-2)


@pytest.mark.parametrize("top_layers", [None, 1])
def test_gradients_equal_autograd_through_the_whole_model(tmp_path: Path, top_layers):
    config = replace(CONFIG, top_layers=top_layers, batch=8, tokens=9999)
    one, _ = learner(tiny_llama(), config)
    one.activations.fill(tmp_path, "tiny", one.data.items)
    (batch,) = one.batches(0)
    for piece in one.pieces(batch):
        piece.values.logratio.square().sum().backward(retain_graph=True)
    ours = {name: tensor.grad.clone() for name, tensor in one.adapters.parameters()}
    for tensor in one.trainable().values():
        tensor.grad = None
    for part in batch:
        one.adapters.placement.segments = ((part.replica, 0, 1),)
        logps = plain_logps(one.adapters.model, one.corpus)
        sides = one.data.chosen[part.pairs], one.data.rejected[part.pairs]
        ratio = logps - one.activations.reference
        (ratio[sides[0]] - ratio[sides[1]]).square().sum().backward()
    for name, tensor in one.adapters.parameters():
        scale = float(tensor.grad.abs().max())
        assert torch.allclose(ours[name], tensor.grad, atol=1e-3 * scale), name


def test_zero_at_start_antisymmetric_and_independent_of_batch_mates(tmp_path: Path):
    start, _ = learner(tiny_llama(), warm=False)
    start.activations.fill(tmp_path, "tiny", start.data.items)
    assert np.abs(start.margins()).max() < 1e-4
    one, _ = learner(tiny_llama())
    one.activations.fill(tmp_path, "tiny", one.data.items)
    margins = one.margins()
    one.data.chosen[:], one.data.rejected[:] = one.data.rejected.copy(), one.data.chosen.copy()
    assert np.array_equal(one.margins(), -margins)
    alone = [
        one._forward([pack(one.corpus, [i], 8)], [1]).detach() for i in range(len(one.data.items))
    ]
    assert torch.allclose(torch.cat(alone), one.logps()[1], rtol=1e-4)


def test_bfloat16_runs_the_same_path(tmp_path: Path):
    one, _ = learner(tiny_llama().bfloat16())
    one.activations.fill(tmp_path, "tiny", one.data.items)
    (first, *_) = one.pieces(one.batches(0)[0])
    first.values.logratio.sum().backward()
    grads = [tensor.grad for tensor in one.trainable().values()]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path):
    found = []
    for on in (False, True):
        one, _ = learner(tiny_llama(), replace(CONFIG, checkpointing=on))
        one.activations = Activations(one.adapters.model, 2, one.corpus, checkpointing=on)
        one.activations.fill(tmp_path, "tiny", one.data.items)
        for batch in one.batches(0):
            sum(piece.values.logratio.sum() for piece in one.pieces(batch)).backward()
        found.append([tensor.grad for tensor in one.trainable().values()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_packing_holds_every_item_once(made):
    encoded = [([7] * (3 + prompt), list(range(1, size + 1))) for prompt, size in made]
    corpus = corpus_of(encoded)
    parts = [pack(corpus, range(len(made)), 16), pack(corpus, [0], 16)]
    for packed in (*parts, stack(parts)[0]):
        mask = mask_of(packed, torch.device("cpu"), torch.bool)[:, 0].numpy()
        assert mask.shape == (*packed.ids.shape, packed.ids.shape[1])
        assert mask.any(2).all()  # a token without any to look at would be not a number
        for place, item in enumerate(packed.items):
            own = packed.owners == place
            assert tuple(packed.targets[own]) == corpus.responses[item]
            rows, columns = np.divmod(packed.sources[own], packed.ids.shape[1])
            seen = mask[rows[-1], columns[-1]]
            held = packed.ids[rows[-1]][seen]
            prompt = corpus.prompts[corpus.prompt_of[item]]
            assert tuple(held) == (prompt + corpus.responses[item])[: len(held)]
            assert len(held) == len(prompt) + len(corpus.responses[item]) - 1
        assert (packed.slots != PADDING).sum() == packed.tokens


@given(st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=20)
def test_every_pair_is_held_out_and_every_epoch_holds_every_pair(replicas, seed):
    keys = np.arange(200, dtype=np.uint64)
    held = held_out_by(keys, seed=seed, replicas=replicas)
    if replicas > 1:
        assert held.any(0).all()
        assert not held.all(0).any()
        assert np.array_equal(held[0], ~held[1])
    random = np.random.default_rng(seed)
    chosen, rejected = random.integers(0, 20, (2, 200))
    groups = clusters(chosen, rejected, 8, random)
    assert sorted(np.concatenate(groups)) == list(range(200))
    assert max(map(len, groups)) <= 8
    stream = Stream(np.flatnonzero(held[0]), chosen, rejected, seed=(seed,), cluster=8)
    epoch = np.concatenate([stream.batch(step, 8) for step in range(len(stream.pairs))])
    counts = np.bincount(epoch, minlength=200)
    assert set(counts[held[0]]) == {8}
    assert counts[~held[0]].sum() == 0


def test_a_run_learns_writes_evidence_and_loads_in_peft(tmp_path: Path):
    model = tiny_llama()
    config = replace(CONFIG, steps=30, learning_rate=1e-2, save_every=10)
    summary = train_lora(TinyPolicy(model), pairs(), config, tmp_path)
    found = read(tmp_path)
    assert set(found.step) == {15, 30}
    assert summary.steps == 30
    assert found.groupby(["replica", "step"]).size().eq(24).all()
    held = found[found.held_out]
    assert held.groupby(["step", "pair_id"]).size().min() >= 1
    last = held[held.step == 30]
    assert (last.margin > 0).mean() > 0.9  # length is easy to learn
    tuned = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "replicas" / "1").eval()
    one, _ = learner(tiny_llama())
    one.adapters.detach()
    ratio = plain_logps(tuned, one.corpus) - plain_logps(tiny_llama(), one.corpus)
    expected = config.beta * (ratio[one.data.chosen] - ratio[one.data.rejected])
    ours = found[(found.replica == 1) & (found.step == 30)].margin.to_numpy()
    assert np.allclose(ours, expected.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_lora(TinyPolicy(tiny_llama()), pairs(), CONFIG, whole)

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lora(TinyPolicy(tiny_llama()), pairs(), CONFIG, killed, kill)
    train_lora(TinyPolicy(tiny_llama()), pairs(), CONFIG, killed)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(killed) for path in killed.rglob("*") if path.is_file())
    for name in names:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_replicas_do_not_touch_each_other(tmp_path: Path):
    """Replica 0 ends the same whether two or four replicas train beside each other."""
    margins = []
    for count in (2, 4):
        run = tmp_path / str(count)
        train_lora(TinyPolicy(tiny_llama()), pairs(), replace(CONFIG, replicas=count), run)
        found = read(run)
        margins.append(found[(found.replica == 0) & (found.step == 6)].margin.to_numpy())
    assert np.allclose(*margins, rtol=1e-3, atol=1e-5)


def test_averaged_copies_are_replicas_of_their_own(tmp_path: Path):
    config = replace(CONFIG, replicas=2, ema=True, checkpoints=1, learning_rate=1e-2)
    summary = train_lora(TinyPolicy(tiny_llama()), pairs(), config, tmp_path)
    assert summary.replicas == 2
    live = read(tmp_path)
    assert set(live.replica) == {0, 1}
    copies = pq.read_table(tmp_path / "averages").to_pandas()
    assert set(copies.replica) == {0, 1, 2, 3}
    spread = copies.groupby("replica").margin.std()
    assert spread[0] < 0.1 * live[live.replica == 0].margin.std()  # decay .9999
    assert spread[1] < live[live.replica == 0].margin.std()  # decay .5
    tuned = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "replicas/0/ema-0.5").eval()
    assert next(p for n, p in tuned.named_parameters() if "lora_B" in n).abs().max() > 0


def test_early_stop_keeps_the_best_checkpoint(tmp_path: Path):
    table = pairs()
    flipped = to_table(
        Pair(row["prompt"], row["rejected"], row["chosen"], pair_id=row["pair_id"])
        if i % 2
        else Pair(row["prompt"], row["chosen"], row["rejected"], pair_id=row["pair_id"])
        for i, row in enumerate(table.to_pylist())
    )
    config = replace(CONFIG, learning_rate=0.05, steps=20, checkpoints=10, patience=2)
    summary = train_lora(TinyPolicy(tiny_llama()), flipped, config, tmp_path)
    assert summary.stopped_early
    assert summary.steps == summary.best_step + 4
    assert read(tmp_path).step.max() == summary.best_step
    losses = summary.held_out_loss
    assert losses[summary.best_step] == min(losses.values())


def test_foreign_adapters(tmp_path: Path):
    """PEFT's own directories, of unequal ranks, score as PEFT itself does."""
    for m, rank in enumerate((2, 3)):
        torch.manual_seed(m)
        tuned = peft.get_peft_model(
            tiny_llama(),
            peft.LoraConfig(
                r=rank, lora_alpha=7, target_modules=["q_proj", "down_proj"], use_rslora=bool(m)
            ),
        )
        for name, tensor in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(tensor, std=0.3)
        tuned.save_pretrained(tmp_path / str(m))
    places = [tmp_path / "0", tmp_path / "1"]
    one, _ = learner(tiny_llama())
    with scores_of(TinyPolicy(tiny_llama()), places) as source:
        rows = source.features(one.data.items)
    one.adapters.detach()
    reference = plain_logps(tiny_llama(), one.corpus)
    for m, place in enumerate(places):
        tuned = peft.PeftModel.from_pretrained(tiny_llama(), place).eval()
        expected = (plain_logps(tuned, one.corpus) - reference).detach().numpy()
        ours = rows["logps"][:, m] - rows["reference"]
        assert np.abs(expected).max() > 1
        assert np.allclose(ours, expected, rtol=1e-3, atol=1e-3)


def test_foreign_adapters_that_cannot_be_scored(tmp_path: Path):
    policy = TinyPolicy(tiny_llama())
    with (
        pytest.raises(ModelError, match=r"adapter_model\S+ and adapter_config\S+ missing"),
        scores_of(policy, [tmp_path]),
    ):
        pass
    tuned = peft.get_peft_model(
        tiny_llama(hidden_size=16, intermediate_size=24),
        peft.LoraConfig(r=2, target_modules=["q_proj"]),
    )
    tuned.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a different shape"), scores_of(policy, [tmp_path]):
        pass
    settings_file = tmp_path / "adapter_config.json"
    facts = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps(facts | {"use_dora": True}))
    with pytest.raises(ModelError, match="use_dora"), scores_of(policy, [tmp_path]):
        pass


def test_another_datasets_state_is_refused(tmp_path: Path):
    train_lora(TinyPolicy(tiny_llama()), pairs(), CONFIG, tmp_path)
    with pytest.raises(RunError, match="evidence"):
        train_lora(TinyPolicy(tiny_llama()), pairs(20), CONFIG, tmp_path)
    with pytest.raises(DataError, match="too few"):
        train_lora(TinyPolicy(tiny_llama()), pairs(3), CONFIG, tmp_path)


def test_impossible_settings_are_all_named():
    with pytest.raises(UsageError, match=r"--replicas.*--lora-r.*--beta.*--schedule"):
        LoraConfig(replicas=0, rank=0, beta=0.0, schedule="step")
    with pytest.raises(ModelError, match="has down_proj, gate_proj"):
        linear_names(tiny_llama(), 0, ["c_attn"])


def test_chunked_head_against_log_softmax():
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=True).double().requires_grad_(False)
    hidden = torch.randn(600, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (600,))
    weights = torch.randn(600, dtype=torch.float64)
    (frozen_head_logps(hidden, head, targets) * weights).sum().backward()
    ours, hidden.grad = hidden.grad, None
    expected = head(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (expected * weights).sum().backward()
    assert torch.allclose(ours, hidden.grad, rtol=1e-4)


def test_a_model_that_rescales_its_logits_is_refused():
    model = tiny_llama()
    plain = type(model).forward

    class Odd(type(model)):
        def forward(self, *args, **inputs):
            out = plain(self, *args, **inputs)
            out.logits = out.logits**3
            return out

    model.__class__ = Odd
    with pytest.raises(ModelError, match="does not support"):
        SplitModel(model, 0)
    attach_adapters(tiny_llama(), 1, 2, 3).detach()
