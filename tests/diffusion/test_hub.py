"""A model is fetched by its name from a server that speaks as the Hub does, and only what is safe and needed."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tasks.diffusion.hub import named_on_hub, source_of
from tests.support.world import tiny_world

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from flows.params import model_folder
from tasks.collect.task import register_model
from tasks.errors import InputError
from tasks.subject import Subject
try:
    folder = model_folder(sys.argv[1])
except InputError as error:
    sys.exit(str(error))
subject = Subject(store=sys.argv[2], model=str(folder), prompt_set="")
register_model(subject)
print(folder)
print(subject.open().read("models")["source"][0])
"""


class Hub:
    """The part of the Hub's interface that fetching a model needs."""

    def __init__(self, folder: Path) -> None:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.sent: list[str] = []
        sent = self.sent
        about: Any = {"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        tree: Any = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                model, _, rest = path.partition("/resolve/")
                name = rest.partition("/")[2]
                if path.startswith("/api/models/some/model/tree/"):
                    self.answer(json.dumps(tree).encode())
                elif path.startswith("/api/models/some/model"):
                    self.answer(json.dumps(about).encode())
                elif model == "/some/model" and name in files:
                    if self.command == "GET":
                        sent.append(name)
                    self.answer(files[name])
                else:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RepoNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            do_HEAD = do_GET

            def answer(self, data: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tiny_world(tmp_path_factory.mktemp("world"))
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "pipeline.py").write_text("raise SystemExit('code of the model ran')\n")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"not needed")
    hub = Hub(folder)
    yield hub
    hub.server.shutdown()


def fetched(model: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Whether the cache was there already shows in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, model, str(folder / "store")],
        env=os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_model_of_the_hub_is_fetched_once_and_kept_by_its_name(hub: Hub, tmp_path: Path) -> None:
    first = fetched("some/model", tmp_path, HF_ENDPOINT=hub.url)
    assert first.returncode == 0, first.stderr
    folder, source = first.stdout.splitlines()[-2:]
    assert Path(folder).name == COMMIT
    assert source == "some/model"
    assert "unet/diffusion_pytorch_model.safetensors" in hub.sent
    assert not [name for name in hub.sent if name.endswith(".bin") or name.startswith("safety_checker")]

    hub.sent.clear()
    assert fetched("some/model", tmp_path, HF_ENDPOINT=hub.url).stdout == first.stdout
    assert fetched("some/model", tmp_path, HF_HUB_OFFLINE="1").stdout == first.stdout
    assert hub.sent == []


def test_a_model_that_cannot_be_had_is_refused_in_one_line(hub: Hub, tmp_path: Path) -> None:
    unknown = fetched("some/other", tmp_path, HF_ENDPOINT=hub.url)
    assert unknown.returncode == 1
    assert unknown.stderr.splitlines()[-1].startswith("no folder some/other here, and the Hub has no model")
    away = fetched("some/model", tmp_path, HF_HUB_OFFLINE="1")
    assert away.returncode == 1
    assert away.stderr.splitlines()[-1].startswith("no folder some/model here, and it cannot be had from the Hub: ")


def test_what_reads_like_a_folder_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_on_hub("owner/name")
    assert named_on_hub("owner/name@refs/pr/1")
    (tmp_path / "owner").mkdir()
    assert not named_on_hub("owner/name")  # a folder that was mistyped
    assert not any(map(named_on_hub, ("reference", "./a/b", "a/b/c", "/a/b", "~/a", "../b", "a/")))


def test_the_cache_is_called_by_the_models_name() -> None:
    cache = f"/home/me/.cache/huggingface/hub/models--CompVis--stable-diffusion-v1-4/snapshots/{COMMIT}"
    assert source_of(cache) == "CompVis/stable-diffusion-v1-4"
    assert source_of("/models/mine") == "/models/mine"
