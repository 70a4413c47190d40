"""An editor: LoRA on W_out, a low-rank change trained by Adam with weight decay.

loc-edit run --plugin examples/lora_editor.py --methods rome lora --set lora.rank=2

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"; here on the output of one layer's MLP.
"""

from dataclasses import dataclass

import torch

import loc_edit


@dataclass(frozen=True)
class LoraSettings:
    """Hyperparameters of LoRA."""

    rank: int = 4
    steps: int = 40
    lr: float = 5e-3
    weight_decay: float = 0.01

    def __post_init__(self):
        if self.rank < 1 or self.steps < 1:
            raise ValueError(f"expected rank and steps of at least 1, got {self.rank} and {self.steps}")


@loc_edit.editor("lora", settings=LoraSettings, label="LoRA")
def lora(model, requests, layers, *, settings):
    """A low-rank change of each layer's `W_out`, trained on the edit prompt alone."""
    return [train(model, request, layers, settings) for request in requests]


def train(model, request, layers, settings):
    """The edit of one request."""
    draws = torch.Generator().manual_seed(request.seed + request.fact_id)
    width, wide = model.cfg.d_mlp, model.cfg.d_model
    lefts = [torch.randn(width, settings.rank, generator=draws) / width**0.5 for _ in layers]
    lefts = [left.to(model.cfg.device).requires_grad_() for left in lefts]
    rights = [torch.zeros(settings.rank, wide, device=model.cfg.device, requires_grad=True) for _ in layers]
    tokens = torch.cat([request.prompt.tokens, request.target_tokens[:-1]])[None]
    adam = torch.optim.Adam([*lefts, *rights], lr=settings.lr, weight_decay=settings.weight_decay)
    hooks = [
        hook for layer, left, right in zip(layers, lefts, rights, strict=True) for hook in adapter(layer, left, right)
    ]
    if request.noise is not None:
        hooks += loc_edit.corruption_hooks(request.prompt, request.noise)
        tokens = tokens.repeat(len(request.noise), 1)
    with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        for _ in range(settings.steps):
            log_p = model(tokens)[:, len(request.prompt) - 1 :].log_softmax(-1)
            log_p = log_p[:, range(len(request.target_tokens)), request.target_tokens].sum(-1)
            loss = -log_p.mean() if request.objective == "raise" else log_p.exp().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    updates = zip(layers, lefts, rights, strict=True)
    return loc_edit.Edit(
        tuple(loc_edit.WeightUpdate(layer, left.detach(), right.detach()) for layer, left, right in updates)
    )


def adapter(layer, left, right):
    """Hooks that add `key @ left @ right` to the output of a layer's MLP."""
    keys = []
    return [
        (f"blocks.{layer}.mlp.hook_post", lambda key, hook: keys.append(key)),
        (f"blocks.{layer}.hook_mlp_out", lambda output, hook: output + keys.pop() @ left @ right),
    ]
