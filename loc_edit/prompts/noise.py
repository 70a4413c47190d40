"""Subject noise: the corruption of Causal Tracing, its scale, and samples drawn from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.arguments import Samples, checked
from loc_edit.facts.fact import Fact
from loc_edit.files import short_hash
from loc_edit.models.adapter import lens
from loc_edit.models.model import Model
from loc_edit.prompts.encoding import Prompt, encode_template, token_ids
from loc_edit.prompts.randomness import generator


@checked
def noise_scale(model: Model, scale: str | float, facts: Sequence[Fact] | None = None) -> float:
    """The noise's standard deviation.

    Args:
        model: the model whose token embeddings are corrupted.
        scale: a number (or its text), or `"s3"`: 3 times the unbiased standard deviation over all entries of the
            embeddings of all subject tokens of `facts` (each subject tokenized alone, every occurrence
            counted); any other factor likewise, such as `"s2.5"`.
        facts: the data set, needed for an `s` scale only.

    Source: Meng et al. 2022a, appendix B.1.
    """
    number = _number(scale, "s")
    if not str(scale).startswith("s"):
        return number
    # Rounded: the last digits depend on threads and device, and a run's identity holds this number.
    return float(f"{number * _subject_embeddings(model, scale, facts).std().item():.9g}")


@checked
def subject_noise(
    model: Model,
    prompt: Prompt,
    *,
    scale: str | float = "s3",
    facts: Sequence[Fact] | None = None,
    samples: Samples = 10,
    seed: int = 0,
) -> Float[Tensor, "sample subject d_model"]:
    """Noise for the embeddings of the prompt's subject, drawn once per (seed, fact).

    Args:
        model: gives the width and the device.
        prompt: gives the subject's length and the fact.
        scale: Gaussian noise of this standard deviation, see `noise_scale`: a number, or `"s3"`.  Or another rule:
            `"u0.5"` or `"us3"`, uniform noise between plus and minus that number; `"m1"`, Gaussian noise with 1 time
            (squared) the full covariance of the subjects' embeddings; `"swap"`, the difference between the embeddings
            of other facts' subjects and of this subject.
        facts: the data set, whose subjects the rules `s`, `us`, `m` and `swap` need.
        samples: number of samples K, 1 to 100,000; `swap` gives fewer if fewer subjects fit.
        seed: with the fact's id, the generator's seed.

    Returns:
        The tensor that is added to `hook_embed` at the subject's positions, in units of the embeddings.

    Raises:
        ValueError: there is no such rule, or it needs facts; for `swap`, no other subject fits the prompt.

    Source: Meng et al. 2022a, appendix B.1 (Gaussian, uniform, covariance); Wang et al. 2023, Zhang and Nanda 2024
    (another subject in place of noise).
    """
    return corruption(model, scale, facts).draw(model, prompt, samples=samples, seed=seed)


def check_noise(prompt: Prompt, noise: Float[Tensor, "sample subject d"], d_model: int | None = None) -> None:
    """Refuse noise that does not have the shape of the prompt's subject and, if it is given, the model's width."""
    expected = ["samples", prompt.subject.stop - prompt.subject.start, d_model or noise.shape[2]]
    if list(noise.shape[1:]) != expected[1:] or not len(noise):
        raise ValueError(
            f"fact {prompt.fact_id}: noise of shape {list(noise.shape)}: expected [sample, subject, d_model] with at "
            f"least 1 sample, {expected[1]} tokens of the subject and width {expected[2]}"
        )


@dataclass(frozen=True)
class Corruption:
    """A rule of subject noise, with everything that it takes from model and data set; it draws for many facts.

    Attributes:
        rule: the kind of noise.
        scale: standard deviation (`gaussian`), half the width (`uniform`), or factor of the root (`covariance`).
        facts: the data set, for `swap` only.
        root: for `covariance`, the matrix that turns white noise into this noise.
        subjects: a hash of the data set's subjects, for the rules that need more of them than `scale`.
    """

    rule: Literal["gaussian", "uniform", "covariance", "swap"]
    scale: float
    facts: tuple[Fact, ...] = field(default=(), repr=False)
    root: Float[Tensor, "d_model d_model"] | None = field(default=None, repr=False, compare=False)
    subjects: str = ""

    @property
    def sigma(self) -> float | None:
        """The standard deviation of Gaussian noise, from which fresh noise can be drawn; `None` for other rules."""
        return self.scale if self.rule == "gaussian" else None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that a draw depends on, except the model, the seed and the fact."""
        if self.rule == "gaussian":
            return {"sigma": self.scale}
        return {"noise": self.rule, "scale": self.scale, "subjects": self.subjects or None}

    def draw(
        self, model: Model, prompt: Prompt, *, samples: int, seed: int = 0
    ) -> Float[Tensor, "sample subject d_model"]:
        """The noise of a prompt, see `subject_noise`.

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
    """The noise rule of a text such as `"s3"`, with everything that it takes from the model and the data set.

    Args:
        model: the model whose token embeddings are corrupted.
        scale: see `subject_noise`.
        facts: the data set, for the rules that need its subjects.

    Raises:
        ValueError: there is no such rule, or it needs facts.
    """
    text = str(scale)
    if text.startswith("u"):
        return Corruption("uniform", noise_scale(model, text[1:], facts))
    subjects = short_hash("\x1f".join(fact.subject for fact in facts or ()))
    if text == "swap":
        return Corruption("swap", 1.0, tuple(facts or ()), subjects=subjects)
    if text.startswith("m"):
        factor = _number(scale, "m")
        values, vectors = torch.linalg.eigh(_subject_embeddings(model, scale, facts).T.cov().cpu())
        root = (values.clamp(min=0).sqrt()[:, None] * vectors.T).float()
        return Corruption("covariance", factor, root=factor * root, subjects=subjects)
    return Corruption("gaussian", noise_scale(model, scale, facts))


def _number(scale: str | float, letter: str) -> float:
    """The number in a noise scale, which may follow the letter of a rule."""
    try:
        number = float(str(scale).removeprefix(letter))
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise ValueError(f"noise scale {scale!r}: expected a finite number of at least 0, or a factor such as 's3'")
    return number


def _subject_embeddings(
    model: Model, scale: str | float, facts: Sequence[Fact] | None
) -> Float[Tensor, "token d_model"]:
    """The embeddings of all tokens of all subjects, each subject tokenized alone, every occurrence counted."""
    if not facts:
        raise ValueError(f"noise scale {scale!r} is relative to the subjects of a data set: give facts= or a number")
    ids = [i for subject_ids in token_ids(model, [fact.subject for fact in facts]) for i in subject_ids]
    return lens.embeddings(model, torch.tensor(ids, device=model.cfg.device)).double()


def _swaps(
    model: Model, prompt: Prompt, facts: Sequence[Fact], samples: int, draws: torch.Generator
) -> Float[Tensor, "sample subject d_model"]:
    """Embeddings of other subjects minus the prompt's own, for subjects that change the prompt's tokens there only."""
    span, own = prompt.subject, prompt.tokens
    swapped = []
    for subject in dict.fromkeys(fact.subject for fact in facts if fact.subject != prompt.subject_text):
        try:
            other = encode_template(model, prompt.template, subject)
        except ValueError:  # the subject cannot be found in this template
            continue
        if len(other) == len(own) and other.subject == span and not torch.equal(other.tokens, own):
            same = other.tokens == own
            if same[: span.start].all() and same[span.stop :].all():
                swapped.append(other.tokens[span])
    if not swapped:
        raise ValueError(
            f"fact {prompt.fact_id}: no other subject of {len(facts)} facts takes the place of "
            f"{prompt.subject_text!r} token for token; give more facts= or another noise"
        )
    chosen = torch.randperm(len(swapped), generator=draws)[:samples].tolist()
    tokens = torch.stack([swapped[i] for i in chosen])
    return (lens.embeddings(model, tokens) - lens.embeddings(model, own[span])).float().cpu()
