"""Downloads of files whose size and checksum are known: only by https, and verified before use."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from caffe_port.errors import CaffePortError
from caffe_port.storage.files import lock

TIMEOUT = 30  # seconds without a byte
_AGAIN = "Run the command again, or give --mirror DIR."


def fetch(
    url: str,
    target: Path,
    size: int,
    sha256: str,
    *,
    step: Callable[[int, int], None] = lambda *_: None,
    context: ssl.SSLContext | None = None,
) -> None:
    """Downloads a file; resumes an earlier, incomplete download.

    The data is written to ``<target>.part``, which is renamed when size and checksum are correct. No other file is ever
    removed.

    Args:
        url: an https address; redirects must be https as well.
        target: the file to write; its folder is created if necessary.
        size: the expected size in bytes; not a byte more is stored.
        sha256: the expected checksum, in hexadecimal.
        step: called with (bytes done, bytes in total).
        context: TLS context with the trusted certificates; None: the system's.

    Raises:
        CaffePortError: the download fails, the file differs, or another process is downloading it.
    """
    _check_https(url)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            lock(target.with_name(f"{target.name}.lock"), f"{target.name} is being downloaded"),
            part.open("ab") as file,
        ):
            have = file.tell() if file.tell() < size else 0
            with open_url(_request(url, have), context) as answer:
                if not _goes_on(answer, have, size, url):
                    have = 0
                file.truncate(have)
                _receive(answer, file, have, size, step)
            _finish(part, target, size, sha256, url)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # the error is also the response
        reason = str(error).strip() or type(error).__name__
        reason = str(error.reason) if type(error) is urllib.error.URLError else reason
        raise CaffePortError(
            f"cannot be downloaded: {reason}", url, f"The part received so far is kept. {_AGAIN}"
        ) from None
    except OSError as error:
        raise CaffePortError(f"cannot be written: {error.strerror or error}", str(part)) from None


def _check_https(url: str) -> None:
    if not url.startswith("https://") or not url.isprintable() or " " in url:
        raise CaffePortError("cannot be downloaded: only https is allowed", url)


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            _check_https(newurl)
        except CaffePortError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(url: str, have: int) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - https


def open_url(request: urllib.request.Request, context: ssl.SSLContext | None = None) -> Any:
    """The response to a request; a redirect to anything but https raises CaffePortError."""
    handlers = [_HttpsOnly(), *([urllib.request.HTTPSHandler(context=context)] if context else [])]
    return urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT)


def _goes_on(answer: Any, have: int, size: int, url: str) -> bool:
    """Whether a response continues the partial download; raises CaffePortError if it declares the wrong file size."""
    told = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", answer.headers.get("Content-Range") or "")
    goes_on = answer.status == 206 and told is not None and int(told[1]) == have
    if answer.status == 206 and not goes_on:
        raise CaffePortError("cannot be downloaded: the server sent a different byte range than requested", url, _AGAIN)
    length = answer.headers.get("Content-Length") or ""
    declared = told[2] if goes_on and told is not None else length
    if declared.isdecimal() and int(declared) != size:
        raise CaffePortError(f"has {declared} bytes, expected {size}: it is a different file", url)
    return goes_on


def _receive(answer: Any, file: IO[bytes], have: int, size: int, step: Callable[[int, int], None]) -> None:
    while have < size and (chunk := answer.read(min(1 << 16, size - have))):
        file.write(chunk)
        have += len(chunk)
        step(have, size)


def _finish(part: Path, target: Path, size: int, sha256: str, url: str) -> None:
    have = part.stat().st_size
    if have < size:
        raise CaffePortError(f"has {have} bytes so far, expected {size}", url, f"They are kept. {_AGAIN}")
    with part.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        part.unlink()
        what = f"has the checksum {digest.hexdigest()[:16]}..., expected {sha256[:16]}..."
        raise CaffePortError(what, url, _AGAIN)
    part.replace(target)
