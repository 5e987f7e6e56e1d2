"""Render the report as one HTML file that loads nothing: style, script and images are inside.

    path, figures = write_report(run)

Dataset text is untrusted: the template escapes it, and the content security policy allows only
our own style and script.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from noisescope.report import dots
from noisescope.report.contents import Contents, gather, write_figures
from noisescope.report.explain import Explanation, explain_run
from noisescope.report.listing import listing
from noisescope.report.overview import overview
from noisescope.report.style import Picture, dark
from noisescope.report.template import content_policy, data_uri, render, resource
from noisescope.scoring.answer import states_counts
from noisescope.scoring.history import History
from noisescope.storage.files import write_atomic
from noisescope.storage.output import require_ending
from noisescope.storage.printable import printable
from noisescope.storage.run import dataset_words

if TYPE_CHECKING:
    from noisescope.pairs import ImageStore
    from noisescope.storage.run import Run

PACKAGE = "noisescope.report"
#: Most sentences on what labels have in common.
SENTENCES = 6


def write_report(
    run: Run,
    output: Path | None = None,
    images: ImageStore | None = None,
    earlier: Sequence[Run] = (),
) -> tuple[Path, list[Path]]:
    """Write a run's page (report.html in it if None) and its figures; return their paths.

    Its history has the `earlier` runs, by default those of earlier states of the same dataset.
    Raises RunError for an unfinished or damaged run, UsageError unless `output` ends in .html.
    """
    if output is not None:
        require_ending(output, ".html", ".htm")
    contents = gather(run, earlier=earlier)
    path = output or run.directory / "report.html"
    write_atomic(path, page(contents, images))
    return path, write_figures(contents.pictures, run.directory / "figures")


def page(contents: Contents, images: ImageStore | None = None) -> str:
    """Render the page. `images` provides the images of image pairs, shown as thumbnails."""
    from markupsafe import Markup

    css = resource(PACKAGE, "report.css") + resource(PACKAGE, "list.css")
    script = "".join(resource(PACKAGE, name) for name in ("words.js", "decisions.js", "list.js"))
    manifest, summary = contents.manifest, contents.summary
    return render(
        PACKAGE,
        "report.html.jinja",
        css=css,
        script=script,
        data=Markup(listing(contents, images)),
        shown=overview(contents),
        common=in_common(explain_run(contents.run, images)),
        policy=content_policy(css, script),
        dataset=printable(str(manifest["dataset"])),
        model=printable(PurePath(manifest["model"]).name),
        facts={"rejected": {}, "duplicates": 0, "contradictions": 0, "annotators": 0}
        | dict(manifest["facts"]),
        finished=str(manifest.get("finished", "")),
        summary=summary,
        rate=summary["flip_rate"],
        share=summary["mislabelled_share"],
        verdict=verdict(summary),
        reviewed="" if contents.reviews is None else printable(contents.reviews.sentence()),
        past=contents.history and _past(contents.history),
        figures=[_figure(picture) for picture in contents.pictures],
        figures_lead=_figures_lead(contents),
        annotators=[replace(row, name=printable(row.name)) for row in contents.annotators],
        sources=[row | {"source": printable(row["source"])} for row in summary.get("sources", ())],
        commands=commands(contents),
        provenance=provenance(contents),
        version=manifest.get("versions", {}).get("noisescope", ""),
    )


def in_common(explanation: Explanation) -> dict[str, list[str]]:
    """Sentences about suspicious labels and about all; those who stand out have their own place."""
    found = [f for f in explanation.findings if f.trait not in ("annotator", "source")]
    return {
        "suspicious": [printable(f.sentence) for f in found if f.kind != "follows"][:SENTENCES],
        "all": [printable(f.sentence) for f in found if f.kind == "follows"][:SENTENCES],
    }


def _past(found: History) -> dict[str, Any]:
    """The runs in order, the sentence on their trend, and their figure."""
    points = [
        {**vars(one), "dataset": printable(one.dataset), "date": one.finished[:10]}
        for one in found.points
    ]
    notes = [printable(note) for note in found.notes]
    figure = _figure(dots.history(found))
    return {"points": points, "sentence": found.sentence, "notes": notes, "figure": figure}


def verdict(summary: Mapping[str, Any]) -> str:
    """Describe the result of a run in two or three sentences."""
    rate, share = summary["flip_rate"], summary["mislabelled_share"]
    if summary["chance"]:
        return (
            "The replicas agree with the labels no better than chance, so this audit supports "
            "no verdict. Use a better model or more pairs before you trust anything below."
        )
    if not states_counts(summary):
        trust = summary["trust"]
        return f"No count of wrong labels is to be acted on ({trust['word']}). {trust['sentence']}"
    if rate["identifiable"]:
        first = f"About {rate['estimate']:.1%} of the labels look flipped"
        first += f" (90% interval {rate['low']:.1%} to {rate['high']:.1%})."
    else:
        first = "At this size flips cannot be distinguished from close calls"
        first += f": a flip rate from {rate['low']:.1%} to {rate['high']:.1%} fits the data."
    count = sum(summary["histogram"]["counts"][5:])
    second = f" {count:,} of {summary['pairs']:,} pairs are more likely wrong than right"
    bracket = f"{share['low']:.0%} to {share['high']:.0%} of the labels"
    third = f". Including close calls, {bracket} are not what most people would choose."
    return first + second + third


def _figures_lead(contents: Contents) -> str:
    if contents.known is None and contents.truth_file is not None:
        command = f"noisescope validate {dataset_words(contents.manifest)} --truth "
        command += shlex.quote(str(contents.truth_file))
        return printable(
            "The truth about these labels is known, and the scores have not been compared with it. "
            f"To measure how well wrong labels are found on this dataset: {command}"
        )
    if contents.known is None:
        return (
            "The truth about these labels is not known. To measure how well wrong labels are found "
            "on this dataset, plant some: noisescope validate."
        )
    share = contents.known.wrong.mean()
    return f"{contents.known.description} Here {share:.1%} are wrong. Bars show 90% intervals."


def commands(contents: Contents) -> list[str]:
    """List the commands that make this run, this page and its ranking again."""
    lines = [str(contents.manifest.get("command") or "noisescope score DATASET")]
    directory = contents.run.directory
    if contents.known is not None:
        lines.append("noisescope validate")
    lines.append(f"noisescope report {directory}")
    lines.append(
        'noisescope query "SELECT pair_id, p_wrong, u FROM scores ORDER BY rank LIMIT 100"'
        f" {directory}"
    )
    return [printable(line) for line in lines]


def provenance(contents: Contents) -> dict[str, str]:
    """List the versions and fingerprints that the numbers depend on."""
    manifest = contents.manifest
    rows = {
        "dataset": f"{manifest['resolved']} ({manifest['adapter']})",
        "dataset fingerprint": manifest["dataset_fingerprint"],
        "model": f"{manifest['model']} {manifest.get('model_revision') or ''}",
        "model fingerprint": manifest["model_fingerprint"],
        "evidence": ", ".join(f"{k} {v}" for k, v in manifest["evidence"].items()),
        "machine": ", ".join(f"{v}" for v in manifest.get("machine", {}).values()),
        "versions": ", ".join(f"{k} {v}" for k, v in manifest.get("versions", {}).items()),
    }
    return {name: printable(str(value)).strip() for name, value in rows.items()}


def _figure(picture: Picture) -> dict[str, Any]:
    svg = picture.encode("svg")
    width, height = picture.figure.get_size_inches() * 100
    return {
        "name": picture.name,
        "alt": picture.alt,
        "caption": picture.caption,
        "light": data_uri("image/svg+xml", svg),
        "dark": data_uri("image/svg+xml", dark(svg)),
        "width": int(width),
        "height": int(height),
    }
