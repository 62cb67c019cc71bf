"""Published corpora over HTTP, from a stand-in for the Hub on this machine."""

import contextlib
import hashlib
import io
import json
import random
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from marvel_jax.data import download, download_unpack
from marvel_jax.data.download import RemoteFile, choose_mbeir
from marvel_jax.errors import MarvelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PART = "mbeir_images.tar.gz.part-{:02d}"


class Hub(ThreadingHTTPServer):
    """Serves files of two data sets as the Hub does; `breaks` ends sending after some bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {download.MBEIR_REPO: {}, download.NLI_REPO: {}}
        self.asked: list[tuple[str, str]] = []  # (file, Range) of what was sent
        self.sent = 0
        self.breaks: list[int] = []
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for repo, files in self.server.files.items():
            if path.startswith(f"/api/datasets/{repo}"):
                self._api(repo, files, path)
                return
            if path.startswith(f"/datasets/{repo}/resolve/{COMMIT}/"):
                name = path.removeprefix(f"/datasets/{repo}/resolve/{COMMIT}/")
                if name in files:
                    self._file(name, files[name])
                    return
        self.send_error(404)

    def _api(self, repo: str, files: dict[str, bytes], path: str) -> None:
        value: object = {"id": repo, "sha": COMMIT, "tags": [], "downloads": 0, "likes": 0}
        if "/tree/" in path:
            value = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                    "lfs": {
                        "oid": hashlib.sha256(content).hexdigest(),
                        "size": len(content),
                        "pointerSize": 100,
                    },
                }
                for name, content in files.items()
            ]
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, content: bytes) -> None:
        start, status = 0, 200
        wanted = self.headers.get("Range", "")
        if wanted and self.server.ranges:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
        etag = hashlib.sha256(content).hexdigest()
        head = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if status == 206:
            head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET":
            self.server.asked.append((name, wanted))
        self._send(status, content[start:], head)

    def _send(self, status: int, body: bytes, head: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**head, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.breaks and "X-Repo-Commit" in head:
            body = body[: self.server.breaks.pop(0)]
            self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(body)
        self.server.sent += len(body)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    close_session()
    try:
        yield server
    finally:
        close_session()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


@pytest.fixture
def mbeir(hub, monkeypatch) -> dict[str, bytes]:
    """A small repository like M-BEIR's; what has 4,000 bytes or more counts as large."""
    monkeypatch.setattr(download, "LARGE", 4000)
    files = {name: f"{name}\n".encode() for name in NAMES if "part-" not in name}
    whole = archive(
        {f"mbeir_images/nights/{n}.jpg": random.Random(n).randbytes(3000) for n in range(6)}
    )
    cut = -(-len(whole) // 4)
    for part in range(4):
        files[PART.format(part)] = whole[part * cut : (part + 1) * cut]
    assert cut > 4000
    hub.files[download.MBEIR_REPO] = files
    return files


def archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


NAMES = (
    ".gitattributes",
    "README.md",
    "cand_pool/global/mbeir_union_test_cand_pool.jsonl",
    "cand_pool/global/mbeir_union_train_cand_pool.jsonl",
    "cand_pool/local/mbeir_mscoco_task0_test_cand_pool.jsonl",
    "cand_pool/local/mbeir_nights_task4_cand_pool.jsonl",
    "instructions/query_instructions.tsv",
    *map(PART.format, range(4)),
    "qrels/test/mbeir_nights_task4_test_qrels.txt",
    "qrels/train/mbeir_nights_task4_train_qrels.txt",
    "query/test/mbeir_nights_task4_test.jsonl",
    "query/test/mbeir_oven_task8_test.jsonl",
    "query/train/mbeir_nights_task4_train.jsonl",
    "query/union_train/mbeir_union_up_train.jsonl",
    "query/union_val/mbeir_union_val.jsonl",
)
PARTS = {PART.format(part) for part in range(4)}


def chosen(*only: str) -> set[str]:
    return {file.name for file in choose_mbeir([RemoteFile(n, 1, None) for n in NAMES], only)}


def test_a_part_of_mbeir_is_chosen_by_kind_split_and_set():
    assert chosen() == set(NAMES) - {".gitattributes", "README.md"}
    assert chosen("images") == PARTS
    assert chosen("queries", "nights", "test") == {"query/test/mbeir_nights_task4_test.jsonl"}
    assert chosen("nights_task4", "task8") - PARTS == {
        name for name in chosen() - PARTS if "mscoco" not in name
    }
    test = chosen("test")
    assert test > PARTS and "instructions/query_instructions.tsv" in test
    assert "cand_pool/local/mbeir_nights_task4_cand_pool.jsonl" in test
    assert not [name for name in test if "train" in name or "val" in name]
    for wrong in ("night", "task5", "everything"):
        with pytest.raises(MarvelError, match=f"--only.*{wrong}.*queries, pools.*nights_task4"):
            chosen(wrong)


def test_everything_arrives_and_a_second_run_fetches_nothing(hub, mbeir, tmp_path):
    listing = download.list_files(download.MBEIR_REPO)
    assert listing.revision == COMMIT
    files = choose_mbeir(listing.files, ())
    wanted = sum(len(mbeir[file.name]) for file in files)
    assert download.bytes_missing(files, tmp_path) == wanted
    download.fetch(listing, files, tmp_path)
    for file in files:
        assert (tmp_path / file.name).read_bytes() == mbeir[file.name], file.name
    assert not (tmp_path / "README.md").exists()
    assert download.bytes_missing(files, tmp_path) == 0
    hub.asked.clear()
    download.fetch(listing, files, tmp_path)
    assert hub.asked == []


def test_an_interrupted_part_goes_on_where_it_stopped(hub, mbeir, tmp_path, monkeypatch):
    listing = download.list_files(download.MBEIR_REPO)
    files = choose_mbeir(listing.files, ("images",))
    first = files[0]

    def interrupt(name: str, done: int, total: int) -> None:
        if done >= 1000:
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "_CHUNK", 1000)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(listing, files, tmp_path, progress=interrupt)
    assert not (tmp_path / first.name).exists()
    assert download.bytes_missing(files, tmp_path) == sum(file.size for file in files) - 1000
    hub.asked.clear()
    hub.breaks = [1500, 1100]  # and two broken connections on the way
    download.fetch(listing, files, tmp_path)
    asked = [wanted for name, wanted in hub.asked if name == first.name]
    assert asked == ["bytes=1000-", "bytes=2000-", "bytes=3000-"]
    assert all((tmp_path / file.name).read_bytes() == mbeir[file.name] for file in files)


