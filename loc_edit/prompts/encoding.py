"""Tokenization: prompts with the token positions of their subject, and the tokens of a target after a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor

from loc_edit.arguments import checked
from loc_edit.facts.fact import Fact, half_character
from loc_edit.models.model import Model, tokenizer


class SubjectNotFound(ValueError):
    """The subject does not occur in the prompt's text, or no token covers it."""


class BadPrompt(ValueError):
    """A prompt or target that is empty, longer than the model's context, or has no tokens."""


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt with the positions of its subject.

    Attributes:
        fact_id: the id of the prompt's fact.
        text: the whole text.
        template: the text with `{}` in the subject's place.
        subject_text: the subject.
        tokens: token ids, with BOS if the model's prompts start with it.
        subject: positions of the subject's tokens, half-open; a token that is only partly in the subject counts.
        found: whether the subject was searched for in a finished text and its first occurrence was taken.
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


@checked
def encode(model: Model, fact: Fact) -> Prompt:
    """The fact's edit prompt.

    Raises:
        SubjectNotFound: no token covers the subject.
        BadPrompt: the prompt is longer than the model's context.
    """
    return _edit_prompt(model, fact)


@dataclass(frozen=True)
class Encoded:
    """A fact's edit prompt, with the token ids of its objects after the prompt.

    Attributes:
        prompt: the result of `encode`.
        target_true: the `target_tokens` of the true object.
        target_new: the `target_tokens` of the false object; `None` if the fact has none.
    """

    prompt: Prompt
    target_true: Int[Tensor, " _"] = field(compare=False)
    target_new: Int[Tensor, " _"] | None = field(default=None, compare=False)


def encode_all(
    model: Model, facts: Sequence[Fact], *, batch_size: int = 1000
) -> list[Encoded | SubjectNotFound | BadPrompt]:
    """The `encode` and `target_tokens` of each fact, with many texts in one call of the tokenizer.

    In place of a fact that cannot be used, the list has the error, which names the fact: the error of `encode` or
    `target_tokens`, or a `BadPrompt` if prompt and object together are longer than the context.
    """
    result: list[Encoded | SubjectNotFound | BadPrompt] = []
    for start in range(0, len(facts), batch_size):
        batch = facts[start : start + batch_size]
        endings = [(fact.prompt, end) for fact in batch for end in ("", *(f" {target}" for target in _targets(fact)))]
        encodings = iter(_encodings(model, [prompt + end for prompt, end in endings]))
        for fact in batch:
            alone, *whole = islice(encodings, 1 + len(_targets(fact)))
            try:
                result.append(_encoded(model, fact, alone, whole))
            except (SubjectNotFound, BadPrompt) as error:
                result.append(error)
    return result


@dataclass(frozen=True)
class _Encoding:
    """A text's token ids, without BOS, and the range of characters [begin, end) of each token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def encode_template(
    model: Model, template: str, subject: str, *, fact_id: int = 0, prefix: str = "", encoding: _Encoding | None = None
) -> Prompt:
    """The prompt of a template and a subject, after an optional `prefix`, in which braces mean nothing.

    `encoding` is the encoding of the whole text, if it is known already.
    """
    begin, braces, rest = template.partition("{}")
    if not braces:
        raise SubjectNotFound(f"fact {fact_id}: template {template!r} has no {{}} for the subject {subject!r}")
    text = prefix + begin + subject + rest
    start, end = len(prefix + begin), len(prefix + begin + subject)
    encoding = encoding or _encoding(model, text)
    covering = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > start]
    if not covering:
        raise SubjectNotFound(f"fact {fact_id}: no token of {text!r} covers the subject {subject!r}")
    first, last = covering[0], covering[-1]
    doubled = first == 0 and last > 0 and encoding.offsets[1][0] <= start and text[start] != " "
    if doubled and _is_blank(model, encoding.ids[0]):
        first += 1  # SentencePiece puts a space before a text, and gives it the offsets of the first character
    tokens = _with_bos(model, encoding.ids)
    if len(tokens) >= model.cfg.n_ctx:
        raise BadPrompt(
            f"fact {fact_id}: prompt of {len(tokens)} tokens does not fit the context of {model.cfg.n_ctx}: {text!r}"
        )
    shift = len(tokens) - len(encoding.ids)
    return Prompt(fact_id, text, template, subject, tokens, slice(first + shift, last + 1 + shift))


def check_fits(model: Model, prompt: Prompt, n_tokens: int) -> None:
    """Refuse a prompt that has `n_tokens` together with its target, if the context is shorter."""
    n_ctx = model.cfg.n_ctx
    if n_tokens > n_ctx:
        raise BadPrompt(f"fact {prompt.fact_id}: {n_tokens} tokens do not fit the context of {n_ctx}: {prompt.text!r}")


def encode_context(model: Model, context: str, prompt: Prompt) -> Prompt:
    """`prompt` in a context: a text that ends with `{}`, the prompt's place."""
    before, braces, after = context.rpartition("{}")
    if not braces or after:
        raise BadPrompt(f"context {context!r} must end with {{}}, the prompt's place")
    return encode_template(model, prompt.template, prompt.subject_text, fact_id=prompt.fact_id, prefix=before)


