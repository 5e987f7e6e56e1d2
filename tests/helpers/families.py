"""Tiny models of every text architecture of transformers that an audit should read or refuse.

A configuration is small in every size it has (`SIZES`), with windows, chunks and indices shorter
than the texts of `CORPUS`; `FAMILIES` adds what an architecture needs besides. `examine` measures
one against plain forwards; `python tests/helpers/families.py` writes the table of docs/models.md.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from noisescope.errors import ModelError
from noisescope.models.anatomy import anatomy
from noisescope.models.forward import GROUPS, mask_type, run_batch, to_batch
from noisescope.models.packing import Corpus, corpus_of, pack
from noisescope.models.verify import plain_logps, verify
from noisescope.training.lora.activations import Activations
from noisescope.training.lora.adapters import Adapters, attach_adapters
from noisescope.training.lora.split_model import adapted_logps

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("sliding_window", "attention_window", "attention_chunk_size"), 8),
    **dict.fromkeys(("window_size", "head_dim", "chunk_size", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("mamba_chunk_size", "expert_capacity"), 8),
    **dict.fromkeys(("v_head_dim", "index_head_dim", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_num_heads", "mamba_head_dim"), 8),
    **dict.fromkeys(("ssm_state_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "rotary_dim"), 4),
    **dict.fromkeys(("index_topk", "qk_rope_head_dim", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "index_n_heads"), 2),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("first_k_dense_replace",), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
#: Latent attention has as many key heads as heads, and rotates a part of each.
LATENT = {"num_key_value_heads": 4, "head_dim": 4}
HYBRID = ["linear_attention", "hybrid"] * 2

#: Families whose configuration needs nothing else.
PLAIN = """
afmoe apertus arcee bamba bart biogpt bitnet bloom codegen cohere cohere2 diffllama doge ernie4_5
ernie4_5_moe exaone4 falcon falcon_mamba flex_olmo gemma gemma3_text glm glm4 glm4_moe gpt2
gpt_bigcode gpt_neox gpt_oss gptj granitemoe granitemoehybrid helium hunyuan_v1_dense
hunyuan_v1_moe jamba jetmoe llama llama4_text mamba minimax ministral mistral mixtral mpt nanochat
nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phimoe
qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rwkv seed_oss smollm3
stablelm starcoder2 vaultgemma xglm xlstm bert roberta xlnet
"""

#: What a family's configuration needs beyond `SIZES`.
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in PLAIN.split()},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "deepseek_v4": {},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "longcat_flash": LATENT | {"num_layers": 2},
    "minicpm3": LATENT,
    "youtu": LATENT,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 4,
    },
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite": {"logits_scaling": 8.0},
    "hrm_text": {},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "phi3": {
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "partial_rotary_factor": 1.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 16,
        },
    },
    "mamba2": {"num_heads": 8, "expand": 2},
    "zamba": {"layers_block_type": HYBRID},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}
#: Families that are refused, and what the refusal names.
REFUSED = dict.fromkeys(("bert", "roberta", "xlnet"), "not causal")

_TOKENS = [(7 * i * i + 3 * i + 1) % 100 + 2 for i in range(120)]
#: (prompt, response) token ids: two responses to one prompt, and one to another.
CORPUS = [
    (_TOKENS[:10], _TOKENS[10:16]),
    (_TOKENS[:10], _TOKENS[16:50]),
    (_TOKENS[50:54], _TOKENS[54:74]),
]
LONGEST = 64


@dataclass(frozen=True)
class Examined:
    """How a model is run, and its largest differences, nats a token."""

    rows: str  # packed, padded or alone
    stored: bool  # whether states below the adapted blocks are stored
    replicas: str  # together, or in turn
    logps: float  # features against a plain forward
    start: float  # log-ratio at step 0
    trained: float  # after 3 steps, against a plain forward of merged weights
    gradients: float  # with checkpointing against without, relative
    packing: float  # these rows against each text alone


def tiny_config(family: str) -> Any:
    """A family's tiny configuration."""
    kind = CONFIG_MAPPING[family]
    known = {*inspect.signature(kind.__init__).parameters, *kind().to_dict()}
    sizes = {name: size for name, size in SIZES.items() if name in known}
    return kind(**sizes | FAMILIES[family])


