"""Downloads: resumption, checksums, and what is said without a network."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offrl.datasets.download import fetch
from offrl.datasets.names import Named, named_sets
from offrl.errors import DataError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file with ranges; `cut` bytes are sent before the first connection breaks."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag = CONTENT, '"first"'
        self.cut: int | None = None
        self.asked: list[str | None] = []
        self.sent = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        begin = 0
        if asked and self.headers.get("If-Range") == self.server.tag:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        if begin >= len(self.server.content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        body = self.server.content[begin:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        if self.server.cut is not None:
            body, self.server.cut = body[: self.server.cut], None
        self.server.sent += len(body)  # before the client can have it all and look
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def named(server: Server) -> Named:
    url = f"http://127.0.0.1:{server.server_address[1]}/some/file.hdf5"
    return replace(named_sets()["hopper-medium-v2"], url=url, size=len(CONTENT), sha256=SHA256)


def test_a_file_is_fetched_once(tmp_path: Path, server: Server, named: Named) -> None:
    path = fetch(named, tmp_path)
    assert path == tmp_path / "d4rl" / "file.hdf5"
    assert path.read_bytes() == CONTENT
    assert fetch(named, tmp_path) == path
    assert server.asked == [None]
    record = json.loads((tmp_path / "d4rl" / "file.hdf5.sha256.json").read_text())
    assert record["sha256"] == SHA256
    assert "published" in record["trust"]


def test_an_interrupted_download_goes_on_where_it_stopped(
    tmp_path: Path, server: Server, named: Named
) -> None:
    server.cut = 1_250_000
    with pytest.raises(DataError, match=r"1,250,000 of 3,000,000 bytes.*1,250,000 bytes are kept"):
        fetch(named, tmp_path)
    assert not (tmp_path / "d4rl" / "file.hdf5").exists()
    assert fetch(named, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1250000-"]
    assert server.sent == len(CONTENT)
    assert sorted(p.name for p in (tmp_path / "d4rl").iterdir()) == [
        "file.hdf5",
        "file.hdf5.sha256.json",
    ]


def test_a_file_that_changed_meanwhile_is_fetched_anew(
    tmp_path: Path, server: Server, named: Named
) -> None:
    server.cut = 1_250_000
    with pytest.raises(DataError):
        fetch(named, tmp_path)
    server.content, server.tag = CONTENT[::-1], '"second"'
    other = hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert fetch(replace(named, sha256=other), tmp_path).read_bytes() == CONTENT[::-1]


def test_a_part_that_is_already_whole(tmp_path: Path, server: Server, named: Named) -> None:
    (tmp_path / "d4rl").mkdir()
    (tmp_path / "d4rl" / "file.hdf5.part").write_bytes(CONTENT)
    (tmp_path / "d4rl" / "file.hdf5.part.version").write_text('"first"')
    assert fetch(named, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(
    tmp_path: Path, server: Server, named: Named
) -> None:
    server.content = b"x" + CONTENT[1:]
    with pytest.raises(DataError, match=f"but the one published is {SHA256}"):
        fetch(named, tmp_path)
    assert list((tmp_path / "d4rl").iterdir()) == []


def test_without_a_published_checksum_the_first_download_is_trusted_and_recorded(
    tmp_path: Path, server: Server, named: Named
) -> None:
    unknown = replace(named, sha256=None, size=None)
    path = fetch(unknown, tmp_path)
    record = json.loads(path.with_name("file.hdf5.sha256.json").read_text())
    assert record["sha256"] == SHA256
    assert record["trust"] == "trusted on first use"
    path.unlink()
    server.content = b"x" + CONTENT[1:]
    with pytest.raises(DataError, match="the one of the first download is"):
        fetch(unknown, tmp_path)


def test_a_local_folder_comes_before_the_network(
    tmp_path: Path, server: Server, named: Named
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file.hdf5").write_bytes(CONTENT)
    found = fetch(named, tmp_path / "cache", [tmp_path / "nothing", tmp_path / "mine"])
    assert found == tmp_path / "mine" / "file.hdf5"
    assert server.asked == []


def test_a_local_file_of_another_size_is_refused(tmp_path: Path, named: Named) -> None:
    (tmp_path / "file.hdf5").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"has 2,999,999 bytes, but hopper-medium-v2 has 3,000,000"):
        fetch(named, tmp_path / "cache", [tmp_path])


def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path: Path) -> None:
    named = replace(
        named_sets()["hopper-medium-v2"], url="http://127.0.0.1:9/gym/hopper_medium-v2.hdf5"
    )
    for download in (True, False):
        with pytest.raises(DataError) as raised:
            fetch(named, tmp_path, [tmp_path / "d4rl-folder"], download=download)
        message = str(raised.value)
        for part in ("hopper_medium-v2.hdf5", named.url, str(tmp_path / "d4rl"), "d4rl-folder"):
            assert part in message


def test_a_cache_that_cannot_be_written(tmp_path: Path, named: Named) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch(named, tmp_path / "file")
