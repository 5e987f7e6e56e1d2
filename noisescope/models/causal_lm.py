"""Any transformers causal language model as a policy: features and log-probabilities of text.

    policy = load_causal_lm("HuggingFaceTB/SmolLM2-135M-Instruct")
    policy.features(items)  # group -> [n, D_g]

One forward pass a distinct (prompt, response), the prompt computed once for all its responses:
a prompt and its responses are packed in one row, where a response sees its prompt and itself alone.
The vocabulary head runs at response positions only, a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.models import Item, ModelIdentity
from noisescope.models.anatomy import setting
from noisescope.models.forward import (
    FEATURES_VERSION,
    GROUPS,
    Batch,
    mask_type,
    run_batch,
    to_batch,
)
from noisescope.models.memory import Limit, OomRetry
from noisescope.models.packing import Corpus, corpus_of, pack
from noisescope.models.tokenize import Encoded, Encoder
from noisescope.models.verify import verify
from noisescope.models.vision import DEFAULT_LENGTH as PICTURES_MAX_LENGTH
from noisescope.models.vision import VERSION as PICTURES_VERSION
from noisescope.models.vision import VisionEncoder
from noisescope.models.vision_batches import picture_batch, verify_pictures
from noisescope.pairs import Modality
from noisescope.progress import advance

if TYPE_CHECKING:
    import torch

    from noisescope.pairs import ImageStore

Float = NDArray[np.float32]
Int = NDArray[np.int64]

DEFAULT_MAX_LENGTH = 1024
#: Tokens of a packed row, and of all rows of a batch, by device: a row's attention is dense.
ROW_TOKENS = {"cpu": 512}
BATCH_TOKENS = {"cpu": 512, "cuda": 16384}


@final
class CausalLMPolicy:
    """A loaded model, its encoder and its identity; see `load_causal_lm`."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder | VisionEncoder,
        identity: ModelIdentity,
        groups: Sequence[str],
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.identity = identity
        self.groups = tuple(groups)
        self.limit = Limit()
        self.pictures = None if isinstance(encoder, Encoder) else encoder
        self.modality: Modality = "text" if self.pictures is None else "vision"
        self.rows = verify(model, encoder.max_length)
        if self.pictures is not None:
            self.rows = verify_pictures(model, self.pictures)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.encoder.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        import torch

        places = vars(self.model).get("hf_device_map", {}).values()
        running = [place for place in places if place not in ("cpu", "disk")]
        if not places:
            return torch.device(self.model.device)
        first = running[0] if running else "cpu"  # what is offloaded runs there too
        return torch.device("cuda", first) if isinstance(first, int) else torch.device(first)

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights and of the pass."""
        import torch

        kind = self.model.dtype
        assert isinstance(kind, torch.dtype)
        return kind

    def encode(self, items: Sequence[Item]) -> list[Encoded]:
        """Token ids of each item."""
        return self.encoder.encode(items)

    def sizes(self, items: Sequence[Item]) -> Int:
        """Tokens of each item, prompt included, [n]."""
        return np.array([len(item.tokens) for item in self.encode(items)], np.int64)

    def open_encodings(self, directory: Path) -> None:
        """Nothing: text needs no inputs computed ahead."""

    def notes(self, items: Sequence[Item], encoded: Sequence[Encoded]) -> list[str]:
        """What is unusual in how texts are read: rows of one text, responses that do not end, and
        how many prompts and responses lost tokens to max_length."""
        name = self.identity.id
        found: list[str] = []
        if self.rows != "packed":
            found.append(f"{name} is slower: a prompt is read again for each of its responses")
        if not self.encoder.template and not self.tokenizer.eos_token:
            found.append(f"{name} has no end token: its responses never end")
        cut = truncation(items, encoded)
        if not cut["tokens"]:
            return found
        return [
            *found,
            f"cut to --max-length {self.encoder.max_length}: {cut['prompts']:,} of "
            f"{cut['distinct']:,} prompts (in their oldest turns) and {cut['responses']:,} of "
            f"{len(encoded):,} responses (at their end), {cut['tokens']:,} tokens",
        ]

    def features(self, items: Sequence[Item]) -> dict[str, Float]:
        """Feature groups in the order of `items`: group -> [n, D_g] float32.

        A batch that does not fit into memory is halved. Raises ModelError naming an item that
        does not fit alone.
        """
        import torch

        corpus = self._corpus(items)

        def rows_of(part: Sequence[int]) -> dict[str, Float]:
            trace = run_batch(self.model, self._batch(corpus, items, part))
            return {name: GROUPS[name](trace).float().cpu().numpy() for name in self.groups}

        def name_of(item: int) -> str:
            size = len(corpus.prompts[corpus.prompt_of[item]]) + len(corpus.responses[item])
            return f"response {items[item].key} to {items[item].prompt[:40]!r}: {size:,} tokens"

        retry = OomRetry("responses", name_of, self.limit)
        rows: dict[str, list[Float]] = {name: [] for name in self.groups}
        order: list[int] = []
        lengths = [len(response) for response in corpus.responses]
        done, work = 0, max(sum(lengths), 1)
        with torch.inference_mode():
            for batch in self._batches(corpus, items):
                for part, found in retry.run(rows_of, batch):
                    order += part
                    done += sum(lengths[item] for item in part)
                    advance(done / work)
                    for name in self.groups:
                        rows[name].append(found[name])
        back = np.argsort(np.array(order, np.int64))
        return {name: np.concatenate(parts)[back] for name, parts in rows.items() if parts}

    def batches(self, items: Sequence[Item]) -> Iterator[Batch]:
        """Batches that cover `items` once, packed where the model allows it."""
        corpus = self._corpus(items)
        for part in self._batches(corpus, items):
            yield self._batch(corpus, items, part)

    def _batches(self, corpus: Corpus, items: Sequence[Item]) -> Iterator[list[int]]:
        """Items of each batch; their pictures are of one form."""
        budget = BATCH_TOKENS.get(self.device.type, 4096)
        parts = (_by_prompt if corpus.shared else _by_length)(corpus, budget)
        if self.pictures is None:
            return parts
        return self.pictures.divided(items, parts, alone=self.rows == "alone")

    def _batch(self, corpus: Corpus, items: Sequence[Item], part: Sequence[int]) -> Batch:
        """Tensors of some items."""
        if self.pictures is not None:
            return picture_batch(
                self.model, self.pictures, corpus, [items[at] for at in part], part
            )
        row = ROW_TOKENS.get(self.device.type, 1024)
        kind = mask_type(self.model, self.dtype)
        return to_batch(corpus, pack(corpus, part, row), self.device, kind)

    def _corpus(self, items: Sequence[Item]) -> Corpus:
        encoded = [(item.prompt, item.response) for item in self.encode(items)]
        return corpus_of(encoded, self.rows if self.pictures is None else "padded")


def load_causal_lm(
    name: str,
    *,
    max_length: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    device_map: str | None = None,
    quantize: str | None = None,
    groups: Sequence[str] = tuple(GROUPS),
    images: ImageStore | None = None,
) -> CausalLMPolicy:
    """Load a directory, a Hub name or a GGUF file; with `images`, a vision-language model that is
    shown the pictures in prompts.

    `device_map` "auto" spreads the layers over all GPUs, then memory; `quantize` "4bit" loads the
    weights in bitsandbytes' NF4. `max_length` is 1024 tokens (4096 with pictures) or the model's
    own limit where that is less. `chat_template` is "auto" (used where the tokenizer has one),
    "never", or the name of one of several. Raises ModelError for a model that cannot be used,
    UsageError for a setting that cannot be.
    """
    from noisescope.models.checkpoint import find_checkpoint, fingerprint, load_model, loader_of
    from noisescope.models.device import pick_device, pick_dtype
    from noisescope.models.placement import Placement

    placement = Placement(device_map, quantize)
    found = find_checkpoint(name, lambda one: loader_of(one, pictures=images is not None))
    where = pick_device(device)
    packed = found.gguf is not None and where.type == "cpu"  # its kernels compute in float32
    kind = pick_dtype("float32" if packed and dtype == "auto" else dtype, where)
    model, tokenizer = load_model(found, where, kind, placement, pictures=images is not None)
    limit = setting(model, "max_position_embeddings")
    usual = DEFAULT_MAX_LENGTH if images is None else PICTURES_MAX_LENGTH
    length = max_length or min(usual, limit or usual)
    if not 16 <= length <= (limit or length):
        raise UsageError(
            f"--max-length {length}: {name} takes 16 to {limit}",
            hint="Leave it out, or lower it.",
        )
    name_of_template = None if chat_template in ("auto", "never") else chat_template
    has_template = images is not None or tokenizer.chat_template is not None
    template = chat_template != "never" and (has_template or name_of_template is not None)
    encoder: Encoder | VisionEncoder
    if images is None:
        encoder = Encoder(tokenizer, length, template, name_of_template)
    elif chat_template == "never":
        raise UsageError(
            "--chat-template never: pictures are placed by the model's chat template",
            hint="Leave it out.",
        )
    else:
        template, encoder = True, VisionEncoder(tokenizer, images, length, name_of_template)
    settings: dict[str, object] = {
        "version": FEATURES_VERSION,
        "max_length": length,
        "template": template,
        "groups": list(groups),
        "dtype": str(kind),
        **placement.settings(),
        **({} if images is None else {"pictures": PICTURES_VERSION}),
    }
    if template:
        settings |= encoder.chat.settings()
    identity = ModelIdentity(name, found.revision, fingerprint(found, settings))
    return CausalLMPolicy(model, encoder, identity, groups)


def truncation(items: Sequence[Item], encoded: Sequence[Encoded]) -> dict[str, int]:
    """How many distinct prompts and responses lost tokens to max_length, and how many tokens."""
    prompts = {
        (item.prompt, item.turns): one.cut_prompt for item, one in zip(items, encoded, strict=True)
    }
    return {
        "prompts": sum(cut > 0 for cut in prompts.values()),
        "responses": sum(one.cut_response > 0 for one in encoded),
        "tokens": sum(prompts.values()) + sum(one.cut_response for one in encoded),
        "distinct": len(prompts),
    }


def _by_prompt(corpus: Corpus, budget: int) -> Iterator[list[int]]:
    """Items in order of their prompts, in parts of at most `budget` tokens (or one item)."""
    part: list[int] = []
    used, before = 0, -1
    for item in corpus.order.tolist():
        prompt = int(corpus.prompt_of[item])
        lead, own = int(corpus.prompt_sizes[prompt]), int(corpus.response_sizes[item])
        cost = own + (lead if prompt != before else 0)
        if part and used + cost > budget:
            yield part
            part, used, cost = [], 0, own + lead
        part.append(item)
        used, before = used + cost, prompt
    if part:
        yield part


def _by_length(corpus: Corpus, budget: int) -> Iterator[list[int]]:
    """Items by length, in parts that stay within `budget` tokens when padded (or one item)."""
    sizes = corpus.work
    part: list[int] = []
    for item in corpus.order.tolist():
        if part and (len(part) + 1) * sizes[item] > budget:
            yield part
            part = []
        part.append(item)
    if part:
        yield part
