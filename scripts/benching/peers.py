"""The same model in Hugging Face's transformers: decoding in left-padded batches, and the first layers of a pass."""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformer_lens import HookedTransformer
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
)

from loc_edit.models.catalog import model_directory

BATCH = 16
OUTPUTS = ("down_proj", "c_proj", "fc_out", "dense_4h_to_h")
"""Names of the MLP's output matrix, by family."""


def make_peer(source: str, model: HookedTransformer) -> tuple[Any, bool]:
    """The Hugging Face model of a source on the same device and in the same dtype, and whether its weights are equal.

    Shapes with random weights get a model of the same shape with other random weights.
    """
    device, dtype = model.W_E.device, model.cfg.dtype
    if source == "builtin":
        peer, same = _builtin(model), True
    elif directory := model_directory(source):
        peer, same = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True), True
    else:
        with device:
            peer, same = AutoModelForCausalLM.from_config(_config(model.cfg), dtype=dtype), False
    peer.generation_config = GenerationConfig(pad_token_id=0)  # nothing stops before its length
    return peer.to(device).eval().requires_grad_(False), same


@torch.inference_mode()
def generate(peer: Any, prompts: Sequence[Tensor], n_new: int, *, top_k: int | None = None) -> list[list[int]]:
    """The new tokens of each prompt: greedy, or sampled among the `top_k` likeliest; 16 prompts at a time."""
    options = {"do_sample": True, "top_k": top_k} if top_k else {"do_sample": False}
    new: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        rows = [prompt.to(peer.device) for prompt in prompts[start : start + BATCH]]
        tokens = pad_sequence(rows, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        made = peer.generate(tokens, attention_mask=mask, max_new_tokens=n_new, **options)
        new += made[:, tokens.shape[1] :].tolist()
    return new


class FirstLayers:
    """The first layers of a model, whose pass sums k k^T over the keys of the last of them."""

    def __init__(self, peer: Any, n_layers: int) -> None:
        whole = peer.base_model
        self.model = copy.copy(whole)
        self.model._modules = dict(whole._modules)
        name = next(name for name in ("layers", "h") if hasattr(whole, name))
        setattr(self.model, name, nn.ModuleList(getattr(whole, name)[:n_layers]))
        mlp = getattr(self.model, name)[-1].mlp
        self.output = next(getattr(mlp, name) for name in OUTPUTS if hasattr(mlp, name))

    def run(self, rows: Sequence[Tensor], batch: int) -> Tensor:
        """The sum over all tokens; batches of up to `batch` tokens, padding on the right included.

        Attention is causal, so the padding needs no mask.
        """
        batches: list[list[Tensor]] = []
        for row in sorted(rows, key=len):
            if not batches or len(row) * (len(batches[-1]) + 1) > batch:
                batches.append([])
            batches[-1].append(row)
        total: Any = 0
        keys: list[Tensor] = []
        hook = self.output.register_forward_pre_hook(lambda module, inputs: keys.append(inputs[0]))
        try:
            with torch.inference_mode():
                for group in batches:
                    tokens = pad_sequence(group, batch_first=True).to(self.model.device)
                    lengths = torch.tensor([len(row) for row in group])
                    real = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(tokens.device)
                    self.model(tokens, use_cache=False)
                    k = keys.pop().view(*tokens.shape, -1)[real].float()
                    total = total + k.T @ k
        finally:
            hook.remove()
        return total


def best(run: Callable[[int], object], sizes: Sequence[int], seconds: Callable[[Callable[[], object]], float]) -> int:
    """The fastest of some batch sizes."""
    return min(sizes, key=lambda size: seconds(lambda: run(size)))


def _config(cfg: Any) -> Any:
    """The configuration of a Hugging Face model of this shape."""
    if cfg.positional_embedding_type == "standard":
        return GPT2Config(
            n_layer=cfg.n_layers, n_embd=cfg.d_model, n_head=cfg.n_heads, n_inner=cfg.d_mlp, vocab_size=cfg.d_vocab
        )
    if cfg.parallel_attn_mlp:
        return GPTJConfig(
            n_layer=cfg.n_layers,
            n_embd=cfg.d_model,
            n_head=cfg.n_heads,
            n_inner=cfg.d_mlp,
            rotary_dim=cfg.rotary_dim,
            vocab_size=cfg.d_vocab,
        )
    return LlamaConfig(
        num_hidden_layers=cfg.n_layers,
        hidden_size=cfg.d_model,
        num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_key_value_heads or cfg.n_heads,
        intermediate_size=cfg.d_mlp,
        vocab_size=cfg.d_vocab,
    )


@torch.no_grad()
def _builtin(model: HookedTransformer) -> Any:
    """The built-in model as a GPT-Neo, which has local attention but neither biases nor a scale in it."""
    cfg, kinds = model.cfg, model.cfg.attn_types
    config = GPTNeoConfig(
        vocab_size=cfg.d_vocab,
        max_position_embeddings=cfg.n_ctx,
        hidden_size=cfg.d_model,
        num_layers=cfg.n_layers,
        attention_types=[[[kind], 1] for kind in kinds],
        num_heads=cfg.n_heads,
        intermediate_size=cfg.d_mlp,
        window_size=cfg.window_size,
        layer_norm_epsilon=cfg.eps,
    )
    peer = AutoModelForCausalLM.from_config(config, dtype=cfg.dtype).to(cfg.device)
    inner = peer.transformer
    inner.wte.weight.copy_(model.W_E), inner.wpe.weight.copy_(model.W_pos)
    _copy(inner.ln_f, model.ln_final.w, model.ln_final.b)
    for block, own in zip(inner.h, model.blocks, strict=True):
        attn, mlp = block.attn.attention, own.mlp
        for name, scale in (("Q", cfg.d_head**-0.5), ("K", 1.0), ("V", 1.0)):
            projection = nn.Linear(cfg.d_model, cfg.d_model, device=cfg.device, dtype=cfg.dtype)
            weight = rearrange(getattr(own.attn, f"W_{name}"), "head d d_head -> (head d_head) d")
            _copy(projection, scale * weight, scale * getattr(own.attn, f"b_{name}").flatten())
            setattr(attn, f"{name.lower()}_proj", projection)
        _copy(attn.out_proj, rearrange(own.attn.W_O, "head d_head d -> d (head d_head)"), own.attn.b_O)
        _copy(block.ln_1, own.ln1.w, own.ln1.b), _copy(block.ln_2, own.ln2.w, own.ln2.b)
        _copy(block.mlp.c_fc, mlp.W_in.T, mlp.b_in), _copy(block.mlp.c_proj, mlp.W_out.T, mlp.b_out)
    with suppress(AttributeError):
        peer.tie_weights()
    return peer


def _copy(module: Any, weight: Tensor, bias: Tensor) -> None:
    module.weight.copy_(weight), module.bias.copy_(bias)