def test_a_server_without_ranges_starts_again(hub, mbeir, tmp_path):
    listing = download.list_files(download.MBEIR_REPO)
    files = choose_mbeir(listing.files, ("images",))[:1]
    hub.ranges, hub.breaks = False, [700]
    download.fetch(listing, files, tmp_path)
    assert (tmp_path / files[0].name).read_bytes() == mbeir[files[0].name]


def test_other_bytes_than_listed_are_refused_and_removed(hub, mbeir, tmp_path):
    listing = download.list_files(download.MBEIR_REPO)
    name = PART.format(2)
    mbeir[name] = bytes(reversed(mbeir[name]))
    files = choose_mbeir(listing.files, ("images",))
    with pytest.raises(MarvelError, match=r"part-02.*other bytes.*run the same command again"):
        download.fetch(listing, files, tmp_path)
    assert not (tmp_path / name).exists()
    assert download.bytes_missing(files, tmp_path) == files[2].size + files[3].size


def test_a_hub_that_is_not_there_is_one_message(hub, mbeir, tmp_path, monkeypatch):
    from huggingface_hub import constants

    listing = download.list_files(download.MBEIR_REPO)
    hub.files.clear()
    with pytest.raises(MarvelError, match="M-BEIR could not be had"):
        download.list_files(download.MBEIR_REPO)
    files = choose_mbeir(listing.files, ("images",))
    with pytest.raises(MarvelError, match="M-BEIR could not be had"):
        download.fetch(listing, files, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MarvelError, match="HF_HUB_OFFLINE"):
        download.list_files(download.MBEIR_REPO)


# --- unpacking -----------------------------------------------------------------------------------


def test_what_was_unpacked_before_needs_no_room_again(tmp_path):
    assert download_unpack.bytes_unpacked(tmp_path) == 0
    for name, size in (("a/1.jpg", 300), ("b/c/2.jpg", 50), ("b/.3.jpg.partial", 7)):
        path = tmp_path / "mbeir_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    assert download_unpack.bytes_unpacked(tmp_path) == 350


def put_parts(folder: Path, whole: bytes, count: int) -> None:
    cut = -(-len(whole) // count)
    for part in range(count):
        (folder / PART.format(part)).write_bytes(whole[part * cut : (part + 1) * cut])


MEMBERS = {f"mbeir_images/a/{n}.jpg": random.Random(n).randbytes(500 + n) for n in range(9)}


@pytest.mark.parametrize("top", ["", "./", "M-BEIR/"])
def test_parts_unpack_as_one_archive(tmp_path, top):
    put_parts(tmp_path, archive({top + name: content for name, content in MEMBERS.items()}), 4)
    assert download_unpack.unpack(tmp_path) == len(MEMBERS)
    for name, content in MEMBERS.items():
        assert (tmp_path / name).read_bytes() == content
    sizes = {path.name: path.stat().st_size for path in download_unpack.archive_parts(tmp_path)}
    assert download_unpack.is_unpacked(tmp_path, sizes)
    assert not download_unpack.is_unpacked(tmp_path, sizes | {PART.format(0): 1})


def test_unpacking_goes_on_and_mends_a_cut_picture(tmp_path):
    put_parts(tmp_path, archive(MEMBERS), 3)

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_unpack.unpack(tmp_path, progress=interrupt)
    (there,) = tmp_path.glob("mbeir_images/a/*")
    before = there.stat().st_mtime_ns
    cut = tmp_path / "mbeir_images/a/5.jpg"
    cut.write_bytes(b"half")
    assert download_unpack.unpack(tmp_path) == len(MEMBERS)
    assert there.stat().st_mtime_ns == before
    assert cut.read_bytes() == MEMBERS["mbeir_images/a/5.jpg"]


@pytest.mark.parametrize("name", ["../mbeir_images/x", "/etc/x", "mbeir_images/../../x", "else/x"])
def test_an_archive_writes_nowhere_else(tmp_path, name):
    folder = tmp_path / "mbeir"
    folder.mkdir()
    put_parts(folder, archive({name: b"x"}), 2)
    with pytest.raises(MarvelError, match="does not belong into mbeir_images/"):
        download_unpack.unpack(folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mbeir", *map(PART.format, (0, 1))]


def test_a_missing_part_is_told(tmp_path):
    with pytest.raises(MarvelError, match=r"part-00 on, found none.*--only images"):
        download_unpack.unpack(tmp_path)
    put_parts(tmp_path, archive(MEMBERS), 4)
    (tmp_path / PART.format(3)).unlink()
    with pytest.raises(MarvelError, match="breaks off or is broken"):
        download_unpack.unpack(tmp_path)
    (tmp_path / PART.format(1)).unlink()
    with pytest.raises(MarvelError, match=r"found .*part-00, .*part-02"):
        download_unpack.unpack(tmp_path)
