"""Margins of LoRA replicas: packed in one process, or trained one by one by ranks and shards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from noisescope.errors import RunError
from noisescope.models import Policy
from noisescope.models.items import distinct_items
from noisescope.pairs import Modality
from noisescope.progress import Reporter, Stopwatch, duration
from noisescope.replicas.gather import (
    Division,
    EvidenceConfig,
    Wait,
    Work,
    Worker,
    cache_directory,
    kept_encodings,
    lora_config,
)
from noisescope.replicas.lora_image import fill_reference, train_diffusion_lora
from noisescope.replicas.lora_text import TextPolicy, fill_activations, train_lora
from noisescope.replicas.partition import WHOLE, Share, boundaries, shard_of
from noisescope.replicas.standalone import (
    DONE,
    FOLDER,
    assemble,
    conclude,
    copy_member,
    finished,
    member_directory,
    read_member,
)
from noisescope.storage.remote import Place
from noisescope.training.state import STATE_FILE

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.progress import Progress
    from noisescope.replicas.config import DiffusionLoraConfig, LoraConfig
    from noisescope.replicas.cost import LoraCost
    from noisescope.training.pair_data import Report


@final
class LoraWork(Work):
    """M LoRA replicas, each on a random half of the pairs: margins at every checkpoint.

    One process trains them packed together, in the run directory itself. Shares train them one by
    one, each in a folder of its own (`standalone`), from which the margins are assembled.
    """

    unit: ClassVar[str] = "replicas"
    without: ClassVar[str] = "are missing"
    files: ClassVar[str] = "replicas"

    def __len__(self) -> int:
        return int(self.plan.evidence["replicas"])

    @property
    def directory(self) -> Path:
        return self.run.directory / FOLDER

    def describe(self, units: Sequence[int]) -> str:
        return f"replica {', '.join(map(str, units))}"

    def copy_missing(self, sources: Sequence[Place]) -> tuple[int, list[str]]:
        plan = self.plan.fingerprint
        known, damaged = finished(self.run, plan, len(self))
        faults, copied = list(damaged.values()), 0
        todo = set(range(len(self))) - set(known)
        for source in sources:
            if source.is_at(self.run.directory):
                continue
            for number in sorted(todo):
                found = read_member(source / FOLDER / str(number), plan, number)
                try:
                    if isinstance(found, str):
                        raise RunError(found)
                    if found is not None:
                        copy_member(found, self.run)
                        todo.remove(number)
                        copied += 1
                except RunError as error:
                    faults.append(error.message)
        return copied, faults

    def missing(self) -> list[int]:
        """The replicas that are not finished, or damaged."""
        known = finished(self.run, self.plan.fingerprint, len(self))[0]
        return [number for number in range(len(self)) if number not in known]

    def divide(self, policy: Policy, units: Sequence[int], of: int) -> Division:
        """One replica after the other to each share."""
        return [place % of for place in range(len(units))], ()

    def share_of(self, unit: int, of: int, cuts: Sequence[str]) -> int:
        return unit % of

    def make(self, by: Worker, watch: Stopwatch) -> dict[str, Any]:
        """Train all replicas in one process, or finish those that shares began."""
        began = time.perf_counter()
        if self.directory.is_dir():
            self.compute(by, range(len(self)))
            watch.time("replicas", began)
            return self.write_margins({}, by.reporter, watch)
        self._keep_encodings(by)
        label = f"{len(self)} LoRA replicas of {self.table.num_rows:,} pairs"
        with by.reporter.stage(label) as progress:
            facts = self._train(by, self.run.directory, progress)
        self._remove_trunk()
        watch.time("replicas", began)
        return facts

    def compute(
        self, by: Worker, units: Sequence[int], share: Share = WHOLE, wait: Wait | None = None
    ) -> int:
        """Train those of the replicas `units` that are not finished, one by one."""
        plan = self.plan.fingerprint
        known, faults = finished(self.run, plan, len(self))
        todo = [number for number in units if number not in known]
        if wait is not None:  # what all replicas need is divided too
            self._keep_encodings(by, share)
            wait()
        elif not todo:
            return 0
        self._keep_encodings(by)  # finds what the other shares computed
        self._fill_shared(by, share)
        if wait is not None:
            wait()
        for number in sorted(faults.keys() & set(units)):
            by.reporter.note(f"{faults[number]}: training that replica again")
            shutil.rmtree(member_directory(self.run, number), ignore_errors=True)
        for number in todo:
            directory = member_directory(self.run, number)
            (directory / DONE).unlink(missing_ok=True)
            label = f"LoRA replica {number} of 0 to {len(self) - 1}{share.label}"
            with by.reporter.stage(label) as progress:
                facts = self._train(by, directory, progress, range(number, number + 1))
            conclude(directory, plan, number, facts)
            (directory / "replicas" / STATE_FILE).unlink(missing_ok=True)
        return len(todo)

    def write_margins(
        self, facts: Mapping[str, Any], reporter: Reporter, watch: Stopwatch
    ) -> dict[str, Any]:
        """Write the margins and adapters that one process would, from the replicas' folders."""
        began = time.perf_counter()
        members, faults = finished(self.run, self.plan.fingerprint, len(self))
        if len(members) < len(self):
            raise RunError("; ".join(faults.values()), hint="Run the same command again.")
        training = assemble(self.run, self.table, list(members.values()))
        self._remove_trunk()
        watch.time("replicas", began)
        return training

    def _settings(self, config: EvidenceConfig) -> LoraConfig | DiffusionLoraConfig:
        """The replicas' settings; what they hold out is the plan's, which the audit resolved."""
        folds_by = self.plan.evidence.get("folds_by", "pair")
        return lora_config(replace(config, folds_by=folds_by), self.plan.modality)

    @property
    def _shared(self) -> Path:
        """Where the results of the model itself are kept, which all replicas need."""
        if self.plan.modality != "image":
            return self.run.directory / "trunk"  # removed when the margins are written
        return cache_directory(self.run).with_name("reference_errors")

    def _remove_trunk(self) -> None:
        shutil.rmtree(self.run.directory / "trunk", ignore_errors=True)

    def _keep_encodings(self, by: Worker, share: Share = WHOLE) -> None:
        """Cache the denoiser's inputs, or a share of them; nothing for text."""
        encodings = kept_encodings(by.policy, self.run)
        if encodings is None:
            return
        items = distinct_items(self.table)[0]
        cuts = boundaries(items, by.policy.sizes(items), share.of)
        mine = [item for item in items if shard_of(item, cuts) == share.index]
        with by.reporter.stage("latents of images, embeddings of captions") as progress:
            encodings.keep(mine, progress)

    def _fill_shared(self, by: Worker, share: Share) -> None:
        """Compute a share of what all replicas need of the model itself: activations below the
        adapters, or the reference's errors. After `_keep_encodings`."""
        part, config = (share.index, share.of), self._settings(by.config)
        with by.reporter.stage(f"the model itself, share {share}") as progress:
            FILL[self.plan.modality](by.policy, self.table, config, self._shared, part, progress)

    def _train(
        self, by: Worker, directory: Path, progress: Progress, members: range | None = None
    ) -> dict[str, Any]:
        """Train all replicas, or only `members`, in `directory`; facts of the training."""
        from noisescope.replicas.cost import Meter

        meter = Meter(progress)

        def note(text: str) -> None:
            progress(0, 1, text)

        def estimated(cost: LoraCost) -> None:
            cost = cost if members is None else replace(cost, reference=0.0)  # by `_fill_shared`
            meter.begin(cost)
            progress(0, cost.total, describe_cost(cost, by.policy))

        if (directory / "replicas" / STATE_FILE).is_file():
            note("continuing from the last saved step")
        return TRAIN[self.plan.modality](
            by.policy,
            self.table,
            self._settings(by.config),
            directory,
            self._shared,
            meter,
            estimated,
            note,
            members=members,
        )


def _train_text(
    policy: TextPolicy,
    table: pa.Table,
    config: LoraConfig,
    directory: Path,
    shared: Path,
    report: Report,
    estimate: Callable[[LoraCost], None],
    note: Callable[[str], None],
    *,
    members: range | None,
) -> dict[str, Any]:
    """`train_lora` with the signature of `train_diffusion_lora`."""
    done = train_lora(
        policy,
        table,
        config,
        directory,
        report,
        estimate,
        members=members,
        activations_directory=shared,
    )
    return {k: v for k, v in asdict(done).items() if k not in ("seconds", "replicas")}


#: How replicas of a modality are trained, and how a share of the model's own results is computed.
TRAIN: dict[Modality, Callable[..., dict[str, Any]]] = {
    "text": _train_text,
    "vision": _train_text,
    "image": train_diffusion_lora,
}
FILL: dict[Modality, Callable[..., None]] = {
    "text": fill_activations,
    "vision": fill_activations,
    "image": fill_reference,
}


def describe_cost(cost: LoraCost, policy: Policy) -> str:
    """Estimate a training's seconds from its FLOPs and a timed matrix product."""
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
        f"{cost.steps:,} steps, at first guess {duration(cost.total / EFFICIENCY / rate)} ({parts})"
    )
