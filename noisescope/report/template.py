"""Render pages from jinja templates in the package, with a content security policy.

    css = resource("noisescope.report", "report.css")
    render("noisescope.report", "report.html.jinja", css=css, policy=content_policy(css), ...)

Values are escaped by the template. The policy contains the hashes of our style and script, so that
a browser runs and loads nothing else, whatever the text of a dataset contains.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any


def resource(package: str, name: str) -> str:
    """Read a text file of the package."""
    return resources.files(package).joinpath(name).read_text("utf-8")


def render(package: str, template: str, *, css: str, script: str = "", **values: Any) -> str:
    """Render a template; `css` and `script` are our own files and are not escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        css=Markup(css), script=Markup(script), **values
    )


def content_policy(css: str, script: str = "", *, sources: str = "img-src data:") -> str:
    """Return a policy that allows this style and script, `sources`, and nothing else."""
    allowed = [f"style-src '{_hash(css)}'"] + [f"script-src '{_hash(script)}'"] * bool(script)
    return (
        f"default-src 'none'; {sources}; {'; '.join(allowed)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def data_uri(kind: str, data: bytes) -> str:
    """Encode bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
