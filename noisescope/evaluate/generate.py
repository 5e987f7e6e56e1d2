"""Generate outputs of both models and store them in resumable parts.

    generator = open_generator(spec, settings)            # loads nothing yet
    generate_missing(generator, prompts, directory, progress, estimated)
    read_outputs(directory, generator.fingerprint)             # key -> response or PNG bytes

A batch is one Parquet part, named after its prompts and written at once, so a killed run loses at
most one batch and a continued one gives the same outputs. Each part contains the fingerprint of
its model and settings; parts of a different model are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

from noisescope.errors import RunError, UsageError
from noisescope.evaluate.comparison import Output, Prompt
from noisescope.evaluate.models import ModelSpec
from noisescope.pairs import digest
from noisescope.storage.files import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.progress import Progress

#: Key of the fingerprint in a part's Parquet metadata.
MARK = b"noisescope.made_by"


@final
@dataclass(frozen=True)
class GenerationSettings:
    """Settings of generation.

    `temperature` 0 is greedy; None is the model's own `guidance` or `size`, and a `batch` chosen by
    device. Randomness is a function of (seed, prompt), the same for both models, never of a batch.
    """

    seed: int = 0
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    steps: int = 50
    guidance: float | None = None
    size: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        """Raise UsageError with every value out of range."""
        faults = [
            text
            for wrong, text in (
                (self.max_new_tokens < 1, f"--max-new-tokens {self.max_new_tokens}: 1 or more"),
                (self.temperature < 0, f"--temperature {self.temperature:g}: 0 or more"),
                (not 0 < self.top_p <= 1, f"--top-p {self.top_p:g}: above 0, at most 1"),
                (self.steps < 1, f"--steps {self.steps}: 1 or more"),
                ((self.guidance or 1) < 1, f"--guidance {self.guidance}: 1 (off) or more"),
                ((self.size or 8) < 8, f"--image-size {self.size}: 8 or more"),
                ((self.batch or 1) < 1, f"--batch-size {self.batch}: 1 or more"),
            )
            if wrong
        ]
        if faults:
            raise UsageError(
                "; ".join(faults), hint="`noisescope evaluate --help` lists the options."
            )

    def used(self, modality: str) -> dict[str, Any]:
        """Settings that affect the outputs of a modality; plans and fingerprints contain them."""
        text = ("seed", "max_new_tokens", "temperature", "top_p")
        image = ("seed", "steps", "guidance", "size")
        values = asdict(self)
        return {name: values[name] for name in (text if modality == "text" else image)}


class Generator(Protocol):
    """Generates outputs with one model, which is loaded at first use."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def batch(self) -> int:
        """Prompts per part."""

    def refused(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Return why the model cannot read a prompt, by its key."""

    def notes(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a reader should know of how these prompts are read."""

    def outputs(self, prompts: Sequence[Prompt]) -> list[Output]:
        """Return one output per prompt, in order: a function of prompt and settings alone."""

    def probe(self, prompts: Sequence[Prompt]) -> float:
        """Estimate an upper limit of the seconds per batch by running a small part of one."""


def open_generator(spec: ModelSpec, settings: GenerationSettings, device: str) -> Generator:
    """Return the generator for a model."""
    fingerprint = digest(
        "generation", spec.fingerprint, repr(sorted(settings.used(spec.modality).items()))
    )
    if spec.modality == "text":
        from noisescope.evaluate.text import TextGenerator

        return TextGenerator(spec, settings, device, fingerprint)
    from noisescope.evaluate.images import ImageGenerator

    return ImageGenerator(spec, settings, device, fingerprint)


def generate_missing(
    generator: Generator,
    prompts: Sequence[Prompt],
    directory: Path,
    progress: Progress,
    estimated: Callable[[float, int], None],
    note: Callable[[str], None],
) -> None:
    """Generate the outputs that are missing in `directory`, batch by batch.

    `estimated(seconds, prompts)` is called before the work, with an upper limit of its duration.
    Prompts that the model cannot read get no output, and a note. Raises RunError if a part
    belongs to a different model.
    """
    known = read_outputs(directory, generator.fingerprint)
    if all(prompt.key in known for prompt in prompts):
        return
    refused = generator.refused(prompts)
    readable = [prompt for prompt in prompts if prompt.key not in refused]
    if refused:
        first = next(iter(refused.values()))
        note(f"{len(refused):,} of {len(prompts):,} prompts are omitted: {first}")
    for text in generator.notes(readable):
        note(text)
    batches = [
        batch
        for batch in batches_of(readable, generator.batch)
        if any(prompt.key not in known for prompt in batch)
    ]
    if not batches:
        return
    left = sum(map(len, batches))
    estimated(generator.probe(batches[len(batches) // 2]) * len(batches), left)
    done = 0
    for batch in batches:
        made = generator.outputs(batch)
        path = directory / f"part-{digest(*(prompt.key for prompt in batch))}.parquet"
        write_part(path, _table(batch, made), generator.fingerprint)
        done += len(batch)
        progress(float(done), float(left), None)


def batches_of(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Split prompts, sorted by length to save padding, into batches of `size`."""
    order = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.key))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _table(prompts: Sequence[Prompt], outputs: Sequence[Output]) -> pa.Table:
    import pyarrow as pa

    is_text = all(isinstance(output, str) for output in outputs)
    kind = pa.string() if is_text else pa.binary()
    return pa.table({"key": [p.key for p in prompts], "output": pa.array(list(outputs), kind)})


def write_part(path: Path, table: pa.Table, fingerprint: str) -> None:
    """Write one Parquet part atomically, with the fingerprint of its model and settings."""
    import pyarrow.parquet as pq

    marked = table.replace_schema_metadata({MARK: fingerprint.encode()})
    write_atomic(path, lambda temporary: pq.write_table(marked, temporary, compression="zstd"))


def read_parts(directory: Path, fingerprint: str) -> list[dict[str, Any]]:
    """Read the rows of all parts; a damaged part counts as missing and is made again.

    Raises RunError if a part has a different fingerprint.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in sorted(directory.glob("part-*.parquet")) if directory.is_dir() else []:
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError):
            continue
        mark = (table.schema.metadata or {}).get(MARK, b"").decode("utf-8", "replace")
        if mark != fingerprint:
            raise RunError(
                f"{path} was made by a different model or with different settings",
                hint="Choose another directory with --output, or remove that file.",
            )
        rows += table.to_pylist()
    return rows


def read_outputs(directory: Path, fingerprint: str) -> dict[str, Output]:
    """Read stored outputs by prompt key. Raises RunError as `read_parts` does."""
    return {row["key"]: row["output"] for row in read_parts(directory, fingerprint)}
