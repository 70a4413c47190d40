"""Subject corruption: how large the noise is, and one drawn sample of it as data."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.facts import Fact
from loc_edit.models import embeddings, tokenizer
from loc_edit.prompts import Prompt


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
    if not facts:
        raise ValueError(f"noise scale {scale!r} is relative to the subjects of a data set: give facts= or a number")
    subjects = [fact.subject for fact in facts]
    ids = tokenizer(model)(subjects, add_special_tokens=False)["input_ids"]
    flat = torch.tensor([i for one in ids for i in one], device=model.cfg.device)
    # Rounded: the last digits depend on threads and device, and a run's identity holds this number.
    return float(f"{factor * embeddings(model)[flat].double().std().item():.9g}")


def subject_noise(
    model: HookedTransformer,
    prompt: Prompt,
    *,
    scale: str | float = "s3",
    facts: Sequence[Fact] | None = None,
    samples: int = 10,
    seed: int = 0,
) -> Float[Tensor, "sample subject d_model"]:
    """Gaussian noise for the embeddings of the prompt's subject, drawn once per (seed, fact).

    Args:
        model: gives the width and the device.
        prompt: gives the subject's length and the fact.
        scale: see `noise_scale`.
        facts: see `noise_scale`.
        samples: number of samples K >= 1.
        seed: with the fact's id, the generator's seed.

    Returns:
        The tensor that is added to `hook_embed` at the subject's positions, in units of the embeddings.
    """
    if samples < 1:
        raise ValueError(f"noise samples {samples}: at least 1 is wanted")
    sigma = noise_scale(model, scale, facts)
    length = prompt.subject.stop - prompt.subject.start
    eps = torch.randn(samples, length, model.cfg.d_model, generator=generator("noise", seed, prompt.fact_id))
    return (sigma * eps).to(model.cfg.device, model.cfg.dtype)
