"""Evidence from LoRA fine-tunings: replicas packed in one process, or trained apart."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.errors import RunError
from noisescope.models import Policy
from noisescope.models.items import distinct_items
from noisescope.pairs import Modality, PreferenceDataset
from noisescope.progress import Reporter, Stopwatch
from noisescope.replicas.gather import EvidenceConfig, cache_directory, kept_encodings, lora_config
from noisescope.replicas.lora_image import fill_reference, train_diffusion_lora
from noisescope.replicas.lora_text import TextPolicy, fill_trunk, train_lora
from noisescope.replicas.partition import cut, share_of
from noisescope.replicas.standalone import (
    DONE,
    FOLDER,
    assemble,
    conclude,
    finished,
    member_directory,
)
from noisescope.storage.run import Run
from noisescope.training.state import STATE_FILE

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.progress import Progress
    from noisescope.replicas.config import DiffusionLoraConfig, LoraConfig
    from noisescope.replicas.cost import LoraCost
    from noisescope.training.pair_data import Report


def gather_lora(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, Any]:
    """M packed LoRA replicas, each on a random half of the pairs: margins at every checkpoint.

    Where they were begun apart, by ranks or shards, what they lack is trained apart, too.
    """
    began = time.perf_counter()
    keep_encodings(dataset, policy, run, reporter)
    if (run.directory / FOLDER).is_dir():
        plan = str(run.plan()["fingerprint"])
        if len(finished(run, plan, evidence.replicas)[0]) < evidence.replicas:
            fill_shared(dataset, policy, evidence, run, reporter, (0, 1))
        train_apart(dataset, policy, evidence, run, plan, range(evidence.replicas), reporter)
        members, faults = finished(run, plan, evidence.replicas)
        if len(members) < evidence.replicas:
            raise RunError("; ".join(faults.values()), hint="Type the same command again.")
        facts = assemble(run, dataset.table, list(members.values()))
    else:
        label = f"{evidence.replicas} LoRA replicas of {len(dataset):,} pairs"
        with reporter.stage(label) as progress:
            config = lora_config(evidence, dataset.modality)
            facts = _train(dataset, policy, config, run, run.directory, progress)
    shutil.rmtree(run.directory / "trunk", ignore_errors=True)
    watch.time("replicas", began)
    return facts


def keep_encodings(
    dataset: PreferenceDataset,
    policy: Policy,
    run: Run,
    reporter: Reporter,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Compute what a denoiser is given, or share `i` of `n` (from 0) of it; nothing for text."""
    encodings = kept_encodings(policy, run)
    if encodings is None:
        return
    items = distinct_items(dataset.table)[0]
    cuts = cut(items, policy.sizes(items), share[1])
    mine = [item for item in items if share_of(item, cuts) == share[0]]
    with reporter.stage("latents of images, embeddings of captions") as progress:
        encodings.keep(mine, progress)


def fill_shared(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    share: tuple[int, int],
) -> None:
    """Share `i` of `n` (from 0) of what all replicas need of the model itself: below the adapters,
    or the reference's errors. After `keep_encodings`."""
    config, shared = lora_config(evidence, dataset.modality), shared_directory(run, policy)
    with reporter.stage(f"the model itself, share {share[0] + 1} of {share[1]}") as progress:
        FILL[dataset.modality](policy, dataset.table, config, shared, share, progress)


def shared_directory(run: Run, policy: Policy) -> Path:
    """Where the results of the model itself are kept, which all replicas need."""
    if policy.modality == "text":
        return run.directory / "trunk"
    return cache_directory(run).with_name("reference_errors")


def train_apart(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    plan: str,
    numbers: Sequence[int],
    reporter: Reporter,
    of: str = "",
) -> int:
    """Train those of the replicas `numbers` that are not finished, one by one; how many.

    `plan` is the run's fingerprint, `of` says whose they are, where they are not all.
    """
    config = lora_config(evidence, dataset.modality)
    known, faults = finished(run, plan, evidence.replicas)
    for number in sorted(faults.keys() & set(numbers)):
        reporter.note(f"{faults[number]}: training that replica again")
        shutil.rmtree(
            member_directory(run, number), ignore_errors=True
        )  # a state would call it done
    todo = [number for number in numbers if number not in known]
    for number in todo:
        place = member_directory(run, number)
        (place / DONE).unlink(missing_ok=True)
        label = f"LoRA replica {number} of 0 to {evidence.replicas - 1}{of}"
        with reporter.stage(label) as progress:
            facts = _train(dataset, policy, config, run, place, progress, range(number, number + 1))
        conclude(place, plan, number, facts)
        (place / "replicas" / STATE_FILE).unlink(missing_ok=True)
    return len(todo)


def _train_text(
    policy: TextPolicy,
    table: pa.Table,
    config: LoraConfig,
    place: Path,
    shared: Path,
    report: Report,
    estimate: Callable[[LoraCost], None],
    note: Callable[[str], None],
    *,
    members: range | None,
) -> dict[str, Any]:
    """`train_lora` with the signature of `train_diffusion_lora`."""
    done = train_lora(
        policy, table, config, place, report, estimate, members=members, trunk_directory=shared
    )
    return {k: v for k, v in asdict(done).items() if k not in ("seconds", "replicas")}


#: How replicas of a modality are trained, and how a share of the model's own results is computed.
TRAIN: dict[Modality, Callable[..., dict[str, Any]]] = {
    "text": _train_text,
    "image": train_diffusion_lora,
}
FILL: dict[Modality, Callable[..., None]] = {"text": fill_trunk, "image": fill_reference}


def _train(
    dataset: PreferenceDataset,
    policy: Policy,
    config: LoraConfig | DiffusionLoraConfig,
    run: Run,
    place: Path,
    progress: Progress,
    members: range | None = None,
) -> dict[str, Any]:
    """Train replicas in `place`; facts of what the training did."""
    from noisescope.replicas.cost import Meter

    meter = Meter(progress)

    def note(text: str) -> None:
        progress(0, 1, text)

    def estimated(cost: LoraCost) -> None:
        cost = cost if members is None else replace(cost, reference=0.0)  # `fill_shared` did it
        meter.begin(cost)
        progress(0, cost.total, cost_in_words(cost, policy))

    if (place / "replicas" / STATE_FILE).is_file():
        note("continuing from the last saved step")
    shared = shared_directory(run, policy)
    return TRAIN[dataset.modality](
        policy, dataset.table, config, place, shared, meter, estimated, note, members=members
    )


def cost_in_words(cost: LoraCost, policy: Policy) -> str:
    """What the training will take, from its FLOPs and a timed matrix product."""
    from noisescope.models.device import matmul_rate
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
