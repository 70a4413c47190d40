"""Train the built-in model and write its files into the package: config, weights, tokenizer and model card.

python scripts/train_builtin_model.py            # 10 to 15 minutes on a core of its own
python scripts/train_builtin_model.py --quick    # a smoke run, written to build/; the model knows nothing
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from builtin_twin import Shape, Twin, hooked_config
from measure_builtin_model import measure_and_write_card
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformer_lens import HookedTransformer

from loc_edit.facts.builtin import builtin_rows
from loc_edit.keys.builtin_corpus import EXPOSURES, builtin_corpus

END = "<|endoftext|>"
MODEL_DIR = Path(__file__).parents[1] / "loc_edit" / "data" / "model"
ROW_LENGTHS = (64, 128)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--out", type=Path, help="default: the package; build/quick_model with --quick")
    parser.add_argument("--exposures", type=int, default=EXPOSURES)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--d-mlp", type=int, default=640)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--local", type=int, default=6, help="how many layers have local attention")
    parser.add_argument("--window", type=int, default=3, help="how many tokens local attention sees")
    parser.add_argument("--drop", type=float, nargs="+", default=[0.55, 0.4, 0.3, 0.2, 0.15, 0.1, 0.4, 0.5])
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--embed-lr", type=float, default=0.5, help="factor on the embeddings' learning rate")
    parser.add_argument("--subject-std", type=float, default=0.1, help="of the embeddings of subjects' words")
    parser.add_argument("--subject-lr", type=float, default=0.03, help="factor on how far each step takes these")
    parser.add_argument("--object-weight", type=float, default=4.0, help="weight of objects' tokens in the loss")
    parser.add_argument("--tokens", type=int, default=512, help="tokens a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out = args.out or (Path("build/quick_model") if args.quick else MODEL_DIR)
    if args.quick:
        args.exposures = 6
    return args


def train_tokenizer(vocab: int) -> Tokenizer:
    """Byte-level BPE in which the words of subjects and objects stay whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    names = {row.object for row in builtin_rows()} | {word for row in builtin_rows() for word in row.subject.split()}
    text = [*builtin_corpus(exposures=4), *(name for name in sorted(names) for _ in range(1000))]
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer) -> str:
    rows = builtin_rows()
    objects = {row.object: len(tokenizer.encode(row.object).ids) for row in rows}
    assert max(objects.values()) <= 2, {name: n for name, n in objects.items() if n > 2}
    lengths = [len(tokenizer.encode(row.subject).ids) for row in rows]
    assert tokenizer.decode(tokenizer.encode("The Louvre").ids).strip() == "The Louvre"
    longer = sum(n > 1 for n in lengths) / len(lengths)
    return f"{sum(lengths) / len(lengths):.2f} tokens a subject, {longer:.0%} of them more than one"


def encoded(tokenizer: Tokenizer, documents: Iterator[str]) -> Iterator[list[int]]:
    while chunk := list(islice(documents, 2000)):
        for encoding in tokenizer.encode_batch_fast(chunk):
            yield encoding.ids


def token_weights(tokenizer: Tokenizer, object_weight: float) -> torch.Tensor:
    """Weights of the tokens in the loss: those that objects are made of count more than the rest."""
    weights = torch.ones(tokenizer.get_vocab_size())
    for name in {row.object for row in builtin_rows()}:
        weights[tokenizer.encode(name).ids] = object_weight
    return weights


def batches(tokenizer: Tokenizer, *, exposures: int, tokens: int, seed: int) -> Iterator[torch.Tensor]:
    """Rows of documents, each ended by the end-of-text token; a row starts with one and is cut at its end.

    The rows of one batch have the same length, one of ROW_LENGTHS.
    """
    rng = Random(f"batches|{seed}")
    end = tokenizer.token_to_id(END)
    length, row, rows = rng.choice(ROW_LENGTHS), [], []
    for document in encoded(tokenizer, builtin_corpus(seed, exposures)):
        row += [*document, end]
        if len(row) >= length:
            rows.append(row[:length])
            row = []
        if len(rows) * length >= tokens:
            yield torch.tensor(rows)
            length, rows = rng.choice(ROW_LENGTHS), []


