"""Evidence from LoRA fine-tunings: our own packed replicas, or adapters somebody else trained."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.errors import UsageError
from noisescope.gathering import (
    DEFAULT_BETA,
    EvidenceConfig,
    Reporter,
    Stopwatch,
    cache_directory,
    kept_encodings,
    lora_config,
)
from noisescope.pairs import PreferenceDataset
from noisescope.policies import Policy
from noisescope.policies.items import distinct_items
from noisescope.run import Run

if TYPE_CHECKING:
    from noisescope.features import Progress
    from noisescope.replicas.cost import LoraCost
    from noisescope.replicas.lora_config import LoraConfig
    from noisescope.replicas.lora_diffusion import DiffusionLoraConfig


def gather_lora(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, Any]:
    """M packed LoRA replicas, each on a random half of the pairs: margins at every checkpoint."""
    began = time.perf_counter()
    config = lora_config(evidence, dataset.modality)
    encodings = kept_encodings(policy, run)
    if encodings is not None:
        with reporter.stage("latents of images, embeddings of captions") as progress:
            encodings.keep(distinct_items(dataset.table)[0], progress)
    label = f"{evidence.replicas} LoRA replicas of {len(dataset):,} pairs"
    with reporter.stage(label) as progress:
        facts = _train(dataset, policy, config, run, progress)
    watch.time("replicas", began)
    return facts


def _train(
    dataset: PreferenceDataset,
    policy: Policy,
    config: LoraConfig | DiffusionLoraConfig,
    run: Run,
    progress: Progress,
) -> dict[str, Any]:
    """Replicas of a causal language model or a diffusion policy; what training did."""
    from noisescope.policies.causal_lm import CausalLMPolicy
    from noisescope.policies.diffusion import DiffusionPolicy
    from noisescope.replicas.cost import Meter
    from noisescope.replicas.lora import train_lora
    from noisescope.replicas.lora_config import LoraConfig
    from noisescope.replicas.lora_diffusion import DiffusionLoraConfig, train_diffusion_lora
    from noisescope.training import STATE_FILE

    meter, table, place = Meter(progress), dataset.table, run.directory

    def say(text: str) -> None:
        progress(0, 1, text)

    def estimated(cost: LoraCost) -> None:
        meter.begin(cost)
        progress(0, cost.total, cost_in_words(cost, policy))

    if (run.replicas_directory / STATE_FILE).is_file():
        say("continuing from the last saved step")
    if isinstance(policy, CausalLMPolicy) and isinstance(config, LoraConfig):
        for remark in policy.remarks(distinct_items(table)[0]):
            say(remark)
        facts = asdict(train_lora(policy, table, config, place, meter, estimated))
        shutil.rmtree(place / "trunk", ignore_errors=True)
        return {name: facts[name] for name in facts if name not in ("seconds", "replicas")}
    if isinstance(policy, DiffusionPolicy) and isinstance(config, DiffusionLoraConfig):
        errors = cache_directory(run).with_name("reference_errors")
        return train_diffusion_lora(policy, table, config, place, errors, meter, estimated, say)
    raise UsageError(f"--kind lora cannot adapt {policy.identity.id}")


def cost_in_words(cost: LoraCost, policy: Policy) -> str:
    """What the training will take, from its FLOPs and a timed matrix product."""
    from noisescope.policies.device import matmul_rate
    from noisescope.replicas.cost import EFFICIENCY

    rate = matmul_rate(policy.device, policy.dtype)
    shares = {
        "reference": cost.reference,
        "training": cost.training,
        "margins": cost.scoring * cost.passes,
    }
    parts = ", ".join(f"{name} {work / cost.total:.0%}" for name, work in shares.items())
    return (
        f"estimate: {cost.steps:,} steps, {cost.total / 1e12:.3g} TFLOP ({parts}) at "
        f"{EFFICIENCY * rate / 1e9:,.0f} GFLOP/s, about {cost.total / EFFICIENCY / rate:,.0f} s"
    )


def gather_adapters(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Margins under somebody else's LoRA adapters, one replica a directory, at step 1."""
    from noisescope.policies.causal_lm import CausalLMPolicy
    from noisescope.replicas.cost import LoraCost, Meter
    from noisescope.replicas.lora import score_adapters
    from noisescope.replicas.peft_files import stated_base

    if not isinstance(policy, CausalLMPolicy):
        raise UsageError(f"--from-adapters cannot adapt {policy.identity.id}")
    began = time.perf_counter()
    base = stated_base(evidence.adapters)
    if base is not None and Path(base).name.lower() != Path(policy.identity.id).name.lower():
        reporter.note(
            f"the adapters say they were trained on {base}, and are judged on "
            f"{policy.identity.id}: margins mean nothing unless these are the same weights"
        )
    if not evidence.held_out:
        reporter.note(IN_SAMPLE)
    label = f"{len(evidence.adapters)} adapters over {len(dataset):,} pairs"
    with reporter.stage(label) as progress:
        meter = Meter(progress)
        meter.begin(LoraCost(1.0, 0.0, float(len(evidence.adapters)), 1, (1,)))  # passes of a kind
        score_adapters(
            policy,
            dataset.table,
            evidence.adapters,
            run.directory,
            beta=evidence.beta or DEFAULT_BETA[dataset.modality],
            held_out=evidence.held_out,
            report=meter,
        )
    shutil.rmtree(run.directory / "trunk", ignore_errors=True)
    watch.time("replicas", began)
    return {"adapters": [str(path) for path in evidence.adapters], "adapters_base": base}


IN_SAMPLE = (
    "these adapters may have trained on the very pairs they judge: margins count as in-sample "
    "(type --held-out if they did not)"
)
