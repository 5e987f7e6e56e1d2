"""noisescope evaluate: models found, outputs made and kept, resumed, refused, reported."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.chat_stub import serving
from helpers.tiny_diffusion import CAPTIONS
from helpers.tiny_diffusion import save as save_pipeline
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from noisescope.cli import run
from noisescope.errors import DataError, ModelError, NoisescopeError, RunError, UsageError
from noisescope.evaluate import Comparison, JudgeCard, Prompt, Verdict, by_score
from noisescope.evaluate.evaluate import judge_missing, results_table, run_evaluation
from noisescope.evaluate.generate import GenerationSettings, open_generator, read_outputs
from noisescope.evaluate.labelled import accuracies, labelled_accuracy
from noisescope.evaluate.models import base_of, find_model
from noisescope.evaluate.page import page, sentence
from noisescope.evaluate.prompts import Prompts, read_prompts, sample
from noisescope.pairs import Message

ASKED = sample([Prompt(f"How do I bake bread {n}?") for n in range(7)], None, 0, "a list")
QUICK = GenerationSettings(max_new_tokens=6, batch=3)


class Quiet:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def stage(self, label: str) -> Iterator[Any]:
        yield lambda *_: None


class Longer:
    """A judge that prefers the longer output, and counts what it is asked."""

    def __init__(self, name: str = "longer", modality: Any = "text") -> None:
        self.card = JudgeCard(name, "length", "none", modality, f"{name}-fingerprint")
        self.asked = 0

    def cost(self, comparisons: int) -> str:
        return f"{comparisons} lengths"

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        self.asked += len(comparisons)
        return by_score([len(d.policy) for d in comparisons], [len(d.against) for d in comparisons])


def model_at(folder: Path, seed: int) -> Path:
    """A tiny Llama."""
    return save(folder, tiny_llama(seed), tiny_tokenizer())


def adapter_at(folder: Path, base: Path) -> Path:
    """A PEFT adapter over `base` that changes what it says."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        lora = get_peft_model(model, config)
    for name, parameter in lora.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.5)
    lora.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = model_at(folder / "base", 0)
    return adapter_at(folder / "adapter", base), base


def outputs(spec: Any, asked: Sequence[Prompt], **changes: Any) -> list[Any]:
    settings = GenerationSettings(**{"max_new_tokens": 6} | changes)
    return open_generator(spec, settings, "cpu").outputs(asked)


def test_an_adapter_names_its_base_and_differs_from_it(models: tuple[Path, Path]) -> None:
    mine = find_model(str(models[0]))
    assert (mine.kind, mine.modality, mine.base) == ("adapter", "text", str(models[1]))
    theirs = base_of(mine)
    assert theirs.kind == "model"
    assert mine.fingerprint != theirs.fingerprint
    assert outputs(mine, ASKED.kept) != outputs(theirs, ASKED.kept)
    with pytest.raises(UsageError, match="whole model"):
        base_of(theirs)


def test_what_is_no_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is not a model"):
        find_model(str(tmp_path / "empty"))
    (tmp_path / "empty" / "plan.json").write_text("{}")
    with pytest.raises(RunError, match="unfinished"):
        find_model(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="no such"):
        find_model(str(tmp_path / "nowhere"))


def test_pickled_and_homeless_adapters_are_refused(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="does not name its base"):
        find_model(str(tmp_path))
    with pytest.raises(ModelError, match="pickled"):
        find_model(str(tmp_path), base=str(models[1]))


