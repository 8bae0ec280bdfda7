"""Downloads of files that are known beforehand: by https alone, of a declared size, checked before they are used."""

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
_AGAIN = "Run it again, or give --mirror DIR."


def fetch(
    url: str,
    target: Path,
    size: int,
    sha256: str,
    *,
    step: Callable[[int, int], None] = lambda *_: None,
    context: ssl.SSLContext | None = None,
) -> None:
    """Fetches a file, going on where an earlier attempt ended.

    What has come lies in ``<target>.part`` and is renamed once size and checksum are right. No file but that one is
    ever removed.

    Args:
        url: https; so are the addresses that it is redirected to.
        target: in a folder that is made if need be.
        size: in bytes; not a byte more is stored.
        sha256: in hexadecimal.
        step: hears of bytes done, and in all.
        context: whose certificates are trusted; None: those of the system.

    Raises:
        CaffePortError: it cannot be had, is another file, or is being fetched by another process.
    """
    _check_https(url)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with lock(target.with_name(f"{target.name}.lock"), f"{target.name} is being fetched"), part.open("ab") as file:
            have = file.tell() if file.tell() < size else 0
            with open_url(_request(url, have), context) as answer:
                if not _goes_on(answer, have, size, url):
                    have = 0
                file.truncate(have)
                _receive(answer, file, have, size, step)
            _finish(part, target, size, sha256, url)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer, too
        reason = str(error).strip() or type(error).__name__
        reason = str(error.reason) if type(error) is urllib.error.URLError else reason
        raise CaffePortError(f"cannot be fetched: {reason}", url, f"What came so far is kept. {_AGAIN}") from None
    except OSError as error:
        raise CaffePortError(f"cannot be written: {error.strerror or error}", str(part)) from None


def _check_https(url: str) -> None:
    if not url.startswith("https://") or not url.isprintable() or " " in url:
        raise CaffePortError("is not fetched: only https is", url)


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
    """The answer to a request; a redirection to anything but https raises CaffePortError."""
    handlers = [_HttpsOnly(), *([urllib.request.HTTPSHandler(context=context)] if context else [])]
    return urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT)


def _goes_on(answer: Any, have: int, size: int, url: str) -> bool:
    """Whether an answer begins where we ended; raises where it tells of another size than the file's."""
    told = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", answer.headers.get("Content-Range") or "")
    goes_on = answer.status == 206 and told is not None and int(told[1]) == have
    if answer.status == 206 and not goes_on:
        raise CaffePortError("cannot be fetched: the server sends another part than was asked for", url, _AGAIN)
    length = answer.headers.get("Content-Length") or ""
    declared = told[2] if goes_on and told is not None else length
    if declared.isdecimal() and int(declared) != size:
        raise CaffePortError(f"has {declared} bytes, {size} are expected: it is another file", url)
    return goes_on


def _receive(answer: Any, file: IO[bytes], have: int, size: int, step: Callable[[int, int], None]) -> None:
    while have < size and (chunk := answer.read(min(1 << 16, size - have))):
        file.write(chunk)
        have += len(chunk)
        step(have, size)


def _finish(part: Path, target: Path, size: int, sha256: str, url: str) -> None:
    have = part.stat().st_size
    if have < size:
        raise CaffePortError(f"has {have} bytes so far, {size} are expected", url, f"They are kept. {_AGAIN}")
    with part.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        part.unlink()
        what = f"has the checksum {digest.hexdigest()[:16]}..., {sha256[:16]}... is expected"
        raise CaffePortError(what, url, _AGAIN)
    part.replace(target)
