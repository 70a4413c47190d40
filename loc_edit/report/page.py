"""Puts the page together from template, style and scripts, with a policy that lets nothing else run or load."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loc_edit.report.packing import embedded

SCRIPTS = ("elements", "numbers", "chart", "heatmap", "tokens", "list", "fact", "overview", "main")
"""The scripts in the order in which they run; each defines functions for the next."""
PANEL_SCRIPTS = ("elements", "numbers", "heatmap", "tokens", "fact", "panel")
"""The scripts of a page with one fact, which it gets from the page around it."""
DATA = ("curves", "explorer")
"""The parts of the content that the scripts read; the template shows the rest."""


def render(content: Mapping[str, Any]) -> str:
    """Returns the page's HTML.

    The template escapes the texts in `content`; the data for the scripts is JSON in an inert block.  The page's policy
    names the scripts by their digests, so that no other script can run, whatever the texts are.
    """
    return _rendered(
        "page.html.j2",
        SCRIPTS,
        **{name: value for name, value in content.items() if name not in DATA},
        page_data=Markup(embedded({name: content[name] for name in DATA})),
        n_explored=len(content["explorer"]["facts"]),
    )


def panel() -> str:
    """Returns a page for a frame that shows one fact as the report does, and holds no data.

    The page around the frame posts `{explorer, layer, edited, caption, written}` to it, of which `explorer` is the
    explorer's data with one fact.  The frame posts `{ready: true}`, `{height}` and, after a click, `{layer}`.
    """
    return _rendered("panel.html.j2", PANEL_SCRIPTS)


def _rendered(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Returns a template with the style, the scripts in one function of their own, circuitsvis, and their digests."""
    joined = "\n".join(_asset(f"{name}.js") for name in scripts)
    code = f"(() => {{\n'use strict';\n{joined}\n}})();"
    bundle = circuitsvis_bundle()
    environment = Environment(
        loader=PackageLoader("loc_edit.report", "assets"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(
        values,
        style=Markup(_asset("style.css")),
        code=Markup(code),
        bundle=Markup(bundle),
        digests=Markup(" ".join(f"'sha256-{_digest(script)}'" for script in (code, bundle))),
    )


@cache
def circuitsvis_bundle() -> str:
    """The browser code of circuitsvis, changed so that nothing in it ends the script element around it."""
    package = find_spec("circuitsvis")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("circuitsvis is not installed; the report shows its views")
    text = (Path(package.origin).parent / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    text = re.sub(r"//# sourceMappingURL=\S*\s*$", "", text)
    # In a JavaScript string `\x3c` is `<`; the bundle has these words in strings only.
    return re.sub(r"<(?=/script|script)", r"\\x3c", text.replace("<!--", "\\x3c!--"))


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return files("loc_edit.report").joinpath("assets", name).read_text(encoding="utf-8")
