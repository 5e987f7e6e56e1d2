"""What is published of each table, as far as this repository knows it: no number is made up.

Cells are not reproduced here because we have not seen them: the tables' captions and these
statements come from a summary of arXiv 2503.16921 (deep-diver.github.io/ai-paper-reviewer,
paper-reviews/2503.16921) and from the notes that noisescope was written from.
"""

from __future__ import annotations

NOT_STATED = "Cells: not stated in what we could read."
SETTINGS = (
    "Published settings: rho 15 (images) or 1 (text), k1 10, beta 1000 (SD1.5), 2500 (SDXL), 0.1 "
    "(text), batch 128 (images), 32 (text); M, k2 and c2 are not stated."
)
PUBLISHED = {
    "table1": "Published: DPO with 0, 10, 20 and 30 % flipped labels of Pick-a-Pic v2, SD1.5 and "
    "SDXL, judged by ImageReward, PickScore, Aesthetic and HPS; minority samples cost as much as "
    f"52 % of the gain. {NOT_STATED}",
    "table2": "Published: Adaptive-DPO against DPO at 10, 20 and 30 % flips (SD1.5); it is said to "
    f"reach normal fine-tuning performance even at 30 %. {NOT_STATED}",
    "table3": "Published: Diffusion-DPO, Robust-DPO, SFT and Adaptive-DPO on unflipped Pick-a-Pic "
    f"v2, SD1.5 and SDXL; Adaptive-DPO is said to be best. {NOT_STATED}",
    "table4": "Published: real text data, GPT-2 on HH-RLHF, judged by an LLM (arXiv v1's Table 4 "
    f"compares with majority voting instead). {NOT_STATED}",
    "table5": f"Published: k1 4, 10 and 12 and rho ablated, 10 and 15 (1 for text) kept. "
    f"The rho values tried: not stated. {NOT_STATED}",
    "table6": f"Published: IPO and Adaptive-IPO under flips; the weights are said to help IPO too. "
    f"{NOT_STATED}",
    "figure2": "Published: accuracy of annotators against the labels and inconsistency among them. "
    "HH-RLHF annotators agree about 63 % of the time. " + NOT_STATED,
    "figure3": "Published: 20 % of Pick-a-Pic v2 flipped; the flipped share rises with u, the top "
    "intervals hold 24-30 % flipped pairs, which is an AUROC of about .57-.61.",
    "figure6": f"Published: the margin Gamma ablated. {NOT_STATED}",
}
