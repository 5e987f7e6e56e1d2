"""Batches that do not fit into memory: halved, said once, the same numbers; or named.

One test runs under a real limit on address space. In the others a module refuses batches above
a size with the errors that torch raises where memory runs out.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.lora import CONFIG, TinyPolicy, pairs, read
from helpers.tiny_diffusion import items as picture_items
from helpers.tiny_diffusion import pairs_table, pictures
from helpers.tiny_diffusion import save as save_pipeline
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer

from noisescope.datasets.images import StoredImages
from noisescope.errors import ModelError
from noisescope.models import Item, causal_lm
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.models.items import distinct_items
from noisescope.models.memory import OomRetry, out_of_memory
from noisescope.models.packing import corpus_of
from noisescope.pairs import Pair, response_key, to_table
from noisescope.replicas.config import DiffusionLoraConfig
from noisescope.replicas.lora_image import train_diffusion_lora
from noisescope.replicas.lora_text import train_lora
from noisescope.replicas.reference_errors import ReferenceErrors
from noisescope.training.loop import PairBatch, split
from noisescope.training.lora.activations import Activations
from noisescope.training.noisy_pairs import NoisedPairs
from noisescope.training.pair_data import pair_data

pytestmark = pytest.mark.slow

#: Bytes of address space left for one batch.
ROOM = 24 << 20
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    MemoryError("Unable to allocate 4.00 GiB for an array"),
)
TEXTS = [f"{number} " + "bake it " * (3 + number % 5) for number in range(12)]
ITEMS = [Item(response_key("p", text), "p", None, text) for text in TEXTS]
SAID = "do not fit into memory: going on in smaller batches"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("memory")
    model = tiny_llama(max_position_embeddings=1024)
    return str(save(folder / "tiny", model, tiny_tokenizer()))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pipeline("sd", tmp_path_factory.mktemp("memory") / "sd"))


def budget(module: Any, size: Callable[[Any], int], most: int, error: Exception) -> Any:
    """Let `module` take no input that is larger than `most`: the handle to undo it."""

    def refuse(_: Any, arguments: Any, named: Any) -> None:
        if size((*arguments, *named.values())) > most:
            raise error

    return module.register_forward_pre_hook(refuse, with_kwargs=True)


def tokens(arguments: Any) -> int:
    return max(int(a.numel()) for a in arguments if isinstance(a, torch.Tensor) and a.ndim == 2)


def latents(arguments: Any) -> int:
    return max(len(a) for a in arguments if isinstance(a, torch.Tensor) and a.ndim == 4)


@contextmanager
def room(size: int) -> Iterator[None]:
    """Let this process map no more than `size` bytes beyond what it has mapped."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_batch_beyond_the_address_space_is_halved(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = load_causal_lm(checkpoint, device="cpu", dtype="float32")
    items = [Item(f"{n}", "p", None, f"{n} " + "wait, then bake it " * 22) for n in range(96)]
    policy.features(items[:1])  # what libraries set up on first use comes before the limit
    monkeypatch.setitem(causal_lm.BATCH_TOKENS, "cpu", 1 << 14)  # one row for all:
    monkeypatch.setitem(causal_lm.ROW_TOKENS, "cpu", 1 << 14)  # its mask alone is T x T bytes
    assert policy.sizes(items).sum() ** 2 > 2 * ROOM
    with room(ROOM), caplog.at_level(logging.WARNING, "noisescope"):
        small = policy.features(items)
    assert policy.limit.items in (1, 3, 6, 12, 24, 48)
    assert caplog.text.count(SAID) == 1
    whole = load_causal_lm(checkpoint, device="cpu", dtype="float32").features(items)
    for name, rows in whole.items():
        np.testing.assert_allclose(small[name], rows, atol=1e-3)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_texts_come_out_the_same_in_smaller_batches(
    checkpoint: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    policy = load_causal_lm(checkpoint, device="cpu", dtype="float32")
    whole = policy.features(ITEMS)
    hook = budget(policy.model.base_model, tokens, 120, error)
    with caplog.at_level(logging.WARNING, "noisescope"):
        halved, again = policy.features(ITEMS), policy.features(ITEMS[::-1])
    hook.remove()
    assert policy.limit.items in (1, 2, 3, 6)
    for name, rows in whole.items():
        np.testing.assert_allclose(halved[name], rows, atol=1e-4)
        np.testing.assert_allclose(again[name], rows[::-1], atol=1e-4)
    assert caplog.text.count(SAID) == 1


def test_a_text_that_does_not_fit_alone_is_named(checkpoint: str) -> None:
    policy = load_causal_lm(checkpoint, device="cpu", dtype="float32")
    long = Item("longest", "question", None, "bake it " * 60)
    budget(policy.model.base_model, tokens, 100, ERRORS[0])
    with pytest.raises(ModelError, match=r"longest to 'question': .* does not fit"):
        policy.features([*ITEMS, long])


def test_other_errors_are_not_taken_for_a_lack_of_memory(checkpoint: str) -> None:
    policy = load_causal_lm(checkpoint, device="cpu", dtype="float32")
    budget(policy.model.base_model, tokens, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        policy.features(ITEMS)
    assert not out_of_memory(ValueError("not enough memory"))


def test_images_come_out_the_same_in_smaller_batches(
    pipeline: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = StoredImages(pictures(6))
    items = picture_items(list(pictures(6)))
    policy = DiffusionPolicy.load(pipeline, store, device="cpu")
    whole = policy.features(items)
    small = DiffusionPolicy.load(pipeline, store, device="cpu")
    budget(small.pipeline.model, latents, 2, ERRORS[0])
    budget(small.pipeline.pipe.vae.encoder, latents, 2, ERRORS[1])
    with caplog.at_level(logging.WARNING, "noisescope"):
        halved = small.features(items)
    assert small.limit.items in (1, 2)
    for name, rows in whole.items():
        np.testing.assert_allclose(halved[name], rows, atol=1e-4, rtol=1e-4)
    assert 1 <= caplog.text.count(SAID) <= 2  # of the denoiser, and of the encoder
    budget(small.pipeline.model, latents, 0, ERRORS[0])
    with pytest.raises(ModelError, match=f"image {items[0].response} .*does not fit"):
        small.features(items)


def test_reference_errors_come_out_the_same_in_smaller_batches(pipeline: str) -> None:
    store = StoredImages(pictures(8))
    policy = DiffusionPolicy.load(pipeline, store, device="cpu")
    noised = NoisedPairs(policy, pair_data(pairs_table(list(pictures(8)))), 0, 2)
    whole = ReferenceErrors.of(noised, 64)
    expected = whole.features(whole.items)["errors"]
    small = ReferenceErrors.of(noised, 64)
    budget(policy.pipeline.model.down_blocks[0], latents, 4, ERRORS[0])
    np.testing.assert_allclose(small.features(small.items)["errors"], expected, rtol=1e-4)
    assert small.limit.items == 1


def test_the_reference_of_lora_replicas_comes_out_the_same(checkpoint: str, tmp_path: Path) -> None:
    policy = load_causal_lm(checkpoint, device="cpu", dtype="float32")
    items = distinct_items(to_table(Pair("p", a, f"{a} no") for a in TEXTS))[0]
    corpus = corpus_of([(one.prompt, one.response) for one in policy.encode(items)])
    whole, small = Activations(policy.model, 2, corpus), Activations(policy.model, 2, corpus)
    whole.fill(tmp_path / "whole", "f", items)
    budget(policy.model.base_model, tokens, 120, ERRORS[2])
    small.fill(tmp_path / "small", "f", items)
    torch.testing.assert_close(small.reference, whole.reference, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks it
def test_lora_replicas_train_and_judge_the_same_in_smaller_batches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, replicas=2, batch=8, steps=4, tokens=4096)
    train_lora(TinyPolicy(tiny_llama()), pairs(), config, tmp_path / "whole")
    model = tiny_llama()
    budget(model.base_model, tokens, 160, ERRORS[0])
    with caplog.at_level(logging.WARNING, "noisescope"):
        train_lora(TinyPolicy(model), pairs(), config, tmp_path / "small")
    assert "pairs at once do not fit into memory" in caplog.text
    assert "responses at once do not fit into memory" in caplog.text
    whole, small = (read(tmp_path / name).margin.to_numpy() for name in ("whole", "small"))
    np.testing.assert_allclose(small, whole, atol=1e-3 * np.sqrt((whole**2).mean()))


def test_diffusion_replicas_train_and_judge_the_same_in_smaller_batches(
    pipeline: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DiffusionLoraConfig(replicas=2, batch=4, steps=3, draws=2)
    table, store = pairs_table(list(pictures(8))), StoredImages(pictures(8))
    whole = DiffusionPolicy.load(pipeline, store, device="cpu")
    train_diffusion_lora(whole, table, config, tmp_path / "whole")
    small = DiffusionPolicy.load(pipeline, store, device="cpu")
    budget(small.pipeline.model.up_blocks[0], latents, 6, ERRORS[2])
    with caplog.at_level(logging.WARNING, "noisescope"):
        train_diffusion_lora(small, table, config, tmp_path / "small")
    assert caplog.text.count("pairs at once do not fit") >= 2  # in training and in scoring
    found, expected = (read(tmp_path / name).margin.to_numpy() for name in ("small", "whole"))
    rounding = config.beta * np.finfo(np.float32).eps  # of errors near 1, times beta
    np.testing.assert_allclose(found, expected, atol=4 * rounding)
    assert np.abs(expected).max() > 100 * rounding


def test_batches_of_replicas_in_parts() -> None:
    retry: OomRetry[int] = OomRetry("pairs", lambda pair: f"pair p{pair}")
    batch = [PairBatch(0, np.arange(7), 1.0), PairBatch(1, np.arange(10, 15), 0.5)]
    assert split(batch, retry.limit.items) == [batch]
    retry.halve(range(12))
    assert retry.limit.items == 6
    retry.halve(range(6))
    groups = split(batch, retry.limit.items)
    assert [sum(len(part.pairs) for part in group) for group in groups] == [3, 3, 3, 3]
    for given in batch:
        mine = [part for group in groups for part in group if part.replica == given.replica]
        assert np.concatenate([part.pairs for part in mine]).tolist() == given.pairs.tolist()
        assert sum(part.share for part in mine) == pytest.approx(given.share)
    with pytest.raises(ModelError, match="pair p4 does not fit"):
        retry.halve([4])


def test_the_limit_is_kept_and_nothing_is_computed_twice() -> None:
    seen: list[int] = []

    def compute(part: Any) -> int:
        if len(part) > 3:
            raise ERRORS[2]
        seen.extend(part)
        return len(part)

    retry: OomRetry[int] = OomRetry("numbers", str)
    sizes = [n for start in (0, 20) for _, n in retry.run(compute, range(start, start + 20))]
    assert seen == list(range(40))
    assert max(sizes) == 2
    assert list(retry.run(compute, [])) == []
