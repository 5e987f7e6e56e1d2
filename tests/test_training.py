"""The training loop: convergence, schedules, exact resume, averages, faults."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from noisescope.errors import EvidenceError, RunError, UsageError
from noisescope.training.config import TrainConfig
from noisescope.training.loop import Piece, clip_norm, sum_gradients, train
from noisescope.training.objectives import DPO, PairValues
from noisescope.training.state import Progress


@dataclass
class Linear:
    """Log-linear policy: l = features . theta; a step's batch is two halves of eight pairs."""

    features: torch.Tensor  # [N, D], chosen minus rejected
    theta: torch.Tensor
    kill_at: int | None = None

    def trainable(self) -> dict[str, torch.Tensor]:
        return {"theta": self.theta}

    def batches(self, step: int) -> list[torch.Tensor]:
        if step == self.kill_at:
            raise KeyboardInterrupt
        order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(step))
        return list(order[:8].split(4))

    def pieces(self, batch: torch.Tensor) -> Iterator[Piece]:
        yield Piece(PairValues(self.features[batch] @ self.theta), share=0.5)

    def clip(self, max_norm: float | None) -> float:
        return clip_norm([self.theta], max_norm)


def learner(kill_at: int | None = None) -> Linear:
    features = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    features = features + torch.tensor([1.0, 0.0, 0.0])
    return Linear(features, torch.zeros(3, requires_grad=True), kill_at)


CONFIG = TrainConfig(steps=40, learning_rate=0.1, save_every=4, ema=(0.5,))
OBJECTIVE = DPO(beta=1.0)


def test_converges_and_records():
    one = learner()
    progress = train(one, OBJECTIVE, CONFIG)
    first, last = progress.history[0], progress.history[-1]
    assert len(progress.history) == CONFIG.steps == progress.step
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert first["pairs"] == 8
    assert last["loss"] < 0.5
    assert last["accuracy"] > 0.7
    assert one.theta[0] > 1


def test_micro_batches_add_up_to_the_batch():
    """Two pieces of share one half step exactly as one piece of the whole batch would."""
    one, whole = learner(), learner()
    whole.batches = lambda step: [torch.cat(learner().batches(step))]
    whole.pieces = lambda batch: [Piece(PairValues(whole.features[batch] @ whole.theta), 1.0)]
    parts = train(one, OBJECTIVE, CONFIG)
    together = train(whole, OBJECTIVE, CONFIG)
    assert torch.allclose(one.theta, whole.theta, atol=1e-5)
    for mine, theirs in zip(parts.history, together.history, strict=True):
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_a_launchers_accumulation_does_not_divide_the_loss(monkeypatch: pytest.MonkeyPatch):
    """`accelerate launch` hands its configuration over in the environment, where it wins."""
    plain = train(learner(), OBJECTIVE, CONFIG).history[0]["grad_norm"]
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert train(learner(), OBJECTIVE, CONFIG).history[0]["grad_norm"] == plain


