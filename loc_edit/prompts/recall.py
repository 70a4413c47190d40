"""The facts that a model knows: its greedy answer names the right object, which is likely enough.

The study keeps a fact if the object occurs in 36 greedily decoded tokens (Hase et al. 2023; spec section 5).
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loc_edit.facts.fact import Fact
from loc_edit.files import cache_folder
from loc_edit.models.decoding import sample_tokens
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model, logits_at, token_texts, tokenizer
from loc_edit.prompts.batches import make_batch, run, target_log_probs
from loc_edit.prompts.encoding import Encoded, Prompt, encode_all

log = logging.getLogger(__name__)
FORMAT = "loc_edit.answers/1"
ANSWER_LENGTH = 36
"""Tokens of an answer, as in the study."""

NextTokens = list[tuple[str, float]]
"""Texts of next tokens with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Answer:
    """What a model says after a fact's edit prompt.

    Attributes:
        fact_id: the fact.
        text: the greedily decoded tokens; fewer than were asked for where the context ends.
        p_true: p(target_true) after the prompt, the product over its tokens.
        known: whether `target_true` occurs in `text`, whatever the case of both.
    """

    fact_id: int
    text: str
    p_true: float
    known: bool


def known_facts(
    model: Model,
    facts: Sequence[Fact],
    *,
    known: bool = True,
    min_probability: float = 0.0,
    cache: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Fact]:
    """Those of the facts that the model knows, in their order.

    Args:
        model: the unedited model.
        facts: a data set.
        known: keep only facts whose object occurs in the model's greedy answer.
        min_probability: keep only facts whose object has at least this probability.
        cache: see `answers`.
        progress: see `answers`.

    Raises:
        ValueError: `min_probability` is no probability.
        BadPrompt: a fact cannot be encoded; it is named.
    """
    if not 0 <= min_probability <= 1:
        raise ValueError(f"min_probability {min_probability}: a number from 0 to 1 is wanted")
    found = answers(model, facts, cache=cache, progress=progress)
    return [
        fact
        for fact, answer in zip(facts, found, strict=True)
        if (answer.known or not known) and answer.p_true >= min_probability
    ]


def answers(
    model: Model,
    facts: Sequence[Fact],
    *,
    n_tokens: int = ANSWER_LENGTH,
    cache: str | Path | None = None,
    batch_size: int = 128,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Answer]:
    """The model's answer to each fact's edit prompt, decoded greedily with cached attention keys and values.

    Prompts of one length share a batch; its size is halved when memory runs out.  Every batch is added to a file
    in the cache that belongs to this model, these facts and this length, so that a stopped call goes on from there.

    Args:
        model: the unedited model.
        facts: a data set; its order and its objects are part of its identity in the cache.
        n_tokens: tokens of an answer, fewer where the context ends (this is logged).
        cache: folder; `LOC_EDIT_CACHE`, or `~/.cache/loc_edit`.
        batch_size: rows at once.
        progress: called with ("answers", answers there are, answers wanted).

    Raises:
        SubjectNotFound, BadPrompt: a fact cannot be encoded; it is named.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens {n_tokens}: at least 1 is wanted")
    header = {"format": FORMAT, "model": fingerprint(model), "data": _data_hash(facts), "n_tokens": n_tokens}
    name = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder("answers", cache) / f"{name}.jsonl"
    found = _read(path, header, len(facts))
    if len(found) < len(facts):
        encoded = []
        for one in encode_all(model, facts):
            if isinstance(one, Exception):
                raise one
            encoded.append(one)
        if short := sum(len(one.prompt) + n_tokens > model.cfg.n_ctx for one in encoded):
            log.warning("%d of %d answers are cut at the context of %d tokens", short, len(facts), model.cfg.n_ctx)
        writable = _append(path, [header, *_rows(found)], "w")
        todo = sorted(set(range(len(facts))) - set(found), key=lambda i: (len(encoded[i].prompt), i))
        while todo:
            length = len(encoded[todo[0]].prompt)
            some = [i for i in todo[:batch_size] if len(encoded[i].prompt) == length]
            try:
                made = _answer(model, [facts[i] for i in some], [encoded[i] for i in some], n_tokens)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                batch_size = len(some) // 2
                log.warning("out of memory: answers go on %d at a time", batch_size)
                continue
            todo = todo[len(some) :]
            new = dict(zip(some, made, strict=True))
            found |= new
            writable = writable and _append(path, _rows(new), "a")
            if progress:
                progress("answers", len(found), len(facts))
    return [found[i] for i in range(len(facts))]


@torch.inference_mode()
def _answer(model: Model, facts: Sequence[Fact], encoded: Sequence[Encoded], n_tokens: int) -> list[Answer]:
    """The answers to prompts of one length."""
    prompts = [one.prompt for one in encoded]
    batch = make_batch(model, prompts, [one.target_true for one in encoded])
    p_true = target_log_probs(model, batch, batch.answers(run(model, batch))).double().sum(1).exp()
    n_new = min(n_tokens, model.cfg.n_ctx - len(prompts[0]))
    greedy = torch.zeros(len(facts), n_new)  # of the top 1, any draw takes the first
    rows = sample_tokens(model, [p.tokens for p in prompts], list(greedy), top_k=1, batch_size=len(facts))
    texts = [tokenizer(model).decode(row[len(prompts[0]) :].tolist()) for row in rows]
    return [
        Answer(fact.fact_id, text, p, fact.target_true.casefold() in text.casefold())
        for fact, text, p in zip(facts, texts, p_true.tolist(), strict=True)
    ]


@torch.inference_mode()
def next_tokens(model: Model, prompt: Prompt, n: int = 5) -> NextTokens:
    """The `n` likeliest next tokens after a prompt, with their probabilities, the likeliest first."""
    batch = make_batch(model, [prompt])
    p, ids = logits_at(model, run(model, batch)[:, -1:])[0, 0].float().softmax(-1).topk(n)
    return list(zip(token_texts(model, ids), p.tolist(), strict=True))


def _data_hash(facts: Sequence[Fact]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(json.dumps([fact.fact_id, fact.template, fact.subject, fact.target_true]).encode() + b"\n")
    return digest.hexdigest()[:16]


def _rows(found: Mapping[int, Answer]) -> list[dict[str, Any]]:
    return [{"index": index, **asdict(answer)} for index, answer in found.items()]


def _append(path: Path, rows: Iterable[Mapping[str, Any]], mode: str) -> bool:
    """Write lines to the cache; one that cannot be written costs time, not the result."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        if mode == "w":
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        else:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        log.warning("answers are not cached: %s", error)
        return False
    return True


def _read(path: Path, header: Mapping[str, Any], n: int) -> dict[int, Answer]:
    """The answers in a cache file by the fact's place; a line cut short by a stop counts as none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found = {}
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            if number == 0 and row != header:
                return {}
            if number > 0 and 0 <= (index := row.pop("index")) < n:
                found[index] = Answer(**row)
        except (ValueError, TypeError, KeyError, AttributeError):
            if number == 0:
                return {}
    return found
