# %% [markdown]
# # From a prompt to a figure
#
# Where does a small model seem to store the fact that the Louvre is in Paris, and is this the place to edit it?
# Half a minute on a laptop, no network.

# %% Install the package where it is missing, as on Colab; where it is there, no network is needed
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("loc_edit") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "loc-edit"], check=True)

# %% A model and its facts
import matplotlib.pyplot as plt
import pandas as pd

import loc_edit

model = loc_edit.load_model("builtin")  # or a hub name, a local directory, a HookedTransformer of your own
facts = loc_edit.load_facts("builtin")
fact = facts[1]  # or loc_edit.Fact(template="{} is located in", subject="The Louvre", target_true="Paris", ...)
print(f"{fact.prompt} -> {fact.target_true}, to become {fact.target_new}")

# %% The prompt, which knows the place of its subject
prompt = loc_edit.encode(model, fact)
prompt

# %% Causal Tracing: add noise to the subject, then restore one site at a time
noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=facts)
trace = loc_edit.trace(model, prompt, fact.target_true, noise=noise, window=3)
print(f"p({fact.target_true}): {trace.p_clean:.2f} clean, {trace.p_corrupted:.2f} with the subject corrupted")

# %% The places where restoring brings the answer back: layers across, tokens down, the subject starred
trace.plot()

# %% The same in the prompt itself, one layer at a time (hover over the layers)
trace.show()

# %% Pose a problem: the model should say the false object
request = loc_edit.pose(fact, "error_injection", model)
layers = range(model.cfg.n_layers)
stats = loc_edit.key_stats(model, layers, tokens=50_000)  # second moments of the keys, which ROME needs; cached
contexts = loc_edit.sample_contexts(model)

# %% Edit one layer with ROME, and look at the effect
edit = loc_edit.rome(model, request, layer=2, stats=stats, contexts=contexts)
loc_edit.score(model, fact, request, edit).show(model)

# %% Edit every layer in turn, and score each edit
rows = []
for layer in layers:
    edit = loc_edit.rome(model, request, layer=layer, stats=stats, contexts=contexts)
    score = loc_edit.score(model, fact, request, edit, essence=False)
    rows.append({"layer": layer, "rewrite": score.rewrite, "neighborhood": score.neighborhood})
scores = pd.DataFrame(rows).assign(tracing=trace.by_layer().tolist())
scores

# %% The figure: does the tracing effect point to the layer where editing works?
figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.fill_between(scores["layer"], scores["tracing"], color="0.85", label="tracing effect")
ax.plot(scores["layer"], scores["rewrite"], "o-", label="rewrite score")
ax.plot(scores["layer"], scores["neighborhood"], "s--", label="neighborhood score")
ax.set(xlabel="layer", ylim=(0, 1.05), title=f"{fact.subject}: traced and edited")
ax.legend()
plt.show()

# %% One fact is no answer: `loc-edit run` takes a hundred facts, and `loc-edit report runs/demo` shows them all
peak, best = scores["tracing"].idxmax(), scores["rewrite"].idxmax()
print(f"tracing peaks at layer {peak}; the edit works best at layer {best} ({scores['rewrite'][best]:.2f})")
