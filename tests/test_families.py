"""Every family of text models is read as its plain forward computes it, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from helpers.families import (
    CORPUS,
    FAMILIES,
    PAGE,
    REFUSED,
    examine,
    features_of,
    line,
    logps_of,
    plain,
    tiny_family,
)

from noisescope.errors import ModelError
from noisescope.models.anatomy import anatomy, float32
from noisescope.models.forward import last_states
from noisescope.models.packing import corpus_of, pack
from noisescope.models.verify import probe_length, spans, verify
from noisescope.training.lora.activations import Activations
from noisescope.training.lora.adapters import PackedLinear, Placement, attach_adapters
from noisescope.training.lora.peft_files import save_peft
from noisescope.training.lora.split_model import adapted_logps

#: One of each kind: packed, windowed, capped, chunked, mixture, latent attention, refused.
QUICK = ("llama", "gpt2", "mistral", "gemma2", "llama4_text", "qwen2_moe", "deepseek_v3", "bert")
#: Number types are checked on kinds that differ in what 16 bits hide or break.
ROUGH = ("llama", "mpt", "deepseek_v32", "mamba2", "gemma3n_text", "nemotron_h", "gemma2")
NATS = 1e-3

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers' own, by family


def test_at_least_forty_families() -> None:
    assert len(FAMILIES) - len(REFUSED) >= 80


@pytest.mark.parametrize(
    "family",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_a_family_is_right_or_refused(family: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    if family in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[family]) as caught:
            examine(family)
        assert caught.value.hint
        assert line(family, caught.value) in page
        return
    found = examine(family)
    assert max(found.logps, found.start, found.trained, found.packing) <= NATS, found
    assert found.gradients <= NATS
    assert line(family, found) in page


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.slow) for name in ROUGH])
def test_rounding_does_not_choose_the_rows(family: str) -> None:
    """In bfloat16 a family is run as in float32, and as close to its own forward as that allows."""
    exact, rough = examine(family), examine(family, torch.bfloat16)
    assert (rough.rows, rough.stored, rough.replicas) == (exact.rows, exact.stored, exact.replicas)
    assert rough.start == 0
    assert max(rough.logps, rough.packing) <= 0.1, rough


def test_float32_is_put_back_bit_for_bit() -> None:
    model = tiny_family("llama", torch.bfloat16)
    before = {name: weight.data.clone() for name, weight in model.named_parameters()}
    with torch.no_grad(), float32(model):
        model(input_ids=torch.arange(4)[None])
        assert model.lm_head.weight.dtype == torch.float32
        assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, before[name])


def test_texts_reach_past_what_a_configuration_names() -> None:
    model = tiny_family("mistral")
    assert 8 in spans(model.config.to_dict())
    model.config.sliding_window = 500
    assert probe_length(model, 1024) > 500
    assert probe_length(model, 256) < 100


def test_an_untrained_encoder_is_refused() -> None:
    """Small first weights change little, but what they change is not rounding."""
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = BertConfig(vocab_size=128, num_hidden_layers=2, **sizes)
    with pytest.raises(ModelError, match="not causal"):
        verify(BertLMHeadModel(config).eval(), 64)


def test_a_window_wider_than_every_text_allows_packing() -> None:
    model = tiny_family("mistral")
    model.config.sliding_window = 500
    assert verify(model, 256) == "packed"
    assert verify(model, 1024) == "padded"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "cohere", "nemotron_h"])
def test_adapters_equal_pefts(family: str, tmp_path: Path) -> None:
    model = tiny_family(family)
    corpus = corpus_of(CORPUS, verify(model, 64))
    activations = Activations(model, 0, corpus)
    adapters = attach_adapters(model, 2, 4, 0, ["o_proj"] if family == "nemotron_h" else [])
    adapters.initialise([0, 1], 8.0)
    with torch.no_grad():
        for _, tensor in adapters.parameters():
            tensor.normal_(std=0.1)
        packed = pack(corpus, list(range(len(CORPUS))), 128)
        ours = adapted_logps(activations, adapters, [packed] * 2, [0, 1]).view(2, -1)
    for m in range(2):
        save_peft(adapters, m, tmp_path / str(m), base="tiny", weights=dict(adapters.parameters()))
        tuned = peft.PeftModel.from_pretrained(tiny_family(family), tmp_path / str(m)).eval()
        torch.testing.assert_close(ours[m], plain(tuned, corpus), rtol=1e-4, atol=1e-3)


class Halved(torch.nn.Linear):
    """A linear layer stored in 8 bits, as quantisers replace layers; its own forward, no weight
    that can be trained."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        scale = base.weight.abs().amax(1, keepdim=True) / 127
        stored = (base.weight / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(stored, requires_grad=False)
        self.scale = torch.nn.Buffer(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype))


