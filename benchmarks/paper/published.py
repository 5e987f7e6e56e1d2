"""State what the paper reports: every cell of Tables 1 to 6, the figures, and the settings.

    PUBLISHED["table2"].rows        # one dict a row
    PUBLISHED["table2"].markdown()  # caption, table and remark

"The paper" is the one noisescope implements, "Combating inherent noise for direct preference
optimization" (Adaptive-DPO). arXiv 2503.16921 is its later version, with other table numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
METRICS = ("ImageReward", "PickScore", "Aesthetic", "HPS")
SETTINGS = (
    "rho 15 (images), 1 (text); k1 10 (SD1.5, by Table 5), not stated for text; beta 1000 (SD1.5), "
    "2500 (SDXL), 0.1 (text); batch 128, 16 a device (images), 32, 4 a device (text). Not stated: "
    "M, k2 (below 0), c2, learning rate, optimiser, steps, how replicas are made, evaluation "
    "prompts, seeds, intervals."
)


@dataclass(frozen=True)
class Published:
    """One table or figure of the paper: its caption, its cells, and what it concludes."""

    caption: str
    remark: str
    rows: tuple[Row, ...] = ()

    def select(self, **where: Any) -> list[float]:
        """Return the metric cells of the rows with these values, row by row."""
        return [
            value
            for row in self.rows
            if all(row[name] == wanted for name, wanted in where.items())
            for name, value in row.items()
            if isinstance(value, float) and name not in where
        ]

    def span(self, **where: Any) -> str:
        """Return the range of the selected win rates as text."""
        found = self.select(**where)
        if len(set(found)) == 1:
            return f"win rate {found[0]:.2f}"
        return f"win rates {min(found):.2f} to {max(found):.2f}"

    def table(self) -> list[str]:
        """Return the cells as the lines of a Markdown table."""
        if not self.rows:
            return []
        lines = [list(self.rows[0]), ["---"] * len(self.rows[0])]
        lines += [[_cell(value) for value in row.values()] for row in self.rows]
        return ["| " + " | ".join(line) + " |" for line in lines]

    def markdown(self) -> str:
        """Return caption, table and remark as Markdown."""
        cells = ["", *self.table(), ""] if self.rows else [""]
        return "\n".join([f"**Published.** {self.caption}", *cells, self.remark])


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _rows(columns: Sequence[str], *rows: Sequence[Any]) -> tuple[Row, ...]:
    return tuple(dict(zip(columns, row, strict=True)) for row in rows)


PUBLISHED = {
    "table1": Published(
        "DPO at different noise levels: uniform random flips of Pick-a-Pic v2; absolute scores, "
        "larger is better.",
        "The text calls it a significant decline. SD1.5 falls on every metric at every step; SDXL "
        "does not: PickScore and Aesthetic are higher at 10 % than at 0 %. No intervals.",
        _rows(
            ("model", "flips", *METRICS),
            ("SD1.5", "0 %", 0.16, 21.05, 5.31, 26.43),
            ("SD1.5", "10 %", 0.05, 20.91, 5.27, 26.32),
            ("SD1.5", "20 %", 0.00, 20.83, 5.24, 26.24),
            ("SD1.5", "30 %", -0.05, 20.72, 5.21, 26.14),
            ("SDXL", "0 %", 0.87, 22.52, 5.89, 27.32),
            ("SDXL", "10 %", 0.79, 22.53, 5.90, 27.21),
            ("SDXL", "20 %", 0.70, 22.38, 5.86, 27.09),
            ("SDXL", "30 %", 0.66, 22.29, 5.88, 26.99),
        ),
    ),
    "table2": Published(
        "Win rates of Adaptive-DPO trained on flipped labels, SD1.5. DPO*: DPO on the same flipped "
        "labels. DPO: DPO on the data as it is, without flips.",
        "Adaptive-DPO wins against both at every rate. The paper concludes that it beats DPO on "
        "clean data, and that fine-tuning stays reasonably normal up to 30 % flips.",
        _rows(
            ("against", "flips", *METRICS),
            ("DPO*", "10 %", 0.69, 0.73, 0.65, 0.74),
            ("DPO*", "20 %", 0.68, 0.75, 0.67, 0.73),
            ("DPO*", "30 %", 0.66, 0.72, 0.69, 0.70),
            ("DPO", "10 %", 0.61, 0.66, 0.59, 0.66),
            ("DPO", "20 %", 0.59, 0.65, 0.61, 0.62),
            ("DPO", "30 %", 0.55, 0.57, 0.58, 0.52),
        ),
    ),
    "table3": Published(
        "Win rates of Adaptive-DPO on Pick-a-Pic v2 as it is, without flips, against the "
        "pretrained model and DPO.",
        "Adaptive-DPO wins against both, with both backbones and by every metric.",
        _rows(
            ("backbone", "against", *METRICS),
            ("SD1.5", "pretrain", 0.74, 0.82, 0.73, 0.81),
            ("SD1.5", "DPO", 0.66, 0.66, 0.61, 0.68),
            ("SDXL", "pretrain", 0.76, 0.83, 0.59, 0.90),
            ("SDXL", "DPO", 0.57, 0.66, 0.58, 0.66),
        ),
    ),
    "table4": Published(
        "Win rates of Adaptive-DPO in single-turn dialogue: GPT-2 on HH-RLHF as it is, judged by "
        "Qwen2.5-72B.",
        "Adaptive-DPO wins against both. No number of prompts, no interval.",
        _rows(("against", "win rate"), ("pretrain", 0.57), ("DPO", 0.53)),
    ),
    "table5": Published(
        "Hyper-parameters: win rates against DPO, SD1.5 on Pick-a-Pic v2 as it is. The rows k1 10 "
        "and rho 15 are the row SD1.5 against DPO of Table 3.",
        "k1 10 and rho 15 were chosen. That rests on ImageReward alone: k1 4 is better than 10 on "
        "the other three metrics, rho 10 better than 15 on PickScore and Aesthetic. Text was not "
        "ablated.",
        _rows(
            ("hyper-parameter", "value", *METRICS),
            ("k1", "4", 0.64, 0.68, 0.66, 0.69),
            ("k1", "10", 0.66, 0.66, 0.61, 0.68),
            ("k1", "12", 0.63, 0.65, 0.57, 0.66),
            ("rho", "10", 0.61, 0.70, 0.68, 0.66),
            ("rho", "15", 0.66, 0.66, 0.61, 0.68),
        ),
    ),
    "table6": Published(
        "Win rates of Adaptive-IPO, SD1.5 on the data as it is (no flips are mentioned), against "
        "the pretrained model and IPO.",
        "Adaptive-IPO wins against both; against IPO by little.",
        _rows(
            ("against", *METRICS),
            ("pretrain", 0.70, 0.78, 0.68, 0.76),
            ("IPO", 0.57, 0.54, 0.51, 0.56),
        ),
    ),
    "figure2": Published(
        "Three annotators of the authors' own on 1,000 random pairs of Pick-a-Pic v2, who may also "
        "answer that neither is better: their accuracy against the labels, and the mean standard "
        "deviation among their answers.",
        "The annotators differ so much that voting is called less effective. The bars have no "
        "numbers in the text.",
    ),
    "figure3": Published(
        "20 % flips added to Pick-a-Pic v2: share of flipped labels by interval of u (Eq. 13).",
        'The share has a "significant increase" with u. No values in the text.',
    ),
    "figure6": Published(
        "Generated pictures of SD1.5 without and with the margin term Gamma.",
        "Pictures only; the paper gives no number for the margin.",
    ),
}
