"""Public data sets from a server on this machine that sends them well, badly or not at all."""

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest

import loc_edit
from loc_edit.facts import download
from loc_edit.facts.download import PUBLIC, DownloadFailed, fetch

RECORDS = [
    {"known_id": i, "subject": f"Town {i}", "attribute": "Łódź", "prompt": f"Town {i} is in", "template": "{} is in"}
    for i in range(3)
]
CONTENT = json.dumps(RECORDS, ensure_ascii=False).encode() + b"\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers `/good/...`, `/short/...` (breaks off), `/cut/...` (breaks off and does not say how long it is) ..."""

    daemon_threads = True
    content = CONTENT

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []

    def host(self, way):
        return f"http://127.0.0.1:{self.server_port}/{way}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        way, content = self.path.split("/")[1], self.server.content
        if way == "absent":
            self.send_error(404)
            return
        length, sent = len(content), content
        if way in ("short", "cut"):
            sent = content[: len(content) // 2]
        if way == "login":
            sent = b"<html>please log in</html>"
            length = len(sent)
        self.send_response(200)
        if way != "cut":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def get(server, tmp_path):
    """Fetch known_1000 in the given ways."""

    def get(*ways, **more):
        return fetch("known_1000", cache=tmp_path, hosts=tuple(map(server.host, ways)), **more)

    return get


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


WHOLE = ["known_1000.json", "known_1000.json.sha256"]


def test_a_good_file_is_fetched_once_and_its_digest_kept(get, server, tmp_path, caplog):
    path = get("good")
    assert path == tmp_path / "data" / "known_1000.json"
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == WHOLE
    assert (tmp_path / "data" / "known_1000.json.sha256").read_text() == f"{DIGEST}  known_1000.json\n"
    assert DIGEST in caplog.text
    assert "nobody has published a digest" in caplog.text
    caplog.clear()
    assert get("good") == path
    assert server.asked == ["/good/known_1000.json"]
    assert not caplog.text


def test_the_file_must_have_the_given_digest(get, server, tmp_path):
    wrong = "0" * 64
    with pytest.raises(DownloadFailed, match=f"known_1000.*expected a file with sha256 {wrong}"):
        get("good", sha256=wrong)
    assert names(tmp_path) == []
    assert get("good", sha256=DIGEST.upper()).read_bytes() == CONTENT
    assert len(server.asked) == 2
    with pytest.raises(DownloadFailed, match="expected a file with sha256"):
        get("good", sha256=wrong)  # of a file in the cache too
    assert get("good").read_bytes() == CONTENT, "the good file stays"
    for no_digest in ("", "abc", "g" * 64):
        with pytest.raises(ValueError, match="64 hexadecimal"):
            get("good", sha256=no_digest)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("short", "the connection broke off before the whole file arrived"),
        ("cut", "not a whole JSON list"),
        ("login", "not a whole JSON list"),
        ("absent", "the server answers 404"),
    ],
)
def test_an_incomplete_file_never_gets_its_final_name(get, tmp_path, way, words):
    with pytest.raises(DownloadFailed, match=words) as caught:
        get(way)
    assert f"/{way}/known_1000.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []
    with pytest.raises(DownloadFailed):
        get(way, sha256=DIGEST)
    assert names(tmp_path) == []
    assert get("good").read_bytes() == CONTENT


def test_a_file_damaged_in_the_cache_is_fetched_again(get, server, tmp_path):
    path = get("good")
    path.write_bytes(CONTENT[:-5] + b"]")
    assert get("good").read_bytes() == CONTENT
    assert len(server.asked) == 2
    path.write_bytes(CONTENT[:-5])
    with pytest.raises(DownloadFailed, match="broke off"):
        get("short")
    assert get("good").read_bytes() == CONTENT
    server.content = json.dumps(RECORDS[:1]).encode()
    assert get("good").read_bytes() == CONTENT, "a sound file in the cache is not asked for again"
    path.write_bytes(b"[]")
    with pytest.raises(DownloadFailed, match=f"expected a file with sha256 {DIGEST}"):
        get("good")  # neither the damaged file nor another one passes for the first


def test_the_second_host_is_asked_if_the_first_fails(get, server):
    assert get("absent", "short", "good").read_bytes() == CONTENT
    assert [path.split("/")[1] for path in server.asked] == ["absent", "short", "good"]


def test_the_error_names_the_reason_of_every_host(get):
    with pytest.raises(DownloadFailed) as caught:
        get("absent", "short")
    assert "/absent/known_1000.json: the server answers 404" in str(caught.value)
    assert "/short/known_1000.json: the connection broke off" in str(caught.value)


def test_no_network(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(DownloadFailed, match="no connection; is there a network"):
            fetch("counterfact", cache=tmp_path, hosts=(f"http://127.0.0.1:{port}",), timeout=5.0)
    assert names(tmp_path) == []


def test_a_server_that_never_answers_times_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DownloadFailed, match="no answer in time"):
            fetch("counterfact", cache=tmp_path, hosts=(host,), timeout=0.2)
    assert names(tmp_path) == []


def test_a_stop_in_the_middle_leaves_nothing(get, tmp_path, monkeypatch):
    def stopped(self, url, file, of):
        with open(file, "wb") as partial:
            partial.write(CONTENT[:10])
        assert len(names(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        get("good")
    assert names(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DownloadFailed, match=r"data set known_1000 cannot be fetched.*file"):
        fetch("known_1000", cache=tmp_path / "file", hosts=(server.host("good"),))


def test_an_unexpected_size_is_logged_as_a_warning(server, tmp_path, caplog):
    server.content = json.dumps([]).encode()
    fetch("counterfact", cache=tmp_path, hosts=(server.host("good"),))
    assert f"expected {PUBLIC['counterfact'].size} bytes, got 2" in caplog.text


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"expected a data set among counterfact, multi_counterfact, zsre, known_1000, got 'counterfacts'",
    ):
        fetch("counterfacts", cache=tmp_path)


def test_facts_are_loaded_by_the_name_of_their_data_set(server, tmp_path, monkeypatch):
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "HOSTS", (server.host("good"),))
    assert [f.subject for f in loc_edit.load_facts("known_1000", limit=2)] == ["Town 0", "Town 1"]
    assert names(tmp_path) == WHOLE


def test_every_public_file_has_a_reader():
    from loc_edit.facts.formats import FORMATS

    assert {public.format for public in PUBLIC.values()} <= set(FORMATS)
    assert all(host.startswith("https://") for host in download.HOSTS)
