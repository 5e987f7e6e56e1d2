"""Train a tiny vision-language model on drawn shapes, once, and audit which caption fits a picture.

    python -m benchmarks.captions [--quick] [--json FILE]

Pictures and captions are those of sample_data/shapes.py. A LLaVA of three blocks a tower learns to
caption from random weights. Pairs are about pictures it has not seen: the caption, and one that
contradicts it in a word or more (`shapes.mistake`); 20 % of the labels are reversed. The control
has the same pairs, each with a wrong picture. One seed is also audited with LoRA
replicas alone.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import emoji  # which makes sample_data importable
from benchmarks.harness import Options, Report, main, peak_memory_mib, stopwatch
from benchmarks.models import cache
from noisescope.scoring.metrics import auroc

SEED, PAIRS, QUICK_PAIRS, RATE = 20261129, 800, 300, 0.2
PICTURES, STEPS, BATCH, PEAK = 4_000, 700, 32, 4e-3
SIDE, PATCH, WIDTH, BLOCKS, HEADS = 32, 8, 64, 3, 4
ASKED = "which caption fits"
OWN, OTHERS = "own pictures", "others' pictures"
#: Pairs and kind of replicas; the last of one seed only.
CASES, LORA = ((OWN, "head"), (OTHERS, "head"), (OWN, "lora")), 4
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}<end> "
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def scenes(count: int, rng: np.random.Generator) -> list[tuple[Any, bytes]]:
    """Draw scenes, each with its picture as a PNG."""
    import shapes

    found = []
    for _ in range(count):
        scene, sink = shapes.draw_scene(rng), io.BytesIO()
        shapes.render(scene, rng).save(sink, "PNG")
        found.append((scene, sink.getvalue()))
    return found


def untrained() -> tuple[Any, Any]:
    """Build the model with random weights, and its processor."""
    import shapes
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    rng = np.random.default_rng(SEED)
    captions = [shapes.caption(shapes.draw_scene(rng)) for _ in range(3_000)]
    marks = ["<pad>", "<user>", "<assistant>", "<end>", "<image>", "<unk>"]
    words = sorted({word for text in [*captions, ASKED] for word in text.split()})
    inner = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate([*marks, *words])}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=marks[1:5],
    )
    shape: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
    }
    tower = {"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": PATCH, **shape}
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 256,
            **shape,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def trained(steps: int) -> Path:
    """Return the directory of the trained model; train it if missing."""
    target = cache() / f"tiny-captions-{steps}"
    if not (target / "config.json").is_file():
        print(f"training {target} on drawn shapes (minutes)", file=sys.stderr)
        scratch = target.with_name(f"{target.name}.partial")
        for part in train(steps):
            part.save_pretrained(scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    return target


def train(steps: int) -> tuple[Any, Any]:
    """Fit the model to captions: cross entropy of a caption's words and its end."""
    import make_tiny_sd
    import shapes
    import torch
    from PIL import Image

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    model, processor = untrained()
    drawn = scenes(PICTURES, np.random.default_rng(SEED + 1))
    pictures = [[Image.open(io.BytesIO(data)).convert("RGB")] for _, data in drawn]
    lead = f"<user> <image> {ASKED} <end> <assistant> "
    texts = [f"{lead}{shapes.caption(scene)} <end>" for scene, _ in drawn]
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[:, : int((labels[0] == processor.image_token_id).sum()) + len(lead.split()) - 1] = -100
    labels[labels == processor.tokenizer.pad_token_id] = -100
    parameters = list(model.train().parameters())
    adam, cycle = make_tiny_sd.optimiser(parameters, PEAK, steps)
    generator, recent = torch.Generator().manual_seed(SEED), 5.0
    for step in range(steps):
        rows = torch.randint(len(texts), (BATCH,), generator=generator)
        found = model(**{name: one[rows] for name, one in inputs.items()}, labels=labels[rows])
        emoji.take_step(found.loss, parameters, adam, cycle)
        recent = 0.95 * recent + 0.05 * float(found.loss.detach())
        if (step + 1) % 100 == 0:
            print(f"captions {step + 1}: {recent:.3f}", file=sys.stderr, flush=True)
    return model.eval(), processor


def write_pairs(path: Path, count: int, swap: Any, *, elsewhere: bool = False) -> None:
    """Write pairs, labels in `swap` [n] reversed; with pictures of other pairs if `elsewhere`."""
    import shapes

    rng = np.random.default_rng(SEED + 2)
    drawn = scenes(count, rng)
    rows = []
    for at, (scene, _) in enumerate(drawn):
        sides = [shapes.caption(scene), shapes.caption(shapes.mistake(scene, rng))]
        if swap[at]:
            sides.reverse()
        _, data = drawn[(at + count // 2) % count if elsewhere else at]
        shown = [{"bytes": data, "path": None}]
        row = {"images": shown, "prompt": ASKED, "chosen": sides[0], "rejected": sides[1]}
        rows.append(row | {"pair_id": str(at)})
    pq.write_table(pa.Table.from_pylist(rows), path)


def audited(folder: Path, model: Path, name: str, kind: str) -> tuple[Any, Any]:
    """Audit pairs of a file with replicas of a kind; numbers of the pairs and their p_wrong."""
    import noisescope

    evidence = noisescope.EvidenceConfig(kind, **({"replicas": LORA} if kind == "lora" else {}))
    done = noisescope.audit(
        folder / f"{name}.parquet", model=model, evidence=evidence, runs_directory=folder / "runs"
    )
    scores = pq.read_table(done.run.scores_path, columns=["pair_id", "p_wrong"])
    return scores["pair_id"].to_numpy().astype(int), scores["p_wrong"].to_numpy()


def run(options: Options) -> Report:
    """Measure three seeds of 20 % reversed labels (with --quick one), and the control."""
    report = Report("Detection of wrong labels about pictures by a vision-language model")
    rows: list[dict[str, Any]] = []
    report.tables["detection"] = rows
    count = QUICK_PAIRS if options.quick else PAIRS
    model = Path(options.model) if options.model else trained(STEPS)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(1 if options.quick else 3):
            swap = np.random.default_rng(seed).random(count) < RATE
            for name, kind in CASES[: None if seed == 0 else 2]:
                path = Path(scratch) / f"{name[:3]}-{seed}.parquet"
                write_pairs(path, count, swap, elsewhere=name != OWN)
                with stopwatch() as taken:
                    places, p_wrong = audited(Path(scratch), model, path.stem, kind)
                value = float(auroc(p_wrong, swap[places]))
                row = {"pairs": name, "replicas": kind, "seed": seed, "n": len(places)}
                rows.append(row | {"AUROC of p_wrong": value, "CPU seconds": taken["cpu"]})
                if (name, kind) == CASES[0]:
                    found.append(value)
    report.at_least("which caption fits: AUROC of p_wrong, median", float(np.median(found)), 0.85)
    report.facts["peak MiB"] = peak_memory_mib()
    return report


if __name__ == "__main__":
    main(__doc__, run)