def test_greedy_responses_are_the_models_own(models: tuple[Path, Path]) -> None:
    """Left padding and batching change nothing: each prompt alone, by plain argmax."""
    theirs = find_model(str(models[1]))
    generator = open_generator(theirs, GenerationSettings(max_new_tokens=5), "cpu")
    asked = [Prompt("How?"), Prompt("How do I bake bread, and knead the dough?")]
    together = generator.outputs(asked)
    model, words = generator.policy.model, generator.policy.tokenizer  # type: ignore[attr-defined]
    for prompt, made in zip(asked, together, strict=True):
        text = words.apply_chat_template(
            [{"role": "user", "content": prompt.text}], tokenize=False, add_generation_prompt=True
        )
        ids = words(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        new: list[int] = []
        for _ in range(5):
            with torch.inference_mode():
                token = int(model(input_ids=ids).logits[0, -1].argmax())
            if token == 0:
                break
            new.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        assert made == words.decode(new, skip_special_tokens=True).strip()


def test_sampling_is_a_function_of_seed_and_prompt_not_of_the_batch(
    models: tuple[Path, Path],
) -> None:
    theirs = find_model(str(models[1]))
    hot = {"temperature": 1.0, "top_p": 0.95}
    together = outputs(theirs, ASKED.kept, **hot)
    alone = [outputs(theirs, [prompt], **hot)[0] for prompt in ASKED.kept]
    assert together == alone
    assert together != outputs(theirs, ASKED.kept, seed=1, **hot)
    assert len(set(together)) > 1


def test_gumbel_noise_draws_from_the_distribution() -> None:
    from noisescope.evaluate.text import Gumbel

    weights = torch.tensor([0.5, 0.3, 0.2])
    asked = [Prompt(str(n)) for n in range(4000)]
    noise = Gumbel(0, asked, width=3)
    ids = torch.zeros(len(asked), 3, dtype=torch.long)
    drawn = noise(ids, weights.log().expand(len(asked), 3)).argmax(1)
    shares = torch.bincount(drawn, minlength=3) / len(asked)
    assert torch.allclose(shares, weights, atol=0.03)


def test_an_evaluation_is_kept_resumed_and_judged_again(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    mine = find_model(str(models[0]))
    theirs = base_of(mine)
    place, reporter, judge = tmp_path / "out", Quiet(), Longer()
    done = run_evaluation(
        mine, theirs, ASKED, [judge], QUICK, reporter=reporter, directory=place, device="cpu"
    )
    assert any("at most" in note for note in reporter.notes)
    assert "longer: 7 lengths" in reporter.notes
    rows = pq.read_table(place / "results.parquet").to_pylist()
    assert len(rows) == 7
    for row in rows:
        better = len(row["policy"]) - len(row["against"])
        assert row["longer_outcome"] == (0.5 if not better else float(better > 0))
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["judges"][0]["wins"] == done.results[0].won.wins  # type: ignore[union-attr]
    whole = {path.relative_to(place): path.read_bytes() for path in place.rglob("*.parquet")}
    parts = sorted((place / "generations" / "policy").iterdir())
    assert len(parts) == 3
    parts[1].unlink()
    parts[2].write_bytes(b"PAR1 broken")
    again, second = Quiet(), Longer("second")
    run_evaluation(
        mine, theirs, ASKED, [judge, second], QUICK, reporter=again, directory=place, device="cpu"
    )
    assert (judge.asked, second.asked) == (7, 7)
    for path, content in whole.items():
        if path.name != "results.parquet":
            assert (place / path).read_bytes() == content


def test_another_evaluation_or_models_parts_are_refused(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    mine = find_model(str(models[0]))
    theirs = base_of(mine)
    own: dict[str, Any] = {"reporter": Quiet(), "directory": tmp_path / "out", "device": "cpu"}
    run_evaluation(mine, theirs, ASKED, [], QUICK, **own)
    hot = GenerationSettings(max_new_tokens=6, batch=3, temperature=1.0)
    with pytest.raises(RunError, match="--temperature"):
        run_evaluation(mine, theirs, ASKED, [], hot, **own)
    with pytest.raises(RunError, match="policy, against"):
        run_evaluation(theirs, mine, ASKED, [], QUICK, **own)
    with pytest.raises(RunError, match="prompts"):
        run_evaluation(mine, theirs, sample(ASKED.kept, 3, 0, "x"), [], QUICK, **own)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="no evaluation"):
        run_evaluation(mine, theirs, ASKED, [], QUICK, **own | {"directory": tmp_path / "other"})
    sides = tmp_path / "out" / "generations"
    part = next((sides / "against").iterdir())
    part.rename(sides / "policy" / "part-zz.parquet")
    with pytest.raises(RunError, match="different model"):
        run_evaluation(mine, theirs, ASKED, [], QUICK, **own)


def test_equal_models_and_mixed_kinds_are_refused(models: tuple[Path, Path]) -> None:
    mine = find_model(str(models[0]))
    with pytest.raises(UsageError, match="same model"):
        run_evaluation(mine, mine, ASKED, [], QUICK, reporter=Quiet())
    with pytest.raises(UsageError, match="does not judge texts"):
        run_evaluation(
            mine, base_of(mine), ASKED, [Longer(modality="image")], QUICK, reporter=Quiet()
        )
    with pytest.raises(UsageError, match="twice"):
        run_evaluation(mine, base_of(mine), ASKED, [Longer(), Longer()], QUICK, reporter=Quiet())


def test_verdicts_are_stored_as_they_come_and_failures_asked_again(tmp_path: Path) -> None:
    asked = [Comparison(Prompt(f"q{n}"), "long", "no") for n in range(40)]

    class Dying(Longer):
        def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
            if self.asked >= 16:
                raise KeyboardInterrupt
            return super().judge(comparisons)

    quiet: Any = lambda *_: None  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        judge_missing(Dying(), asked, tmp_path, quiet)
    judge = Longer()
    found = judge_missing(judge, asked, tmp_path, quiet)
    assert judge.asked == 24
    assert all(verdict.outcome == 1.0 for verdict in found)

    class Failing(Longer):
        def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
            self.asked += len(comparisons)
            return [
                Verdict(None, answers=("failed", "first")) if d.prompt.text == "q3"
                else Verdict(1.0, answers=("first", "second")) for d in comparisons
            ]  # fmt: skip

    place = tmp_path / "failing"
    judge_missing(Failing(), asked, place, quiet)
    second = Failing()
    judge_missing(second, asked, place, quiet)
    assert second.asked == 1


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"steps": 0}, "--steps"),
        ({"guidance": 0.5}, "--guidance"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        GenerationSettings(**changes)


def test_prompts_come_from_files_and_datasets(tmp_path: Path) -> None:
    text = tmp_path / "p.txt"
    text.write_text("one\n\ntwo\none\n")
    found = read_prompts(str(text), modality="text")
    assert {prompt.text for prompt in found.kept} == {"one", "two"}
    rows = [{"prompt": "three"}, {"prompt": [{"role": "user", "content": "four"}]}]
    table = tmp_path / "p.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_prompts(str(table), modality="text")
    assert {prompt.turns for prompt in found.kept} == {None, (Message("user", "four"),)}
    pairs = tmp_path / "pairs.jsonl"
    said = [{"prompt": "five", "chosen": f"a{n}", "rejected": "b"} for n in range(12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in said))
    assert [p.text for p in read_prompts(str(pairs), modality="text").kept] == ["five"]
    with pytest.raises(DataError, match="images"):
        read_prompts(str(pairs), modality="image")


def test_a_sample_of_prompts_does_not_depend_on_their_order() -> None:
    asked = [Prompt(str(n)) for n in range(50)]
    one = sample(asked, 10, 3, "x")
    assert one.fingerprint == sample(asked[::-1], 10, 3, "x").fingerprint
    assert one.fingerprint != sample(asked, 10, 4, "x").fingerprint
    assert (len(one.kept), one.distinct) == (10, 50)


@pytest.mark.parametrize("content", ["", "\n\n", "   \n"])
def test_no_prompts_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(DataError, match="no prompt"):
        read_prompts(str(tmp_path / "p.txt"), modality="text")


def test_bad_prompt_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": 3}\n{"prompt": [{"role": "user"}]}\n')
    with pytest.raises(DataError, match="2 rows have no readable prompt, first row 2"):
        read_prompts(str(path), modality="text")


def test_ranking_accuracy_by_hand() -> None:
    chosen, rejected = np.array([-4.0, -9.0, -2.0]), np.array([-6.0, -6.0, -2.0])
    found = accuracies(chosen, rejected, np.array([[2, 9, 2], [6, 2, 2]]))
    assert found.sums.estimate == pytest.approx(1.5 / 3)  # right, wrong, equal
    assert found.means.estimate == pytest.approx((0 + 1 + 0.5) / 3)


def test_labelled_accuracy_is_of_the_models_own_log_probabilities(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    from noisescope.datasets import load

    rows = [
        {"prompt": f"p{n}", "chosen": "bake it " * (n + 1), "rejected": "no idea why"}
        for n in range(10)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine, dataset = find_model(str(models[0])), load(str(path))
    found = labelled_accuracy(mine, base_of(mine), dataset, device="cpu", reporter=Quiet())
    back = labelled_accuracy(base_of(mine), mine, dataset, device="cpu", reporter=Quiet())
    assert found.pairs == 10
    assert found.policy == back.against
    assert found.implicit.estimate == pytest.approx(1 - back.implicit.estimate)
    place: dict[str, Any] = {"directory": tmp_path / "out", "device": "cpu", "labelled": dataset}
    done = run_evaluation(mine, base_of(mine), ASKED, [], QUICK, reporter=Quiet(), **place)
    assert done.labelled == found.to_json()
    assert not (tmp_path / "out" / "generations").exists()
    assert "Ranking accuracy" in (tmp_path / "out" / "report.html").read_text()


def test_pairs_that_a_policy_was_trained_on_are_noted(tmp_path: Path) -> None:
    from noisescope.cli.evaluate import _labelled

    rows = [{"prompt": f"p{n}", "chosen": "yes", "rejected": f"no {n}"} for n in range(12)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for trained_on, noted in (("pairs", True), ("other", False)):
        terminal, policy = Quiet(), SimpleNamespace(dataset=trained_on)
        _labelled(str(path), 10, None, policy, None, terminal)  # type: ignore[arg-type]
        assert any("was trained on pairs" in note for note in terminal.notes) == noted


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Euler's own
def test_pictures_share_their_noise_and_a_lora_changes_them(tmp_path: Path) -> None:
    base = save_pipeline("sd", tmp_path / "sd")
    lora = tmp_path / "lora"
    lora.mkdir()
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    torch.manual_seed(0)
    tensors = {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_v")):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, module.in_features)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, 2)
    save_file(tensors, lora / "pytorch_lora_weights.safetensors")
    (lora / "plan.json").write_text(json.dumps({"model": str(base), "dataset": "pick"}))
    mine = find_model(str(lora))
    assert (mine.kind, mine.modality, mine.dataset) == ("lora", "image", "pick")
    asked = [Prompt(text) for text in CAPTIONS]
    quick = {"steps": 2, "guidance": 2.0}
    theirs = outputs(base_of(mine), asked, **quick)
    assert outputs(base_of(mine), asked[1:2], **quick) == theirs[1:2]
    assert outputs(mine, asked, **quick) != theirs
    whole = tmp_path / "whole"
    unet.conv_out.weight.data += 0.1
    unet.save_pretrained(whole / "unet")
    full = find_model(str(whole), base=str(base))
    assert full.kind == "denoiser"
    assert outputs(full, asked[:1], **quick) != theirs[:1]
    done = run_evaluation(
        mine, base_of(mine), sample(asked, None, 0, "captions"), [Longer(modality="image")],
        GenerationSettings(**quick), reporter=Quiet(), directory=tmp_path / "out", device="cpu",
    )  # fmt: skip
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 6
    assert results_table(done).schema.field("policy").type == "binary"
    xl = find_model(str(save_pipeline("sdxl", tmp_path / "sdxl")))
    assert len(outputs(xl, asked, steps=2)) == 3
    generator = open_generator(mine, GenerationSettings(**quick), "cpu")
    assert (
        len(read_outputs(tmp_path / "out" / "generations" / "policy", generator.fingerprint)) == 3
    )


def test_the_report_escapes_what_models_and_people_wrote(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    mine = find_model(str(models[0]))
    evil = "<script>alert(1)</script>\u202e\x1b[31m"
    asked = Prompts((Prompt(evil),), 1, evil)
    done = run_evaluation(
        mine, base_of(mine), asked, [Longer()], QUICK, reporter=Quiet(),
        directory=tmp_path / "out", device="cpu",
    )  # fmt: skip
    html = page(done, f"noisescope evaluate --prompts '{evil}'")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert "default-src 'none'" in unescape(html)
    assert not re.search(r"\son\w+=", html)
    assert sentence(done.results[0]) in html


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = run(["evaluate", *words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_with_a_judge_of_ones_own_and_an_llm(
    models: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    Path("p.txt").write_text("How?\nWhy?\nWhen?\n")
    Path("rules.py").write_text("def longer(prompt, response):\n    return len(response)\n")
    common = ["--policy", str(models[0]), "--prompts", "p.txt", "--max-new-tokens", "4"]
    replies = iter([(200, {}, "VERDICT: 1"), (429, {"Retry-After": "0"}, b""), (200, {}, "eh?")])
    with serving(lambda *_: next(replies, (200, {}, "VERDICT: 2"))) as stub:
        code, out, err = typed(
            capsys, *common, "--judge", "rules.py:longer", "--judge", "llm=m",
            "--endpoint", stub.url, "--key-env", "JUDGE_KEY", "--json",
        )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert [judge["judge"] for judge in told["judges"]] == ["longer", "llm"]
    llm = told["judges"][1]
    assert llm["order"]["retries"] == 1
    assert llm["order"]["unparsable"] == 1
    assert llm["unjudged"] == 1
    assert len(stub.requests) == 7
    for path in Path(told["directory"]).rglob("*"):
        if path.is_file():
            assert b"sk-very-secret" not in path.read_bytes()
    assert "sk-very-secret" not in out + err
    code, out, err = typed(capsys, *common, "--judge", "rules.py:longer")
    assert code == 0, err
    assert "win rate" in out
    assert "report.html" in out


def test_the_command_says_what_is_missing(
    models: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("How?\n")
    mine = ["--policy", str(models[0]), "--prompts", "p.txt"]
    for words, said in (
        (mine, "which judge"),
        ([*mine, "--judge", "pickscore"], "judges images"),
        ([*mine, "--judge", "llm=m"], "needs --endpoint"),
        ([*mine, "--judge", "x.py:f"], "no such file"),
        (["--policy", str(models[1])], "whole model"),
        (["--policy", "./nowhere"], "no such model directory"),
        ([*mine, "--against", str(models[0])], "same model"),
    ):
        code, out, err = typed(capsys, *words)
        assert code == 2
        assert said in err
        assert not out


def test_every_error_has_a_hint(models: tuple[Path, Path]) -> None:
    mine = find_model(str(models[0]))
    with pytest.raises(NoisescopeError) as caught:
        run_evaluation(mine, mine, ASKED, [], QUICK, reporter=Quiet())
    assert caught.value.hint


def test_prompts_that_a_template_refuses_or_that_are_cut_are_noted(tmp_path: Path) -> None:
    from helpers.chat_templates import NO_SYSTEM

    from noisescope.pairs import Message

    strict = tiny_tokenizer(NO_SYSTEM)
    strict.add_special_tokens({"bos_token": "<|user|>"})
    mine = find_model(str(save(tmp_path / "one", tiny_llama(1), strict)))
    theirs = find_model(str(save(tmp_path / "two", tiny_llama(2), strict)))
    odd = Prompt("Hello.", (Message("assistant", "Hello."), Message("user", "How?")))
    long = Prompt("Wait, " * 200)
    reporter = Quiet()
    done = run_evaluation(
        mine, theirs, Prompts((*ASKED.kept, odd, long), 9, "here"), [Longer()], QUICK,
        reporter=reporter, directory=tmp_path / "out", device="cpu",
    )  # fmt: skip
    assert {c.prompt.key for c in done.comparisons} == {p.key for p in (*ASKED.kept, long)}
    omitted = [note for note in reporter.notes if "prompts are omitted" in note]
    assert len(omitted) == 2
    assert omitted[0].startswith("1 of 9 prompts are omitted: the chat template refuses")
    cut = [note for note in reporter.notes if "cut in their oldest turns" in note]
    assert len(cut) == 2
    assert "one: 1 of 8 prompts are cut" in cut[0]


def test_labelled_pairs_that_a_model_cannot_tell_apart_are_left_out(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    from noisescope.datasets import load

    rows = [{"prompt": f"p{n}", "chosen": "bake", "rejected": "no idea"} for n in range(12)]
    rows[3] |= {"chosen": "Step. " * 400 + "Yes.", "rejected": "Step. " * 400 + "No."}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine, reporter = find_model(str(models[0])), Quiet()
    dataset = load(str(path))
    found = labelled_accuracy(mine, base_of(mine), dataset, device="cpu", reporter=reporter)
    assert found.pairs == 11
    assert sum("1 pair is set aside, first pairs.jsonl:4" in note for note in reporter.notes) == 2
    assert sum("cut to --max-length 256" in note for note in reporter.notes) == 2
