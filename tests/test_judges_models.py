"""Judges that load models, each from a small directory of its real layout."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_diffusion import picture
from helpers.tiny_judges import (
    SIDE,
    as_open_clip,
    comparisons,
    tiny_clip,
    tiny_image_reward,
    tiny_reward_model,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from noisescope.errors import ModelError, UsageError
from noisescope.evaluate import Comparison, Judge, Prompt, Verdict
from noisescope.evaluate.judges import JUDGES, JudgeOptions, open_judge
from noisescope.models.clip import HEAD_FILE
from noisescope.models.image_reward import CENTRE, LENGTH, SPREAD
from noisescope.models.pixels import pixels
from noisescope.pairs import Message

CPU = JudgeOptions(device="cpu")
CONFIG = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def opened(name: str, folder: Path, modality: str = "image") -> Judge:
    """A judge of a local directory."""
    return open_judge(f"{name}={folder}", modality, CPU)  # type: ignore[arg-type]


def decoded(data: object) -> Image.Image:
    assert isinstance(data, bytes)
    return Image.open(io.BytesIO(data)).convert("RGB")


def reference_clip(model: torch.nn.Module, words: object, comparison: Comparison) -> list[float]:
    """Cosines of both pictures by transformers' own processor and forward."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **CONFIG
    )
    images = [decoded(comparison.policy), decoded(comparison.against)]
    values = processor(images, return_tensors="pt")["pixel_values"]
    ids = words([comparison.prompt.text], return_tensors="pt", padding=True)  # type: ignore[operator]
    with torch.inference_mode():
        out = model(pixel_values=values, **ids)
    return (out.image_embeds @ out.text_embeds.T)[:, 0].tolist()


def scores(found: list[Verdict]) -> list[list[float]]:
    return [[float(v.policy or 0), float(v.against or 0)] for v in found]


def test_pictures_are_prepared_as_transformers_does() -> None:
    image = decoded(picture(3, 37)).resize((53, 31))
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **CONFIG
    )(image, return_tensors="np")["pixel_values"][0]
    ours = pixels(image, SIDE, tuple(CONFIG["image_mean"]), tuple(CONFIG["image_std"]))
    assert np.abs(ours - theirs).max() < 1e-5


def test_pickscore_and_hps_are_the_cosines_of_their_model(tmp_path: Path) -> None:
    folder, model, words = tiny_clip(tmp_path / "clip")
    expected = [reference_clip(model, words, comparison) for comparison in comparisons()]
    hps = scores(opened("hpsv2", folder).judge(comparisons()))
    assert np.allclose(hps, expected, atol=1e-5)
    pick = scores(opened("pickscore", folder).judge(comparisons()))
    assert np.allclose(pick, np.array(expected) * model.logit_scale.exp().item(), atol=1e-4)


def test_hps_reads_open_clips_names(tmp_path: Path) -> None:
    folder, model, _ = tiny_clip(tmp_path / "clip")
    before = opened("hpsv2", folder).judge(comparisons())
    save_file(as_open_clip(model), folder / "model.safetensors")
    assert "visual.conv1.weight" in load_file(folder / "model.safetensors")
    after = opened("hpsv2", folder).judge(comparisons())
    assert np.allclose(scores(after), scores(before), atol=1e-6)