def quantised_llama() -> torch.nn.Module:
    model = tiny_family("llama")
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            model.model.set_submodule(name, Halved(layer))
    return model


def test_adapters_beside_quantised_layers_equal_pefts(tmp_path: Path) -> None:
    """QLoRA: the frozen layer runs its own forward, and gets its gradient through it."""
    model = quantised_llama()
    corpus = corpus_of(CORPUS, verify(model, 64))
    adapters = attach_adapters(model, 2, 4, 0)
    adapters.initialise([0, 1], 8.0)
    activations = Activations(model, 0, corpus)
    packed = pack(corpus, list(range(len(CORPUS))), 128)
    for _, tensor in adapters.parameters():
        torch.nn.init.normal_(tensor, std=0.1)
    ours = adapted_logps(activations, adapters, [packed] * 2, [0, 1]).view(2, -1)
    ours.sum().backward()
    assert all(tensor.grad is not None for _, tensor in adapters.parameters())
    weights = dict(adapters.parameters())
    save_peft(adapters, 1, tmp_path, base="tiny", weights=weights)
    tuned = peft.PeftModel.from_pretrained(quantised_llama(), tmp_path, is_trainable=True).eval()
    theirs = plain_with_gradient(tuned, corpus)
    torch.testing.assert_close(ours[1], theirs, rtol=1e-4, atol=1e-3)
    theirs.sum().backward()
    name = "model.layers.0.self_attn.q_proj"
    layer = tuned.base_model.model.get_submodule(name)
    expected = layer.lora_A["default"].weight.grad
    torch.testing.assert_close(weights[f"{name}.a"].grad[1], expected, rtol=1e-3, atol=1e-3)


def plain_with_gradient(model: torch.nn.Module, corpus: object) -> torch.Tensor:
    from noisescope.models.verify import plain_logps

    parts = plain_logps(model, corpus).split(corpus.response_sizes.tolist())
    return torch.stack([part.sum() for part in parts])


def test_blocks_that_run_several_times_have_the_states_of_their_last_run() -> None:
    """One forward for all texts, or one for each, of a model whose blocks recur."""
    model = tiny_family("hrm_text")
    packed, alone = (features_of(model, corpus_of(CORPUS, rows))[1] for rows in ("packed", "alone"))
    for name, values in packed.items():
        torch.testing.assert_close(values, alone[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kept", [0, 3])
def test_blocks_that_run_unequally_often_are_refused(kept: int) -> None:
    with pytest.raises(ModelError, match=f"ran {kept} times in 2 forwards"):
        last_states([torch.zeros(1)] * kept, 2)


def test_a_block_diagonal_layer_is_not_adapted() -> None:
    adapters = attach_adapters(tiny_family("deepseek_v4"), 1, 2, 0)
    ends = {name.rpartition(".")[2] for name in adapters.layers}
    assert "o_a_proj" not in ends
    assert {"q_a_proj", "o_b_proj"} <= ends


def test_adapters_under_autocast() -> None:
    """A layer given float32 by a norm that autocast leaves in float32 computes as torch does."""
    torch.manual_seed(0)
    base = torch.nn.Linear(8, 6).bfloat16().requires_grad_(False)
    layer = PackedLinear(base, 2, 3, Placement())
    torch.nn.init.normal_(layer.a)
    torch.nn.init.normal_(layer.b)
    x = torch.randn(4, 5, 8)
    with torch.autocast("cpu", torch.bfloat16), layer.placement.of(((0, 0, 1), (1, 1, 4))):
        found = layer(x)
    found.sum().backward()
    assert found.dtype == torch.bfloat16
    for m, rows in ((0, slice(0, 1)), (1, slice(1, 4))):
        merged = base.weight.float() + (layer.b[m] @ layer.a[m])
        expected = torch.nn.functional.linear(x[rows], merged, base.bias.float())
        torch.testing.assert_close(found[rows].float(), expected, rtol=0.05, atol=0.2)


def test_a_model_of_images_and_text_is_read_as_text(tmp_path: Path) -> None:
    """Vision and text have equally many blocks: the text's own are found."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = tiny_family("gemma3_text")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text.config.to_dict(), vision_config=vision)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    assert "language_model" in anatomy(model).name
    corpus = corpus_of(CORPUS, verify(model, 64))
    np.testing.assert_allclose(logps_of(model, corpus), plain(model, corpus), rtol=1e-4)
