"""Count what audits of published datasets cost on GPUs: FLOPs, bytes, hours. Nothing is trained.

    python -m benchmarks.scale.cost [--model DIR] [--json FILE]

FLOPs are those of `benchmarks.flops` for text, or of the calls of the denoiser, counted on models
without weights (device "meta") in their published shapes. Token counts are those of the model's
tokenizer (--model) on the transcripts of hh-harmless. Hours follow from an assumed rate (RATE) and
utilisation (UTILISATION): scale them by the rate of your machine.
"""

from __future__ import annotations

from typing import Any

from benchmarks.flops import flops
from benchmarks.harness import Options, Report, main

#: Dense bf16 FLOP/s an H100 SXM is sold with (NVIDIA's datasheet), and the share assumed reached.
RATE, UTILISATION = 989e12, 0.35
GPUS = (1, 8, 64)
#: Published shapes: Llama 3.2 1B and Llama 2 7B.
LANGUAGE = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32_000,
    },
}
#: SD1.5 and SDXL base: the denoiser, the side of its latents, tokens x width of a caption.
UNETS: dict[str, tuple[dict[str, Any], int, tuple[int, int]]] = {
    "SD1.5": ({"cross_attention_dim": 768, "sample_size": 64}, 64, (77, 768)),
    "SDXL": (
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (
                "DownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
            ),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        128,
        (77, 2048),
    ),
}
HH_PAIRS, PICK_PAIRS = 161_000, 959_000
#: Distinct captions of Pick-a-Pic v2 (Diffusion-DPO, 2311.12908, section 5.1).
CAPTIONS = 58_960
#: Distinct responses or images a pair: two, where none recurs.
SIDES = 2
DRAWS = 4
#: Numbers a response has beside five pooled states; bytes of half and single precision.
STATISTICS, HALF, SINGLE = 9, 2, 4


def text_costs(options: Options) -> list[dict[str, Any]]:
    """Count FLOPs and bytes of a feature pass over HH, a row a model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from noisescope.datasets import load
    from noisescope.models.causal_lm import load_causal_lm
    from noisescope.replicas.gather import distinct_items

    assert options.model is not None, "--model DIR: whose tokenizer counts"
    pairs = load(options.data / "hh-harmless")
    items, _, _ = distinct_items(pairs.table)
    rows = []
    for name, shape in LANGUAGE.items():
        policy = load_causal_lm(options.model, device="cpu")
        tokens = int(policy.sizes(items).sum())
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **shape))
        policy.model = model  # its shapes alone are looked at
        width = 5 * int(shape["hidden_size"]) + STATISTICS
        rows.append(
            {
                "model": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "tokens a pair": tokens / len(pairs),
                "TFLOP a pair": flops(policy, items) / len(pairs) / 1e12,
                "pairs": HH_PAIRS,
                "cache GB": HH_PAIRS * SIDES * width * SINGLE / 1e9,
            }
        )
    return rows


def image_costs() -> list[dict[str, Any]]:
    """Count FLOPs and bytes of a feature pass over Pick-a-Pic, a row a model."""
    rows = []
    for name, (shape, side, caption) in UNETS.items():
        call, encoding, weights, late = _image_flops(shape, side, caption)
        calls = 2 * DRAWS - 1
        features = DRAWS * (6 + 4) + (DRAWS - 1) * 3 + 2 * late
        images = PICK_PAIRS * SIDES
        latents, captions = images * 4 * side * side, CAPTIONS * caption[0] * caption[1]
        rows.append(
            {
                "model": name,
                "parameters": weights,
                "denoiser calls a pair": calls * SIDES,
                "TFLOP a call": call / 1e12,
                "TFLOP a pair": SIDES * (calls * call + encoding) / 1e12,
                "pairs": PICK_PAIRS,
                "cache GB": (images * features * SINGLE + (latents + captions) * HALF) / 1e9,
            }
        )
    return rows


def _image_flops(
    shape: dict[str, Any], side: int, caption: tuple[int, int]
) -> tuple[float, float, int, int]:
    """Count FLOPs of a denoiser call and of encoding an image, weights, channels of late blocks."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape).eval()
        coder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=2,
        ).eval()
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        given = {"added_cond_kwargs": added} if "addition_embed_type" in shape else {}
        latent, words = torch.zeros(1, 4, side, side), torch.zeros(1, *caption)
        with torch.inference_mode(), FlopCounterMode(display=False) as denoising:
            unet(latent, torch.zeros(1), words, **given)
        with torch.inference_mode(), FlopCounterMode(display=False) as encoding:
            coder.encode(torch.zeros(1, 3, 8 * side, 8 * side))
    channels = list(unet.config.block_out_channels)
    weights = sum(p.numel() for p in unet.parameters())
    return (
        float(denoising.get_total_flops()),
        float(encoding.get_total_flops()),
        weights,
        channels[0] + channels[1],
    )


def hours(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return hours of each pass on 1, 8 and 64 GPUs at the assumed rate, and the cache by GPU."""
    found = []
    for row in rows:
        total = row["TFLOP a pair"] * 1e12 * row["pairs"]
        times = {f"{n} GPU, h": total / (RATE * UTILISATION) / n / 3600 for n in GPUS}
        found.append({"model": row["model"], "pairs": row["pairs"], "EFLOP": total / 1e18} | times)
    return found


def run(options: Options) -> Report:
    """Tabulate costs a pair, then hours."""
    report = Report("Feature passes over published datasets")
    text, images = text_costs(options), image_costs()
    report.tables["HH-RLHF, a pass over distinct responses"] = text
    report.tables[f"Pick-a-Pic v2, {DRAWS} draws an image, none recurring"] = images
    title = f"hours at {UTILISATION:.0%} of {RATE / 1e12:.0f} TFLOP/s a GPU (assumed)"
    report.tables[title] = hours([*text, *images])
    report.facts = {"rate": RATE, "utilisation": UTILISATION}
    return report


if __name__ == "__main__":
    main(__doc__, run)
