# %% [markdown]
# # Your model, your facts
#
# A real model, SmolLM2-135M, and facts of your own: does the model know them, where does it seem to store them, which
# layer should be edited, and what does an edit change?  A few minutes on a laptop.  The model is fetched by name once
# (92 MB) and kept in the cache; a hub name, a local directory, a `.gguf` file or a `HookedTransformer` of yours does as
# well.

# %% Install the package where it is missing, as on Colab; where it is there, no network is needed
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("loc_edit") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "loc-edit"], check=True)

# %% A model by name
import json
from pathlib import Path

import loc_edit

model = loc_edit.load_model("smollm2")
print(f"{model.cfg.model_name}: {model.cfg.n_layers} layers, d_model {model.cfg.d_model}")

# %% Facts of your own: template, subject and object; the false object, paraphrases and neighbors are for the scores
records = [
    {
        "template": "{} is located in the city of",
        "subject": "The Eiffel Tower",
        "target_true": "Paris",
        "target_new": "Rome",
        "paraphrases": ["The Eiffel Tower can be visited in", "You will find The Eiffel Tower in the city of"],
        "neighbors": ["The Louvre is located in the city of", "Notre-Dame is located in the city of"],
    },
    {
        "template": "The capital of {} is",
        "subject": "Japan",
        "target_true": "Tokyo",
        "target_new": "Beijing",
        "paraphrases": ["Japan has its capital in", "The seat of government of Japan is in"],
        "neighbors": ["The capital of France is", "The capital of Spain is"],
    },
    {
        "template": "{} is made by",
        "subject": "The iPhone",
        "target_true": "Apple",
        "target_new": "Microsoft",
        "paraphrases": ["The company behind The iPhone is", "The iPhone is a product of"],
        "neighbors": ["The iPad is made by", "The MacBook is made by"],
    },
]
file = Path("my_facts.jsonl")
file.write_text("\n".join(map(json.dumps, records)))
facts = loc_edit.load_facts(file)
facts

# %% Does the model know them?  The study keeps a fact if its object is among the next 36 tokens
for fact, answer in zip(facts, loc_edit.answers(model, facts), strict=True):
    print(f"{fact.prompt} | {answer.text[:50]!r}  known: {answer.known}, p({fact.target_true}) = {answer.p_true:.2f}")

# %% Where does it seem to store the first one?  The noise has three times the spread of the subjects' embeddings
fact = facts[0]
prompt = loc_edit.encode(model, fact)
noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=facts)
trace = loc_edit.trace(model, prompt, fact.target_true, noise=noise, window=5)
trace

# %% Which layer to edit?  Edit a few facts at a few layers, a pilot, and take the layer with the best overall score
layers = (4, 10, 16)
choice = loc_edit.choose_layer(model, facts, rule="pilot", method="finetune-1", layers=layers)
choice

# %% Edit the fact there, by constrained fine-tuning with the settings that were tuned for this model
request = loc_edit.pose(fact, "error_injection", model)
settings = loc_edit.tuned_settings(model.cfg.model_name, "finetune-1")
edit = loc_edit.finetune(model, request, layers=[choice.layer], settings=settings)
score = loc_edit.score(model, fact, request, edit, essence=False)
score

# %% What changed: the next tokens, and p(Rome) on every prompt
score.show(model)

# %% Write the edit into the weights for a while; at the end of the block the old bytes are back
before = loc_edit.fingerprint(model)
with edit.applied(model):
    tokens = prompt.tokens[None]
    print(model.tokenizer.decode(model.generate(tokens, max_new_tokens=12, do_sample=False, verbose=False)[0]))
assert loc_edit.fingerprint(model) == before
edit.save("rome.safetensors")
loc_edit.Edit.load("rome.safetensors", model)
