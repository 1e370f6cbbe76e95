"""Draft models fetched over real HTTP from a server that misbehaves in one way at a time."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotfish import draft_download
from pilotfish.addresses import Address
from pilotfish.credentials import Credentials
from pilotfish.draft_download import DownloadProgress, DraftDownload
from pilotfish.draft_offers import DraftOffer, OfferedFile, may_send_key, offered_drafts, usable_offers
from pilotfish.transport import Transport
from pilotfish_core.errors import Cancelled, ModelLoadError, ProtocolViolation, Unauthenticated, Unavailable
from pilotfish_core.proto.v1 import verifier_pb2 as pb

MODEL = bytes(range(256)) * 4096  # 1 MiB
FILES = {"manifest.json": b'{"format": "pilotfish-draft"}', "model.onnx": MODEL}
Answer = Callable[["Handler", bytes, int], None]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, FileServer)
        name = self.path.rpartition("/")[2]
        asked = self.headers.get("range")
        server.requests.append((name, asked, self.headers.get("authorization")))
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        answer = server.answers.pop(0) if name == "model.onnx" and server.answers else plain
        answer(self, FILES[name], begin)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class FileServer(http.server.ThreadingHTTPServer):
    """``answers``: how the next requests for the model are answered; then as they should be."""

    daemon_threads = True

    def __init__(self, answers: list[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.requests: list[tuple[str, str | None, str | None]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that went away, which is meant


def plain(handler: Handler, data: bytes, begin: int) -> None:
    head(handler, data, begin)
    handler.wfile.write(data[begin:])


def head(handler: Handler, data: bytes, begin: int) -> None:
    handler.send_response(206 if begin else 200)
    if begin:
        handler.send_header("content-range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
    handler.send_header("content-length", str(len(data) - begin))
    handler.end_headers()


def cut_after(count: int) -> Answer:
    def answer(handler: Handler, data: bytes, begin: int) -> None:
        head(handler, data, begin)
        handler.wfile.write(data[begin : begin + count])
        handler.close_connection = True

    return answer


def wrong(handler: Handler, data: bytes, begin: int) -> None:
    head(handler, data, begin)
    handler.wfile.write(bytes(len(data) - begin))


def whole_again(handler: Handler, data: bytes, begin: int) -> None:
    plain(handler, data, 0)


def endless(handler: Handler, data: bytes, begin: int) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(data)


def status(code: int) -> Answer:
    def answer(handler: Handler, data: bytes, begin: int) -> None:
        handler.send_response(code)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


@contextlib.contextmanager
def served(*answers: Answer) -> Iterator[FileServer]:
    with FileServer(list(answers)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def offer(server: FileServer) -> DraftOffer:
    files = {name: OfferedFile(len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items()}
    return DraftOffer(
        name="small",
        runtime="onnxruntime",
        quant="int8",
        context_length=64,
        match={},
        files=files,
        url=f"http://127.0.0.1:{server.server_port}/v1/drafts/small",
    )


def download(
    server: FileServer, folder: Path, *, report: Callable[[DownloadProgress], None] = lambda _: None, key: bool = True
) -> DraftDownload:
    credentials = Credentials(api_key="pf_secret")
    return DraftDownload(offer(server), folder, credentials, send_key=key, report=report)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_download, "PAUSE_S", 0.001)


def whole(folder: Path) -> bool:
    return all((folder / name).read_bytes() == data for name, data in FILES.items())


def test_all_files_come_with_progress_to_the_end(tmp_path: Path) -> None:
    seen: list[DownloadProgress] = []
    with served() as server:
        folder = download(server, tmp_path / "draft", report=seen.append).run()
    assert whole(folder)
    total = sum(map(len, FILES.values()))
    assert seen[-1] == DownloadProgress("small", total, total)
    assert [entry.received for entry in seen] == sorted(entry.received for entry in seen)
    assert {key for _, _, key in server.requests} == {"Bearer pf_secret"}


def test_a_connection_that_breaks_is_gone_on_with(tmp_path: Path) -> None:
    with served(cut_after(100_000), cut_after(200_000), cut_after(0)) as server:
        assert whole(download(server, tmp_path / "draft").run())
    asked = [asked for name, asked, _ in server.requests if name == "model.onnx"]
    assert asked == [None, "bytes=100000-", "bytes=300000-", "bytes=300000-"]


def test_a_new_process_goes_on_with_what_is_there(tmp_path: Path) -> None:
    with served(*[cut_after(70_000), *[cut_after(0)] * 20]) as server:
        with pytest.raises(Unavailable, match="small cannot be fetched"):
            download(server, tmp_path / "draft").run()
        assert not (tmp_path / "draft").exists()
        server.answers.clear()
        server.requests.clear()
        assert whole(download(server, tmp_path / "draft").run())
    assert ("model.onnx", "bytes=70000-", "Bearer pf_secret") in server.requests


def test_a_damaged_download_is_refused_and_fetched_again(tmp_path: Path) -> None:
    with served(wrong) as server:
        assert whole(download(server, tmp_path / "draft").run())
    assert [name for name, _, _ in server.requests].count("model.onnx") == 2


def test_damaged_twice_is_an_error_and_nothing_is_kept(tmp_path: Path) -> None:
    with served(wrong, wrong) as server, pytest.raises(ModelLoadError, match="SHA-256 is not what the verifier"):
        download(server, tmp_path / "draft").run()
    assert not (tmp_path / "draft").exists()
    assert not (tmp_path / "draft.part" / "model.onnx").exists()


def test_a_part_of_something_else_is_found_out_and_replaced(tmp_path: Path) -> None:
    part = tmp_path / "draft.part"
    part.mkdir()
    (part / "model.onnx").write_bytes(b"of another file" * 100)
    with served() as server:
        assert whole(download(server, tmp_path / "draft").run())


def test_what_is_there_and_right_is_not_fetched_again(tmp_path: Path) -> None:
    """It is longer than announced: another process wrote its end too."""
    part = tmp_path / "draft.part"
    part.mkdir()
    (part / "model.onnx").write_bytes(MODEL + b"more")
    with served() as server:
        assert whole(download(server, tmp_path / "draft").run())
    assert [name for name, _, _ in server.requests] == ["manifest.json"]


def test_what_is_there_outlives_a_server_that_begins_anew_and_breaks(tmp_path: Path) -> None:
    def anew_and_broken(handler: Handler, data: bytes, begin: int) -> None:
        head(handler, data, 0)
        handler.wfile.write(data[:1000])
        handler.close_connection = True

    with served(cut_after(500_000), anew_and_broken) as server:
        assert whole(download(server, tmp_path / "draft").run())
    assert [asked for name, asked, _ in server.requests if name == "model.onnx"][-1] == "bytes=500000-"


def test_a_server_whose_ranges_are_wrong_is_asked_for_all_of_it(tmp_path: Path) -> None:
    def elsewhere(handler: Handler, data: bytes, begin: int) -> None:
        handler.send_response(206)
        handler.send_header("content-range", f"bytes 7-{len(data) - 1}/{len(data)}")
        handler.send_header("content-length", str(len(data) - 7))
        handler.end_headers()
        handler.wfile.write(data[7:])

    with served(cut_after(500_000), elsewhere) as server:
        assert whole(download(server, tmp_path / "draft").run())
    assert [asked for name, asked, _ in server.requests if name == "model.onnx"] == [None, "bytes=500000-", None]


def test_a_server_without_ranges_sends_it_whole_again(tmp_path: Path) -> None:
    def without(handler: Handler, data: bytes, begin: int) -> None:
        whole_again(handler, data, begin)

    with served(cut_after(5000), without) as server:
        assert whole(download(server, tmp_path / "draft").run())


def test_an_endless_answer_is_read_to_its_announced_size(tmp_path: Path) -> None:
    with served(endless) as server:
        assert whole(download(server, tmp_path / "draft").run())


def test_statuses_are_typed_errors(tmp_path: Path) -> None:
    with served(status(401)) as server, pytest.raises(Unauthenticated, match="API key"):
        download(server, tmp_path / "draft").run()
    with served(status(404)) as server, pytest.raises(ModelLoadError, match="404"):
        download(server, tmp_path / "draft").run()
    with served(*[status(503)] * 9) as server, pytest.raises(Unavailable, match="503"):
        download(server, tmp_path / "draft").run()
    with served(status(503)) as server:
        assert whole(download(server, tmp_path / "draft").run())


def test_a_key_that_may_not_go_there_does_not(tmp_path: Path) -> None:
    with served() as server:
        download(server, tmp_path / "draft", key=False).run()
    assert {key for _, _, key in server.requests} == {None}


def test_a_download_that_is_given_up_stays_for_the_next_time(tmp_path: Path) -> None:
    with served() as server:
        given_up: DraftDownload

        def report(progress: DownloadProgress) -> None:
            if progress.received > 100_000:
                given_up.stop()

        given_up = download(server, tmp_path / "draft", report=report)
        given_up._reported_at = float("-inf")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_download, "REPORT_EVERY_S", 0.0)
            with pytest.raises(Cancelled):
                given_up.run()
        held = (tmp_path / "draft.part" / "model.onnx").stat().st_size
        assert 100_000 <= held < len(MODEL)
        assert whole(download(server, tmp_path / "draft").run())
    assert server.requests[-1][1] == f"bytes={held}-"


def test_a_server_that_says_nothing_more_does_not_hold_up_who_gives_up(tmp_path: Path) -> None:
    silent, over = threading.Event(), threading.Event()

    def stalled(handler: Handler, data: bytes, begin: int) -> None:
        head(handler, data, begin)
        handler.wfile.write(data[begin : begin + 100_001])
        silent.set()
        over.wait(60)
        handler.close_connection = True

    with served(stalled) as server:
        given_up, ended = download(server, tmp_path / "draft"), threading.Event()

        def run() -> None:
            with pytest.raises(Cancelled):
                given_up.run()
            ended.set()

        threading.Thread(target=run, daemon=True).start()
        assert silent.wait(30)
        while given_up._received < 100_001:  # what came before the silence is kept, whatever a chunk is
            assert not ended.is_set()
        given_up.stop()
        assert ended.wait(draft_download.TIMEOUT_S / 2)
        over.set()


def test_where_a_key_may_go() -> None:
    plain_one, secure, loopback = Address("a", 1), Address("a", 1, secure=True), Address("[::1]", 1)
    assert may_send_key("https://elsewhere/x", (secure,), insecure=False)
    assert may_send_key("http://A:8000/x", (plain_one,), insecure=False)
    assert may_send_key("http://[::1]:8000/x", (loopback,), insecure=False)
    assert not may_send_key("http://a:8000/x", (secure,), insecure=False)
    assert may_send_key("http://a:8000/x", (secure,), insecure=True)
    for insecure in (True, False):
        assert not may_send_key("http://b:8000/x", (plain_one, secure), insecure=insecure)


class Described(Transport):
    def __init__(self, response: pb.DescribeResponse, *, secure: bool = False) -> None:
        super().__init__((Address("host", 50051, secure),))
        self._response = response

    async def describe_at(self) -> tuple[Address, pb.DescribeResponse]:
        return self.addresses[0], self._response


def described(**changes: Any) -> pb.DescribeResponse:
    files = [pb.DraftFile(name="manifest.json", size=2, sha256=bytes(32))]
    fields: dict[str, Any] = {"name": "d", "runtime": "onnxruntime", "files": files} | changes
    return pb.DescribeResponse(http_port=8000, models=[pb.Model(name="m", draft_offers=[pb.DraftOffer(**fields)])])


async def test_files_are_where_the_verifier_is() -> None:
    (found,) = await offered_drafts(Described(described()), "")
    assert found.url == "http://host:8000/v1/drafts/d"
    (found,) = await offered_drafts(Described(described(), secure=True), "m")
    assert found.url == "https://host:8000/v1/drafts/d"
    elsewhere = described()
    elsewhere.http_url = "https://files.example/base/"
    (found,) = await offered_drafts(Described(elsewhere), "m")
    assert found.url == "https://files.example/base/v1/drafts/d"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../d"},
        {"files": []},
        {"files": [pb.DraftFile(name="manifest.json", size=1, sha256=b"short")]},
        {"files": [pb.DraftFile(name="../../etc/passwd", size=1, sha256=bytes(32))]},
        {"files": [pb.DraftFile(name="/etc/passwd", size=1, sha256=bytes(32))]},
        {"files": [pb.DraftFile(name="model.onnx", size=1, sha256=bytes(32))]},
        {"files": [pb.DraftFile(name="manifest.json", size=1, sha256=bytes(32))] * 2},
    ],
)
async def test_offers_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolViolation):
        await offered_drafts(Described(described(**changes)), "m")


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "http://", "http://[fd00::1", "http://host:99999", "http://host/\u00e9", "http://ho st/"]
)
async def test_an_http_address_that_is_none_is_refused(url: str) -> None:
    response = described()
    response.http_url = url
    with pytest.raises(ProtocolViolation, match="no HTTP address"):
        await offered_drafts(Described(response), "m")


async def test_the_first_one_that_runs_here_is_taken() -> None:
    response = described(runtime="coreml")
    response.models[0].draft_offers.append(described(name="second").models[0].draft_offers[0])
    response.models[0].draft_offers.append(described(name="third").models[0].draft_offers[0])
    usable = usable_offers(await offered_drafts(Described(response), "m"))
    assert [offer.name for offer in usable] == ["second", "third"]
    assert not usable_offers(usable, max_bytes=1)
    huge = described(files=[pb.DraftFile(name="manifest.json", size=2**40, sha256=bytes(32))])
    assert not usable_offers(await offered_drafts(Described(huge), "m"), max_bytes=2**50)


def test_digests_tell_contents_apart() -> None:
    with served() as server:
        one = offer(server)
    other = json.loads(json.dumps({name: [file.size, file.sha256] for name, file in one.files.items()}))
    other["model.onnx"][1] = "0" * 64
    changed = {name: OfferedFile(*entry) for name, entry in other.items()}
    import dataclasses

    assert dataclasses.replace(one, files=changed).digest != one.digest
