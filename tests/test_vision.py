"""Pictures in prompts: a vision-language model's log-probabilities equal its plain forward's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.runs import MODEL
from helpers.tiny_vision import FAMILIES, photo, save_vision, tiny_vision
from helpers.vision_pairs import PHOTOS, A, B, C, asked, plain, policy_of
from PIL import Image
from typer.testing import CliRunner

import noisescope
from noisescope.cli import app
from noisescope.cli.report import images_of
from noisescope.datasets.images import StoredImages
from noisescope.errors import DataError, ModelError
from noisescope.models import ModelIdentity
from noisescope.models.causal_lm import CausalLMPolicy
from noisescope.models.forward import GROUPS, response_logps
from noisescope.models.rendering import Unreadable
from noisescope.models.tokenize import Encoded
from noisescope.models.vision import VisionEncoder
from noisescope.report.html import write_report
from noisescope.report.review.server import ReviewServer
from noisescope.report.review.session import open_session
from noisescope.storage.run import Run

ITEMS = [
    asked("A red square.", ("user", f"<image:{A}>\nWhat is it?")),
    asked("No.", ("user", f"<image:{A}>\nWhat is it?")),
    asked("A red square.", ("user", f"<image:{B}>\nWhat is it?")),
    asked("The last.", ("user", f"<image:{A}>\nand <image:{C}> or\n<image:{B}>")),
    asked("It is tall.", ("user", "Hello"), ("assistant", "Hi."), ("user", f"How?\n<image:{C}>")),
    asked("Fine.", ("user", "How are you?")),
]


def found(policy: CausalLMPolicy) -> dict[int, np.ndarray]:
    values: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for batch in policy.batches(ITEMS):
            logps = response_logps(policy.model, batch)
            for place, item in enumerate(batch.items.tolist()):
                values[item] = logps[batch.owners == place].numpy()
    return values


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_the_models_own(family: str) -> None:
    policy = policy_of(family)
    ours = found(policy)
    assert policy.modality == "vision"
    for at, item in enumerate(ITEMS):
        np.testing.assert_allclose(
            ours[at], plain(policy, item).detach().numpy(), atol=1e-4, err_msg=str(at)
        )
    assert np.abs(ours[0] - ours[2]).max() > 1e-3  # the same words about another picture


def test_sixteen_bits_are_read_too() -> None:
    policy = policy_of("llava", dtype=torch.bfloat16)
    features = policy.features(ITEMS)
    assert all(np.isfinite(values).all() for values in features.values())
    assert features["final_mean"].shape == (len(ITEMS), 32)
    np.testing.assert_array_less(
        1e-3, np.abs(features["final_mean"][0] - features["final_mean"][2])
    )


def test_a_prompt_with_pictures_is_never_cut() -> None:
    policy = policy_of("llava", max_length=100)
    picture = f"<image:{A}>\nWhat is it, please?"
    long, short, far = policy.encoder.encode_readable(
        [
            asked("Word. " * 30, ("user", picture)),
            asked("Fine. " * 30, ("user", "Hi")),
            asked("Red.", ("user", picture * 4)),
        ]
    )
    assert isinstance(long, Unreadable)
    assert "takes 54 of 100 tokens (--max-length)" in str(long)
    assert isinstance(short, Encoded)
    assert (len(short.tokens), short.cut_prompt, short.cut_response) == (100, 0, 102)
    assert isinstance(far, Unreadable)


@pytest.mark.parametrize(
    ("prompt", "answer", "why"),
    [
        (f"<image:{A}>\nWhat?", "An <image>.", "the response holds <image>"),
        (f"<image:{A}>\nWhat <image>?", "Red.", "2 places for its 1 pictures"),
        (f"<image:{'0' * 20}>\nWhat?", "Red.", "not part of the dataset"),
    ],
)
def test_places_of_pictures_in_texts_are_not_pictures(prompt: str, answer: str, why: str) -> None:
    policy = policy_of("llava")
    (found,) = policy.encoder.encode_readable([asked(answer, ("user", prompt))])
    assert why in str(found)


def test_a_template_without_a_place_for_pictures_is_refused() -> None:
    _, processor = tiny_vision("llava")
    processor.chat_template = processor.chat_template.replace("<image>", "")
    encoder = VisionEncoder(processor, StoredImages(PHOTOS), 1024)
    (found,) = encoder.encode_readable(ITEMS[:1])
    assert "0 places for its 1 pictures" in str(found)


def test_a_template_of_plain_text_gets_text() -> None:
    _, processor = tiny_vision("llava")
    processor.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string or "
        "m['role'] == 'assistant' %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = VisionEncoder(processor, StoredImages(PHOTOS), 1024)
    for item in ITEMS[:5]:
        lead, rest = encoder.text.render(item)
        assert rest == f"{item.response}<|im_end|>"
        assert "type" not in lead


def test_a_model_that_does_not_look_at_pictures_is_refused() -> None:
    model, processor = tiny_vision("llava")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
    encoder = VisionEncoder(processor, StoredImages(PHOTOS), 1024)
    with pytest.raises(ModelError, match="does not look at pictures"):
        CausalLMPolicy(model, encoder, ModelIdentity("llava", None, ""), tuple(GROUPS))


ROWS = [
    {
        "images": [{"bytes": photo(at % 6), "path": None}],
        "prompt": f"What is it, {at}?",
        "chosen": f"Good {at} <script>alert(1)</script>",
        "rejected": f"A bad one {at}",
    }
    for at in range(24)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An audit of two dozen pairs with a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("vision")
    save_vision("llava", folder / "model")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "pairs.parquet")
    evidence = noisescope.EvidenceConfig(replicas=2, folds=2)
    done = noisescope.audit(
        folder / "pairs.parquet",
        model=folder / "model",
        evidence=evidence,
        runs_directory=folder / "runs",
    )
    return done.run


def test_an_audit_shows_the_prompts_pictures(run: Run, tmp_path: Path) -> None:
    assert run.manifest()["modality"] == "vision"
    images = images_of(run)
    assert images is not None
    path, _ = write_report(run, tmp_path / "report.html", images)
    text = path.read_text("utf-8")
    data = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    assert len(data["pictures"]) == 6  # each once
    assert all(one.startswith("data:image/jpeg;base64,") for one in data["pictures"])
    assert all(pair["shown"][0]["image"] in range(6) for pair in data["pairs"])
    assert data["pairs"][0]["prompt"]["text"].startswith("[picture 1]\nWhat is it")
    assert "<script>alert" not in text
    session = open_session(run, reviewer="ann", purpose="estimate", count=10)
    with ReviewServer(session, images, of_prompts=True) as server:
        shown = server.state()["pair"]
        assert shown["prompt"]["shown"].startswith("[picture 1]\n")
        assert all("text" in side for side in shown["sides"])
        assert server.picture(shown["shown"][0]).startswith(b"\xff\xd8")
        with pytest.raises(DataError, match="no image of this session"):
            server.picture("0" * 20)
    result = CliRunner().invoke(
        app, ["show", str(run.directory), "--rank", "1", "-o", str(tmp_path / "pair.png")]
    )
    assert result.exit_code == 0, result.output
    assert "[picture 1]" in result.output
    with Image.open(tmp_path / "pair.png") as image:
        assert image.size == (384, 384)


REFUSED = {
    "score DATA --model MODEL --evidence embed:x": "file:NUMBERS.parquet",
    "score DATA --model MODEL --evidence judge:http://127.0.0.1:9/v1#x": "file:NUMBERS.parquet",
    "score DATA --model MODEL --chat-template never": "Leave it out",
    "score DATA --model TEXT": "--columns images=",
    "score DATA": "--model HuggingFaceTB/SmolVLM",
    "train DATA --model MODEL --full": "Leave --full out",
    "train DATA --model MODEL --preset hh": "Leave --preset out",
    "evaluate --policy MODEL --against TEXT --prompts DATA --judge JUDGE": "--labelled",
    "export RUN --format trl --force": "--format clean",
    "export RUN --format review --force": "noisescope review",
    "review RUN --terminal": "--terminal",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_would_not_see_the_pictures_is_refused(
    line: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "DATA": run.manifest()["resolved"],
        "MODEL": str(Path(run.manifest()["resolved"]).parent / "model"),
        "TEXT": MODEL,
        "RUN": str(run.directory),
        "JUDGE": "judge.py:longer",
    }
    (tmp_path / "judge.py").write_text("def longer(prompt, response):\n    return len(response)\n")
    result = CliRunner().invoke(app, [names.get(word, word) for word in line.split()])
    assert result.exit_code != 0
    error = result.exception
    text = result.output + (f"{error} {getattr(error, 'hint', '')}" if error else "")
    assert REFUSED[line] in " ".join(text.split())
    assert not (tmp_path / "runs").exists() or not list(
        (tmp_path / "runs").glob("*/scores.parquet")
    )
