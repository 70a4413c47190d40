"""The facts behind a run's rows, found again by its configuration: rows name facts and do not repeat them."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loc_edit.facts.download import PUBLIC
from loc_edit.facts.fact import Fact
from loc_edit.facts.loading import load_facts
from loc_edit.files import cache_folder

log = logging.getLogger(__name__)


def facts_of(config: Mapping[str, Any]) -> tuple[dict[int, Fact], str]:
    """The facts that a run's configuration names, by id; none, and why, where they are not at hand.

    Nothing is downloaded: a public data set is read where it is in the cache already.
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
        log.info("the facts of the run are not read: %s", error)
        return {}, f"the facts ({data}) cannot be read: {error}"
    return {fact.fact_id: fact for fact in facts}, ""


def belongs(fact: Fact, tokens: Sequence[str], begin: int, end: int) -> bool:
    """Whether traced tokens can be those of the fact: the subject's, but for spaces, are in its prompt in their order.

    Half a character in a token (`\ufffd`) can be anything.  A file may have changed since the run.
    """
    prompt, place = _squeezed(fact.prompt), 0
    for piece in re.split("\ufffd+", _squeezed("".join(tokens[begin:end]))):
        found = prompt.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return True


def _squeezed(text: str) -> str:
    return re.sub(r"[\s\u2581\u0120]+", "", text)
