"""Count the useful floating-point operations of a pass through a causal language model."""

from __future__ import annotations

from collections.abc import Sequence

from noisescope.models.causal_lm import CausalLMPolicy
from noisescope.models.forward import measure
from noisescope.models.packing import corpus_of
from noisescope.pairs import Item


def flops(policy: CausalLMPolicy, items: Sequence[Item]) -> float:
    """Useful FLOPs of one pass: no padding, a shared prompt once.

    2 x (parameters outside embeddings and head) a token, 4 x layers x heads x head size for each
    pair of a token and one it sees, 2 x D x vocabulary a response token. A mixture of experts
    counts all of its experts.
    """
    corpus = corpus_of([(i.prompt, i.response) for i in policy.encode(items)], policy.rows)
    prompt_of_each = corpus.prompt_sizes[corpus.prompt_of]
    prompts = corpus.prompt_sizes if policy.rows == "packed" else prompt_of_each
    answers = corpus.response_sizes
    seen = (prompts * (prompts + 1) // 2).sum()
    seen += (answers * (answers + 1) // 2 + prompt_of_each * answers).sum()
    size = measure(policy.model)
    tokens = prompts.sum() + answers.sum()
    return float(2 * size.body * tokens + 4 * size.attention * seen + 2 * size.head * answers.sum())
