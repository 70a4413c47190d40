"""Recall: what a model answers to each fact's prompt, and which facts it therefore knows.

The study keeps a fact if its object occurs in 36 greedily decoded tokens (Hase et al. 2023; spec section 5).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from loc_edit import events
from loc_edit.arguments import Count, Probability, checked
from loc_edit.facts.fact import Fact
from loc_edit.files import cache_folder, set_aside, short_hash, signed, unsigned, write_atomic
from loc_edit.models.adapter import lens
from loc_edit.models.checks import warn_of_hooks
from loc_edit.models.decoding import continue_rows, share_batches
from loc_edit.models.identity import fingerprint
from loc_edit.models.memory import halving
from loc_edit.models.model import Model, logits_at, token_texts, tokenizer
from loc_edit.models.past import new_past
from loc_edit.prompts.batches import make_batch, run, target_log_probs
from loc_edit.prompts.encoding import Encoded, Prompt, encode_all

log = logging.getLogger(__name__)
FORMAT = "loc_edit.answers/1"
ANSWER_LENGTH = 36
"""The number of tokens of an answer in the study."""

NextTokens = list[tuple[str, float]]
"""The texts of next tokens with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Answer:
    """A model's continuation of a fact's edit prompt.

    Attributes:
        fact_id: the fact.
        text: the greedily decoded tokens; fewer than requested if the context ends.
        p_true: p(target_true) after the prompt, the product over its tokens.
        known: whether `target_true` occurs in `text`, ignoring case.
    """

    fact_id: int
    text: str
    p_true: float
    known: bool


@checked
def known_facts(
    model: Model,
    facts: Sequence[Fact],
    *,
    known: bool = True,
    min_probability: Probability = 0.0,
    cache: str | Path | None = None,
) -> list[Fact]:
    """The facts that the model knows, in the given order.

    Args:
        model: the unedited model.
        facts: a data set.
        known: keep only facts whose object occurs in the model's greedy answer.
        min_probability: keep only facts whose object has at least this probability.
        cache: see `answers`.

    Raises:
        BadPrompt: a fact cannot be encoded; the message names it.
    """
    return [
        fact
        for fact, answer in zip(facts, answers(model, facts, cache=cache), strict=True)
        if (answer.known or not known) and answer.p_true >= min_probability
    ]


@checked
def answers(
    model: Model,
    facts: Sequence[Fact],
    *,
    n_tokens: Count = ANSWER_LENGTH,
    cache: str | Path | None = None,
    batch_size: int = 64,
) -> list[Answer]:
    """The model's answer to each fact's edit prompt, decoded greedily with cached attention keys and values.

    Prompts of similar length share a batch, whose size is halved when memory runs out.  After every batch, its answers
    are added to a file in the cache that belongs to this model, these facts and this length, and a progress event
    `answers` is emitted; a call that was stopped goes on from that file.  Hooks of yours on the model are part of the
    answers, which are then not cached.

    Args:
        model: the unedited model.
        facts: a data set; its order and its objects are part of its identity in the cache.
        n_tokens: the number of tokens of an answer; a prompt near the end of the context gets a shorter answer, and a
            warning in the log.
        cache: folder; `LOC_EDIT_CACHE`, or `~/.cache/loc_edit`.
        batch_size: the largest number of prompts in a batch.

    Raises:
        SubjectNotFound, BadPrompt: a fact cannot be encoded; the message names it.
    """
    with TemporaryDirectory() if warn_of_hooks(model) else nullcontext(cache) as folder:
        return _answers(model, facts, n_tokens, _AnswerFile.of(model, facts, n_tokens, folder), batch_size)


def _answers(model: Model, facts: Sequence[Fact], n_tokens: int, kept: "_AnswerFile", batch_size: int) -> list[Answer]:
    answer_of = kept.read()
    if len(answer_of) == len(facts):
        return [answer_of[i] for i in range(len(facts))]
    n_kept, encoded = len(answer_of), _encode_or_raise(model, facts)
    if short := sum(len(fact.prompt) + n_tokens > model.cfg.n_ctx for fact in encoded):
        log.warning("%d of %d answers are cut at the context of %d tokens", short, len(facts), model.cfg.n_ctx)
    kept.write(answer_of, rewrite=True)

    missing = [i for i in range(len(facts)) if i not in answer_of]
    for shared in share_batches(model, [len(encoded[i].prompt) for i in missing], len(missing)):
        alike = [missing[k] for k in shared]

        def work(part: slice, alike: list[int] = alike) -> None:
            batch = alike[part]
            computed = _answer(model, [facts[i] for i in batch], [encoded[i] for i in batch], n_tokens)
            new = dict(zip(batch, computed, strict=True))
            answer_of.update(new)
            kept.write(new)
            events.progress("answers", len(answer_of), len(facts), found=n_kept)

        batch_size = halving(len(alike), batch_size, work, unit="answers")
    return [answer_of[i] for i in range(len(facts))]


