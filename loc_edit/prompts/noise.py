"""Subject corruption: how large the noise is, and one drawn sample of it as data."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model, embeddings, tokenizer
from loc_edit.prompts.encoding import Prompt, encode
from loc_edit.prompts.randomness import generator


def noise_scale(model: Model, scale: str | float, facts: Sequence[Fact] | None = None) -> float:
    """The noise's standard deviation.

    Args:
        model: whose token embeddings are corrupted.
        scale: a number (or its text), or `"s3"`: 3 times the unbiased standard deviation over all entries of the
            embeddings of all subject tokens of `facts` (each subject tokenised alone, every occurrence
            counted); any other factor likewise, `"s2.5"`.
        facts: the data set, needed for an `s` scale only.

    Source: Meng et al. 2022a, appendix B.1.
    """
    if not isinstance(scale, str) or not scale.startswith("s"):
        try:
            value = float(scale)
        except ValueError:
            raise ValueError(f"noise scale {scale!r}: a number or a factor such as 's3' is wanted") from None
        if not 0 <= value < float("inf"):
            raise ValueError(f"noise scale {scale}: a finite number >= 0 is wanted")
        return value
    try:
        factor = float(scale.removeprefix("s"))
    except ValueError:
        factor = float("nan")
    if not factor >= 0:
        raise ValueError(f"noise scale {scale!r}: a number or a factor such as 's3' is wanted")
    # Rounded: the last digits depend on threads and device, and a run's identity holds this number.
    return float(f"{factor * _subject_embeddings(model, scale, facts).std().item():.9g}")


def subject_noise(
    model: Model,
    prompt: Prompt,
    *,
    scale: str | float = "s3",
    facts: Sequence[Fact] | None = None,
    samples: int = 10,
    seed: int = 0,
) -> Float[Tensor, "sample subject d_model"]:
    """Noise for the embeddings of the prompt's subject, drawn once per (seed, fact).

    Args:
        model: gives the width and the device.
        prompt: gives the subject's length and the fact.
        scale: Gaussian of this standard deviation, see `noise_scale`: a number, or `"s3"`.  Or another rule:
            `"u0.5"` or `"us3"`, uniform between plus and minus that; `"m1"`, Gaussian with 1 time (squared) the full
            covariance of the subjects' embeddings; `"swap"`, what makes other facts' subjects of the subject.
        facts: the data set, whose subjects the rules `s`, `us`, `m` and `swap` are about.
        samples: number of samples K >= 1; of `swap` there are fewer where fewer subjects fit.
        seed: with the fact's id, the generator's seed.

    Returns:
        The tensor that is added to `hook_embed` at the subject's positions, in units of the embeddings.

    Raises:
        ValueError: no such rule, or no facts where it needs them; of `swap`, no other subject fits the prompt.

    Source: Meng et al. 2022a, appendix B.1 (Gaussian, uniform, covariance); Wang et al. 2023, Zhang and Nanda 2024
    (another subject in place of noise).
    """
    if samples < 1:
        raise ValueError(f"noise samples {samples}: at least 1 is wanted")
    return corruption(model, scale, facts).draw(model, prompt, samples=samples, seed=seed)


Rule = Literal["gaussian", "uniform", "covariance", "swap"]


def noise_rule(scale: str | float) -> Rule:
    """What kind of noise a text such as `"s3"`, `"u0.5"`, `"m1"` or `"swap"` asks for."""
    if scale == "swap":
        return "swap"
    by_letter: dict[str, Rule] = {"u": "uniform", "m": "covariance"}
    return by_letter.get(str(scale)[:1], "gaussian")


@dataclass(frozen=True)
class Corruption:
    """A rule of subject noise with all that it takes from the model and the data set: made once, drawn for many facts.

    Attributes:
        rule: `gaussian`, `uniform`, `covariance` or `swap`.
        scale: standard deviation; half the width; factor of the covariance's root; 1 of `swap`.
        facts: the data set, for `swap` alone.
        root: for `covariance`, what turns white noise into it.
        subjects: a digest of the data set's subjects, where the noise depends on more of them than `scale` says.
    """

    rule: Rule
    scale: float
    facts: tuple[Fact, ...] = field(default=(), repr=False)
    root: Float[Tensor, "d_model d_model"] | None = field(default=None, repr=False, compare=False)
    subjects: str = ""

    @property
    def sigma(self) -> float | None:
        """The standard deviation of Gaussian noise, from which fresh noise can be drawn; `None` of other rules."""
        return self.scale if self.rule == "gaussian" else None

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """All that a draw depends on, but for the model, the seed and the fact."""
        if self.rule == "gaussian":
            return {"sigma": self.scale}
        return {"noise": self.rule, "scale": self.scale, "subjects": self.subjects or None}

    def draw(
        self, model: Model, prompt: Prompt, *, samples: int, seed: int = 0
    ) -> Float[Tensor, "sample subject d_model"]:
        """The noise of one prompt, see `subject_noise`.

        Raises:
            ValueError: no other subject fits the prompt (`swap`).
        """
        draws = generator("noise", seed, prompt.fact_id)
        shape = samples, prompt.subject.stop - prompt.subject.start, model.cfg.d_model
        if self.rule == "swap":
            noise = _swaps(model, prompt, self.facts, samples, draws)
        elif self.rule == "uniform":
            noise = self.scale * (2 * torch.rand(shape, generator=draws) - 1)
        elif self.root is not None:
            noise = torch.randn(shape, generator=draws) @ self.root
        else:
            noise = self.scale * torch.randn(shape, generator=draws)
        return noise.to(model.cfg.device, model.cfg.dtype)


def corruption(model: Model, scale: str | float, facts: Sequence[Fact] | None = None) -> Corruption:
    """The noise rule of a text such as `"s3"`, with all that it takes from the model and the data set.

    Args:
        model: whose token embeddings are corrupted.
        scale: see `subject_noise`.
        facts: the data set, for the rules that are about its subjects.

    Raises:
        ValueError: no such rule, or no facts where it needs them.
    """
    rule = noise_rule(scale)
    if rule == "gaussian":
        return Corruption(rule, noise_scale(model, scale, facts))
    if rule == "uniform":
        return Corruption(rule, noise_scale(model, str(scale)[1:], facts))
    subjects = hashlib.sha256("\x1f".join(fact.subject for fact in facts or ()).encode()).hexdigest()[:16]
    if rule == "swap":
        return Corruption(rule, 1.0, tuple(facts or ()), subjects=subjects)
    factor = _factor(str(scale))
    return Corruption(rule, factor, root=factor * _root(model, str(scale), facts), subjects=subjects)


def _subject_embeddings(
    model: Model, scale: str, facts: Sequence[Fact] | None
) -> Float[Tensor, "token d_model"]:
    """The embeddings of all tokens of all subjects, each subject tokenised alone, every occurrence counted."""
    if not facts:
        raise ValueError(f"noise scale {scale!r} is relative to the subjects of a data set: give facts= or a number")
    ids = tokenizer(model)([fact.subject for fact in facts], add_special_tokens=False)["input_ids"]
    flat = torch.tensor([i for one in ids for i in one], device=model.cfg.device)
    return embeddings(model)[flat].double()


def _factor(scale: str) -> float:
    """The number of a rule such as `m1`."""
    try:
        factor = float(scale[1:])
    except ValueError:
        factor = float("nan")
    if not factor >= 0:
        raise ValueError(f"noise scale {scale!r}: a factor such as 'm1' is wanted")
    return factor


def _root(model: Model, scale: str, facts: Sequence[Fact] | None) -> Float[Tensor, "d_model d_model"]:
    """What turns white noise into noise with the subjects' full covariance."""
    values, vectors = torch.linalg.eigh(_subject_embeddings(model, scale, facts).T.cov().cpu())
    return (values.clamp(min=0).sqrt()[:, None] * vectors.T).float()


