"""Render the report as one HTML file that loads nothing: style, script and images are inside.

    write_atomic(path, page(gather(run)))

Dataset text is untrusted: the template escapes it, and the content security policy allows only
our own style and script.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from noisescope.errors import DataError
from noisescope.report.contents import Contents
from noisescope.report.style import Picture, dark
from noisescope.report.template import content_policy, data_uri, render, resource
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from noisescope.pairs import ImageStore

#: Characters of a text that are shown; pairs.parquet has the rest.
LONGEST = 4000
THUMBNAIL = 320


def page(contents: Contents, images: ImageStore | None = None) -> str:
    """Render the page. `images` provides the images of image pairs, shown as thumbnails."""
    css, script = (resource("noisescope.report", name) for name in ("report.css", "report.js"))
    manifest, summary = contents.manifest, contents.summary
    pairs = [_pair(pair, manifest, images) for pair in contents.pairs]
    return render(
        "noisescope.report",
        "report.html.jinja",
        css=css,
        script=script,
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
        figures=[_figure(picture) for picture in contents.pictures],
        figures_lead=_figures_lead(contents),
        pairs=pairs,
        names=sorted({pair["annotator"] for pair in pairs if pair["annotator"]}),
        annotators=contents.annotators,
        sources=[row | {"source": printable(row["source"])} for row in summary.get("sources", ())],
        commands=commands(contents),
        provenance=provenance(contents),
        version=manifest.get("versions", {}).get("noisescope", ""),
    )


def verdict(summary: Mapping[str, Any]) -> str:
    """Describe the result of a run in two or three sentences."""
    rate, share = summary["flip_rate"], summary["mislabelled_share"]
    if summary["chance"]:
        return (
            "The replicas agree with the labels no better than chance, so this audit supports "
            "no verdict. Use a better model or more pairs before you trust anything below."
        )
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
        f" --run {directory}"
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


def _pair(
    pair: Mapping[str, Any], manifest: Mapping[str, Any], images: ImageStore | None
) -> dict[str, Any]:
    """Convert a row of scores and pairs for the template."""
    turns = pair["turns"] or []
    earlier, prompt = "", pair["prompt"]
    if len(turns) > 1:
        from noisescope.datasets.conversations import SPEAKERS

        lines = [f"{SPEAKERS.get(t['role'], t['role'])}: {t['content']}" for t in turns]
        earlier, prompt = "\n\n".join(lines[:-1]), lines[-1]
    is_image = manifest.get("modality") == "image"
    sides = {
        side: _image(pair[side], images) if is_image else _text(pair[side])
        for side in ("chosen", "rejected")
    }
    names = ("rank", "pair_id", "p_wrong", "u", "margin", "contested", "annotator")
    values = {name: pair[name] for name in names}
    for name in ("pair_id", "annotator"):
        values[name] = values[name] and printable(values[name])
    return (
        values
        | sides
        | {
            "prompt": _text(prompt),
            "earlier": _text(earlier),
            "known": pair["known"],
            "reviewed": pair["reviewed"],
        }
    )


def _text(text: str) -> dict[str, Any]:
    shown = printable(text[:LONGEST], lines=True).strip("\n")
    return {"image": "", "shown": shown, "cut": max(0, len(text) - LONGEST)}


def _image(key: str, images: ImageStore | None) -> dict[str, Any]:
    """Return a thumbnail as a data URI, or the reason why there is none."""
    if images is None:
        return _text(f"image {key}")
    from noisescope.datasets.images import decode

    try:
        image = decode(images.get(key))
    except DataError as error:
        return _text(error.message)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=82)
    return {"image": data_uri("image/jpeg", sink.getvalue()), "shown": "", "cut": 0}


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
