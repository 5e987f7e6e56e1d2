"""Models as sources of evidence: reward models, encoders and their parity with transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_judges import tiny_reward_model
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer
from tokenizers import processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from noisescope.errors import ModelError
from noisescope.models import Item
from noisescope.models.embed import load_encoder
from noisescope.models.reward import load_reward
from noisescope.pairs import Message

ITEMS = [
    Item("a", "Bread?", None, "Knead the dough, wait, and bake it."),
    Item("b", "Bread?", None, "no"),
    Item("c", "Bread?", (Message("system", "Be kind."), Message("user", "Bread?")), "Wait."),
    Item("d", "why", None, "How do I bake bread? " * 6),
]


def tiny_bert(folder: Path, labels: int = 1) -> Path:
    """A BERT with a classification head on its pooled first token."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        num_labels=labels,
        initializer_range=0.2,
        pad_token_id=0,
    )
    model = BertForSequenceClassification(config).eval()
    model.bert.embeddings.token_type_embeddings.weight.data.normal_()
    words = tiny_tokenizer(None).backend_tokenizer
    words.post_processor = processors.BertProcessing(("<|end|>", 0), ("<|user|>", 1))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<|end|>", model_input_names=names
    )
    return save(folder, model, tokenizer)


def scores_of_transformers(folder: Path, items: list[Item]) -> np.ndarray:
    """Outputs of the classifier, one text at a time, rendered by transformers itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for item in items:
        turns = [{"role": t.role, "content": t.content} for t in item.turns or ()]
        turns = turns or [{"role": "user", "content": item.prompt}]
        turns.append({"role": "assistant", "content": item.response})
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            inputs = tokenizer(item.prompt, item.response, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(**inputs).logits[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("template", [True, False])
def test_scores_of_a_decoder_are_those_of_transformers(tmp_path: Path, template: bool) -> None:
    folder = tiny_reward_model(tmp_path / "rm", template=template)
    found = load_reward(str(folder), device="cpu").features(ITEMS)
    assert np.abs(found["score"] - scores_of_transformers(folder, ITEMS)).max() < 1e-4
    assert found["state"].shape == (4, 32)


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_of_an_encoder_are_those_of_transformers(tmp_path: Path, labels: int) -> None:
    folder = tiny_bert(tmp_path / "bert", labels)
    reward = load_reward(str(folder), device="cpu")
    assert set(reward.encode(ITEMS)[0].types) == {0, 1}
    found = reward.features(ITEMS)
    assert found["score"].shape == (4, labels)
    assert np.abs(found["score"] - scores_of_transformers(folder, ITEMS)).max() < 1e-4


def test_the_score_is_linear_in_the_state(tmp_path: Path) -> None:
    reward = load_reward(str(tiny_reward_model(tmp_path / "rm")), device="cpu")
    found = reward.features(ITEMS)
    again = found["state"] @ reward.head.weight.float().numpy().T
    assert np.abs(again - found["score"]).max() < 1e-4


def test_embeddings_are_mean_pooled_states_of_transformers(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    found = load_encoder(str(folder), device="cpu").features(ITEMS)
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def embedded(text: str) -> np.ndarray:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0).numpy()
        return mean / np.linalg.norm(mean)

    for row, item in enumerate(ITEMS):
        assert np.abs(found["response"][row] - embedded(item.response)).max() < 1e-4
        cosine = float(embedded(item.prompt) @ embedded(item.response))
        assert found["similarity"][row, 0] == pytest.approx(cosine, abs=1e-4)


def test_a_long_text_is_cut_to_what_the_encoder_reads(tmp_path: Path) -> None:
    encoder = load_encoder(str(tiny_bert(tmp_path / "bert")), device="cpu")
    (text,) = encoder.encode(["How do I bake bread? " * 99])
    assert len(text.ids) == 128
    assert np.isfinite(encoder.embed(["", "How do I bake bread? " * 99])).all()


def test_a_long_conversation_keeps_its_special_tokens(tmp_path: Path) -> None:
    reward = load_reward(str(tiny_bert(tmp_path / "bert")), device="cpu")
    (text,) = reward.encode([Item("a", "Bread? " * 200, None, "Wait.")])
    (short,) = reward.encode([Item("a", "Bread?", None, "Wait.")])
    assert len(text.ids) == 128
    assert text.ids[0] == short.ids[0]
    assert text.ids[-3:] == short.ids[-3:]


def test_a_model_without_a_trained_head_is_no_reward_model(tmp_path: Path) -> None:
    folder = save(tmp_path / "lm", tiny_llama(), tiny_tokenizer())
    with pytest.raises(ModelError, match="is not a reward model"):
        load_reward(str(folder), device="cpu")