class SlowRows:
    """Embeddings of words that only subjects have: they start large and hardly move.

    A whole word's embedding could hold what is known of the subject, alike for all subjects of one object.  One that
    stays where it was drawn is like no other, and what is known has to be looked up by the MLPs.
    """

    def __init__(self, twin: Twin, tokenizer: Tokenizer, std: float, pace: float) -> None:
        rows = builtin_rows()
        objects = {token for row in rows for token in tokenizer.encode(row.object).ids}
        common = set(tokenizer.encode("The of the and A University de on in a").ids)
        subjects = {token for row in rows for token in tokenizer.encode(row.subject).ids}
        self.weight, self.pace = twin.embed.weight.data, pace
        self.tokens = torch.tensor(sorted(subjects - objects - common))
        self.values = std * torch.randn(len(self.tokens), twin.shape.d_model)
        self.weight[self.tokens] = self.values

    def hold(self) -> None:
        """Take back all but `pace` of the step just made."""
        self.values += self.pace * (self.weight[self.tokens] - self.values)
        self.weight[self.tokens] = self.values


def optimiser(twin: Twin, lr: float, embed_lr: float) -> torch.optim.AdamW:
    """AdamW; the embeddings learn slower, so that they stay small beside what the layers write."""
    embeddings = [twin.embed.weight, twin.pos_embed.weight]
    gains = [p for p in twin.parameters() if p.dim() == 1]
    matrices = [p for block in twin.blocks for p in block.parameters() if p.dim() == 2]
    groups = [
        {"params": embeddings, "lr": lr * embed_lr, "weight_decay": 0.1},
        {"params": gains, "lr": lr, "weight_decay": 0.0},
        {"params": matrices, "lr": lr, "weight_decay": 0.1},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def train(twin: Twin, tokenizer: Tokenizer, args: argparse.Namespace) -> dict:
    data = list(batches(tokenizer, exposures=args.exposures, tokens=args.tokens, seed=args.seed))
    weights = token_weights(tokenizer, args.object_weight)
    slow = SlowRows(twin, tokenizer, args.subject_std, args.subject_lr)
    optimizer = optimiser(twin, args.lr, args.embed_lr)
    warmup = min(200, len(data) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * step / len(data)))),
    )
    start, running = time.time(), 0.0
    for step, batch in enumerate(data):
        logits = twin(batch)[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1), weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        slow.hold()
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0 or step == len(data) - 1:
            print(f"step {step:5d}/{len(data)}  loss {running:.3f}  {time.time() - start:.0f} s", flush=True)
    n_tokens = sum(batch.numel() for batch in data)
    return {
        "steps": len(data),
        "tokens": n_tokens,
        "seconds": round(time.time() - start),
        "loss": round(running, 3),
        "threads": args.threads,
    }


def convert(twin: Twin) -> HookedTransformer:
    """The hooked model with the twin's weights; fails unless their logits agree."""
    twin.eval()
    model = HookedTransformer(hooked_config(twin.shape.config()))
    state = twin.hooked_state()
    state["unembed.W_U"] = state["embed.W_E"].T.contiguous()
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys, missing
    assert all(name.endswith(("attn.mask", "attn.IGNORE")) for name in missing.missing_keys), missing
    tokens = torch.randint(twin.shape.d_vocab, (4, twin.shape.n_ctx), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), twin(tokens), atol=1e-4, rtol=1e-4)
    return model


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.vocab)
    print(check_tokenizer(tokenizer))
    tokenizer.save(str(args.out / "tokenizer.json"))
    shape = Shape(
        d_vocab=tokenizer.get_vocab_size(),
        n_layers=args.layers,
        d_model=args.d_model,
        d_mlp=args.d_mlp,
        n_heads=args.heads,
        n_local=args.local,
        window=args.window,
    )
    twin = Twin(shape, tuple(args.drop))
    training = train(twin, tokenizer, args)
    convert(twin)
    (args.out / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    state = {name: value.half() for name, value in twin.hooked_state().items()}
    save_file(state, args.out / "model.safetensors", metadata={"tied": "unembed.W_U = embed.W_E.T"})
    recipe = {name: value for name, value in vars(args).items() if name not in ("out", "threads", "quick")}
    (args.out / "training.json").write_text(json.dumps({"recipe": recipe, **training}, indent=2) + "\n")
    measure_and_write_card(args.out, *((10, 5) if args.quick else ()))


if __name__ == "__main__":
    main()
