"""Second opinions without labels: what language models prefer before they see any label.

With lp(y) the mean log-probability of the tokens of a response y given its prompt,

    nll_gap = lp(chosen) - lp(rejected)                      under the audited model
    cdr     = [lp'(chosen) - lp(chosen)] - [lp'(rejected) - lp(rejected)]

nll_gap is the NLL a token of the rejected side minus that of the chosen one, near the perplexity
difference of PerpCorrect (Kong et al., NeurIPS 2024). cdr is the density ratio of a second model
(`--evidence lm:MODEL`, prime) over the audited one, by token (Xu et al., arXiv 2411.02481). Both
are positive where the models side with the label. No label enters, so labels that share an error
cannot teach it to them.

    write_opinions(run, table, second_opinions(features, chosen, rejected))
    read_opinions(run, ids)["nll_gap"]      # [N]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.storage.files import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.storage.run import Run

Float = NDArray[np.float64]

OPINIONS = ("nll_gap", "cdr")
#: Feature group of a language model, and its column with the mean log-probability of a token.
GROUP, MEAN_LOGP = "statistics", 2
#: How the groups of a second language model begin.
SECOND = "lm:"


def second_opinions(
    features: Mapping[str, NDArray[np.float32]],
    chosen: NDArray[np.int64],
    rejected: NDArray[np.int64],
) -> dict[str, Float]:
    """Opinions [N] from features of responses, group -> [R, D]; chosen, rejected [N] are rows.

    Empty without the audited model's group of token statistics (images). Of several second
    models the first counts.
    """
    if GROUP not in features:
        return {}
    own = features[GROUP][:, MEAN_LOGP].astype(np.float64)
    found = {"nll_gap": own[chosen] - own[rejected]}
    for name, values in features.items():
        if name.startswith(SECOND) and name.endswith(f" {GROUP}"):
            ratio = values[:, MEAN_LOGP].astype(np.float64) - own
            return found | {"cdr": ratio[chosen] - ratio[rejected]}
    return found


def write_opinions(run: Run, table: pa.Table, opinions: Mapping[str, Float]) -> None:
    """Write opinions.parquet of the pairs in `table`, unless there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not opinions:
        return
    rows = pa.table({"pair_id": table.column("pair_id"), **opinions})
    write_atomic(run.opinions_path, lambda path: pq.write_table(rows, path, compression="zstd"))


def read_opinions(run: Run, ids: Sequence[str]) -> dict[str, Float]:
    """The opinions on pairs `ids` [N]; none where the run has no file of them.

    Raises RunError where the file is of other pairs.
    """
    import pyarrow.parquet as pq

    if not run.opinions_path.is_file():
        return {}
    found = pq.read_table(run.opinions_path)
    if found.column("pair_id").to_pylist() != list(ids):
        raise RunError(
            f"{run.opinions_path} is not of the run's pairs",
            hint=f"Remove {run.directory} and type the command again: features stay cached.",
        )
    names = [name for name in OPINIONS if name in found.column_names]
    return {name: found.column(name).to_numpy() for name in names}