@pytest.mark.parametrize("kill_at", [1, 4, 17])
def test_resume_after_a_kill_ends_with_the_same_bits(tmp_path: Path, kill_at: int):
    unbroken = learner()
    expected = train(unbroken, OBJECTIVE, CONFIG, tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(learner(kill_at), OBJECTIVE, CONFIG, tmp_path / "killed")
    resumed = learner()
    found = train(resumed, OBJECTIVE, CONFIG, tmp_path / "killed")
    assert torch.equal(resumed.theta, unbroken.theta)
    assert torch.equal(found.averages[0.5]["theta"], expected.averages[0.5]["theta"])
    assert found.history == expected.history
    files = [tmp_path / name / "state.safetensors" for name in ("unbroken", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path: Path):
    done = learner()
    train(done, OBJECTIVE, CONFIG, tmp_path)
    again = learner(kill_at=0)
    train(again, OBJECTIVE, CONFIG, tmp_path)
    assert torch.equal(again.theta, done.theta)


def test_other_settings_are_refused(tmp_path: Path):
    train(learner(), OBJECTIVE, CONFIG, tmp_path)
    other = TrainConfig(steps=40, learning_rate=0.2, save_every=4, ema=(0.5,))
    with pytest.raises(RunError, match="learning_rate"):
        train(learner(), OBJECTIVE, other, tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"junk")
    with pytest.raises(RunError, match="cannot be read"):
        train(learner(), OBJECTIVE, CONFIG, tmp_path)


def test_after_step_can_stop(tmp_path: Path):
    def stop(progress: Progress) -> bool:
        return progress.step == 3

    assert train(learner(), OBJECTIVE, CONFIG, tmp_path, after_step=stop).step == 3
    assert train(learner(), OBJECTIVE, CONFIG, tmp_path).step == 3


def test_a_diverged_loss_is_named():
    one = learner()
    one.features[:] = torch.nan
    with pytest.raises(EvidenceError, match="not a number at step 1"):
        train(one, OBJECTIVE, CONFIG)


def test_averages_follow_the_live_tensors():
    one = learner()
    average = torch.zeros(3)

    def follow(progress: Progress) -> bool:
        average.lerp_(one.theta.detach(), 0.5)
        return False

    progress = train(one, OBJECTIVE, CONFIG, after_step=follow)
    assert torch.equal(progress.averages[0.5]["theta"], average)


def test_gradients_are_summed_in_few_messages(monkeypatch: pytest.MonkeyPatch):
    """As two equal processes would: each gradient twice its own, one absent, two number types."""
    shapes = [(3, 2), (5,), (2, 2), (1,), (4,)]
    tensors = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    tensors[2] = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    for number, tensor in enumerate(tensors):
        tensor.grad = None if number == 1 else torch.randn_like(tensor)
    before = [torch.zeros_like(t) if t.grad is None else t.grad.clone() for t in tensors]
    sizes = []

    class Two:
        def reduce(self, tensor: torch.Tensor, _how: str) -> torch.Tensor:
            sizes.append(len(tensor))
            return 2 * tensor

    sum_gradients(tensors, Two())
    assert sizes == [11, 4, 5]
    for tensor, own in zip(tensors, before, strict=True):
        assert torch.equal(tensor.grad, 2 * own)
    monkeypatch.setattr("noisescope.training.loop.BUCKET", 5)
    sum_gradients(tensors, Two())
    assert sizes[3:] == [6, 5, 4, 5]
    assert torch.equal(tensors[0].grad, 4 * before[0])


def test_schedules():
    linear = TrainConfig(steps=10, learning_rate=1.0, warmup=0.2)
    rates = [linear.rate(step) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[-1] == pytest.approx(1 / 8)
    cosine = TrainConfig(steps=10, learning_rate=1.0, warmup=0.0, schedule="cosine")
    assert cosine.rate(5) == pytest.approx(0.5)
    assert TrainConfig(steps=10, schedule="constant", warmup=0.0).rate(9) == 1e-4


def test_impossible_settings_are_all_named():
    with pytest.raises(UsageError, match=r"--steps.*--learning-rate.*--schedule.*--warmup"):
        TrainConfig(steps=0, learning_rate=0, schedule="step", warmup=1.0)


def scaled(scale: float) -> Accelerator:
    """An accelerator that scales the loss, as it does for float16 on a GPU."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    return accelerator


def test_a_scaled_loss_trains_alike_and_an_overflow_changes_nothing(tmp_path: Path):
    """2^20 is exact in float32; at 2^130 the first steps overflow, until the scale is halved."""
    plain, exact = learner(), learner()
    train(plain, OBJECTIVE, CONFIG)
    train(exact, OBJECTIVE, CONFIG, accelerator=scaled(2.0**20))
    assert torch.allclose(exact.theta, plain.theta, atol=1e-6)
    wild, moved = learner(), list[bool]()
    accelerator = scaled(2.0**127)

    def note(progress: Progress) -> bool:
        moved.append(bool(wild.theta.any()))
        return False

    wild.features *= 8
    train(wild, OBJECTIVE, CONFIG, tmp_path / "wild", accelerator=accelerator, after_step=note)
    assert not moved[0]
    assert moved[-1]
    assert accelerator.scaler.get_scale() < 2.0**127
    again, other = learner(), scaled(1.0)
    train(again, OBJECTIVE, CONFIG, tmp_path / "wild", accelerator=other)
    assert other.scaler.get_scale() == accelerator.scaler.get_scale()


def test_a_gradient_that_no_scale_makes_finite_is_named():
    one = learner()
    one.pieces = lambda batch: [Piece(PairValues((one.features[batch] @ one.theta).sqrt()), 0.5)]
    with pytest.raises(EvidenceError, match=r"gradient is not a number"):
        train(one, OBJECTIVE, CONFIG, accelerator=scaled(8.0))
