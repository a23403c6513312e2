"""The server of the reports, over real HTTP: the runs and nothing else, for who has the secret and nobody else."""

import base64
import json
import os
import re
import shutil
import threading
import time
from http.client import HTTPConnection, HTTPResponse

import pytest
import uvicorn

from artifacts.store import put_bytes
from service.server import make_secret, read_secret
from service.web import reports


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("web")
        patch.setenv("MNIST_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def no_runs(home, ask):
    """Each test begins without a run."""
    shutil.rmtree(home / "runs")
    (home / "runs").mkdir()


@pytest.fixture
def run(home, no_runs):
    """The folder of a run, with a file of its own and one that is a link to the store's."""
    folder = make_run(home, "one", flow_run_name="brave-digit")
    put_bytes(".keras", b"0123456789").link_to(folder / "model.keras")
    return folder


def make_run(home, name, *, state="completed", metrics=True, **more):
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<h1>a report</h1>")
    verdict = {"verdict": {"decision": "promote", "checks": []}, "version": 7} if state == "completed" else {}
    (folder / "manifest.json").write_text(json.dumps({"flow_run_id": name, "state": state, **verdict, **more}))
    if metrics:
        (folder / "metrics.json").write_text(json.dumps({"test_accuracy": 0.9943, "n_wrong": 1057, "n_test": 10_000}))
    return folder


@pytest.fixture(scope="module")
def ask(home):
    """Ask the server, with the secret unless told otherwise; paths are sent as they are."""
    make_secret(home / "secret")
    server = uvicorn.Server(uvicorn.Config(reports, factory=True, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    secret = base64.b64encode(read_secret(home / "secret").encode()).decode()

    def ask(path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True)
            for name, value in ({"Host": f"127.0.0.1:{port}", "Authorization": f"Basic {secret}"} | headers).items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    yield ask
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    "authorization",
    ["", "Basic", "Basic bW5pc3Q6", "Basic bW5pc3Q6d3Jvbmc=", "Bearer token", "Basic \xff", "basic mnist:wrong"],
)
def test_a_stranger_gets_nothing(run, ask, authorization):
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        for path in ("/", "/runs/one/report.html", "/runs/one/nothing", "/nothing", "/../secret"):
            response, body = ask(path, method, Authorization=authorization)
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == 'Basic realm="MNIST"'
            assert b"report" not in body


def test_a_file_is_served_as_what_it_is(run, ask):
    response, body = ask("/runs/one/report.html")
    assert (response.status, body) == (200, b"<h1>a report</h1>")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]

    response, body = ask("/runs/one/model.keras", Range="bytes=2-4")
    assert (response.status, body) == (206, b"234")
    assert response.headers["Content-Type"] == "application/octet-stream"

    response, body = ask("/runs/one/model.keras", "HEAD")
    assert (response.status, body, response.headers["Content-Length"]) == (200, b"", "10")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(run, ask, method):
    for path in ("/", "/runs/one/report.html"):
        assert ask(path, method)[0].status == 405
    assert (run / "report.html").exists()


@pytest.mark.parametrize(
    "path",
    [
        "/secret",
        "/store",
        "/runs",
        "/runs/",
        "/runs/one",
        "/runs/one/",
        "/runs/../secret",
        "/runs/one/../../secret",
        "/runs/%2e%2e/secret",
        "/runs/..%2fsecret",
        "/runs/%252e%252e/secret",
        "/runs/..%5csecret",
        "/runs/.%00./secret",
        "/runs/one/report.html%00.png",
        "/runs//etc/passwd",
        "/runs/%2fetc%2fpasswd",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/runs/" + "a" * 5000,
        "/runs/one/file-link",
        "/runs/one/folder-link/secret",
        "/runs/one/passwd",
        "/runs/linked-run/secret",
    ],
)
def test_nothing_else_is_served(home, run, ask, path):
    (run / "file-link").symlink_to("../../secret")
    (run / "folder-link").symlink_to(home)
    (run / "passwd").symlink_to("/etc/passwd")
    (home / "runs" / "linked-run").symlink_to(home)
    response, body = ask(path)
    assert response.status in {307, 400, 404}  # from /runs to /runs/, where nothing is
    assert read_secret(home / "secret").encode() not in body
    assert b"root:" not in body


def test_a_page_of_another_site_cannot_use_the_browsers_password(run, ask):
    assert ask("/", Origin="http://127.0.0.1:8000")[0].status == 403
    assert ask("/", Origin="null")[0].status == 403
    assert ask("/", Origin="http://127.0.0.1:1", Host="127.0.0.1:1")[0].status == 200


def test_the_index_lists_the_newest_run_first(home, run, ask):
    os.utime(run / "manifest.json", (1e9, 1e9))
    failed = make_run(
        home, "two", state="failed", metrics=False, reason="<script>alert(1)</script>", flow_run_name="<b>"
    )
    (failed / "report.html").unlink()
    os.utime(failed / "manifest.json", (2e9, 2e9))
    broken = make_run(home, "three")
    (broken / "manifest.json").write_text('{"state": ["a list"')
    os.utime(broken / "manifest.json", (3e9, 3e9))
    page = ask("/")[1].decode()
    assert page.index("three") < page.index("&lt;b&gt;") < page.index("brave-digit")
    assert "Unreadable" in page
    assert 'href="/runs/two/manifest.json">&lt;b&gt;</a>' in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert '<a href="/runs/one/report.html">brave-digit</a>' in page
    for shown in ("2001-09-09 01:46", "Promoted", ">7<", "0.9943", "1,057"):
        assert shown in page


def test_the_index_without_a_run_says_how_to_get_one(ask):
    assert b"make train" in ask("/")[1]


def test_a_run_that_ends_again_is_read_again(run, ask):
    ask("/")
    manifest = json.loads((run / "manifest.json").read_text()) | {"flow_run_name": "renamed-digit"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert b"renamed-digit" in ask("/")[1]


def test_a_thousand_runs_are_listed_at_once(home, ask):
    for number in range(1000):
        make_run(home, f"run-{number}", padding="x" * 20_000)
    for seconds in (3, 1):  # read, then remembered
        start = time.monotonic()
        page = ask("/")[1]
        assert time.monotonic() - start < seconds
        assert b"1,000 runs" in page
        assert page.count(b"<tr>") == 101


def test_a_page_of_the_index_has_a_hundred_runs_and_leads_to_the_next(home, ask):
    for n in range(201):
        os.utime(make_run(home, f"run-{n:03}", metrics=False) / "manifest.json", (n, n))

    def rows(path):
        response, body = ask(path)
        assert response.status == 200
        assert b"201 runs" in body
        return re.findall(rb'<th scope="row"><a href="/runs/run-(\d+)/', body), body

    first, body = rows("/")
    assert [int(n) for n in first] == [*range(200, 100, -1)]
    assert b'href="/?page=2"' in body
    assert b"newer" not in body
    last, body = rows("/?page=3")
    assert last == [b"000"]
    assert b"page 3 of 3" in body
    assert b"older" not in body
    for wrong, page in {"0": first, "-1": first, "x": first, "1e9": first, "9" * 5000: first, "99": last}.items():
        assert rows(f"/?page={wrong}")[0] == page
