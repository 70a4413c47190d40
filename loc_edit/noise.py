"""Subject corruption: how large the noise is, and one drawn sample of it as data."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.facts import Fact
from loc_edit.models import embeddings, tokenizer
from loc_edit.prompts import Prompt, encode


def generator(*key: object) -> torch.Generator:
    """A CPU random generator whose seed is a hash of `key`: same key, same draws, in any order of use."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise_scale(model: HookedTransformer, scale: str | float, facts: Sequence[Fact] | None = None) -> float:
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
    model: HookedTransformer,
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
    draws = generator("noise", seed, prompt.fact_id)
    shape = samples, prompt.subject.stop - prompt.subject.start, model.cfg.d_model
    if scale == "swap":
        noise = _swaps(model, prompt, facts, samples, draws)
    elif isinstance(scale, str) and scale.startswith("u"):
        noise = noise_scale(model, scale[1:], facts) * (2 * torch.rand(shape, generator=draws) - 1)
    elif isinstance(scale, str) and scale.startswith("m"):
        noise = torch.randn(shape, generator=draws) @ _root(model, scale, facts)
    else:
        noise = noise_scale(model, scale, facts) * torch.randn(shape, generator=draws)
    return noise.to(model.cfg.device, model.cfg.dtype)


def _subject_embeddings(
    model: HookedTransformer, scale: str, facts: Sequence[Fact] | None
) -> Float[Tensor, "token d_model"]:
    """The embeddings of all tokens of all subjects, each subject tokenised alone, every occurrence counted."""
    if not facts:
        raise ValueError(f"noise scale {scale!r} is relative to the subjects of a data set: give facts= or a number")
    ids = tokenizer(model)([fact.subject for fact in facts], add_special_tokens=False)["input_ids"]
    flat = torch.tensor([i for one in ids for i in one], device=model.cfg.device)
    return embeddings(model)[flat].double()


def _root(model: HookedTransformer, scale: str, facts: Sequence[Fact] | None) -> Float[Tensor, "d_model d_model"]:
    """What turns white noise into noise with the factor's share of the subjects' covariance."""
    try:
        factor = float(scale[1:])
    except ValueError:
        factor = float("nan")
    if not factor >= 0:
        raise ValueError(f"noise scale {scale!r}: a factor such as 'm1' is wanted")
    values, vectors = torch.linalg.eigh(_subject_embeddings(model, scale, facts).T.cov().cpu())
    return (factor * values.clamp(min=0).sqrt()[:, None] * vectors.T).float()


def _swaps(
    model: HookedTransformer,
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
