"""Which weights `noisescope train` uses: a run's, a file's, an audit's that is made first, none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noisescope.cli.console import Terminal
    from noisescope.models import Policy
    from noisescope.pairs import PreferenceDataset
    from noisescope.storage.run import Run
    from noisescope.training.policy.pair_weights import PairWeights, WeightRule
    from noisescope.training.policy.settings import TrainSettings


def refuse_idle(
    weights: str | None, settings: TrainSettings, scheme: str | None, given: list[str]
) -> None:
    """Raise UsageError for flags about a run's scores where no run is used."""
    from noisescope.errors import UsageError
    from noisescope.training.policy.settings import ADAPTIVE

    settings.check_scheme(scheme or "")
    if settings.online is not None:
        idle, why = [flag for flag in given if flag == "--weighting"], "--online makes its own"
    elif weights == "none" or (weights is None and settings.objective not in ADAPTIVE):
        idle, why = given, f"--objective {settings.objective} trains without weights here"
    elif weights is not None and Path(weights).is_file():
        idle, why = given, f"{weights} holds finished weights"
    elif scheme in ("p_flip", "margin") or settings.weighting == "margin":
        idle = [flag for flag in given if flag != "--weighting"]
        why = f"--weighting {scheme or settings.weighting} has no such constant"
    else:
        return
    if idle:
        raise UsageError(
            f"{', '.join(idle)} would change nothing: {why}",
            hint="Weights of an audit: --weights RUN (made by `noisescope score`). Or leave "
            f"{', '.join(idle)} out.",
        )


def chosen_weights(
    given: str | None,
    rule: WeightRule,
    settings: TrainSettings,
    pairs: PreferenceDataset,
    policy: Policy,
    runs_dir: Path,
    terminal: Terminal,
    command: str,
) -> PairWeights | None:
    """W and Gamma by --weights; an adaptive objective's audit is found, or made first."""
    from noisescope.errors import UsageError
    from noisescope.storage.run import find_run
    from noisescope.training.policy.pair_weights import file_weights, find_audit
    from noisescope.training.policy.settings import ADAPTIVE

    adaptive = settings.objective in ADAPTIVE and settings.online is None
    if adaptive:
        settings.check_scheme(rule.scheme if given is None else "")
    if given == "none" or (given is None and not adaptive):
        return None
    if given is not None:
        path = Path(given)
        if path.is_file():
            found = file_weights(path, pairs)
        elif path.suffix in (".parquet", ".csv", ".jsonl", ".json"):
            raise UsageError(
                f"--weights {given}: there is no such file",
                hint="Make one: noisescope export --format weights --output FILE",
            )
        else:
            found = _of_run(find_run(given, runs_dir), pairs, rule, terminal)
    else:
        from accelerate import PartialState

        with PartialState(cpu=policy.device.type == "cpu").main_process_first():
            run = find_audit(pairs, runs_dir)
            if run is None:
                terminal.note(f"{settings.objective} needs an audit of {pairs.name}: made first")
                from noisescope.auditing.audit import audit
                from noisescope.scoring.score import ScoreConfig

                made = audit(
                    pairs,
                    policy,
                    score=ScoreConfig(rho=settings.rho),
                    runs_directory=runs_dir,
                    command=command,
                    reporter=terminal,
                )
                run = made.run
        found = _of_run(run, pairs, rule, terminal)
    terminal.note(f"weights: {found.said}")
    if adaptive and found.even:
        terminal.note(
            "these weights hardly differ, so this is all but plain dpo: the replicas' u is near 0 "
            "for every pair; --weighting p_flip and --online replicas do not rest on it"
        )
    return found


def _of_run(
    run: Run, pairs: PreferenceDataset, rule: WeightRule, terminal: Terminal
) -> PairWeights:
    """Weights of a run's scores, with a warning where they carry no verdict."""
    from noisescope.training.policy.pair_weights import run_weights

    found = run_weights(run, pairs, rule)
    if run.manifest().get("summary", {}).get("chance"):
        terminal.note(
            f"{run.directory}: its replicas are no better than chance, so these weights say "
            "nothing about which labels are wrong; score with a better --model"
        )
    return found
