"""The causal-LM policy: exact response tokens, features free of batch-mates, true log-probs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.flops import flops
from noisescope.errors import ModelError
from noisescope.models import Item, ModelIdentity
from noisescope.models.causal_lm import CausalLMPolicy, truncation
from noisescope.models.forward import (
    GROUPS,
    NEAR,
    measure,
    response_logps,
    token_surprise,
)
from noisescope.models.rendering import fold_turns
from noisescope.models.tokenize import Encoder
from noisescope.models.verify import verify
from noisescope.pairs import Message, response_key

TOKENIZER = tiny_tokenizer()
PLAIN = tiny_tokenizer(None)
PROMPTS = ("How do I bake bread?", "", "Wait, " * 20, "no idea\n")
RESPONSES = ("Knead it.", "Bake the dough and wait.", "x", "Why? " * 30, " spaced", "äöü 🙂")


def item(prompt: str, response: str, turns: tuple[Message, ...] | None = None) -> Item:
    return Item(response_key(prompt, response), prompt, turns, response)


def policy(model: Any, *, template: bool = True, max_length: int = 256) -> CausalLMPolicy:
    encoder = Encoder(TOKENIZER if template else PLAIN, max_length, template)
    return CausalLMPolicy(model, encoder, ModelIdentity("tiny", None, "0" * 20), tuple(GROUPS))


MODELS = {"llama": tiny_llama(), "gpt2": tiny_gpt2()}
ITEMS = [item(prompt, response) for prompt in PROMPTS for response in RESPONSES]


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]


@settings(max_examples=6, deadline=None)
@given(chosen=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=12, unique=True))
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("rows", ["packed", "padded", "alone"])
def test_features_do_not_depend_on_batch_mates(name: str, rows: Any, chosen: list[Item]) -> None:
    judged = policy(MODELS[name])
    assert judged.rows == "packed"
    judged.rows = rows
    together = judged.features(chosen)
    for row, one in enumerate(chosen):
        for group, values in judged.features([one]).items():
            np.testing.assert_allclose(together[group][row], values[0], rtol=1e-4, atol=1e-4)


LAYERS = (("early", 1), ("middle", 3), ("final", 4))  # of four: round(4 / 3), round(8 / 3)


def test_features_are_what_transformers_gives(model: Any) -> None:
    judged = policy(model)
    found = judged.features(ITEMS)
    for row, encoded in enumerate(judged.encode(ITEMS)):
        with torch.inference_mode():
            ids = torch.tensor([encoded.tokens])
            out = model(input_ids=ids, output_hidden_states=True)
        start = len(encoded.prompt)
        own = out.logits[0, start - 1 : -1].log_softmax(-1)
        lp = own.gather(1, ids[0, start:, None])[:, 0].numpy()
        entropy = -(own.exp() * own).sum(1).numpy()
        states = {name: out.hidden_states[layer][0, start:].numpy() for name, layer in LAYERS}
        body = slice(max(1, len(lp) - 1))
        length = np.log(len(lp[body]))
        wanted = {f"{name}_mean": values[body].mean(0) for name, values in states.items()}
        wanted |= {f"{name}_last": values[-1] for name, values in states.items()}
        wanted["statistics"] = np.array(
            [
                length,
                length**2,
                lp[body].mean(),
                lp[body].std(),
                lp[body].min(),
                lp[-1],
                lp[body][:8].mean(),
                entropy[body].mean(),
                entropy[body].std(),
            ]
        )
        for group in found:
            np.testing.assert_allclose(found[group][row], wanted[group], rtol=1e-4, atol=1e-4)
            assert found[group].dtype == np.float32


def test_response_logps_have_gradients_and_sum_by_owner(model: Any) -> None:
    judged = policy(model)
    batch = next(judged.batches(ITEMS[:6]))
    logps = response_logps(model, batch)
    sums = torch.zeros(len(batch.items)).index_add(0, batch.owners, logps)
    (gradient,) = torch.autograd.grad(sums.sum(), [model.get_output_embeddings().weight])
    assert gradient.abs().sum() > 0
    for place, index in enumerate(batch.items):
        (encoded,) = judged.encode([ITEMS[index]])
        logits = model(input_ids=torch.tensor([encoded.tokens])).logits[0].log_softmax(-1)
        picks = range(len(encoded.prompt), len(encoded.tokens))
        whole = sum(float(logits[at - 1, encoded.tokens[at]].detach()) for at in picks)
        assert float(sums[place].detach()) == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
def test_surprise_is_that_of_float64_whatever_the_block(scale: float) -> None:
    model = tiny_llama(vocab_size=NEAR["cpu"] // 3 - 7)  # three positions a block
    torch.manual_seed(1)
    states, targets = scale * torch.randn(8, 32), torch.randint(0, 320, (8,))
    with torch.inference_mode():
        found = token_surprise(model, states, targets)
        logits = (states.double() @ model.get_output_embeddings().weight.double().T).log_softmax(1)
    picked = logits.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found[0].double(), picked, rtol=1e-5, atol=1e-4)
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(found[1].double(), entropies, rtol=1e-4, atol=1e-3)


def test_a_prompt_is_computed_once_for_its_responses() -> None:
    judged = policy(MODELS["llama"])
    items = [item("Wait, " * 20, response) for response in RESPONSES]
    encoded = judged.encode(items)
    tokens = sum(batch.ids.numel() for batch in judged.batches(items))
    assert tokens == len(encoded[0].prompt) + sum(len(one.response) for one in encoded)


def test_a_sliding_window_is_respected() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = tiny_llama().config.to_dict() | {"sliding_window": 8, "model_type": "mistral"}
    model = MistralForCausalLM(MistralConfig(**config)).eval()
    judged = policy(model)
    assert judged.rows == "padded"
    found = judged.features(ITEMS)["final_last"]
    for row, encoded in enumerate(judged.encode(ITEMS)):
        with torch.inference_mode():
            states = model.model(input_ids=torch.tensor([encoded.tokens])).last_hidden_state
        np.testing.assert_allclose(found[row], states[0, -1].numpy(), rtol=1e-4, atol=1e-4)
    assert policy(model, max_length=16).rows == "padded"


def test_bfloat16_stays_close() -> None:
    exact = policy(MODELS["llama"]).features(ITEMS)
    rough = policy(tiny_llama().to(torch.bfloat16)).features(ITEMS)
    for group, values in exact.items():
        assert rough[group].dtype == np.float32
        assert np.abs(rough[group] - values).mean() < 0.05 * np.abs(values).mean()


def test_a_model_that_cannot_pack_is_noticed() -> None:
    model = tiny_llama()
    plain = type(model.model).forward

    class Recurrent(type(model.model)):  # type: ignore[misc]
        """A Llama that ignores the mask it is given, as a recurrent model does."""

        def forward(self, *, attention_mask: object = None, **inputs: Any) -> Any:
            return plain(self, **inputs)

    model.model.__class__ = Recurrent
    assert verify(model, 64) == "padded"


def test_an_unknown_head_is_refused() -> None:

    model = tiny_llama()
    plain = type(model).forward

    class Odd(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **inputs: Any) -> Any:
            out = plain(self, *args, **inputs)
            out.logits = out.logits * 1.5
            return out

    model.__class__ = Odd
    with pytest.raises(ModelError, match="does not support"):
        verify(model, 64)


def test_useful_flops_by_hand() -> None:
    model = MODELS["llama"]
    judged = policy(model)
    items = [item("How do I bake bread?", response) for response in ("Knead it.", "x")]
    one, two = judged.encode(items)
    p, a, b = len(one.prompt), len(one.response), len(two.response)
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    seen = p * (p + 1) / 2 + p * a + a * (a + 1) / 2 + p * b + b * (b + 1) / 2
    expected = 2 * (4 * layer + 32) * (p + a + b) + 4 * 4 * 32 * seen + 2 * 320 * 32 * (a + b)
    assert flops(judged, items) == pytest.approx(expected)
    assert measure(model).attention == 4 * 32
    np.testing.assert_array_equal(judged.sizes(items), [p + a, p + b])


# Encoding


def test_template_splits_exactly_and_drops_the_text_after_the_turn() -> None:
    (encoded,) = Encoder(TOKENIZER, 256, True).encode([item("How?", "Bake it.")])
    assert TOKENIZER.decode(encoded.prompt) == "<|user|>\nHow?<|end|>\n<|assistant|>\n"
    assert TOKENIZER.decode(encoded.response) == "Bake it.<|end|>"
    assert (encoded.cut_prompt, encoded.cut_response) == (0, 0)


def test_what_the_template_adds_before_a_reply_belongs_to_the_prompt() -> None:
    thinking = TEMPLATE_THINKING
    encoder = Encoder(tiny_tokenizer(thinking), 256, True)
    (encoded,) = encoder.encode([item("How?", "Bake it.")])
    assert encoder.tokenizer.decode(encoded.prompt).endswith("<|assistant|>\n<think></think>")
    assert encoder.tokenizer.decode(encoded.response) == "Bake it.<|end|>"


TEMPLATE_THINKING = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{% if m['role'] == 'assistant' %}"
    "{{ '<think></think>' }}{% endif %}{{ m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] + '<|end|>' }}"
    "{% endfor %}"
)


def test_turns_a_template_refuses_are_folded_or_named() -> None:
    encoder = Encoder(tiny_tokenizer(STRICT), 256, True)
    odd = (Message("system", "Be kind."), Message("user", "Hi"), Message("user", "How?"))
    (encoded,) = encoder.encode([item("p", "Bake it.", odd)])
    assert encoder.tokenizer.decode(encoded.prompt) == "Be kind.\n\nHi\n\nHow?<|end|>"
    with pytest.raises(ModelError, match="refuses a conversation") as caught:
        encoder.encode([item("p", "Bake it.", (Message("assistant", "Hi"),))])
    assert "--chat-template never" in str(caught.value)
    assert fold_turns(odd) == (Message("user", "Be kind.\n\nHi\n\nHow?"),)


@pytest.mark.parametrize(
    ("prompt", "turns", "lead", "tail"),
    [
        ("How?", None, "How?\n\n", "Bake it.<|end|>"),
        ("How?\n", None, "How?\n", "Bake it.<|end|>"),
        ("", (Message("user", "How?"),), "\n\nHuman: How?\n\nAssistant:", " Bake it.<|end|>"),
    ],
)
def test_base_models_read_plain_text(
    prompt: str, turns: tuple[Message, ...] | None, lead: str, tail: str
) -> None:
    encoder = Encoder(PLAIN, 256, False)
    assert encoder.render(item(prompt, "Bake it.", turns)) == (lead, tail)
    (encoded,) = encoder.encode([item(prompt, "Bake it.", turns)])
    assert PLAIN.decode(encoded.tokens) == lead + tail


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(max_size=40),
    response=st.text(max_size=40),
    other=st.text(max_size=40),
    template=st.booleans(),
    length=st.integers(16, 64),
)
def test_every_text_encodes_within_bounds(
    prompt: str, response: str, other: str, template: bool, length: int
) -> None:
    encoder = Encoder(TOKENIZER if template else PLAIN, length, template)
    one, two = encoder.encode([item(prompt, response), item(prompt, other)])
    if template or response[:1].isspace() == other[:1].isspace():
        assert one.prompt == two.prompt
    assert min(len(one.prompt), len(one.response)) >= 1
    assert len(one.tokens) <= length
    whole, _ = replace(encoder, max_length=4096).encode([item(prompt, response), ITEMS[0]])
    assert whole.response[: len(one.response)] == one.response
    assert len(whole.response) - len(one.response) == one.cut_response
    assert len(whole.prompt) - len(one.prompt) == one.cut_prompt
    rest = iter(whole.prompt)  # what is kept is kept in order
    assert all(token in rest for token in one.prompt)


def test_truncation_is_counted() -> None:
    judged = policy(MODELS["llama"], max_length=32)
    items = [item("Wait, " * 20, "x"), item("How?", "Why? " * 30), item("How?", "x")]
    counts = truncation(items, judged.encode(items))
    assert (counts["prompts"], counts["responses"]) == (1, 1)
    assert counts["tokens"] == sum(e.cut_prompt + e.cut_response for e in judged.encode(items))


def test_empty_input_is_empty() -> None:
    judged = policy(MODELS["llama"])
    assert judged.encode([]) == []
    assert judged.features([]) == {}
    assert judged.sizes([]).shape == (0,)
