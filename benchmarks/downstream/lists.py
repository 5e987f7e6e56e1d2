"""Are losses of whole lists, or of unpaired labels, worth having? Log-linear policies decide.

    python -m benchmarks.downstream.lists [--quick] [--json FILE] [--seed N]

Simulated prompts of 8 responses, all 28 pairs labelled, 30 % of the labels wrong in four ways
(`planted_noise`). pi_ref is uniform over a prompt's responses, so log pi/pi_ref is exact. A
response's worth psi in a list is its share of comparisons won. Losses, r = beta log pi/pi_ref:

    dpo                  every label by itself
    dpo on ranked lists  every pair, the side of higher psi preferred: the control of the next three
    PRO                  Plackett-Luce of the ranked list (2306.17492)
    LiPO-lambda          pairs of the list by DCG, |G_i - G_j| |1/D_i - 1/D_j|, ranks those of r
                         (2402.01878); RankDPO the same with ranks of psi (2410.18013)
    KTO                  chosen wanted, rejected not, against the KL of the batch (2402.01306)
    BCO                  the same by logistic loss against the mean reward (2404.04656)

Optimiser, penalties, splits and accuracies are those of `downstream.soft`; gradients at the start
are scaled to dpo's. Points over dpo on right labels of new prompts, 90 % t interval over the seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.detect import BETA
from benchmarks.downstream.policies import PENALTIES, RATE, STEPS, right, split_of
from benchmarks.downstream.soft import KINDS, PAIRS, REGIMES, WIDTH, interval, material, parts
from benchmarks.harness import Options, Report, main
from benchmarks.planted_noise import plant, simulated

Int = NDArray[np.int64]
#: r [P, 8, Q] of the responses of P prompts -> loss [Q].
Loss = Callable[[torch.Tensor], torch.Tensor]
EACH, NOISE, SEEDS, FIRST_SEED = 8, 0.3, 5, 500


def run(options: Options) -> Report:
    """All kinds of noise and seeds."""
    torch.set_num_threads(1)
    report = Report("Losses of lists and of unpaired labels against dpo")
    first = FIRST_SEED + options.seed
    for regime in range(len(REGIMES)):
        report.tables[REGIMES[regime]] = []
    for kind in KINDS:
        cells = [cell(kind, seed) for seed in range(first, first + (3 if options.quick else SEEDS))]
        for place, regime in enumerate(REGIMES):
            for name in cells[0]:
                gained = 100 * np.array([of[name][place] - of["dpo"][place] for of in cells])
                low, high = interval(gained)
                report.tables[regime].append(
                    {
                        "noise": kind,
                        "method": name,
                        "accuracy": 100 * float(np.mean([of[name][place] for of in cells])),
                        "points over dpo": f"{gained.mean():+.2f} [{low:+.2f}, {high:+.2f}]",
                    }
                )
    return report


def cell(kind: str, seed: int) -> dict[str, tuple[float, float]]:
    """Accuracy with the tuned penalty and without one, by method."""
    clean = simulated(PAIRS // 28 * 28, seed, width=WIDTH)
    test, validation = parts(clean, seed)
    noisy = plant(clean, kind, NOISE, seed)
    split = split_of(material(clean), test, validation)
    on, held = split.train, split.validation
    prompts, place = np.unique(noisy.prompts[on], return_inverse=True)
    rows = split.rows[(prompts[:, None] * EACH + np.arange(EACH)).ravel()]
    ends = [place * EACH + side[on] % EACH for side in (noisy.chosen, noisy.rejected)]
    out = {}
    methods = losses(*ends, len(prompts))
    size = float(slope(rows, methods["dpo"], torch.zeros(rows.shape[1], 1)).norm())
    for name, loss in methods.items():
        theta = train(rows, loss, size)
        tuned = right(split, theta, noisy.chosen[held], noisy.rejected[held]).mean(0).argmax()
        found = right(split, theta, clean.chosen[split.test], clean.rejected[split.test]).mean(0)
        out[name] = float(found[int(tuned)]), float(found[0])
    return out


def losses(chosen: Int, rejected: Int, prompts: int) -> dict[str, Loss]:
    """Every method, from the labels [n] as places in the flat list of responses."""
    wins = np.bincount(chosen, minlength=prompts * EACH).reshape(prompts, EACH)
    drawn = np.random.default_rng(0).random(wins.shape)  # ties are broken at random
    order = torch.tensor(np.lexsort((drawn, -wins), axis=1))[:, :, None]
    worth = torch.tensor(wins / (EACH - 1), dtype=torch.float32).gather(1, order[:, :, 0])
    first, second = torch.triu_indices(EACH, EACH, 1)
    gain = ((2 ** worth[:, first]) - (2 ** worth[:, second]))[:, :, None].abs()
    by_worth = discounts(torch.arange(1, EACH + 1))
    fixed = gain * (by_worth[first] - by_worth[second]).abs()[None, :, None]

    def ranked(r: torch.Tensor) -> torch.Tensor:
        return r.gather(1, order.expand_as(r))

    def pairwise(r: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
        s = ranked(r)
        return -(weight * F.logsigmoid(s[:, first] - s[:, second])).mean((0, 1))

    def lipo(r: torch.Tensor) -> torch.Tensor:
        tau = discounts(1 + ranked(r.detach()).argsort(1, descending=True).argsort(1))
        return pairwise(r, gain * (tau[:, first] - tau[:, second]).abs())

    def plackett_luce(r: torch.Tensor) -> torch.Tensor:
        s = ranked(r)
        return (s.flip(1).logcumsumexp(1).flip(1) - s).mean((0, 1))

    def sides(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """beta log pi/pi_ref of both sides [n, Q], and beta KL(pi, pi_ref) [Q]."""
        ratio = F.log_softmax(r / BETA, 1) + np.log(EACH)
        kl = (ratio.exp() / EACH * ratio).sum(1).mean(0).detach()
        flat = BETA * ratio.flatten(0, 1)
        return flat[chosen], flat[rejected], BETA * kl

    def kto(r: torch.Tensor) -> torch.Tensor:
        better, worse, kl = sides(r)
        return (2 - torch.sigmoid(better - kl) - torch.sigmoid(kl - worse)).mean(0)

    def bco(r: torch.Tensor) -> torch.Tensor:
        better, worse, _ = sides(r)
        shift = ((better.mean(0) + worse.mean(0)) / 2).detach()
        return -(F.logsigmoid(better - shift) + F.logsigmoid(shift - worse)).mean(0)

    def dpo(r: torch.Tensor) -> torch.Tensor:
        flat = r.flatten(0, 1)
        return -F.logsigmoid(flat[chosen] - flat[rejected]).mean(0)

    return {
        "dpo": dpo,
        "dpo on ranked lists": pairwise,
        "PRO": plackett_luce,
        "LiPO-lambda": lipo,
        "RankDPO": lambda r: pairwise(r, fixed),
        "KTO": kto,
        "BCO": bco,
    }


def discounts(ranks: torch.Tensor) -> torch.Tensor:
    """1 / log(1 + rank)."""
    return 1 / torch.log1p(ranks.float())


def train(rows: torch.Tensor, loss: Loss, size: float) -> torch.Tensor:
    """theta * beta of every penalty, [K, Q], by the steps of `policies.train`.

    The loss is scaled so that the norm of its first gradient is `size`.
    """
    theta = torch.zeros(rows.shape[1], len(PENALTIES))
    optimiser = torch.optim.Adam([theta], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / STEPS)
    scale = size / float(slope(rows, loss, theta[:, :1]).norm())
    for _ in range(STEPS):
        theta.grad = scale * slope(rows, loss, theta) + torch.tensor(PENALTIES) * theta
        optimiser.step()
        schedule.step()
    return theta


def slope(rows: torch.Tensor, loss: Loss, theta: torch.Tensor) -> torch.Tensor:
    """The gradient of every column's loss, [K, Q]."""
    at = theta.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss((rows @ at).unflatten(0, (-1, EACH))).sum(), at)
    return found


if __name__ == "__main__":
    main(__doc__, run)
