"""Text to tokens: prompts with the subject's place in them, and target tokens."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.facts import Fact
from loc_edit.models import tokenizer


class SubjectNotFound(ValueError):
    """The subject is not in the prompt's text or tokens."""


class BadPrompt(ValueError):
    """A prompt or target that cannot be used: empty, or longer than the model's context."""


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt that knows where its subject is.

    Attributes:
        fact_id: the fact that it is about.
        text: the whole text.
        template: the text with `{}` in the subject's place.
        subject_text: the subject.
        tokens: token ids, BOS included where the model wants one.
        subject: positions of the subject's tokens, half-open; a token that straddles the edge counts.
        found: whether the subject was searched for in a finished text (its first occurrence).
    """

    fact_id: int
    text: str
    template: str
    subject_text: str
    tokens: Int[Tensor, " pos"] = field(compare=False)
    subject: slice = field(compare=False)
    found: bool = False

    @property
    def last_subject(self) -> int:
        """Position of the subject's last token."""
        return self.subject.stop - 1

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        place = f"[{self.subject.start}, {self.subject.stop})"
        return f"Prompt(fact {self.fact_id}: {self.text!r}, {len(self)} tokens, {self.subject_text!r} at {place})"


def encode(model: HookedTransformer, fact: Fact) -> Prompt:
    """The fact's edit prompt.

    Raises:
        SubjectNotFound: no token covers the subject.
        BadPrompt: the prompt is longer than the model's context.
    """
    return encode_template(model, fact.template, fact.subject, fact_id=fact.fact_id)


def encode_template(
    model: HookedTransformer, template: str, subject: str, *, fact_id: int = 0, prefix: str = ""
) -> Prompt:
    """The prompt that a template and a subject make, after an optional `prefix` (which may hold braces)."""
    begin, braces, end = template.partition("{}")
    if not braces:
        raise SubjectNotFound(f"fact {fact_id}: template {template!r} has no {{}} for the subject {subject!r}")
    text = prefix + begin + subject + end
    start = len(prefix) + len(begin)
    tokens, span = _tokenize(model, text, start, start + len(subject), fact_id, subject)
    return Prompt(fact_id, text, template, subject, tokens, span)


def encode_context(model: HookedTransformer, context: str, prompt: Prompt) -> Prompt:
    """`prompt` in a context: a text whose last `{}` is the prompt's place."""
    before, braces, after = context.rpartition("{}")
    if not braces or after:
        raise BadPrompt(f"context {context!r} must end with {{}}, the prompt's place")
    return encode_template(model, prompt.template, prompt.subject_text, fact_id=prompt.fact_id, prefix=before)


def find_subject(model: HookedTransformer, text: str, subject: str, *, fact_id: int = 0) -> Prompt:
    """A finished text as a prompt: the subject is its first occurrence."""
    start = text.find(subject)
    if start < 0:
        raise SubjectNotFound(f"fact {fact_id}: subject {subject!r} is not in prompt {text!r}")
    tokens, span = _tokenize(model, text, start, start + len(subject), fact_id, subject)
    template = text[:start] + "{}" + text[start + len(subject) :]
    return Prompt(fact_id, text, template, subject, tokens, span, found=True)


def encode_text(model: HookedTransformer, text: str, *, fact_id: int = 0) -> Prompt:
    """A text without a subject of interest, such as a neighbour's prompt."""
    tokens = tokenize(model, text)
    if not 0 < len(tokens) < model.cfg.n_ctx:
        raise BadPrompt(f"fact {fact_id}: {len(tokens)} tokens, and 1 to {model.cfg.n_ctx - 1} are wanted: {text!r}")
    return Prompt(fact_id, text, text, "", tokens, slice(0, 0))


def tokenize(model: HookedTransformer, text: str) -> Int[Tensor, " pos"]:
    """Token ids of a text, after BOS where the model wants one, on the model's device."""
    return _with_bos(model, _ids(model, text))


def target_tokens(model: HookedTransformer, text: str, target: str) -> Int[Tensor, " target"]:
    """Token ids of `target` after the prompt `text`.

    The ids that follow those of `text` in `text + " " + target` where the first are a prefix of the second;
    else those of `" " + target` without a lone space piece.  Source: spec section 0.

    Raises:
        BadPrompt: the target is empty.
    """
    if not target.strip():
        raise BadPrompt(f"target {target!r} after {text!r} is empty")
    alone = _ids(model, text)
    whole = _ids(model, text + " " + target)
    if len(whole) > len(alone) and whole[: len(alone)] == alone:
        ids = whole[len(alone) :]
    else:
        ids = _ids(model, " " + target)
        while len(ids) > 1 and not tokenizer(model).decode([ids[0]]).strip():
            ids = ids[1:]
    return torch.tensor(ids, device=model.cfg.device)


def _ids(model: HookedTransformer, text: str) -> list[int]:
    return list(tokenizer(model)(text, add_special_tokens=False)["input_ids"])


def _with_bos(model: HookedTransformer, ids: list[int]) -> Int[Tensor, " pos"]:
    bos = [tokenizer(model).bos_token_id] if model.cfg.default_prepend_bos else []
    return torch.tensor(bos + ids, device=model.cfg.device)


def _tokenize(
    model: HookedTransformer, text: str, start: int, end: int, fact_id: int, subject: str
) -> tuple[Int[Tensor, " pos"], slice]:
    """Tokens of `text`, and the span of those that overlap its characters [start, end)."""
    encoding = tokenizer(model)(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]
    covering = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    if not covering:
        raise SubjectNotFound(f"fact {fact_id}: no token of {text!r} covers the subject {subject!r}")
    tokens = _with_bos(model, encoding["input_ids"])
    if len(tokens) >= model.cfg.n_ctx:
        raise BadPrompt(
            f"fact {fact_id}: prompt of {len(tokens)} tokens does not fit the context of {model.cfg.n_ctx}: {text!r}"
        )
    shift = len(tokens) - len(offsets)
    return tokens, slice(covering[0] + shift, covering[-1] + 1 + shift)
