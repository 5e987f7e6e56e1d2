"""Count what LoRA replicas of published datasets cost on GPUs: FLOPs and hours. Nothing is trained.

    python -m benchmarks.scale.lora [--model DIR] [--json FILE]

Models, token counts and the assumed rate are those of benchmarks.scale.cost. FLOPs follow
`replicas/cost.py` (text) and `lora_diffusion.diffusion_cost` (images) for M = 8 replicas with the
defaults of `--kind lora`: each trains on half the pairs, all score all pairs once. On several GPUs
the reference pass is shared by all; a replica's training and margins belong to one.
"""

from __future__ import annotations

from typing import Any

from benchmarks.flops import flops
from benchmarks.harness import Options, Report, main
from benchmarks.scale.cost import (
    DRAWS,
    GPUS,
    HH_PAIRS,
    LANGUAGE,
    PICK_PAIRS,
    RATE,
    SIDES,
    SINGLE,
    UNETS,
    UTILISATION,
)
from noisescope.replicas.config import LoraConfig

REPLICAS = LoraConfig.replicas
#: What a slice of ukp-convarg took, measured (docs/replicas.md): SmolLM2-135M, M = 8, top 4.
SLICE_PAIRS, SLICE_TFLOP, SLICE_CPU = 236, 19.29, 364.1
#: Passes over its half that a replica makes: text, images.
TEXT_EPOCHS, IMAGE_EPOCHS = 1.0, 2.0


def text_costs(options: Options) -> list[dict[str, Any]]:
    """Count TFLOP a pair of each stage over HH, a row a model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from noisescope.datasets import load
    from noisescope.models.causal_lm import load_causal_lm
    from noisescope.models.forward import measure
    from noisescope.models.items import distinct_items

    assert options.model is not None, "--model DIR: whose tokenizer counts"
    pairs = load(options.data / "hh-harmless")
    items, _, _ = distinct_items(pairs.table)
    rows = []
    for name, shape in LANGUAGE.items():
        policy = load_causal_lm(options.model, device="cpu")
        encoded = policy.encode(items)
        answers = sum(len(item.response) for item in encoded)
        tokens = answers + sum({item.prompt: len(item.prompt) for item in encoded}.values())
        with torch.device("meta"):
            policy.model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **shape))
        size, depth = measure(policy.model), int(shape["num_hidden_layers"])
        share = LoraConfig.top_layers / depth
        blocks = [m for m in policy.model.modules() if isinstance(m, torch.nn.Linear)]
        sides = sum(m.in_features + m.out_features for m in blocks) - sum(size_of_head(policy))
        adapted = share * LoraConfig.rank * sides
        reference = flops(policy, items)
        attention = reference - 2 * size.body * tokens - 2 * size.head * answers
        trained = share * (4 * size.body * tokens + 3 * attention) + 6 * adapted * tokens
        trained += 4 * size.head * answers
        scored = share * (2 * size.body * tokens + attention) + 2 * adapted * tokens
        scored += 2 * size.head * answers
        stages = {
            "reference": reference,
            "training": REPLICAS * TEXT_EPOCHS / 2 * trained,
            "margins": REPLICAS * scored,
        }
        each = {stage: work / len(pairs) for stage, work in stages.items()}
        states = SINGLE / 2 * tokens / len(pairs) * int(shape["hidden_size"]) * HH_PAIRS / 1e9
        rows.append(_row(name, HH_PAIRS, each, each) | {"states, GB in bfloat16": states})
    return rows


def size_of_head(policy: Any) -> tuple[int, int]:
    """Return inputs and outputs of the vocabulary head, which is not adapted."""
    head = policy.model.get_output_embeddings()
    return head.in_features, head.out_features


def image_costs() -> list[dict[str, Any]]:
    """Count TFLOP a pair of each stage over Pick-a-Pic, a row a model."""
    rows = []
    for name, (shape, side, caption) in UNETS.items():
        down, rest = _halves(shape, side, caption)
        seen = IMAGE_EPOCHS / 2  # times that a replica meets each pair, one draw each
        stages = {
            "reference": SIDES * DRAWS * (down + rest),
            "training": SIDES * REPLICAS * seen * (down + 2 * rest),
            "margins": SIDES * DRAWS * (down + REPLICAS * rest),
        }
        separate = stages | {"margins": SIDES * DRAWS * REPLICAS * (down + rest)}
        rows.append(_row(name, PICK_PAIRS, stages, separate))
    return rows


def _row(
    name: str, pairs: int, together: dict[str, float], separate: dict[str, float]
) -> dict[str, Any]:
    """Return TFLOP a pair of replicas trained together or not, and hours on 1, 8, 64 GPUs."""
    total = sum(together.values()) / 1e12
    row: dict[str, Any] = {"model": name, "pairs": pairs, "TFLOP a pair": total}
    row |= {f"{stage}, %": 100 * work / 1e12 / total for stage, work in together.items()}
    row["separately, TFLOP a pair"] = sum(separate.values()) / 1e12
    for gpus in GPUS:
        stages, most = (together, 1) if gpus == 1 else (separate, min(gpus, REPLICAS))
        work = stages["reference"] / gpus + (stages["training"] + stages["margins"]) / most
        row[f"{gpus} GPU, h"] = pairs * work / (RATE * UTILISATION) / 3600
    return row


def _halves(shape: dict[str, Any], side: int, caption: tuple[int, int]) -> tuple[float, float]:
    """Count FLOPs of a denoiser's down blocks and of the rest of it, one image and draw."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from noisescope.models.denoiser import Denoiser
    from noisescope.models.denoising import Conditioning
    from noisescope.models.families import FAMILIES
    from noisescope.models.schedule import schedule_of

    schedule = schedule_of("DDPMScheduler", {})
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape).eval()
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        conditioning = Conditioning(
            torch.zeros(1, *caption), added if "addition_embed_type" in shape else {}
        )
        latent, t = torch.zeros(1, 4, side, side), torch.zeros(1, dtype=torch.long)
        denoiser = Denoiser(unet, None, FAMILIES["StableDiffusionPipeline"], schedule)
        with torch.inference_mode():
            with FlopCounterMode(display=False) as below:
                half = denoiser.below(latent, t, conditioning, denoiser.split())
            with FlopCounterMode(display=False) as above:
                denoiser.above(half)
    return float(below.get_total_flops()), float(above.get_total_flops())


def run(options: Options) -> Report:
    """Tabulate costs a pair, then hours, then the counted and measured cost of a slice."""
    report = Report(f"{REPLICAS} LoRA replicas of published datasets")
    rows = [*text_costs(options), *image_costs()]
    title = f"FLOPs a pair, hours at {UTILISATION:.0%} of {RATE / 1e12:.0f} TFLOP/s (assumed)"
    report.tables[title] = rows
    report.facts = {
        "measured slice: CPU seconds a pair": SLICE_CPU / SLICE_PAIRS,
        "measured slice: TFLOP a pair": SLICE_TFLOP / SLICE_PAIRS,
        "measured slice: GFLOP a CPU second": 1e3 * SLICE_TFLOP / SLICE_CPU,
    }
    return report


if __name__ == "__main__":
    main(__doc__, run)
