"""Gated MLPs that keep half of their inner states: the same numbers, and memory that is counted."""

from __future__ import annotations

import torch
from helpers.tiny_models import tiny_gpt2, tiny_llama
from helpers.training import quick, read, tiny_checkpoint, tiny_policy, write_pairs
from torch import Tensor

from noisescope.training.policy.memory import spare_products
from noisescope.training.policy.run import fine_tune

IDS = torch.arange(1, 33)[None]


def step(model: torch.nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients."""
    logits = model(input_ids=IDS, use_cache=False).logits
    model.zero_grad()
    logits.square().sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def test_values_and_gradients_are_the_models_own():
    model = tiny_llama()
    logits, gradients = step(model)
    restore = spare_products(model)
    assert restore is not None
    again, others = step(model)
    assert torch.equal(logits, again)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-5, atol=1e-5)
    restore()
    assert all("forward" not in vars(module) for module in model.modules())


def test_what_down_wants_for_its_gradient_is_not_kept():
    model = tiny_llama()
    inner, places = model.config.intermediate_size, IDS.numel()
    mlp = model.model.layers[0].mlp

    def products() -> int:
        """States as wide as the MLP that its backward pass holds."""
        wide: set[int] = set()
        held = []

        def note(tensor: Tensor) -> Tensor:
            held.append(tensor)
            if tensor.shape[-1] == inner and tensor.numel() == inner * places:
                wide.add(tensor.untyped_storage().data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            mlp(torch.ones(1, places, model.config.hidden_size))
        return len(wide)

    assert products() == 4
    spare_products(model)
    assert products() == 2


def test_other_mlps_are_left_alone():
    assert spare_products(tiny_gpt2()) is None
    model = tiny_llama()
    own = type(model.model.layers[1].mlp)

    class Doubled(own):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model.model.layers[1].mlp.__class__ = Doubled
    assert spare_products(model) is not None
    assert "forward" not in vars(model.model.layers[1].mlp)
    assert "forward" in vars(model.model.layers[0].mlp)


def test_a_training_gives_the_policy_back_as_it_was(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl")
    policy = tiny_policy(tiny_checkpoint(tmp_path / "model"))
    fine_tune(read(tmp_path / "pairs.jsonl"), policy, quick(steps=1), output=tmp_path / "tuned")
    assert all("forward" not in vars(module) for module in policy.model.modules())
