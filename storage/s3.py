"""The store under a prefix of an S3 bucket.

An object appears whole when its upload ends, or not at all, so a part needs no aside here. A folder of weights is many
objects; its manifest is uploaded last and makes it visible.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from storage.errors import StoreError
from storage.folders import digest, read_manifest
from storage.place import HOUR, MANIFEST, Entry

_UPLOAD = "unfinished upload "


class S3Place:
    """Credentials, region and endpoint come from the usual `AWS_*` variables and files."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.bucket, self.prefix = parts.netloc, parts.path.strip("/")
        if not self.bucket:
            raise StoreError(f"{url}: give the store as s3://bucket/prefix")
        self.root = f"{self.bucket}/{self.prefix}".rstrip("/")
        self.url = f"s3://{self.root}"
        self.filesystem: fs.FileSystem = _connect()

    def exists(self, path: str) -> bool:
        return bool(self.filesystem.get_file_info(self._name(path)).type == fs.FileType.File)

    def files(self, prefix: str) -> Iterator[Entry]:
        selector = fs.FileSelector(self._name(prefix), recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type == fs.FileType.File:
                yield Entry(info.path[len(self.root) + 1 :], info.size, info.mtime_ns / 1e9)

    def read(self, path: str) -> bytes:
        with self.filesystem.open_input_file(self._name(path)) as file:
            return bytes(file.read())

    def put(self, path: str, data: bytes) -> None:
        # Of two racing writers of one key the last stays; both are whole, and the key says they are the same work.
        if not self.exists(path):
            self._upload(path, data)

    def put_folder(self, path: str, source: Path, manifest: bytes) -> None:
        for item in sorted(source.rglob("*")):
            if item.is_file():
                # Should the copying stop half-way, what arrived has no manifest, so nobody takes it for whole.
                name = self._name(f"{path}/{item.relative_to(source).as_posix()}")
                with open(item, "rb") as local, self.filesystem.open_output_stream(name) as remote:
                    shutil.copyfileobj(local, remote, 1 << 20)
        self._upload(f"{path}/{MANIFEST}", manifest)

    def get_folder(self, path: str) -> Path:
        final = _cache() / hashlib.sha256(self.url.encode()).hexdigest()[:16] / path
        if final.is_dir():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".aside-", dir=final.parent))
        try:
            for name, entry in read_manifest(self.read(f"{path}/{MANIFEST}")).items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                source = self.filesystem.open_input_stream(self._name(f"{path}/{name}"))
                with source as remote, open(aside / name, "w+b") as local:
                    shutil.copyfileobj(remote, local, 1 << 20)
                    local.seek(0)
                    if digest(local) != entry["sha256"]:
                        raise OSError(f"{name} is damaged; remove {path} from the store and run its stage again")
            try:
                aside.rename(final)
            except OSError:
                if not final.is_dir():  # else another process has just downloaded the same
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return final

    def litter(self) -> Mapping[str, float]:
        now, found = time.time(), {}
        folders: dict[str, list[Entry]] = {}
        for entry in self.files("weights"):
            folders.setdefault("/".join(entry.path.split("/")[:2]), []).append(entry)
        for folder, entries in folders.items():
            age = now - max(entry.modified for entry in entries)
            if age > HOUR and not any(entry.path == f"{folder}/{MANIFEST}" for entry in entries):
                found[folder] = age
        prefix = f"{self.prefix}/" if self.prefix else ""
        for page in _client().get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                if (age := now - upload["Initiated"].timestamp()) > HOUR:
                    found[f"{_UPLOAD}{upload['UploadId']} {upload['Key']}"] = age
        return found

    def remove_litter(self, name: str) -> None:
        if name.startswith(_UPLOAD):
            number, key = name.removeprefix(_UPLOAD).split(" ", 1)
            _client().abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=number)
        else:
            self.filesystem.delete_dir(self._name(name))

    def _name(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _upload(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(self._name(path)) as file:
            file.write(data)


def _connect() -> fs.S3FileSystem:
    options: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        parts = urlsplit(endpoint)
        options = {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path.rstrip("/")}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    # A delayed open sends a small part as one request, which leaves nothing behind when its writer dies.
    return fs.S3FileSystem(allow_delayed_open=True, **options)


def _client() -> Any:
    try:
        import boto3
    except ImportError as error:
        raise StoreError("collecting unfinished uploads on S3 needs boto3: pip install boto3") from error
    return boto3.client("s3")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ENGRAM_CACHE") or Path(base) / "engram")
