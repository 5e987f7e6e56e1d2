"""noisescope explain: traits, tests with a false discovery rate, sentences, the command."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from helpers.gate_runs import made_pairs, made_run, margins_of, noisescope, parsed
from PIL import Image
from scipy.special import expit

from noisescope.report.explain import explain_run
from noisescope.report.html import in_common, write_report
from noisescope.report.image_traits import compare_images
from noisescope.scoring.explain import Labels, explain
from noisescope.scoring.noise_models import Noise, fit_noise
from noisescope.scoring.traits import TRAITS, Trait, compare_sides, near_identical
from noisescope.storage.sql import query

LENGTH = Trait("length", "the longer response")


def names(found: dict[Trait, np.ndarray]) -> dict[str, list[int]]:
    return {trait.name: signs.tolist() for trait, signs in found.items() if signs.any()}


@pytest.mark.parametrize(
    ("name", "prompt", "more", "less"),
    [
        ("length", "", "one two three", "one"),
        ("refusal", "", "I'm sorry, but I can't help with that.", "Here is how to do it well."),
        ("hedging", "", "Perhaps it might be so, now.", "It is certainly so, my friend."),
        ("list", "", "Do:\n- this\n- that", "Do: this, and then do that"),
        ("markdown", "", "# Head\nof text", "A head of text"),
        ("code", "", "```\nx = 1\n```", "x is the number one"),
        ("url", "", "see https://example.org", "see the example page."),
        ("emoji", "", "well done 🎉", "well done now"),
        ("exclamation", "", "Great! Really!", "Great, really."),
        ("question", "", "Which one do you mean?", "It is the second one."),
        ("question", "", "أي واحد تقصد؟", "هذا هو الثاني."),
        ("unfinished", "", "هذا هو", "أي واحد تقصد؟"),
        ("template", "", "Sure.<|im_end|>", "Sure, of course."),
        (
            "repetition",
            "",
            "so it is so it is so it is so it is",
            "this sentence has no such words",
        ),
        ("unfinished", "", "It ends in the", "It ends here."),
        ("language", "What is it?", "это такое слово", "it is such a word"),
        ("overlap", "Where do penguins live?", "penguins live there", "seagulls breed here"),
    ],
)
def test_the_side_with_more_of_a_trait_is_found(
    name: str, prompt: str, more: str, less: str
) -> None:
    found = names(dict(compare_sides([prompt] * 3, [more, less, more], [less, more, more])))
    assert found[name] == [1, -1, 0]


def test_every_trait_is_tested_above() -> None:
    mark = test_the_side_with_more_of_a_trait_is_found.pytestmark[0]  # type: ignore[attr-defined]
    tested = dict.fromkeys(case[0] for case in mark.args[1])
    assert sorted(tested) == sorted(trait.name for trait in TRAITS)


def test_sides_are_nearly_identical_if_their_words_are() -> None:
    words = "the quick brown fox jumps over a lazy dog once"
    assert near_identical(words, words.upper() + ".")
    assert not near_identical(words, "another text")


def labels_of(margins: np.ndarray, signs: np.ndarray, groups: dict | None = None) -> Labels:
    noise = fit_noise(margins)
    sides = {LENGTH: signs.astype(np.int8)}
    return Labels(margins, noise.p_wrong(margins), sides, groups or {})


def test_a_bias_that_makes_labels_wrong_is_an_excess() -> None:
    rng = np.random.default_rng(0)
    margins, longer = margins_of(3000, 0.05, 0), rng.choice([-1, 1], 3000)
    lazy = (rng.random(3000) < 0.3) & (longer < 0)  # these take the longer side instead
    margins, longer = np.where(lazy, -margins, margins), np.where(lazy, -longer, longer)
    labels = labels_of(margins, longer)
    (found,) = explain(labels, fit_noise(margins))
    assert (found.kind, found.trait) == ("excess", "length")
    assert 0.05 < found.effect.estimate < 0.2
    assert found.shown > 0.6 * found.suspicious_pairs
    assert "more often than the model expects" in found.sentence


def test_what_labels_follow_with_the_model_is_no_excess() -> None:
    rng = np.random.default_rng(1)
    margins = margins_of(3000, 0.1, 1)
    signs = np.where(rng.random(3000) < 0.75, np.sign(margins), -np.sign(margins))
    found = explain(labels_of(margins, signs), fit_noise(margins))
    assert [finding.kind for finding in found] == ["follows"]
    wanted = replace(LENGTH, merit=1)
    labels = replace(labels_of(margins, signs), sides={wanted: signs.astype(np.int8)})
    assert explain(labels, fit_noise(margins)) == []


def judged(blind: float, shift: float, learnt: float, seed: int) -> tuple[Labels, Noise]:
    """1,500 labels of pairs whose sides differ in a trait, and as many others.

    A share `blind` takes the side with the trait whatever the content, the rest follows the content
    and a taste of `shift` in log odds, of which the model has learnt `learnt`.
    """
    rng = np.random.default_rng(seed)
    content = rng.normal(scale=2.5, size=3000)
    differs = np.arange(3000) < 1500
    taken = rng.random(3000) < expit(content + shift * differs)
    taken |= differs & (rng.random(3000) < blind)
    margins = np.where(taken, 1, -1) * (content + learnt * differs)
    signs = np.where(differs, np.where(taken, 1, -1), 0)
    return labels_of(margins, signs), fit_noise(margins)


@pytest.mark.parametrize(("learnt", "seed"), [(0.5, 0), (1.0, 1), (1.5, 2)])
def test_blind_labels_are_errors_though_the_model_has_learnt_them_in_part(
    learnt: float, seed: int
) -> None:
    found = explain(*judged(0.5, -1.0, learnt, seed))
    assert [(finding.kind, finding.trait) for finding in found] == [("excess", "length")]


@pytest.mark.parametrize("shift", [-3.0, -1.0, 1.0, 3.0])
def test_a_taste_that_the_model_has_not_learnt_is_no_error(shift: float) -> None:
    named = [explain(*judged(0.0, shift, 0.0, seed)) for seed in range(8)]
    assert sum(finding.kind == "excess" for found in named for finding in found) <= 1


@pytest.mark.parametrize(("prompts", "named"), [(2, False), (6, True)])
def test_a_share_of_few_prompts_is_not_named_if_its_interval_holds_one_half(
    prompts: int, named: bool
) -> None:
    margins, signs = np.abs(margins_of(400, 0.0, 10)) + 3, np.zeros(400)
    signs[:26] = [1, *[-1] * 25]
    codes = np.where(np.arange(400) < 26, np.arange(400) % prompts, np.arange(400))
    labels = replace(labels_of(margins, signs), clusters=[codes])
    assert bool(explain(labels, fit_noise(margins))) == named


def test_what_labels_follow_most_surely_comes_first() -> None:
    margins = np.abs(margins_of(3000, 0.0, 9)) + 2
    rng = np.random.default_rng(9)
    rare, common = np.zeros(3000), np.zeros(3000)
    rare[:200] = np.where(rng.random(200) < 0.9, 1, -1)
    common[:2000] = np.where(rng.random(2000) < 0.7, 1, -1)
    sides = {Trait("common", "it"): common, Trait("rare", "it"): rare}
    labels = labels_of(margins, rare)
    labels = replace(labels, sides={key: one.astype(np.int8) for key, one in sides.items()})
    found = [f.trait for f in explain(labels, fit_noise(margins)) if f.kind == "follows"]
    assert found == ["rare", "common"]


def test_a_side_that_every_label_takes_is_found() -> None:
    margins, signs = np.abs(margins_of(400, 0.0, 6)) + 3, np.zeros(400)
    signs[:40] = -1
    found = explain(labels_of(margins, signs), fit_noise(margins))
    assert [finding.kind for finding in found] == ["follows"]
    assert "choose the longer response in 0% (0% to 6%) of 40 pairs" in found[0].sentence


def test_a_group_of_reversed_labels_comes_first() -> None:
    margins = margins_of(2000, 0.05, 2)
    codes = np.arange(2000) % 10
    margins[codes == 3] *= -1
    groups = {"annotator": (codes, [f"ann-{code}" for code in range(10)])}
    labels = labels_of(margins, np.zeros(2000), groups)
    found = explain(labels, fit_noise(margins))
    assert [(finding.trait, finding.value) for finding in found] == [("annotator", "ann-3")]
    assert "annotator ann-3 are reversed" in found[0].sentence


def test_clean_labels_have_few_false_findings() -> None:
    false = 0
    for seed in range(40):
        rng = np.random.default_rng([7, seed])
        margins = margins_of(1000, 0.1, 1000 + seed)
        sides = {
            Trait(str(k), "it"): rng.choice([-1, 0, 1], 1000).astype(np.int8) for k in range(12)
        }
        groups = {"annotator": (rng.integers(0, 10, 1000), [str(k) for k in range(10)])}
        noise = fit_noise(margins)
        labels = Labels(margins, noise.p_wrong(margins), sides, groups)
        false += bool(explain(labels, noise))
    assert false <= 6  # 40 draws at 5 %: more than 6 in 1 of 100 such tests


def test_too_few_pairs_are_no_finding() -> None:
    margins = -np.abs(margins_of(400, 0.1, 3))
    signs = np.zeros(400)
    signs[:19] = 1
    labels = labels_of(np.where(np.arange(400) < 19, margins, -margins), signs)
    assert explain(labels, fit_noise(labels.margins)) == []


def test_a_run_names_its_reversed_annotator_and_its_giveaway(tmp_path: Path) -> None:
    pairs, margins = made_pairs(600), margins_of(600, 0.05, 4)
    margins[np.arange(600) % 5 == 2] *= -1
    pairs = [replace(pair, chosen=pair.chosen + " <|end|>") for pair in pairs]
    run = made_run(tmp_path, pairs, margins)
    found = explain_run(run)
    assert "<|end|>" in found.sentences[0]
    assert any("annotator ann-2 are reversed" in text for text in found.sentences)
    shown = noisescope("explain", str(run.directory), cwd=tmp_path)
    assert shown.returncode == 0
    assert "ann-2 are reversed" in shown.stdout
    assert "annotator = 'ann-2'" in " ".join(shown.stdout.split()).replace("'\"'\"'", "'")
    stated = parsed(noisescope("explain", str(run.directory), "--json", cwd=tmp_path))
    assert "ann-2" in [finding["value"] for finding in stated["findings"]]
    assert stated["looked_at"] == stated["pairs"] == 600


def test_the_last_part_of_a_file_is_named(tmp_path: Path) -> None:
    margins = margins_of(1000, 0.05, 5)
    margins[900:] *= -1
    run = made_run(tmp_path, made_pairs(1000), margins)
    first = explain_run(run).findings[0]
    assert "Labels of rows 901 to 1,000 are reversed" in first.sentence


def test_the_dataset_s_own_sources_come_before_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    margins = margins_of(600, 0.05, 7)
    margins[::3] *= -1
    pairs = [replace(pair, origin=f"web-{index % 3}") for index, pair in enumerate(made_pairs(600))]
    run = made_run(tmp_path, pairs, margins)
    assert "Labels of source web-0 are reversed" in explain_run(run).findings[0].sentence
    monkeypatch.setattr("noisescope.report.explain.LOOKED_AT", 301)
    some = explain_run(run)
    assert some.looked_at == 301
    assert "of 101 look flipped" in some.findings[0].sentence


def test_prompts_without_pictures_are_a_group(tmp_path: Path) -> None:
    margins = margins_of(600, 0.05, 8)
    margins[::4] *= -1
    picture = f"<image:{'0' * 20}>"
    pairs = [
        replace(pair, prompt=f"{picture if index % 4 else ''}{pair.prompt}")
        for index, pair in enumerate(made_pairs(600))
    ]
    first = explain_run(made_run(tmp_path, pairs, margins)).findings[0]
    assert "Labels of prompts without pictures are reversed" in first.sentence


def png(grey: int, size: tuple[int, int] = (8, 8)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(sink, "PNG")
    return sink.getvalue()


class Store:
    """Three pictures by name."""

    references: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def get(self, key: str) -> bytes:
        return {"dark": png(10), "light": png(200), "large": png(10, (32, 32))}[key]


def test_images_are_compared_by_brightness_and_size() -> None:
    found = names(
        dict(compare_images(["light", "dark", "large"], ["dark", "light", "dark"], Store()))
    )
    assert found["brightness"] == [1, -1, 0]
    assert found["pixels"] == [0, 0, 1]


def test_the_issue_of_each_pair_is_a_column(tmp_path: Path) -> None:
    margins = margins_of(400, 0.1, 6)
    margins[:40] = 0.0
    run = made_run(tmp_path, made_pairs(400), margins)
    rows = query(run, "SELECT issue, p_wrong, contested FROM scores").to_pylist()
    assert {row["issue"] for row in rows} == {None, "suspicious", "undecided"}
    for row in rows:
        wrong, undecided = row["p_wrong"] >= 0.5, row["contested"] >= 0.8
        expected = "suspicious" if wrong else "undecided" if undecided else None
        assert row["issue"] == expected


def test_at_chance_only_what_labels_follow_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    margins = rng.normal(size=600)
    margins[np.arange(600) % 5 == 2] = -np.abs(margins[np.arange(600) % 5 == 2])
    run = made_run(tmp_path, made_pairs(600), margins)
    assert run.manifest()["summary"]["chance"]
    assert {finding.kind for finding in explain_run(run).findings} <= {"follows"}


def test_the_page_has_the_sentences_but_no_annotator_twice(tmp_path: Path) -> None:
    margins = margins_of(1000, 0.05, 5)
    margins[900:] *= -1
    run = made_run(tmp_path, made_pairs(1000), margins)
    more = {"adapter": "triples", "command": "noisescope score", "finished": "", "timings": {}}
    run.write_manifest(run.manifest() | more)
    path, figures = write_report(run)
    (common,) = re.findall(r'<div class="who" id="common">(.*?)</div>', path.read_text(), re.DOTALL)
    assert "rows 901 to 1,000" in common
    assert figures
    found = explain_run(run)
    named = replace(found.findings[0], trait="annotator", sentence="Labels of annotator x")
    assert in_common(replace(found, findings=[named])) == {"suspicious": [], "all": []}
