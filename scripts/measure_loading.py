"""Peak memory of `load_model` on a local directory, relative to the weights, one subprocess per case.

    python scripts/measure_loading.py [--megabytes 400]

Makes checkpoints with random weights in a temporary folder, and prints for each case the peaks above what the process
holds once the libraries are imported.  `anonymous` is what the machine must have; `resident` also counts the pages
of the safetensors file, which are mapped and dropped when memory is short.  Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CASES = [("gpt2", "float32", "float32"), ("llama", "float32", "float32"), ("llama", "bfloat16", "float32"),
         ("llama", "bfloat16", "bfloat16"), ("gemma", "float32", "float32")]  # fmt: skip
"""Architecture, dtype of the checkpoint, dtype wanted."""


def memory():
    """Megabytes held now: anonymous, and with mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("anonymous", "RssAnon"), ("resident", "VmRSS"))}


def make(folder, architecture, dtype, megabytes):
    import torch
    from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig

    from loc_edit import load_model

    sizes = {"vocab_size": 16000, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    gated = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_key_value_heads": 4}
    layers = max(1, round((megabytes / 4 - 33) / 13))  # some 13 million weights a layer and 33 in the embeddings
    config = {
        "gpt2": lambda: GPT2Config(**sizes, n_positions=512, n_embd=1024, n_layer=layers, n_head=16),
        "llama": lambda: LlamaConfig(**sizes, **gated, num_hidden_layers=layers, max_position_embeddings=512),
        "gemma": lambda: GemmaConfig(**sizes, **gated, num_hidden_layers=layers, head_dim=64),
    }[architecture]()
    AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder)
    load_model("builtin", device="cpu").tokenizer.save_pretrained(folder)


def load(folder, dtype):
    import torch

    import loc_edit

    loc_edit.load_model("builtin", device="cpu")  # imports everything, and starts the thread pools
    before, peak, done = memory(), memory(), threading.Event()

    def watch():
        while not done.is_set():
            now = memory()
            peak.update({name: max(peak[name], now[name]) for name in peak})
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    model = loc_edit.load_model(folder, device="cpu", dtype=getattr(torch, dtype))
    done.set()
    thread.join()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    print(json.dumps({"weights": weights, **{name: peak[name] - before[name] for name in peak}}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=400)
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(*args.load)
        return
    print(f"{'model':8}{'checkpoint':>12}{'wanted':>10}{'weights MB':>12}{'anonymous':>12}{'resident':>12}")
    for architecture, stored, wanted in CASES:
        with tempfile.TemporaryDirectory() as folder:
            make(folder, architecture, stored, args.megabytes)
            command = [sys.executable, "-W", "ignore", __file__, "--load", folder, wanted]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
        ratios = "".join(f"{found[name] / found['weights']:11.2f}x" for name in ("anonymous", "resident"))
        print(f"{architecture:8}{stored:>12}{wanted:>10}{found['weights']:12.0f}{ratios}")


if __name__ == "__main__":
    main()
