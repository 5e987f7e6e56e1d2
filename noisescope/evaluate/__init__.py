"""Compare two models on the same prompts by judges: generation, judging, win rates, the page.

    from noisescope.evaluate import summarise_verdicts, paired_difference, win_rate

    won = win_rate(outcomes)          # [N] of 1 (policy), 0.5 (tie), 0 (opponent)
    won.rate.estimate, won.rate.low, won.rate.high, won.ties

`noisescope evaluate` does this with stored generations; see docs/evaluate.md. May import `report`,
`models`, `datasets`, `scoring`, `storage` and below; only `cli` imports it.
"""

from noisescope.evaluate.comparison import (
    Comparison,
    Judge,
    JudgeCard,
    Output,
    Prompt,
    Verdict,
    by_order,
    by_score,
)
from noisescope.evaluate.results import (
    JudgeResult,
    Order,
    WinRate,
    paired_difference,
    summarise_verdicts,
    win_rate,
)

__all__ = [
    "Comparison",
    "Judge",
    "JudgeCard",
    "JudgeResult",
    "Order",
    "Output",
    "Prompt",
    "Verdict",
    "WinRate",
    "by_order",
    "by_score",
    "paired_difference",
    "summarise_verdicts",
    "win_rate",
]
