"""The store under a prefix of an S3 bucket.

An object appears whole when its upload ends, or not at all, so a part needs no aside here. A folder of weights is many
objects, `weights/<key>/<upload>/...`; the manifest beside them is uploaded last, names the upload and makes it visible.
Every upload has a name of its own, so that no writer touches what another one's manifest has made visible.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from storage.backend import CHECKPOINTS, HOUR, MANIFEST, REPORTS, WEIGHTS, Entry
from storage.errors import StoreError
from storage.folders import Manifest, digest, read_manifest, write_manifest
from storage.tables import TABLES

_UPLOAD = "unfinished upload "
_DELETED_AT_ONCE = 1000
"""As many as one request may name."""


class S3Backend:
    """Credentials, region and endpoint come from the usual `AWS_*` variables and files."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.bucket, self.prefix = parts.netloc, parts.path.strip("/")
        if not self.bucket:
            raise StoreError(f"{url}: give the store as s3://bucket/prefix")
        self.root = f"{self.bucket}/{self.prefix}".rstrip("/")
        self.url = f"s3://{self.root}"
        self.filesystem: fs.FileSystem = _connect()

    def below(self, folder: str) -> S3Backend:
        return S3Backend(f"{self.url}/{folder}") if folder else self

    def exists(self, path: str) -> bool:
        return bool(self.filesystem.get_file_info(self._name(path)).type == fs.FileType.File)

    def find(self, path: str) -> Entry | None:
        info = self.filesystem.get_file_info(self._name(path))
        return self._entry(info) if info.type == fs.FileType.File else None

    def files(self, prefix: str) -> Iterator[Entry]:
        selector = fs.FileSelector(self._name(prefix), recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type == fs.FileType.File:
                yield self._entry(info)

    def _entry(self, info: fs.FileInfo) -> Entry:
        path = info.path[len(self.root) + 1 :]
        modified = info.mtime_ns / 1e9
        return Entry(path, info.size, modified, modified, f"{info.size} {info.mtime_ns}")

    def read(self, path: str) -> bytes:
        with self.filesystem.open_input_file(self._name(path)) as file:
            return bytes(file.read())

    def put(self, path: str, data: bytes) -> None:
        # Of two racing writers of one key the last stays; both are whole, and the key says they are the same work.
        if not self.exists(path):
            self._upload(path, data)

    def replace(self, path: str, data: bytes) -> None:
        self._upload(path, data)

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        with self._scratch() as file, _boto3() as client:
            yield file
            # Not through Arrow, which lets half a file appear where its upload is broken off by a signal.
            client.upload_file(str(file), self.bucket, self._name(path).removeprefix(f"{self.bucket}/"))

    @contextmanager
    def reading(self, path: str) -> Iterator[Path]:
        with self._scratch() as file:
            with self.filesystem.open_input_stream(self._name(path)) as remote, open(file, "wb") as local:
                shutil.copyfileobj(remote, local, 1 << 20)
            yield file

    def place(self, path: str) -> str:
        return f"{self.url}/{path}"

    def copied(self, folder: str) -> Path:
        final = self._cached(folder)
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".aside-", dir=final.parent))
        try:
            for entry in self.files(folder):
                name = PurePosixPath(entry.path).relative_to(folder)
                if ".." in name.parts:
                    raise OSError(f"{entry.path} would lie elsewhere on a disk; remove it")
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(self.read(entry.path))
            self._forget(final)  # what lies there may have been written anew since
            aside.rename(final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return final

    def remove(self, paths: Iterable[str]) -> None:
        keys = [self._name(path).removeprefix(f"{self.bucket}/") for path in paths]
        with _boto3() as client:
            for start in range(0, len(keys), _DELETED_AT_ONCE):
                some = [{"Key": key} for key in keys[start : start + _DELETED_AT_ONCE]]
                done = client.delete_objects(Bucket=self.bucket, Delete={"Objects": some, "Quiet": True})
                if failed := done.get("Errors"):
                    raise OSError(f"{failed[0]['Key']} cannot be removed: {failed[0]['Message']}")

    def put_folder(self, path: str, source: Path, table: str) -> None:
        upload = secrets.token_hex(8)
        manifest = write_manifest(table, source, path, below=upload)
        for name, entry in read_manifest(manifest, path).files.items():
            # Should the copying stop half-way, what arrived has no manifest, so nobody takes it for whole.
            remote = self._name(f"{path}/{upload}/{name}")
            with open(source / name, "rb") as local, self.filesystem.open_output_stream(remote) as stream:
                shutil.copyfileobj(local, stream, 1 << 20)
            if self.filesystem.get_file_info(remote).size != entry["size"]:
                raise OSError(f"{name} changed while it was uploaded")
        # Another writer of the same key may have come first; then this upload stays unseen, and is litter.
        self.put(f"{path}/{MANIFEST}", manifest)

    def remove_folder(self, path: str) -> None:
        self.remove([f"{path}/{MANIFEST}"])  # from here on nobody sees the rest, which is litter
        self.remove([entry.path for entry in self.files(path)])

    def get_folder(self, path: str) -> Path:
        final = self._cached(path)
        if final.is_dir():
            if _is_whole(final, read_manifest(self.read(f"{path}/{MANIFEST}"), path)):
                return final
            self._forget(final)  # as a power cut leaves it
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".aside-", dir=final.parent))
        try:
            manifest = read_manifest(self.read(f"{path}/{MANIFEST}"), path)
            for name, entry in manifest.files.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                source = self.filesystem.open_input_stream(self._name(f"{path}/{manifest.address(name)}"))
                with source as remote, open(aside / name, "w+b") as local:
                    shutil.copyfileobj(remote, local, 1 << 20)
                    local.seek(0)
                    if digest(local) != entry["sha256"]:
                        raise OSError(f"{name} is damaged; remove {path} from the store and run its stage again")
                    os.fsync(local.fileno())
            try:
                aside.rename(final)
            except OSError:
                if not final.is_dir():  # else another process has just downloaded the same
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return final

    def _cached(self, path: str) -> Path:
        """Where what lies here is kept on this machine."""
        address = f"{self.url} {_endpoint() or ''}"
        return cache() / hashlib.sha256(address.encode()).hexdigest()[:16] / path

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A path for a file that may be large, which is gone afterwards."""
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".aside-", dir=cache()) as folder:
            yield Path(folder) / "file"

    def _forget(self, final: Path) -> None:
        """Takes a download away, which another process may be doing at the same moment."""
        aside = final.with_name(f".aside-{secrets.token_hex(8)}")
        try:
            final.rename(aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)

    def litter(self) -> Mapping[str, float]:
        now = time.time()
        newest: dict[str, float] = {}
        for entry in self.files(WEIGHTS):
            upload = "/".join(entry.path.split("/")[:3])
            newest[upload] = max(entry.modified, newest.get(upload, 0.0))
        for manifest in [path for path in newest if path.endswith(f"/{MANIFEST}")]:
            folder = manifest.removesuffix(MANIFEST)
            try:
                below = read_manifest(self.read(manifest), folder.rstrip("/")).below
                # In a store that was copied from a disk the files lie beside the manifest.
                kept = {f"{folder}{below}"} if below else {name for name in newest if name.startswith(folder)}
            except ValueError:  # it is damaged: which upload it showed, a person has to say
                kept = {upload for upload in newest if upload.startswith(folder)}
            newest = {upload: at for upload, at in newest.items() if upload not in {manifest, *kept}}
        found = {upload: now - modified for upload, modified in newest.items() if now - modified > HOUR}
        prefix = f"{self.prefix}/" if self.prefix else ""
        with _boto3() as client:
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix):
                for upload in page.get("Uploads", []):
                    age = now - upload["Initiated"].timestamp()
                    # A bucket may be shared; uploads of others are none of ours to end.
                    ours = upload["Key"].removeprefix(prefix).split("/")[0] in (*TABLES, WEIGHTS, REPORTS, CHECKPOINTS)
                    if ours and age > HOUR:
                        found[f"{_UPLOAD}{upload['UploadId']} {upload['Key']}"] = age
        return found

    def remove_litter(self, name: str) -> None:
        with _boto3() as client:
            if name.startswith(_UPLOAD):
                number, key = name.removeprefix(_UPLOAD).split(" ", 1)
                client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=number)
            else:
                # Not through Arrow, which would leave an empty object in place of the folder.
                self.remove(entry.path for entry in self.files(name))

    def _name(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _upload(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(self._name(path)) as file:
            file.write(data)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether every file is there with its size; their contents were looked at when they were downloaded."""
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["size"]
        for name, entry in manifest.files.items()
    )


def _connect() -> fs.S3FileSystem:
    options: dict[str, Any] = {}
    if endpoint := _endpoint():
        parts = urlsplit(endpoint)
        options = {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path.rstrip("/")}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    # A delayed open sends a small part as one request, which leaves nothing behind when its writer dies.
    return fs.S3FileSystem(allow_delayed_open=True, **options)


@contextmanager
def _boto3() -> Iterator[Any]:
    """A client for what Arrow cannot do; its errors are turned into OSError."""
    try:
        import boto3
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
    except ImportError as error:
        raise StoreError("removing anything from S3, and checkpoints there, need boto3: pip install boto3") from error
    try:
        yield boto3.client("s3")
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error


def cache() -> Path:
    """Folder of this machine for what can be fetched or checked again: $ENGRAM_CACHE or ~/.cache/engram."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ENGRAM_CACHE") or Path(base) / "engram")