def _encode_or_raise(model: Model, facts: Sequence[Fact]) -> list[Encoded]:
    encoded = []
    for result in encode_all(model, facts):
        if isinstance(result, Exception):
            raise result
        encoded.append(result)
    return encoded


@torch.inference_mode()
def _answer(model: Model, facts: Sequence[Fact], encoded: Sequence[Encoded], n_tokens: int) -> list[Answer]:
    """The answers to some prompts; p(target_true) and the first token come from the same forward pass."""
    prompts = [fact.prompt for fact in encoded]
    batch = make_batch(model, prompts, [fact.target_true for fact in encoded])
    past = new_past(model, batch.tokens.shape[1] + n_tokens) if lens.takes_past(model) else None
    answers_at = batch.answers(run(model, batch, past=past))
    p_true = target_log_probs(model, batch, answers_at).double().sum(1).exp()
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.cfg.device)
    # With top_k=1, any draw takes the likeliest token.
    draws = [torch.zeros(min(n_tokens, model.cfg.n_ctx - len(prompt))) for prompt in prompts]
    rows = continue_rows(model, batch.tokens, lengths, answers_at[:, 0], past, draws, top_k=1)
    texts = [tokenizer(model).decode(row[len(prompt) :].tolist()) for row, prompt in zip(rows, prompts, strict=True)]
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


@dataclass
class _AnswerFile:
    """Answers on disk, as JSON lines after a header.  If the disk refuses a write, later answers are not kept.

    Attributes:
        path: the file.
        header: names the model, the facts and the length of an answer.
        facts: the facts.
        writable: whether no write has failed.
    """

    path: Path
    header: Mapping[str, Any]
    facts: Sequence[Fact]
    writable: bool = True

    @classmethod
    def of(cls, model: Model, facts: Sequence[Fact], n_tokens: int, cache: str | Path | None) -> "_AnswerFile":
        """The file in the cache for a model, a data set and a length; it may not exist yet."""
        lines = [json.dumps([fact.fact_id, fact.template, fact.subject, fact.target_true]) + "\n" for fact in facts]
        data = short_hash("".join(lines))
        header = {"format": FORMAT, "model": fingerprint(model), "data": data, "n_tokens": n_tokens}
        name = short_hash(json.dumps(header, sort_keys=True))
        return cls(cache_folder("answers", cache) / f"{name}.jsonl", header, facts)

    def read(self) -> dict[int, Answer]:
        """The answers by the index of their fact; a line that was cut short by a stop is left out.

        If the header or a line is damaged, the file is set aside, and the whole lines begin a new one.  A file of an
        old version has no checksums: its lines must fit the facts, and get checksums.
        """
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except OSError:
            return {}
        header, *lines = text.split("\n")  # the last is empty, or was cut short
        fits = self._fits(header)
        answer_of: dict[int, Answer] = {}
        n_whole = 0
        for line in lines[:-1] if fits is not False else ():
            with suppress(ValueError, TypeError, KeyError, IndexError):
                row, line_fits = unsigned(json.loads(line))
                index, answer = row.pop("index"), Answer(**row)
                if line_fits or (fits is None and line_fits is None and _can_be(answer, self.facts[index])):
                    answer_of[index] = answer
                    n_whole += 1
        damaged = fits is False or n_whole < len(lines) - 1
        try:
            if damaged:
                set_aside(self.path)
            if answer_of and (damaged or not fits):
                self.write(answer_of, rewrite=True)
        except OSError as error:
            log.warning("%s", error)
        return answer_of

    def _fits(self, line: str) -> bool | None:
        """Whether a line is the header; `None` if it is a header of an old version, without a checksum."""
        try:
            header, fits = unsigned(json.loads(line))
        except ValueError:
            return False
        return fits if header == self.header else False

    def write(self, answer_of: Mapping[int, Answer], *, rewrite: bool = False) -> None:
        """Add answers to the file, or begin it anew with them."""
        rows = [{"index": index, **asdict(answer)} for index, answer in answer_of.items()]
        text = "".join(json.dumps(signed(row)) + "\n" for row in ([self.header, *rows] if rewrite else rows))
        try:
            if rewrite:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self.path, text.encode())
            elif self.writable:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(text)
        except OSError as error:
            log.warning("answers are not cached: %s", error)
            self.writable = False


def _can_be(answer: Answer, fact: Fact) -> bool:
    """Whether an answer without a checksum can be the fact's."""
    known = fact.target_true.casefold() in answer.text.casefold()
    return answer.fact_id == fact.fact_id and answer.known == known and 0 <= answer.p_true <= 1
