"""TRL's DPOTrainer with per-example weights or soft labels, for Adaptive-DPO and soft-dpo.

    from datasets import load_dataset
    from noisescope.training.trl import AdaptiveDPOTrainer

    train = load_dataset("parquet", data_files="trl.parquet", split="train")
    AdaptiveDPOTrainer(model, args=DPOConfig(beta=0.1), train_dataset=train).train()

where trl.parquet is what `noisescope export --format trl` writes. The loss of a batch is the mean
of -W log sigma(beta l - Gamma) (2503.16921, Eq. 16), W and Gamma the columns `weight` and `gamma`.
Where the column is `belief`, the log odds that the label is right (`--weight soft`), it is the
mean of -t log sigma(beta l) - (1 - t) log sigma(-beta l), t = sigma(belief); where it is `prior`
(`--weight prior`), of -log[t sigma(beta l) + (1 - t) sigma(-beta l)], t = sigma(prior). `objective`
takes any other of `training.objectives`. Needs TRL: pip install 'noisescope[trl]'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import DataError, UsageError
from noisescope.scoring.weights import CERTAIN
from noisescope.training.objectives import (
    AdaptiveDPO,
    DistilledDPO,
    ForwardDPO,
    Objective,
    PairValues,
    SoftDPO,
)

try:
    from trl import DPOTrainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "noisescope.training.trl needs TRL. Type: pip install 'noisescope[trl]'", name="trl"
    ) from error

if TYPE_CHECKING:
    from torch import Tensor

#: Columns of a dataset that reach the loss.
COLUMNS = ("weight", "gamma", "belief", "prior")
#: What a pair without a column gets. A label believed at log odds of 12 is plain DPO.
NEUTRAL = {"weight": 1.0, "gamma": 0.0, "belief": CERTAIN, "prior": CERTAIN}

#: What exports each of them.
SCHEMES = {"gamma": "p_wrong or u", "belief": "soft", "prior": "prior"}


@final
@dataclass(frozen=True)
class WeightedCollator:
    """`inner` collator's batch, with `weight`, `gamma`, `belief` and `prior` [B] beside it."""

    inner: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        batch = self.inner(examples)
        for name in COLUMNS:
            values = [example.get(name, NEUTRAL[name]) for example in examples]
            column = torch.tensor(
                [float("nan") if value is None else float(value) for value in values]
            )
            if not column.isfinite().all() or (name == "weight" and (column < 0).any()):
                raise DataError(
                    f"the column {name} holds {column.min().item():g} to {column.max().item():g}, "
                    "nulls or no numbers",
                    hint="Make it again: noisescope export --format trl",
                )
            batch[name] = column
        return batch


