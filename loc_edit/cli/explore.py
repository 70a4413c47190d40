"""The command that opens the playground."""

from dataclasses import asdict
from importlib.util import find_spec
from threading import Event
from typing import Annotated

from rich.markup import escape

from loc_edit.cli.models import fetch
from loc_edit.cli.options import AcceptTerms, Source, like_config
from loc_edit.cli.show import out, progress


def explore(
    source: Source,
    port: int | None = None,
    known: bool = True,
    preset: Annotated[str, like_config("preset")] = "auto",
    corpus_tokens: Annotated[int, like_config("corpus_tokens")] = 200_000,
    share: bool = False,
    accept_terms: AcceptTerms = False,
) -> None:
    """Open a page to trace a fact, edit it, and take the edit back.

    Only this machine can reach the page, which needs `pip install 'loc-edit[explore]'`.

    Examples:
        loc-edit explore
        loc-edit explore --model smollm2 --port 7860

    Args:
        port: The page's port; the first free one from 7860 on if None.
        known: Whether the page offers only the facts whose object the model says within 36 tokens.
        share: Whether to make a public address for the page, through Gradio's servers.
    """
    if find_spec("gradio") is None:
        raise ValueError("explore needs Gradio: pip install 'loc-edit[explore]'")
    fetch(source.model, accept_terms)
    from loc_edit.explore.page import playground, serve

    values = {**asdict(source), "known": known, "preset": preset, "corpus_tokens": corpus_tokens}
    with progress():
        page = playground(**values)
    out.print(f"{escape(serve(page, port, share=share))}  (Ctrl-C closes the page)")
    try:
        Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)
