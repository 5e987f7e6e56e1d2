"""The report of an evaluation: one HTML file that loads nothing, styled as the audit's report.

    write_atomic(path, page(done, command))

Prompts and responses are untrusted: the template escapes them, and the content security policy
lets nothing run at all.
"""

from __future__ import annotations

import base64
import hashlib
import io
from importlib import resources
from typing import TYPE_CHECKING, Any

from noisescope import __version__
from noisescope.errors import DataError
from noisescope.evaluate.comparison import Comparison
from noisescope.evaluate.results import Duel, Output, Verdict
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from noisescope.evaluate.evaluate import Evaluation

#: Prompts shown, texts side by side or pictures on the contact sheet; the rest is in the Parquet.
SHOWN = {"text": 40, "image": 60}
LONGEST = 4000
THUMBNAIL = 256
WINNERS = {1.0: "policy", 0.5: "tie", 0.0: "against"}


def page(done: Evaluation, command: str = "") -> str:
    """The report's HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("noisescope.evaluate", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = _resource("noisescope.report", "report.css") + _resource(
        "noisescope.evaluate", "page.css"
    )
    modality = done.plan.policy.modality
    rows = list(zip(*done.verdicts, strict=True)) if done.verdicts else [()] * len(done.duels)
    shown = list(zip(done.duels, rows, strict=True))[: SHOWN[modality]]
    return environment.get_template("page.html.jinja").render(
        policy=_policy(css),
        css=Markup(css),  # our own files, never data
        mine=printable(done.plan.policy.name),
        theirs=printable(done.plan.against.name),
        base=printable(done.plan.policy.base) if done.plan.policy.place else "",
        modality=modality,
        prompts=len(done.duels),
        distinct=done.plan.prompts.distinct,
        source=printable(done.plan.prompts.source),
        same=done.same_output,
        judges=[_judge(comparison) for comparison in done.comparisons],
        labelled=done.labelled and done.labelled | {"dataset": printable(done.labelled["dataset"])},
        duels=[_duel(duel, found, done) for duel, found in shown],
        settings={name: str(value) for name, value in done.plan.used.items()},
        fingerprint=done.plan.fingerprint,
        command=printable(command),
        version=__version__,
    )


def sentence(comparison: Comparison) -> str:
    """One judge's result in plain words."""
    won = comparison.won
    if won is None:
        return f"{comparison.card.name} judged no prompt."
    rate = won.rate
    told = f"the policy wins {rate.estimate:.1%} (90% interval {rate.low:.1%} to {rate.high:.1%})"
    if rate.low > 0.5:
        end = "better than its opponent"
    elif rate.high < 0.5:
        end = "worse than its opponent"
    else:
        end = "not told apart from its opponent by so few prompts"
    return f"By {comparison.card.name} {told}, ties counting half: {end}."


def _judge(comparison: Comparison) -> dict[str, Any]:
    """A row of the table of judges."""
    card = comparison.card
    return {
        "name": printable(card.name),
        "model": printable(card.model),
        "licence": card.licence,
        "won": comparison.won,
        "unjudged": comparison.unjudged,
        "mine": comparison.policy_mean,
        "theirs": comparison.against_mean,
        "difference": comparison.difference,
        "order": comparison.order,
        "sentence": printable(sentence(comparison)),
    }


def _duel(duel: Duel, found: tuple[Verdict, ...], done: Evaluation) -> dict[str, Any]:
    """One prompt as the template shows it; the first judge marks the winner."""
    turns = duel.prompt.turns or ()
    said = [f"{turn.role}: {turn.content}" for turn in turns]
    verdicts = [
        f"{comparison.card.name}: {_says(verdict)}"
        for comparison, verdict in zip(done.comparisons, found, strict=True)
    ]
    first = found[0].outcome if found else None
    return {
        "key": duel.prompt.key,
        "earlier": printable("\n\n".join(said[:-1]), lines=True)[:LONGEST],
        "prompt": printable(turns[-1].content if turns else duel.prompt.text, lines=True)[:LONGEST],
        "verdicts": [printable(text) for text in verdicts],
        "winner": "" if first is None else WINNERS[first],
        "policy": _shown(duel.policy),
        "against": _shown(duel.against),
    }


def _says(verdict: Verdict) -> str:
    if verdict.outcome is None:
        return "unjudged"
    word = {1.0: "policy", 0.0: "opponent"}.get(verdict.outcome, "tie")
    if verdict.policy is None or verdict.against is None:
        return word
    return f"{word} ({verdict.policy:.3g} against {verdict.against:.3g})"


def _shown(output: Output) -> dict[str, Any]:
    """A text cut to LONGEST, or a picture as a data URI."""
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
    data = base64.b64encode(sink.getvalue()).decode()
    return {"image": f"data:image/{kind};base64,{data}", "text": "", "cut": 0}


def _resource(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")


def _policy(css: str) -> str:
    """Content security policy: our style and pictures inside the page; nothing runs."""
    style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; "
        "base-uri 'none'; form-action 'none'"
    )
