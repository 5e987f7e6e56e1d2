"""Generate responses with a causal language model: batched, greedy or sampled, shared noise.

Sampling is exact: argmax of (log-probabilities + Gumbel noise) is a draw from them (Gumbel 1954).
The noise is a function of (seed, prompt, position) and the kind of device, so two models with the
same probabilities of a token draw the same token, and differences come from the models.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError, first_line
from noisescope.evaluate.comparison import Output, Prompt
from noisescope.evaluate.models import ModelSpec
from noisescope.models import Item

if TYPE_CHECKING:
    import torch

    from noisescope.evaluate.generate import GenerationSettings
    from noisescope.models.causal_lm import CausalLMPolicy
    from noisescope.models.rendering import Unreadable
    from noisescope.models.tokenize import Encoded
    from noisescope.pairs import ImageStore

#: Prompts per batch by device type.
BATCH = {"cpu": 16, "cuda": 32}
#: End of a response when a model without a chat template continues with the next turn.
NEXT_TURN = "\n\nHuman:"
#: Tokens generated to estimate the time of more.
PROBED = 6


@final
@dataclass(frozen=True)
class TextGenerator:
    """Generator of text; the model is loaded at first use."""

    spec: ModelSpec
    settings: GenerationSettings
    device: str
    fingerprint: str

    @cached_property
    def policy(self) -> CausalLMPolicy:
        """The model with its adapter merged in."""
        return load_policy(self.spec, self.device)

    @property
    def batch(self) -> int:
        from noisescope.models.device import pick_device

        return self.settings.batch or BATCH.get(pick_device(self.device).type, 16)

    def refused(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        from noisescope.models.rendering import Unreadable

        found = zip(prompts, self._encoded(prompts), strict=True)
        return {prompt.key: str(one) for prompt, one in found if isinstance(one, Unreadable)}

    def notes(self, prompts: Sequence[Prompt]) -> list[str]:
        from noisescope.models.tokenize import Encoded

        cut = [one.cut_prompt for one in self._encoded(prompts) if isinstance(one, Encoded)]
        count, limit = sum(tokens > 0 for tokens in cut), self.policy.encoder.max_length
        if not count:
            return []
        return [
            f"{self.spec.short}: {count:,} of {len(cut):,} prompts are cut in their oldest turns "
            f"({sum(cut):,} tokens), to leave {self.settings.max_new_tokens:,} of {limit:,} tokens "
            "for a response"
        ]

    def _encoded(self, prompts: Sequence[Prompt]) -> list[Encoded | Unreadable]:
        """Encode prompts with room for a response."""
        items = [Item(p.key, p.text, p.turns, "-") for p in prompts]
        return self.policy.encoder.encode_readable(items, reserve=self.settings.max_new_tokens)

    def outputs(self, prompts: Sequence[Prompt]) -> list[Output]:
        return list(self._generate(prompts, self.settings.max_new_tokens))

    def probe(self, prompts: Sequence[Prompt]) -> float:
        began = time.perf_counter()
        self._generate(prompts, 1)
        first = time.perf_counter() - began
        began = time.perf_counter()
        self._generate(prompts, 1 + PROBED)
        more = max(0.0, time.perf_counter() - began - first)
        return first + more / PROBED * (self.settings.max_new_tokens - 1)

    def _generate(self, prompts: Sequence[Prompt], tokens: int) -> list[str]:
        """Generate the responses of one batch, prompts padded on the left."""
        import torch

        model, tokenizer = self.policy.model, self.policy.tokenizer
        items = [Item(p.key, p.text, p.turns, "-") for p in prompts]
        room = self.settings.max_new_tokens
        leads = [one.prompt for one in self.policy.encoder.encode(items, reserve=room)]
        width = max(map(len, leads))
        ids, seen = torch.zeros(len(leads), width, dtype=torch.long), torch.zeros(len(leads), width)
        for row, lead in enumerate(leads):
            ids[row, width - len(lead) :] = torch.tensor(lead)
            seen[row, width - len(lead) :] = 1
        where = self.policy.device
        ends = ending_tokens(model, tokenizer)
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids.to(where),
                attention_mask=seen.long().to(where),
                generation_config=_config(tokens, ends, tokenizer),
                logits_processor=self._processors(prompts, width),
            )
        made = whole[:, width:].tolist()
        return [self._text(row, ends) for row in made]

    def _text(self, ids: list[int], ends: list[int]) -> str:
        """Decode the tokens before the first that ends the turn."""
        stop = next((index for index, token in enumerate(ids) if token in ends), len(ids))
        text = str(self.policy.tokenizer.decode(ids[:stop], skip_special_tokens=True))
        if not self.policy.encoder.template:
            text = text.partition(NEXT_TURN)[0]
        return text.strip()

    def _processors(self, prompts: Sequence[Prompt], width: int) -> Any:
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        steps = LogitsProcessorList()
        if not self.settings.temperature:
            return steps
        steps.append(TemperatureLogitsWarper(self.settings.temperature))
        if self.settings.top_p < 1:
            steps.append(TopPLogitsWarper(self.settings.top_p))
        steps.append(Gumbel(self.settings.seed, prompts, width))
        return steps


@final
class Gumbel:
    """Add Gumbel noise to scores [B, V], so that their argmax is a draw from softmax(scores)."""

    def __init__(self, seed: int, prompts: Sequence[Prompt], width: int) -> None:
        self.seeds = [noise_seed(seed, prompt) for prompt in prompts]
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores plus the noise of this position."""
        import torch

        position, where = input_ids.shape[1] - self.width, scores.device
        kind = torch.float32 if where.type == "mps" else torch.float64  # MPS has no float64
        rows = []
        for seed in self.seeds:
            source = torch.Generator(where).manual_seed((seed + position) % (1 << 63))
            rows.append(torch.rand(scores.shape[1], generator=source, dtype=kind, device=where))
        edge = torch.finfo(kind)
        uniform = torch.stack(rows).clamp(edge.tiny, 1 - edge.eps / 2)
        return scores - torch.log(-torch.log(uniform)).to(scores)