def test_aesthetic_is_linear_layers_over_the_image_alone(tmp_path: Path) -> None:
    folder, model, _ = tiny_clip(tmp_path / "clip")
    with pytest.raises(ModelError, match=HEAD_FILE):
        opened("aesthetic", folder)
    torch.manual_seed(3)
    stack = torch.nn.Sequential(torch.nn.Linear(12, 6), torch.nn.Dropout(), torch.nn.Linear(6, 1))
    head = {f"layers.{name}": tensor for name, tensor in stack.state_dict().items()}
    save_file(head, folder / HEAD_FILE)
    found = opened("aesthetic", folder).judge(comparisons())
    image = pixels(decoded(comparisons()[0].policy), SIDE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    with torch.inference_mode():
        embedded = model.get_image_features(torch.from_numpy(image)[None])
        embedded = getattr(embedded, "pooler_output", embedded)
        expected = stack.eval()(torch.nn.functional.normalize(embedded, dim=-1)).item()
    assert found[0].policy == pytest.approx(expected, abs=1e-5)
    others = [Comparison(Prompt("anything else"), d.policy, d.against) for d in comparisons()]
    assert opened("aesthetic", folder).judge(others) == found


def test_a_head_that_ends_in_no_score_is_refused(tmp_path: Path) -> None:
    folder, _, _ = tiny_clip(tmp_path / "clip")
    save_file({"weight": torch.zeros(3, 12), "bias": torch.zeros(3)}, folder / HEAD_FILE)
    with pytest.raises(ModelError, match="one score"):
        opened("aesthetic", folder)


def test_image_reward_is_blip_and_its_head(tmp_path: Path) -> None:
    folder, blip, head, words = tiny_image_reward(tmp_path / "reward")
    found = opened("image-reward", folder).judge(comparisons())
    comparison = comparisons()[1]
    ids = words(
        [comparison.prompt.text], padding="max_length", max_length=LENGTH, truncation=True,
        return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        seen = blip.vision_model(torch.from_numpy(pixels(decoded(comparison.against), SIDE))[None])[
            0
        ]
        read = blip.text_encoder(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            encoder_hidden_states=seen,
        )[0]
        expected = (head(read[:, 0]).item() - CENTRE) / SPREAD
    assert found[1].against == pytest.approx(expected, abs=1e-5)
    assert len({v.policy for v in found}) == 3


def test_a_reward_model_scores_the_rendered_conversation(tmp_path: Path) -> None:
    folder = tiny_reward_model(tmp_path / "rm")
    turns = (Message("user", "hi"), Message("assistant", "yes?"), Message("user", "how?"))
    asked = [
        Comparison(Prompt("hi yes how", turns), "so", "no idea"),
        Comparison(Prompt("why"), "a", "b c"),
    ]
    found = opened("reward", folder, "text").judge(asked)
    words = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    text = words.apply_chat_template(
        [{"role": t.role, "content": t.content} for t in turns]
        + [{"role": "assistant", "content": "no idea"}],
        tokenize=False,
    )
    ids = words(text, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        expected = model(input_ids=ids["input_ids"]).logits.item()
    assert found[0].against == pytest.approx(expected, abs=1e-4)
    alone = opened("reward", folder, "text").judge(asked[:1])
    assert np.allclose(scores(alone), scores(found[:1]), atol=1e-4)


def test_a_reward_model_without_a_template_reads_two_texts(tmp_path: Path) -> None:
    folder = tiny_reward_model(tmp_path / "rm", template=False)
    (found,) = opened("reward", folder, "text").judge([Comparison(Prompt("why"), "a", "b c")])
    assert found.outcome in (0.0, 1.0)


def test_a_classifier_of_two_classes_is_no_reward_model(tmp_path: Path) -> None:
    folder = tiny_reward_model(tmp_path / "rm", labels=2)
    with pytest.raises(ModelError, match="2 outputs"):
        opened("reward", folder, "text").judge([Comparison(Prompt("why"), "a", "b")])


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "aesthetic", "image-reward"])
def test_pickled_weights_are_refused_with_what_to_type(name: str, tmp_path: Path) -> None:
    folder, _, _ = tiny_clip(tmp_path / "clip")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        opened(name, folder)
    assert "weights_only=True" in str(caught.value.hint)
    assert ".safetensors" in str(caught.value.hint)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder, _, _ = tiny_clip(tmp_path / "clip")
    save_file({"logit_scale": torch.zeros(())}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="tensors are missing"):
        opened("hpsv2", folder).judge(comparisons())


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    folder, model, _ = tiny_clip(tmp_path / "clip")
    before = opened("pickscore", folder).card.fingerprint
    assert opened("pickscore", folder).card.fingerprint == before
    assert opened("hpsv2", folder).card.fingerprint != before
    model.logit_scale.data += 1
    model.save_pretrained(folder)
    assert opened("pickscore", folder).card.fingerprint != before


def test_every_judge_says_its_licence_and_kind() -> None:
    for name, kind in JUDGES.items():
        assert kind.licence, name
        assert kind.modality in ("text", "image")


def test_unknown_and_unfitting_judges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown"):
        open_judge("taste", "image", CPU)
    with pytest.raises(UsageError, match="judges images"):
        open_judge("pickscore", "text", CPU)
    with pytest.raises(UsageError, match="no such file"):
        open_judge(f"{tmp_path}/none.py:f", "text", CPU)


def test_a_function_of_ones_own_judges(tmp_path: Path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text(
        "def longer(prompt, response):\n    return len(response)\n"
        "def broken(prompt, response):\n    return 'good'\n"
        "def unsure(prompt, response):\n    return float('nan')\n"
    )
    asked = [Comparison(Prompt("q"), "long", "no"), Comparison(Prompt("r"), "a", "b")]
    found = open_judge(f"{rules}:longer", "text", CPU).judge(asked)
    assert [v.outcome for v in found] == [1.0, 0.5]
    unsure = open_judge(f"{rules}:unsure", "text", CPU).judge(asked)
    assert [v.outcome for v in unsure] == [None, None]
    with pytest.raises(UsageError, match="not a number"):
        open_judge(f"{rules}:broken", "text", CPU).judge(asked)
    with pytest.raises(UsageError, match="no function"):
        open_judge(f"{rules}:none", "text", CPU)
    rules.write_text("import nothing_here\n")
    with pytest.raises(UsageError, match="does not run"):
        open_judge(f"{rules}:longer", "text", CPU)
