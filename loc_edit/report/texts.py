"""Finds the facts of a run by its configuration, for the texts that its rows do not repeat."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loc_edit.facts.download import PUBLIC
from loc_edit.facts.fact import Fact
from loc_edit.facts.loading import load_facts
from loc_edit.files import cache_folder


def facts_of(config: Mapping[str, Any]) -> tuple[dict[int, Fact], str]:
    """Returns the facts that a run's configuration names, by id; or no facts, and the reason.

    Nothing is downloaded: a public data set is read only if it is in the cache already.
    """
    data = str(config.get("data", ""))
    if not data:
        return {}, "the configuration names no facts"
    options: dict[str, Any] = {name: config[name] for name in ("seed", "skip_invalid") if name in config}
    source: str | Path = data
    if data in PUBLIC:
        source, options["format"] = cache_folder("data") / PUBLIC[data].file, PUBLIC[data].format
    if data != "builtin" and not Path(source).is_file():
        return {}, f"the facts ({data}) are not a file on this machine"
    try:
        facts = load_facts(source, limit=config.get("data_limit"), **options)
    except (OSError, ValueError) as error:
        return {}, f"the facts ({data}) cannot be read: {error}"
    return {fact.fact_id: fact for fact in facts}, ""


def belongs(fact: Fact, tokens: Sequence[str], begin: int, end: int) -> bool:
    """Tells whether the fact's prompt contains the traced subject tokens in their order, apart from spaces.

    If not, the file of facts has changed since the run.  Half a character in a token (`\ufffd`) matches anything.
    """
    prompt, place = _squeezed(fact.prompt), 0
    for piece in re.split("\ufffd+", _squeezed("".join(tokens[begin:end]))):
        start = prompt.find(piece, place)
        if start < 0:
            return False
        place = start + len(piece)
    return True


def _squeezed(text: str) -> str:
    return re.sub(r"[\s\u2581\u0120]+", "", text)
