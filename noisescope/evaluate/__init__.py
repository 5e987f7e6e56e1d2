"""Which of two models is better: win rates over the same prompts, by judges.

    from noisescope.evaluate import compare, paired_difference, win_rate

    won = win_rate(outcomes)          # [N] of 1 (policy), 0.5 (tie), 0 (opponent)
    won.rate.estimate, won.rate.low, won.rate.high, won.ties

`noisescope evaluate` is the same over stored generations; see docs/evaluate.md.
"""

from noisescope.evaluate.comparison import (
    Comparison,
    Order,
    WinRate,
    compare,
    paired_difference,
    win_rate,
)
from noisescope.evaluate.results import (
    Duel,
    Judge,
    JudgeCard,
    Output,
    Prompt,
    Verdict,
    by_order,
    by_score,
)

__all__ = [
    "Comparison",
    "Duel",
    "Judge",
    "JudgeCard",
    "Order",
    "Output",
    "Prompt",
    "Verdict",
    "WinRate",
    "by_order",
    "by_score",
    "compare",
    "paired_difference",
    "win_rate",
]
