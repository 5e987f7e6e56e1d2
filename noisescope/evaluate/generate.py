"""What both models make of the prompts: generators, and their outputs on disk in whole parts.

    generator = open_generator(contender, settings)            # loads nothing yet
    fill(generator, prompts, directory, progress)              # makes what no part holds
    read(directory, generator.fingerprint)                     # key -> response or PNG bytes

A batch becomes one Parquet part, written at once and named after its prompts, so a killed run
loses one batch and ends with the same outputs. Parts carry the fingerprint of model and
settings; those of another model are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

from noisescope.errors import RunError, UsageError
from noisescope.evaluate.models import Contender
from noisescope.evaluate.results import Output, Prompt
from noisescope.pairs import digest
from noisescope.storage.files import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.progress import Progress

#: Name of the fingerprint in a part's Parquet metadata.
MARK = b"noisescope.made_by"


@final
@dataclass(frozen=True)
class GenerationSettings:
    """How outputs are made. `temperature` 0 is greedy; `guidance` and `size` None: the model's own.

    `batch` None chooses by device. Randomness is a function of (seed, prompt), the same for both
    models, never of a batch.
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
        """Raise UsageError naming every value that cannot be."""
        faults = [
            text
            for wrong, text in (
                (self.max_new_tokens < 1, f"--max-new-tokens {self.max_new_tokens}: 1 or more"),
                (self.temperature < 0, f"--temperature {self.temperature:g}: 0 or more"),
                (not 0 < self.top_p <= 1, f"--top-p {self.top_p:g}: above 0, at most 1"),
                (self.steps < 1, f"--steps {self.steps}: 1 or more"),
                ((self.guidance or 1) < 1, f"--guidance {self.guidance}: 1 (off) or more"),
                ((self.size or 8) < 8, f"--image-size {self.size}: 8 or more"),
                ((self.batch or 1) < 1, f"--batch {self.batch}: 1 or more"),
            )
            if wrong
        ]
        if faults:
            raise UsageError("; ".join(faults), hint="`noisescope evaluate --help` lists them.")

    def used(self, modality: str) -> dict[str, Any]:
        """The settings that shape outputs of a modality: what plans and fingerprints hold."""
        text = ("seed", "max_new_tokens", "temperature", "top_p")
        image = ("seed", "steps", "guidance", "size")
        told = asdict(self)
        return {name: told[name] for name in (text if modality == "text" else image)}


class Generator(Protocol):
    """Makes outputs with one model, loaded when first needed."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def batch(self) -> int:
        """Prompts of one part."""

    def outputs(self, prompts: Sequence[Prompt]) -> list[Output]:
        """An output a prompt, in order; a function of prompt and settings alone."""

    def probe(self, prompts: Sequence[Prompt]) -> float:
        """Seconds one batch of these may take at the most, from a small part of its work."""


def open_generator(contender: Contender, settings: GenerationSettings, device: str) -> Generator:
    """The generator of a contender's modality."""
    fingerprint = digest(
        "generation", contender.fingerprint, repr(sorted(settings.used(contender.modality).items()))
    )
    if contender.modality == "text":
        from noisescope.evaluate.text import TextGenerator

        return TextGenerator(contender, settings, device, fingerprint)
    from noisescope.evaluate.images import PictureGenerator

    return PictureGenerator(contender, settings, device, fingerprint)


def fill(
    generator: Generator,
    prompts: Sequence[Prompt],
    directory: Path,
    progress: Progress,
    estimated: Callable[[float, int], None],
) -> None:
    """Make the outputs that no part of `directory` holds, a batch at a time.

    `estimated` is told before the work how many seconds it takes at the most, and for how many
    prompts. Raises RunError where a part belongs to another model.
    """
    known = read(directory, generator.fingerprint)
    batches = [
        batch
        for batch in batches_of(prompts, generator.batch)
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
    """Prompts in order of their length (little padding), cut into batches of `size`."""
    order = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.key))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _table(prompts: Sequence[Prompt], outputs: Sequence[Output]) -> pa.Table:
    import pyarrow as pa

    is_text = all(isinstance(output, str) for output in outputs)
    kind = pa.string() if is_text else pa.binary()
    return pa.table({"key": [p.key for p in prompts], "output": pa.array(list(outputs), kind)})


def write_part(path: Path, table: pa.Table, fingerprint: str) -> None:
    """One Parquet part that says what made it, whole or absent."""
    import pyarrow.parquet as pq

    marked = table.replace_schema_metadata({MARK: fingerprint.encode()})
    write_atomic(path, lambda temporary: pq.write_table(marked, temporary, compression="zstd"))


def read_parts(directory: Path, fingerprint: str) -> list[dict[str, Any]]:
    """Rows of all sound parts; a damaged one is as if absent, and made again.

    Raises RunError for parts that something else made.
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
                f"{path} was made by another model or other settings",
                hint="Choose another directory with --out, or remove that file.",
            )
        rows += table.to_pylist()
    return rows


def read(directory: Path, fingerprint: str) -> dict[str, Output]:
    """Outputs on disk by prompt key. Raises RunError as `read_parts` does."""
    return {row["key"]: row["output"] for row in read_parts(directory, fingerprint)}
