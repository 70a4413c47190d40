"""The built-in model as a plain PyTorch module: trains two to three times faster than the hooked one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedTransformerConfig


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The architecture: local attention in the first `n_local` layers, global in the others."""

    d_vocab: int
    n_layers: int = 8
    d_model: int = 96
    d_mlp: int = 384
    n_heads: int = 4
    n_local: int = 4
    window: int = 3
    n_ctx: int = 128

    def config(self) -> dict:
        """The fields of HookedTransformerConfig, as plain JSON values."""
        return {
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "n_ctx": self.n_ctx,
            "d_head": self.d_model // self.n_heads,
            "n_heads": self.n_heads,
            "d_mlp": self.d_mlp,
            "d_vocab": self.d_vocab,
            "act_fn": "gelu_new",
            "normalization_type": "LN",
            "eps": 1e-5,
            "use_local_attn": True,
            "attn_types": ["local"] * self.n_local + ["global"] * (self.n_layers - self.n_local),
            "window_size": self.window,
            "default_prepend_bos": False,
            "tie_word_embeddings": True,
            "model_name": "loc-edit-builtin",
            "seed": 0,
        }


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        d = shape.d_model
        self.n_heads = shape.n_heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, shape.d_mlp), nn.Linear(shape.d_mlp, d)
        mask = torch.ones(shape.n_ctx, shape.n_ctx, dtype=torch.bool).tril()
        if layer < shape.n_local:
            mask = mask.triu(1 - shape.window)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, mlp_drop: float) -> Tensor:
        batch, pos, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(batch, pos, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[:pos, :pos])
        x = x + self.out(z.transpose(1, 2).reshape(batch, pos, d))
        mlp = self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))
        if self.training and mlp_drop > 0:  # the whole output, per sequence; no rescaling: values keep their size
            mlp = mlp * (torch.rand(batch, 1, 1, device=x.device) >= mlp_drop)
        return x + mlp


class Twin(nn.Module):
    def __init__(self, shape: Shape, mlp_drop: tuple[float, ...]) -> None:
        super().__init__()
        self.shape, self.mlp_drop = shape, mlp_drop
        self.embed = nn.Embedding(shape.d_vocab, shape.d_model)
        self.pos_embed = nn.Embedding(shape.n_ctx, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layers))
        self.ln_final = nn.LayerNorm(shape.d_model)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                depth = (2 * shape.n_layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 if "embed" in name else depth * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.pos_embed.weight[: tokens.shape[1]]
        for block, drop in zip(self.blocks, self.mlp_drop, strict=True):
            x = block(x, drop)
        return self.ln_final(x) @ self.embed.weight.T

    def hooked_state(self) -> dict[str, Tensor]:
        """The weights under HookedTransformer's names; W_U is left out, as it is W_E transposed."""
        n, d = self.shape.n_heads, self.shape.d_model
        state = {
            "embed.W_E": self.embed.weight,
            "pos_embed.W_pos": self.pos_embed.weight,
            "ln_final.w": self.ln_final.weight,
            "ln_final.b": self.ln_final.bias,
            "unembed.b_U": torch.zeros(self.shape.d_vocab),
        }
        for layer, block in enumerate(self.blocks):
            qkv, bias = block.qkv.weight.view(3, n, -1, d), block.qkv.bias.view(3, n, -1)
            part = {"attn.W_O": block.out.weight.T.reshape(n, -1, d), "attn.b_O": block.out.bias}
            for index, letter in enumerate("QKV"):
                part[f"attn.W_{letter}"] = qkv[index].transpose(1, 2)
                part[f"attn.b_{letter}"] = bias[index]
            part |= {"mlp.W_in": block.up.weight.T, "mlp.b_in": block.up.bias}
            part |= {"mlp.W_out": block.down.weight.T, "mlp.b_out": block.down.bias}
            part |= {"ln1.w": block.ln1.weight, "ln1.b": block.ln1.bias}
            part |= {"ln2.w": block.ln2.weight, "ln2.b": block.ln2.bias}
            state |= {f"blocks.{layer}.{name}": value for name, value in part.items()}
        return {name: value.detach().clone().contiguous() for name, value in state.items()}


def hooked_config(config: dict) -> HookedTransformerConfig:
    """The configuration object, on the CPU."""
    return HookedTransformerConfig.from_dict({**config, "device": "cpu"})
