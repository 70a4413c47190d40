"""Text to tokens: prompts with the subject's place in them, and target tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model, tokenizer


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


def encode(model: Model, fact: Fact) -> Prompt:
    """The fact's edit prompt.

    Raises:
        SubjectNotFound: no token covers the subject.
        BadPrompt: the prompt is longer than the model's context.
    """
    prompt = encode_template(model, fact.template, fact.subject, fact_id=fact.fact_id)
    return replace(prompt, found=fact.searched)


@dataclass(frozen=True)
class Encoded:
    """A fact's edit prompt and the token ids of its objects after it.

    Attributes:
        prompt: as `encode` makes it.
        target_true: as `target_tokens` makes it of the right object.
        target_new: likewise of the false one; `None` where the fact has none.
    """

    prompt: Prompt
    target_true: Int[Tensor, " _"] = field(compare=False)
    target_new: Int[Tensor, " _"] | None = field(default=None, compare=False)


def encode_all(
    model: Model, facts: Sequence[Fact], *, batch_size: int = 1000
) -> list[Encoded | SubjectNotFound | BadPrompt]:
    """Each fact's `encode` and `target_tokens`, its texts tokenised many at a time.

    In the place of a fact that cannot be used stands the error that says so, and names it: what `encode` and
    `target_tokens` raise, and `BadPrompt` where prompt and object together are longer than the context.
    """
    result: list[Encoded | SubjectNotFound | BadPrompt] = []
    for start in range(0, len(facts), batch_size):
        some = facts[start : start + batch_size]
        pairs = [(fact.prompt, target) for fact in some for target in (fact.target_true, fact.target_new) if target]
        whole = iter(
            tokenizer(model)([f"{text} {target}" for text, target in pairs], add_special_tokens=False).input_ids
        )
        for fact, alone in zip(some, _encodings(model, [fact.prompt for fact in some]), strict=True):
            ids = [next(whole) for _ in range(1 if fact.target_new is None else 2)]
            try:
                result.append(_encoded(model, fact, alone, ids))
            except (SubjectNotFound, BadPrompt) as error:
                result.append(error)
    return result


def _encoded(model: Model, fact: Fact, alone: "_Encoding", whole: list[list[int]]) -> Encoded:
    """A fact's tokens, from the encodings of its prompt and of this with each object."""
    start = fact.template.index("{}")
    tokens, span = _place(model, fact.prompt, alone, start, start + len(fact.subject), fact.fact_id, fact.subject)
    prompt = Prompt(fact.fact_id, fact.prompt, fact.template, fact.subject, tokens, span, found=fact.searched)
    targets = []
    for target, ids in zip((fact.target_true, fact.target_new), whole, strict=False):
        try:
            targets.append(_target(model, fact.prompt, str(target), alone.ids, ids))
        except BadPrompt as error:
            raise BadPrompt(f"fact {fact.fact_id}: {error}") from error
        if (n := len(tokens) + len(targets[-1]) - 1) > model.cfg.n_ctx:
            raise BadPrompt(
                f"fact {fact.fact_id}: {n} tokens do not fit the context of {model.cfg.n_ctx}: {fact.prompt!r}"
            )
    return Encoded(prompt, targets[0], targets[1] if len(targets) > 1 else None)


def encode_template(
    model: Model, template: str, subject: str, *, fact_id: int = 0, prefix: str = ""
) -> Prompt:
    """The prompt that a template and a subject make, after an optional `prefix` (which may hold braces)."""
    begin, braces, end = template.partition("{}")
    if not braces:
        raise SubjectNotFound(f"fact {fact_id}: template {template!r} has no {{}} for the subject {subject!r}")
    text = prefix + begin + subject + end
    start = len(prefix) + len(begin)
    tokens, span = _tokenize(model, text, start, start + len(subject), fact_id, subject)
    return Prompt(fact_id, text, template, subject, tokens, span)


def encode_context(model: Model, context: str, prompt: Prompt) -> Prompt:
    """`prompt` in a context: a text whose last `{}` is the prompt's place."""
    before, braces, after = context.rpartition("{}")
    if not braces or after:
        raise BadPrompt(f"context {context!r} must end with {{}}, the prompt's place")
    return encode_template(model, prompt.template, prompt.subject_text, fact_id=prompt.fact_id, prefix=before)


