"""The mirror at a server that speaks S3 (moto's, as a process of its own): kills, silence, refusals, wrong keys."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from runs import assert_same_rows, files
from servers import free_port

from loc_edit.analysis.run import load_run
from loc_edit.files import StoreError
from loc_edit.store.mirror import Mirror

pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytestmark = pytest.mark.long

BUCKET = "loc-edit-test"
ADDRESS = f"s3://{BUCKET}/runs/mine"


@pytest.fixture
def serve(monkeypatch):
    """(port) -> a server with an empty bucket, to which S3 addresses lead from now on."""
    import s3fs

    servers = []

    def start(port=None):
        port = port or free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        servers.append(subprocess.Popen(command, **quiet))
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=1).read()
                break
            except OSError:
                assert time.monotonic() < deadline, "no server came up"
                time.sleep(0.1)
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        return servers[-1]

    yield start
    for server in servers:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_run_whose_disk_is_lost_goes_on_from_the_bucket(serve, lab, tmp_path, computed):
    serve()
    whole = lab(out=str(tmp_path / "whole")).run()
    at_work = lab(mirror=ADDRESS).rows()
    for _ in range(5):
        next(at_work)
    at_work.close()
    shutil.rmtree(tmp_path / "run")
    computed.clear()
    run = lab(mirror=ADDRESS, out=str(tmp_path / "elsewhere")).run()
    assert len(computed) == 6 - 4
    assert_same_rows(run, whole)
    Mirror(ADDRESS, tmp_path / "fetched").fetch()
    assert files(tmp_path / "fetched") == {path: data for path, data in files(run.path).items() if path.name != ".lock"}


def test_a_program_that_is_killed_goes_on_from_the_bucket_on_another_disk(serve, tmp_path):
    import s3fs

    serve()
    options = ["--facts=4", "--chunk=1", "--layers=1,5", "--methods=rome,finetune-1", "--windows=1", "--no-essence"]
    options += ["--workers=1", "--corpus=identity", "--set", "rome.steps=2", "finetune.steps=2"]

    def start(*more):
        command = [sys.executable, "-m", "loc_edit", "run", *options, *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    assert start("--out", str(tmp_path / "whole")).wait(300) == 0
    process = start("--mirror", ADDRESS, "--out", str(tmp_path / "one"))
    there = s3fs.S3FileSystem(use_listings_cache=False)
    deadline = time.monotonic() + 120
    while sum(name.endswith(".parquet") for name in there.find(f"{BUCKET}/runs/mine")) < 4:
        assert time.monotonic() < deadline, "no rows came to the bucket"
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.kill()
    process.wait()
    n_before = sum(name.endswith(".parquet") for name in there.find(f"{BUCKET}/runs/mine"))
    process = start("--mirror", ADDRESS, "--out", str(tmp_path / "two"))
    assert process.wait(300) == 0, process.stderr.read()
    whole, two = load_run(tmp_path / "whole"), load_run(tmp_path / "two")
    assert 4 <= n_before < len(two.shards("edits")) + len(two.shards("traces"))
    assert_same_rows(two, whole)
    kept = {path.name for path in (tmp_path / "one").glob("*/*.parquet")}
    assert len(kept & {path.name for path in (tmp_path / "two").glob("*/*.parquet")}) >= n_before


def test_a_server_that_answers_late_costs_time_and_no_row(serve, lab, tmp_path):
    server = serve()
    at_work = lab(mirror=ADDRESS).rows()
    next(at_work)
    server.send_signal(signal.SIGSTOP)
    subprocess.Popen(["sh", "-c", f"sleep 5; kill -CONT {server.pid}"])
    start = time.monotonic()
    rest = list(at_work)
    assert time.monotonic() - start > 4
    assert rest
    Mirror(ADDRESS, tmp_path / "fetched").fetch()
    assert_same_rows(load_run(tmp_path / "fetched"), load_run(tmp_path / "run"))


def test_a_server_that_is_gone_is_named_at_the_end_and_the_next_start_copies_all(serve, lab, tmp_path, caplog):
    server = serve()
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    whole = lab(out=str(tmp_path / "whole")).run()
    at_work = lab(mirror=ADDRESS).rows()
    next(at_work)
    server.kill()
    server.wait()
    with pytest.raises(StoreError, match=rf"mirror: cannot .* of {ADDRESS}"):
        list(at_work)
    assert "it is tried again at the end" in caplog.text
    assert_same_rows(load_run(tmp_path / "run"), whole)
    serve(port)  # its bucket is empty
    lab(mirror=ADDRESS).run()
    Mirror(ADDRESS, tmp_path / "fetched").fetch()
    assert_same_rows(load_run(tmp_path / "fetched"), whole)


def test_wrong_keys_are_refused_before_work(serve, lab, monkeypatch, computed):
    serve()
    url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    request = urllib.request.Request(url, data=b"0", headers={"Content-Type": "text/plain"})
    urllib.request.urlopen(request).read()  # it looks at keys from now on
    with pytest.raises(StoreError, match=rf"mirror: cannot .* of {ADDRESS}: .*(Access ?Key|[Ff]orbidden)"):
        lab(mirror=ADDRESS).run()
    assert computed == []