def _swaps(
    model: Model,
    prompt: Prompt,
    facts: Sequence[Fact] | None,
    samples: int,
    draws: torch.Generator,
) -> Float[Tensor, "sample subject d_model"]:
    """Embeddings of other subjects less those of the prompt's, of subjects whose prompt differs in the span alone."""
    span, own = prompt.subject, prompt.tokens
    others: dict[str, Tensor] = {}
    for fact in facts or ():
        if fact.subject == prompt.subject_text or fact.subject in others:
            continue
        try:
            other = encode(model, Fact(template=prompt.template, subject=fact.subject, target_true="-"))
        except ValueError:  # its subject cannot be found in this template
            continue
        elsewhere = len(other) == len(own) and (other.tokens != own).nonzero()[:, 0].tolist()
        if elsewhere and other.subject == span and set(elsewhere) <= set(range(span.start, span.stop)):
            others[fact.subject] = other.tokens[span]
    if not others:
        raise ValueError(
            f"fact {prompt.fact_id}: no other subject of {len(facts or ())} facts takes the place of "
            f"{prompt.subject_text!r} token for token; give more facts= or another noise"
        )
    chosen = torch.randperm(len(others), generator=draws)[:samples].tolist()
    tokens = torch.stack([list(others.values())[i] for i in chosen])
    return (embeddings(model)[tokens] - embeddings(model)[own[span]]).float().cpu()