class AdaptiveDPOTrainer(DPOTrainer):  # type: ignore[misc]  # TRL is not typed for us
    """DPOTrainer whose pairs count by their own W and Gamma, or learn their own soft label.

    Everything else (data, reference, PEFT, precomputed reference log-probabilities, saving) is
    TRL's. `loss_type` must stay "sigmoid": the loss is `objective`; by default SoftDPO(args.beta)
    if the training set has a column `belief`, ForwardDPO if it has `prior`, else AdaptiveDPO.
    Evaluation sets without the columns count every pair once. Raises UsageError where the training
    set has no column `weight`, for an objective that would misread the columns of either set, or
    for settings of another loss.
    """

    data_collator: Any
    _signature_columns: Any

    def __init__(self, *arguments: Any, objective: Objective | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _check(self.args, self.train_dataset)
        self.objective = _objective_for(self.train_dataset, objective, self.args.beta)
        _check_evaluation(self.eval_dataset, self.objective)
        self.data_collator = WeightedCollator(self.data_collator)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known = self._signature_columns or []
        self._signature_columns = [*known, *(name for name in COLUMNS if name not in known)]

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """TRL's, without the columns of weights, which would be passed to the model."""
        rest = {name: value for name, value in inputs.items() if name not in COLUMNS}
        return super().compute_ref_log_probs(model, rest)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean objective of the batch, and the metrics TRL's trainer logs of it."""
        chosen, rejected = self._logps(model, inputs)
        if self.precompute_ref_logps:
            reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        ratios = chosen - reference[0], rejected - reference[1]
        neutral = {name: chosen.new_full(chosen.shape, value) for name, value in NEUTRAL.items()}
        shift = _column_of(self.objective)
        weight, gamma = (inputs.get(n, neutral[n]).to(chosen) for n in ("weight", shift))
        values = PairValues(
            ratios[0] - ratios[1],
            weight=weight,
            gamma=gamma,
            chosen_logps=chosen,
            rejected_logps=rejected,
            chosen_ratio=ratios[0],
            rejected_ratio=ratios[1],
        )
        loss = self.objective(values).mean()
        self._note((chosen, rejected), ratios, weight)
        if not return_outputs:
            return loss
        import torch

        with torch.no_grad():  # the fused head of the training pass keeps no logits
            return loss, model(**_model_inputs(inputs), use_cache=False)

    def _logps(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """log pi(y|c) of the chosen and the rejected sides, [B] each."""
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        kept = _model_inputs(inputs)
        outputs = model(**kept, use_cache=False, labels=labels, fused_lm_head=True)
        logps = outputs.log_probs[:, -(mask.size(1) - 1) :].sum(dim=1)
        chosen, rejected = logps.chunk(2, dim=0)
        return chosen, rejected

    def _note(
        self, logps: tuple[Tensor, Tensor], ratios: tuple[Tensor, Tensor], weight: Tensor
    ) -> None:
        """Metrics by TRL's names, and the mean weight."""
        rewards = [self.args.beta * ratio.detach() for ratio in ratios]
        margins = rewards[0] - rewards[1]
        found = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": logps[0].detach(),
            "logps/rejected": logps[1].detach(),
            "weights/mean": weight,
        }
        log = self._metrics["train" if self.model.training else "eval"]
        for name, values in found.items():
            log[name].append(self.accelerator.gather(values).mean().item())


def _model_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    skipped = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", *COLUMNS}
    return {name: value for name, value in inputs.items() if name not in skipped}


def _objective_for(train_dataset: Any, given: Objective | None, beta: float) -> Objective:
    """The objective of a training set's columns. Raises UsageError for one that misreads them."""
    names = _columns(train_dataset)
    held = next((name for name in ("prior", "belief") if name in names), "gamma")
    if given is None:
        usual: dict[str, type[Objective]] = {"prior": ForwardDPO, "belief": SoftDPO}
        return usual.get(held, AdaptiveDPO)(beta=beta)
    needed = _column_of(given)
    if held != needed:
        raise UsageError(
            f"{type(given).__name__} does not work with this training set: it has the column "
            f"{held}, and not {needed}",
            hint=f"Export with --weight {SCHEMES[needed]}, or leave objective= out.",
        )
    return given


def _check_evaluation(data: Any, objective: Objective) -> None:
    """Raise UsageError for an evaluation set whose Gamma is of another kind than the objective's.

    One without any is judged by its labels.
    """
    needed = _column_of(objective)
    for one in data.values() if isinstance(data, dict) else [data]:
        held = [name for name in SCHEMES if one is not None and name in _columns(one)]
        if held and needed not in held:
            raise UsageError(
                f"the evaluation set has the column {held[0]}, and {type(objective).__name__} "
                f"needs {needed}",
                hint=f"Export it with --weight {SCHEMES[needed]}, or remove the column.",
            )


def _columns(dataset: Any) -> list[str]:
    """The columns of a training set; those of its first row if it is streamed without names."""
    names = getattr(dataset, "column_names", None)
    return list(next(iter(dataset), {})) if names is None else list(names)


def _column_of(objective: Objective) -> str:
    """The column of a training set that is the objective's Gamma."""
    if isinstance(objective, ForwardDPO):
        return "prior"
    return "belief" if isinstance(objective, DistilledDPO) else "gamma"


def _check(args: Any, train_dataset: Any) -> None:
    """Raise UsageError for settings the loss would silently ignore."""
    faults = [
        f"{name}={value!r}"
        for name, value, plain in (
            ("loss_type", args.loss_type, ["sigmoid"]),
            ("use_weighting", args.use_weighting, False),
            ("ld_alpha", args.ld_alpha, None),
            ("label_smoothing", args.label_smoothing, 0.0),
        )
        if value != plain
    ]
    if str(getattr(args.f_divergence_type, "value", args.f_divergence_type)) != "reverse_kl":
        faults.append(f"f_divergence_type={args.f_divergence_type!r}")
    if faults:
        raise UsageError(
            f"AdaptiveDPOTrainer ignores {', '.join(faults)}",
            hint="Remove them. For another loss pass objective=, one of "
            "noisescope.training.objectives.OBJECTIVES.",
        )
    names = _columns(train_dataset)
    if "weight" not in names:
        raise UsageError(
            f"the training set has no column weight (it has {', '.join(names)})",
            hint="Make one with it: noisescope export --format trl",
        )