def noise_seed(seed: int, prompt: Prompt) -> int:
    """Hash (seed, prompt) to 63 bits, the seed of a prompt's noise."""
    from noisescope.pairs import digest

    return int(digest("noise", str(seed), prompt.key)[:15], 16)


def ending_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a response, by the tokenizer and the model's settings."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in (*own, tokenizer.eos_token_id) if token is not None})


def _config(tokens: int, ends: list[int], tokenizer: Any) -> Any:
    """Greedy search over (noised) scores; other settings of the checkpoint are not used."""
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=pad if pad is not None else (ends[0] if ends else 0),
    )


def load_policy(spec: ModelSpec, device: str, images: ImageStore | None = None) -> CausalLMPolicy:
    """Load the base model and merge the adapter into its weights; with `images`, a model that is
    shown the pictures in prompts. Raises ModelError."""
    from noisescope.models.causal_lm import load_causal_lm

    policy = load_causal_lm(spec.base, device=device, dtype="auto", images=images)
    if spec.adapter is not None:
        policy.model = _merged(policy.model, spec)
    return policy


def _merged(model: Any, spec: ModelSpec) -> Any:
    """Merge a PEFT adapter of any kind that can be merged. Raises ModelError."""
    from peft import PeftModel

    assert spec.adapter is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
            return PeftModel.from_pretrained(model, spec.adapter).merge_and_unload().eval()
    except Exception as error:  # peft raises many kinds; all mean "does not fit"
        reason = first_line(error)
        raise ModelError(
            f"{spec.name} does not fit {spec.base}: {reason}",
            hint="Give the model it was trained from: --base PATH_OR_NAME.",
        ) from error