def tiny_family(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A family's tiny model, in evaluation mode."""
    torch.manual_seed(0)
    config = tiny_config(family)
    try:
        model = AutoModelForCausalLM.from_config(config)
    except ValueError:
        model = AutoModelForImageTextToText.from_config(config)
    return model.eval().requires_grad_(False).to(dtype)


def logps_of(model: Any, corpus: Corpus) -> torch.Tensor:
    """Log-probability of each response by the features' path, [I]."""
    return features_of(model, corpus)[0]


def features_of(model: Any, corpus: Corpus) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probability of each response, [I], and every feature group, finite."""
    items = list(range(len(corpus.responses)))
    kind = mask_type(model, model.dtype)
    batch = to_batch(corpus, pack(corpus, items, 128), model.device, kind)
    with torch.inference_mode():
        trace = run_batch(model, batch)
        groups = {name: group(trace) for name, group in GROUPS.items()}
    assert all(bool(values.isfinite().all()) for values in groups.values())
    return torch.zeros(len(items)).index_add(0, batch.owners, trace.logps), groups


def plain(model: Any, corpus: Corpus) -> torch.Tensor:
    """Log-probability of each response by the model's own forward, one text at a time, [I]."""
    with torch.no_grad():
        parts = plain_logps(model, corpus).split(corpus.response_sizes.tolist())
    return torch.stack([part.sum() for part in parts])


def merge(adapters: Adapters, replica: int) -> None:
    """Detach adapters and add one replica's to the weights, of their own layer alone."""
    layers = dict(adapters.layers)
    adapters.detach()
    for layer in layers.values():
        delta = layer.scales[replica] * layer.b[replica].detach() @ layer.a[replica].detach()
        delta = delta.T if layer.transposed else delta
        weight = layer.base.weight + delta.to(layer.base.weight)
        layer.base.weight = torch.nn.Parameter(weight, requires_grad=False)


def examine(family: str, dtype: torch.dtype = torch.float32) -> Examined:
    """Run one family's model in every way and compare. Raises ModelError if it is refused."""
    model = tiny_family(family, dtype)
    how = verify(model, LONGEST)
    corpus = corpus_of(CORPUS, how)
    sizes = torch.from_numpy(corpus.response_sizes)
    own, found = plain(model, corpus), logps_of(model, corpus)
    rows = logps_of(model, corpus_of(CORPUS, "alone"))

    first = len(anatomy(model).blocks) // 2
    activations = Activations(model, first, corpus)
    adapters = attach_adapters(model, 2, 4, first)
    adapters.initialise([0, 1], 8.0)
    packed = pack(corpus, list(range(len(CORPUS))), 128)
    with torch.no_grad():
        entering, last = activations.split.reference_pass(packed)
        reference = activations.split.item_logps(packed, last)

    def ratios(*, checkpointing: bool = False) -> torch.Tensor:
        split = activations.split
        split.checkpointing = checkpointing
        if entering is None or not adapters.together or packed.alone:
            activations.states = lambda _packed: entering  # type: ignore[method-assign]
        else:
            activations.states = lambda _packed: torch.cat([entering] * 2)  # type: ignore[method-assign]
        logps = adapted_logps(activations, adapters, [packed] * 2, [0, 1])
        return logps.view(2, -1) - reference

    def gradients(**settings: bool) -> list[torch.Tensor]:
        for _, tensor in adapters.parameters():
            tensor.grad = None
        (ratios(**settings)[:, 0] - ratios(**settings)[:, 1]).square().sum().backward()
        return [
            tensor.grad.clone() for _, tensor in adapters.parameters() if tensor.grad is not None
        ]

    start = float(ratios().detach().abs().max())
    optimizer = torch.optim.SGD([tensor for _, tensor in adapters.parameters()], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        values = ratios()
        torch.nn.functional.softplus(values[:, 1] - values[:, 0]).sum().backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
    kept, again = gradients(), gradients(checkpointing=True)
    scale = max(float(grad.abs().max()) for grad in kept)
    worst = max(float((a - b).abs().max()) for a, b in zip(kept, again, strict=True))
    with torch.no_grad():
        trained = ratios()[1] + reference
    assert float((trained - reference).abs().max()) > 0, "three steps changed nothing"
    together = adapters.together and not packed.alone
    merge(adapters, 1)
    return Examined(
        rows=how,
        stored=bool(activations.split.cut),
        replicas="together" if together else "in turn",
        logps=float(((found - own).abs() / sizes).max()),
        start=start,
        trained=float(((trained - plain(model, corpus)).abs() / sizes).max()),
        gradients=worst / max(scale, 1e-12),
        packing=float(((found - rows).abs() / sizes).max()),
    )


def line(family: str, found: Examined | ModelError) -> str:
    """A family's line of the table in docs/models.md."""
    if isinstance(found, ModelError):
        return f"| {family} | refused: {found.message.partition(' ')[2]} | | |"
    stored = "stored" if found.stored else "computed again"
    return f"| {family} | {found.rows} | {stored} | {found.replicas} |"


PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN = "| family | rows | blocks below the adapters | replicas |\n|---|---|---|---|\n"

if __name__ == "__main__":
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    lines = []
    for name in sorted(FAMILIES):
        result: Examined | ModelError
        try:
            result = examine(name)
        except ModelError as error:
            result = error
        lines.append(line(name, result))
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    PAGE.write_text(head + BEGIN + "\n".join(lines) + "\n", encoding="utf-8")