def find_subject(model: Model, text: str, subject: str, *, fact_id: int = 0) -> Prompt:
    """A finished text as a prompt, with the first occurrence of the subject as its place."""
    start = text.find(subject)
    if start < 0:
        raise SubjectNotFound(f"fact {fact_id}: subject {subject!r} is not in prompt {text!r}")
    before, after = text[:start], text[start + len(subject) :]
    prompt = encode_template(model, "{}" + after, subject, fact_id=fact_id, prefix=before)
    return replace(prompt, template=before + prompt.template, found=True)


def encode_text(model: Model, text: str, *, fact_id: int = 0) -> Prompt:
    """A text without a subject, such as the prompt of a neighbor."""
    tokens = tokenize(model, text)
    if not 0 < len(tokens) < model.cfg.n_ctx:
        raise BadPrompt(f"fact {fact_id}: expected 1 to {model.cfg.n_ctx - 1} tokens, got {len(tokens)}: {text!r}")
    return Prompt(fact_id, text, text, "", tokens, slice(0, 0))


def tokenize(model: Model, text: str) -> Int[Tensor, " pos"]:
    """Token ids of a text, after BOS if the model's prompts start with it, on the model's device."""
    return _with_bos(model, _encoding(model, text).ids)


def token_ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without BOS."""
    return [encoding.ids for encoding in _encodings(model, texts)]


@checked
def target_tokens(model: Model, text: str, target: str) -> Int[Tensor, " target"]:
    """Token ids of `target` after the prompt `text`.

    If the ids of `text` are a prefix of the ids of `text + " " + target`, the rest of these; otherwise the ids of
    `" " + target` without a leading token for the space alone.  Source: spec section 0.

    Raises:
        BadPrompt: the target is empty, has half a character, or the tokenizer has no tokens for part of it.
    """
    if not target.strip():
        raise BadPrompt(f"target {target!r} after {text!r} is empty")
    if half_character(target):
        raise BadPrompt(f"target {target!r} after {text!r} contains half a character (a lone surrogate)")
    return _target(model, text, target, *_encodings(model, [text, f"{text} {target}"]))


def _encodings(model: Model, texts: Sequence[str]) -> list[_Encoding]:
    """The encodings of many texts: every text of this room is tokenized here."""
    batch = tokenizer(model)(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    return [_Encoding(*pair) for pair in zip(batch["input_ids"], batch["offset_mapping"], strict=True)]


def _encoding(model: Model, text: str) -> _Encoding:
    return _encodings(model, [text])[0]


def _with_bos(model: Model, ids: list[int]) -> Int[Tensor, " pos"]:
    bos = [tokenizer(model).bos_token_id] if model.cfg.default_prepend_bos else []
    return torch.tensor(bos + ids, device=model.cfg.device)


def _is_blank(model: Model, token: int) -> bool:
    """Whether a token is nothing but space."""
    return not tokenizer(model).decode([token]).strip()


def _edit_prompt(model: Model, fact: Fact, encoding: _Encoding | None = None) -> Prompt:
    prompt = encode_template(model, fact.template, fact.subject, fact_id=fact.fact_id, encoding=encoding)
    return replace(prompt, found=fact.searched)


def _targets(fact: Fact) -> list[str]:
    """The fact's true object, and its false object if it has one."""
    return [target for target in (fact.target_true, fact.target_new) if target is not None]


def _target(model: Model, text: str, target: str, alone: _Encoding, whole: _Encoding) -> Int[Tensor, " target"]:
    """Target ids, from the encodings of the text without and with the target."""
    n = len(alone.ids)
    if len(whole.ids) > n and whole.ids[:n] == alone.ids:
        ids = whole.ids[n:]
    else:
        ids = _encoding(model, " " + target).ids
        if len(ids) > 1 and _is_blank(model, ids[0]):
            ids = ids[1:]
    unknown = tokenizer(model).unk_token
    if unknown is not None and tokenizer(model).unk_token_id in ids and unknown not in target:
        raise BadPrompt(f"target {target!r} after {text!r}: the tokenizer has no tokens for part of it")
    return torch.tensor(ids, device=model.cfg.device)


def _encoded(model: Model, fact: Fact, alone: _Encoding, whole: list[_Encoding]) -> Encoded:
    """A fact's tokens, from the encodings of its prompt alone and with each object."""
    prompt = _edit_prompt(model, fact, alone)
    targets = []
    for target, encoding in zip(_targets(fact), whole, strict=True):
        try:
            targets.append(_target(model, fact.prompt, target, alone, encoding))
        except BadPrompt as error:
            raise BadPrompt(f"fact {fact.fact_id}: {error}") from error
        check_fits(model, prompt, len(prompt) + len(targets[-1]) - 1)
    return Encoded(prompt, *targets)
