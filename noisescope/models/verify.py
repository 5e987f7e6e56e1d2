"""Verify in float32 that a model's fast paths give the values of its plain forward.

    rows = verify(model, longest=1024)   # "packed", "padded" or "alone"

The plain forward of one text at a time is the truth. Rows that hold a prompt and several responses
must equal it, or each text gets a row; padded rows must equal it, or each text is run alone. The
texts are longer than every window, chunk and index that the configuration names (up to the longest
text of the audit), and the numbers are float32 whatever the model computes in: rounding in 16 bits
hides structural differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from noisescope.errors import ModelError
from noisescope.models.anatomy import (
    REPORT,
    float32,
    probe_tokens,
    quantised,
    text_config,
)
from noisescope.models.forward import mask_type, response_logps, to_batch
from noisescope.models.packing import Corpus, Rows, corpus_of, pack

if TYPE_CHECKING:
    from torch import Tensor

#: Largest difference of a token's log-probability, nats; of weights that are quantised.
TOLERANCE, QUANTISED = 1e-3, 5e-2
#: The same as a share of what other words at the beginning change: untrained models change little.
CONTEXT, ROUNDING = 1e-2, 1e-6
#: Tokens of the longest text where the configuration names nothing, and beyond what it names.
LEAST, BEYOND = 48, 16
#: Parts of the names of settings that are a number of tokens.
SPANS = ("window", "chunk", "topk", "top_k", "local", "block", "span", "stride", "original_max")


def spans(fields: Mapping[str, Any]) -> set[int]:
    """Numbers of tokens that a configuration names: windows, chunks, index sizes, limits."""
    found: set[int] = set()
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= spans(value)
            continue
        values = value if isinstance(value, list | tuple) else [value]
        if any(part in str(name) for part in SPANS):
            found |= {one for one in values if type(one) is int and one > 0}
    return found


def probe_length(model: Any, longest: int) -> int:
    """Tokens of a text that reaches past all spans of a model, at most `longest`."""
    past = max((span for span in spans(text_config(model)) if span < longest), default=0)
    return min(longest, max(LEAST, past + BEYOND))


def probe_corpus(model: Any, length: int, rows: Rows) -> Corpus:
    """A prompt with responses of several lengths, the longest `length` tokens with its prompt."""
    token = probe_tokens(model, length + 20)[0].tolist()
    prompt, ends = token[:8], (11, 17, 28, length + 20)
    starts = (8, *ends[:-1])
    responses = [token[start:end] for start, end in zip(starts, ends, strict=True)]
    return corpus_of([(prompt, response) for response in responses], rows)


def plain_logps(model: Any, corpus: Corpus) -> Tensor:
    """Log-probabilities of all response tokens by the model's own forward, one text at a time."""
    import torch

    parts = []
    for prompt, response in zip(corpus.prompt_of.tolist(), corpus.responses, strict=True):
        ids = torch.tensor([[*corpus.prompts[prompt], *response]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(response) - 1 : -1]
        parts.append(logits.float().log_softmax(1).gather(1, ids[0, -len(response) :, None])[:, 0])
    return torch.cat(parts)


def verify(model: Any, longest: int) -> Rows:
    """The fastest way to run texts of up to `longest` tokens that gives their values alone.

    Raises ModelError for a model that looks at later tokens, or whose logits cannot be computed at
    some positions only.
    """
    import torch

    length = probe_length(model, longest)
    name = type(model).__name__
    with torch.no_grad(), float32(model):
        near = _tolerance(model, probe_tokens(model, length))
        truth = plain_logps(model, probe_corpus(model, length, "alone"))
        ways: tuple[Rows, ...] = ("packed", "padded", "alone")
        for rows in ways:
            found = _logps(model, length, rows)
            if found is not None and bool(((found - truth).abs() <= near).all()):
                return rows
    raise ModelError(f"{name} changes its logits in a way noisescope does not support", hint=REPORT)


def _tolerance(model: Any, ids: Tensor) -> float:
    """Largest difference that counts as rounding.

    Raises ModelError if another last token changes what is predicted before it.
    """
    first, last = ids.clone(), ids.clone()
    first[0, :4] = ids[0, 4:8]
    last[0, -1] = ids[0, 0]
    own, other, ahead = (
        model(input_ids=text, use_cache=False).logits[0, :-1].float().log_softmax(1)
        for text in (ids, first, last)
    )
    if quantised(model):
        near = QUANTISED
    else:
        near = min(TOLERANCE, max(ROUNDING, CONTEXT * float((own - other)[4:].abs().max())))
    if not bool(((own - ahead).abs() <= near).all()):
        raise ModelError(
            f"{type(model).__name__} is not causal: it looks at later tokens",
            hint="Name a decoder-only model, such as HuggingFaceTB/SmolLM2-135M-Instruct.",
        )
    return near


def _logps(model: Any, length: int, rows: Rows) -> Tensor | None:
    """Log-probabilities of the probe in rows of a kind; None if the model does not take them."""
    import torch

    corpus = probe_corpus(model, length, rows)
    packed = pack(corpus, list(range(len(corpus.responses))), 2 * length)
    try:
        kind = mask_type(model, torch.float32)
        return response_logps(model, to_batch(corpus, packed, model.device, kind))
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError):
        return None
