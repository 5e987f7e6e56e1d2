"""The report as one HTML file that loads nothing: style, script and pictures are inside it.

    write_atomic(path, page(gather(run)))

Dataset text is untrusted. It is escaped by the template, and a content security policy with
the hashes of our own style and script lets nothing else run or load, whatever the text says.
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

#: Characters of a text shown; the rest is in pairs.parquet.
LONGEST = 4000
THUMBNAIL = 320


def page(contents: Contents, images: ImageStore | None = None) -> str:
    """The report's HTML. `images` gives the bytes of image pairs, shown as thumbnails."""
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
        commands=commands(contents),
        provenance=provenance(contents),
        version=manifest.get("versions", {}).get("noisescope", ""),
    )


def verdict(summary: Mapping[str, Any]) -> str:
    """The run in two plain sentences."""
    rate, share = summary["flip_rate"], summary["mislabelled_share"]
    if summary["chance"]:
        return (
            "The replicas agree with the labels no better than a coin would, so this audit "
            "supports no verdict: use a better model or more pairs before trusting anything below."
        )
    if rate["identifiable"]:
        first = f"About {rate['estimate']:.1%} of the labels look turned round"
        first += f" (90% interval {rate['low']:.1%} to {rate['high']:.1%})."
    else:
        first = "At this size the flip rate cannot be told from honest close calls"
        first += f": anything from {rate['low']:.1%} to {rate['high']:.1%} fits the evidence."
    count = sum(summary["histogram"]["counts"][5:])
    second = f" {count:,} of {summary['pairs']:,} pairs are more likely wrong than right"
    bracket = f"{share['low']:.0%} to {share['high']:.0%} of the labels"
    third = f", and counting honest disagreement {bracket} are not what most people would say."
    return first + second + third


def _figures_lead(contents: Contents) -> str:
    if contents.known is None:
        return (
            "Nothing here knows the truth. To see how well wrong labels are found on this very "
            "dataset, plant some and look: noisescope validate."
        )
    share = contents.known.wrong.mean()
    return f"{contents.known.said} Here {share:.1%} are wrong. Whiskers and lines hold 90%."


def commands(contents: Contents) -> list[str]:
    """What to type to get this run, this page and its ranking again."""
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
    """Versions and identities that decide the numbers."""
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
    """A row of scores and pairs as the template shows it."""
    turns = pair["turns"] or []
    earlier, prompt = "", pair["prompt"]
    if len(turns) > 1:
        from noisescope.datasets.conversations import SPEAKERS

        said = [f"{SPEAKERS.get(t['role'], t['role'])}: {t['content']}" for t in turns]
        earlier, prompt = "\n\n".join(said[:-1]), said[-1]
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
    """A thumbnail as a data URI, or in words why there is none."""
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
