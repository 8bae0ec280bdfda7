"""Downloads from a server of our own, by https, which lies, stops, redirects and never ends."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from caffe_port.errors import CaffePortError
from caffe_port.evaluation import download
from caffe_port.storage.files import lock

CONTENT = bytes(range(251)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The path says how to behave."""

    protocol_version = "HTTP/1.0"
    asked: list[tuple[str, str | None]]

    def log_message(self, *args: object) -> None:
        pass

    def _start(self, status: int, length: int | None, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*more, *([("Content-Length", str(length))] if length is not None else [])):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.asked.append((self.path, asked))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        rest = CONTENT[start:]
        part = (("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"),)
        with contextlib.suppress(OSError):
            if self.path == "/good":
                self._start(206 if asked else 200, len(rest), *(part if asked else ()))
                self.wfile.write(rest)
            elif self.path == "/drops":
                self._start(206 if asked else 200, len(rest), *(part if asked else ()))
                self.wfile.write(rest[:100_000])
            elif self.path == "/ignores-range":
                self._start(200, len(CONTENT))
                self.wfile.write(CONTENT)
            elif self.path == "/wrong-range":
                self._start(206, 7, ("Content-Range", f"bytes 7-13/{len(CONTENT)}"))
                self.wfile.write(CONTENT[7:14])
            elif self.path == "/another-size":
                self._start(206 if asked else 200, 5, *((("Content-Range", f"bytes {start}-9/10"),) if asked else ()))
                self.wfile.write(b"other")
            elif self.path == "/lies":  # more comes than is declared, and than is wanted
                self._start(200, None)
                self.wfile.write(CONTENT + b"more")
            elif self.path == "/endless":
                self._start(200, None)
                while True:
                    self.wfile.write(bytes(1 << 16))
            elif self.path == "/other":
                self._start(200, len(CONTENT))
                self.wfile.write(CONTENT[::-1])
            elif self.path.startswith("/to/"):
                self._start(302, 0, ("Location", self.path.removeprefix("/to/")))
            elif self.path == "/loop":
                self._start(302, 0, ("Location", "/loop"))
            elif self.path == "/garbage":
                self.wfile.write(b"\x1b]0;x\x07 not http\r\n\r\n")
            else:
                self._start(404, 0)


class Server:
    """An https server of this machine's, and the context that trusts it."""

    def __init__(self, folder: Path) -> None:
        Handler.asked = self.asked = []
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.http.socket = own.wrap_socket(self.http.socket, server_side=True)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that hangs up is what we test
        self.context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
        self.url = f"https://localhost:{self.http.server_address[1]}"

    def fetch(self, path: str, target: Path, sha256: str = SHA256) -> None:
        download.fetch(f"{self.url}{path}", target, len(CONTENT), sha256, context=self.context)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the server's certificate, is not here")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "TIMEOUT", 5)
    found = Server(certificate)
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.http.shutdown()
    found.http.server_close()
    thread.join()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_fetched(server: Server, tmp_path: Path) -> None:
    server.fetch("/good", tmp_path / "new" / "w")
    assert (tmp_path / "new" / "w").read_bytes() == CONTENT
    assert left(tmp_path / "new") == ["w"]
    server.fetch("/to//good", tmp_path / "redirected")
    assert (tmp_path / "redirected").read_bytes() == CONTENT


@pytest.mark.parametrize("then", ["/good", "/ignores-range"])
def test_it_goes_on_where_it_ended(then: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="has 100000 bytes so far, expected 251000"):
        server.fetch("/drops", tmp_path / "w")
    assert left(tmp_path) == ["w.part"]
    with pytest.raises(CaffePortError, match="has 200000 bytes so far"):
        server.fetch("/drops", tmp_path / "w")
    server.fetch(then, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=100000-", "bytes=200000-"]


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/wrong-range", "a different byte range than requested"),
        ("/another-size", "has 10 bytes, expected 251000"),
        ("/missing", "404"),
        ("/to/http://localhost/w", "only https"),
        ("/to/file:///etc/passwd", "not allowed"),
        ("/to/ftp://localhost/w", "only https"),
        ("/loop", "infinite loop"),
        ("/garbage", "cannot be downloaded"),
    ],
)
def test_answers_that_are_refused(path: str, what: str, server: Server, tmp_path: Path) -> None:
    """What was there, a first part and the user's own file under the final name, stays."""
    (tmp_path / "w.part").write_bytes(CONTENT[:1000])
    (tmp_path / "w").write_bytes(b"mine")
    with pytest.raises(CaffePortError, match=what) as caught:
        server.fetch(path, tmp_path / "w")
    assert str(caught.value).isprintable() or str(caught.value).count("\n") == 1
    assert "\x1b" not in str(caught.value)
    assert (tmp_path / "w").read_bytes() == b"mine"
    assert (tmp_path / "w.part").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("path", ["/endless", "/other"])
def test_another_content(path: str, server: Server, tmp_path: Path) -> None:
    """Not a byte more than the declared size is stored; a wrong checksum removes our own part and nothing else."""
    (tmp_path / "w").write_bytes(b"mine")
    (tmp_path / "beside").write_bytes(b"mine too")
    sizes = []

    def watch(done: int, total: int) -> None:
        sizes.append((tmp_path / "w.part").stat().st_size)

    with pytest.raises(CaffePortError, match="has the checksum"):
        download.fetch(f"{server.url}{path}", tmp_path / "w", len(CONTENT), SHA256, step=watch, context=server.context)
    assert 0 < max(sizes) <= len(CONTENT)
    assert left(tmp_path) == ["beside", "w"]
    assert (tmp_path / "w").read_bytes() == b"mine"


def test_more_than_is_wanted_is_not_read(server: Server, tmp_path: Path) -> None:
    server.fetch("/lies", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_begun_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(CONTENT + b"more")
    server.fetch("/good", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_a_part_of_another_file_is_found_out(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(b"x" * 1000)
    with pytest.raises(CaffePortError, match="has the checksum"):
        server.fetch("/good", tmp_path / "w")
    server.fetch("/good", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_a_certificate_that_nobody_vouches_for(server: Server, tmp_path: Path) -> None:
    other = server.url.replace("localhost", "127.0.0.1")
    with pytest.raises(CaffePortError, match="certificate verify failed"):
        download.fetch(f"{server.url}/good", tmp_path / "w", len(CONTENT), SHA256)
    with pytest.raises(CaffePortError, match="certificate"):
        download.fetch(f"{other}/good", tmp_path / "w", len(CONTENT), SHA256, context=server.context)
    assert not server.asked


@pytest.mark.parametrize(
    "url", ["http://x/w", "file:///etc/passwd", "ftp://x/w", "HTTPS//x", "https://x/\r\nHost: y", ""]
)
def test_other_addresses(url: str, tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="only https"):
        download.fetch(url, tmp_path / "w", 7, SHA256)
    assert not list(tmp_path.iterdir())


def test_a_server_that_says_nothing(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/w"
        with pytest.raises(CaffePortError, match=r"cannot be downloaded: .*timed out"):
            download.fetch(url, tmp_path / "w", 7, SHA256)


def test_two_at_a_time(server: Server, tmp_path: Path) -> None:
    with lock(tmp_path / "w.lock", "w is being downloaded"), pytest.raises(CaffePortError, match=r"by process \d+ on "):
        server.fetch("/good", tmp_path / "w")
    server.fetch("/good", tmp_path / "w")
