"""Render the report of an evaluation as one HTML file that loads nothing.

    write_atomic(path, page(done, command))

Prompts and responses are untrusted: the template escapes them, and the content security policy
allows no script.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from noisescope import __version__
from noisescope.errors import DataError
from noisescope.evaluate.comparison import Comparison, Output, Verdict
from noisescope.evaluate.results import JudgeResult
from noisescope.report.template import content_policy, data_uri, render, resource
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from noisescope.evaluate.evaluate import Evaluation

#: Prompts shown, as texts side by side or as a contact sheet; results.parquet has all.
SHOWN = {"text": 40, "image": 60}
LONGEST = 4000
THUMBNAIL = 256
WINNERS = {1.0: "policy", 0.5: "tie", 0.0: "against"}


def page(done: Evaluation, command: str = "") -> str:
    """Render the page."""
    css = "".join(resource("noisescope.report", name) for name in ("report.css", "list.css"))
    css += resource("noisescope.evaluate", "page.css")
    modality = done.plan.policy.modality
    rows = list(zip(*done.verdicts, strict=True)) if done.verdicts else [()] * len(done.comparisons)
    shown = list(zip(done.comparisons, rows, strict=True))[: SHOWN[modality]]
    return render(
        "noisescope.evaluate",
        "page.html.jinja",
        css=css,
        policy=content_policy(css),
        mine=printable(done.plan.policy.name),
        theirs=printable(done.plan.against.name),
        base=printable(done.plan.policy.base) if done.plan.policy.adapter else "",
        modality=modality,
        prompts=len(done.comparisons),
        distinct=done.plan.prompts.distinct,
        source=printable(done.plan.prompts.source),
        same=done.same_output,
        judges=[_judge(result) for result in done.results],
        labelled=done.labelled and done.labelled | {"dataset": printable(done.labelled["dataset"])},
        comparisons=[_comparison(comparison, found, done) for comparison, found in shown],
        settings={name: str(value) for name, value in done.plan.used.items()},
        fingerprint=done.plan.fingerprint,
        command=printable(command),
        version=__version__,
    )


def sentence(result: JudgeResult) -> str:
    """Describe one judge's result in a sentence."""
    won = result.won
    if won is None:
        return f"{result.card.name} judged no prompt."
    rate = won.rate
    interval = f"90% interval {rate.low:.1%} to {rate.high:.1%}"
    if rate.low > 0.5:
        end = "it is better than its opponent"
    elif rate.high < 0.5:
        end = "it is worse than its opponent"
    else:
        end = "these prompts are too few to show a difference"
    wins = f"the policy wins {rate.estimate:.1%} of prompts ({interval}), ties counting half"
    return f"Judge {result.card.name}: {wins}; {end}."


def _judge(result: JudgeResult) -> dict[str, Any]:
    """Return a row of the table of judges."""
    card = result.card
    return {
        "name": printable(card.name),
        "model": printable(card.model),
        "licence": card.licence,
        "won": result.won,
        "unjudged": result.unjudged,
        "mine": result.policy_mean,
        "theirs": result.against_mean,
        "difference": result.difference,
        "order": result.order,
        "sentence": printable(sentence(result)),
    }


def _comparison(
    comparison: Comparison, found: tuple[Verdict, ...], done: Evaluation
) -> dict[str, Any]:
    """Return one prompt as the template shows it; the first judge marks the winner."""
    turns = comparison.prompt.turns or ()
    prompt = turns[-1].content if turns else comparison.prompt.text
    lines = [f"{turn.role}: {turn.content}" for turn in turns]
    verdicts = [
        f"{result.card.name}: {_describe(verdict)}"
        for result, verdict in zip(done.results, found, strict=True)
    ]
    first = found[0].outcome if found else None
    return {
        "key": comparison.prompt.key,
        "earlier": printable("\n\n".join(lines[:-1]), lines=True)[:LONGEST],
        "prompt": printable(prompt, lines=True)[:LONGEST],
        "verdicts": [printable(text) for text in verdicts],
        "winner": "" if first is None else WINNERS[first],
        "policy": _shown(comparison.policy),
        "against": _shown(comparison.against),
    }


def _describe(verdict: Verdict) -> str:
    if verdict.outcome is None:
        return "unjudged"
    word = {1.0: "policy", 0.0: "opponent"}.get(verdict.outcome, "tie")
    if verdict.policy is None or verdict.against is None:
        return word
    return f"{word} ({verdict.policy:.3g} against {verdict.against:.3g})"


def _shown(output: Output) -> dict[str, Any]:
    """Return a text cut to LONGEST, or an image as a data URI."""
    if isinstance(output, str):
        text = printable(output, lines=True)
        return {"image": "", "text": text[:LONGEST], "cut": max(0, len(text) - LONGEST)}
    from noisescope.datasets.images import decode

    try:
        picture = decode(output)
    except DataError as error:
        return {"image": "", "text": error.message, "cut": 0}
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    sink = io.BytesIO()
    small = max(picture.size) <= 64
    picture.save(sink, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    return {"image": data_uri(f"image/{kind}", sink.getvalue()), "text": "", "cut": 0}