def find_subject(model: Model, text: str, subject: str, *, fact_id: int = 0) -> Prompt:
    """A finished text as a prompt: the subject is its first occurrence."""
    start = text.find(subject)
    if start < 0:
        raise SubjectNotFound(f"fact {fact_id}: subject {subject!r} is not in prompt {text!r}")
    tokens, span = _tokenize(model, text, start, start + len(subject), fact_id, subject)
    template = text[:start] + "{}" + text[start + len(subject) :]
    return Prompt(fact_id, text, template, subject, tokens, span, found=True)


def encode_text(model: Model, text: str, *, fact_id: int = 0) -> Prompt:
    """A text without a subject of interest, such as a neighbour's prompt."""
    tokens = tokenize(model, text)
    if not 0 < len(tokens) < model.cfg.n_ctx:
        raise BadPrompt(f"fact {fact_id}: {len(tokens)} tokens, and 1 to {model.cfg.n_ctx - 1} are wanted: {text!r}")
    return Prompt(fact_id, text, text, "", tokens, slice(0, 0))


def tokenize(model: Model, text: str) -> Int[Tensor, " pos"]:
    """Token ids of a text, after BOS where the model wants one, on the model's device."""
    return _with_bos(model, _ids(model, text))


def target_tokens(model: Model, text: str, target: str) -> Int[Tensor, " target"]:
    """Token ids of `target` after the prompt `text`.

    The ids that follow those of `text` in `text + " " + target` where the first are a prefix of the second;
    else those of `" " + target` without a lone space piece.  Source: spec section 0.

    Raises:
        BadPrompt: the target is empty, or the tokenizer has no tokens for part of it.
    """
    if not target.strip():
        raise BadPrompt(f"target {target!r} after {text!r} is empty")
    return _target(model, text, target, _ids(model, text), _ids(model, f"{text} {target}"))


def _target(
    model: Model, text: str, target: str, alone: list[int], whole: list[int]
) -> Int[Tensor, " target"]:
    """Target ids, from those of the text without and with the target."""
    if len(whole) > len(alone) and whole[: len(alone)] == alone:
        ids = whole[len(alone) :]
    else:
        ids = _ids(model, " " + target)
        if len(ids) > 1 and _is_blank(model, ids[0]):
            ids = ids[1:]
    unknown = tokenizer(model).unk_token
    if unknown is not None and tokenizer(model).unk_token_id in ids and unknown not in target:
        raise BadPrompt(f"target {target!r} after {text!r}: the tokenizer has no tokens for part of it")
    return torch.tensor(ids, device=model.cfg.device)


def _is_blank(model: Model, token: int) -> bool:
    """Whether a token is nothing but space."""
    return not tokenizer(model).decode([token]).strip()


def _ids(model: Model, text: str) -> list[int]:
    return list(tokenizer(model)(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class _Encoding:
    """A text's token ids, without BOS, and the characters [begin, end) that each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def _encodings(model: Model, texts: list[str]) -> list[_Encoding]:
    found = tokenizer(model)(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [_Encoding(*one) for one in zip(found["input_ids"], found["offset_mapping"], strict=True)]


def _with_bos(model: Model, ids: list[int]) -> Int[Tensor, " pos"]:
    bos = [tokenizer(model).bos_token_id] if model.cfg.default_prepend_bos else []
    return torch.tensor(bos + ids, device=model.cfg.device)


def _tokenize(
    model: Model, text: str, start: int, end: int, fact_id: int, subject: str
) -> tuple[Int[Tensor, " pos"], slice]:
    """Tokens of `text`, and the span of those that overlap its characters [start, end)."""
    return _place(model, text, _encodings(model, [text])[0], start, end, fact_id, subject)


def _place(
    model: Model, text: str, encoding: _Encoding, start: int, end: int, fact_id: int, subject: str
) -> tuple[Int[Tensor, " pos"], slice]:
    """Token ids, after BOS where the model wants one, and the span of those that overlap [start, end)."""
    ids, offsets = encoding.ids, encoding.offsets
    covering = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    if not covering:
        raise SubjectNotFound(f"fact {fact_id}: no token of {text!r} covers the subject {subject!r}")
    first, last = covering[0], covering[-1]
    doubled = first == 0 and last > 0 and offsets[1][0] <= start and text[start] != " "
    if doubled and _is_blank(model, ids[0]):
        first += 1  # the space that SentencePiece puts before a text takes the place of its first character
    tokens = _with_bos(model, ids)
    if len(tokens) >= model.cfg.n_ctx:
        raise BadPrompt(
            f"fact {fact_id}: prompt of {len(tokens)} tokens does not fit the context of {model.cfg.n_ctx}: {text!r}"
        )
    shift = len(tokens) - len(offsets)
    return tokens, slice(first + shift, last + 1 + shift)
