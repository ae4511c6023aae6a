"""A PostgreSQL cluster of a test's own, on loopback, with a password; it ends whatever happens to the test."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import pytest

from tests.support.served import free_port

USER = DATABASE = "engram"
STARTUP_S = 60


def binaries() -> Path | None:
    """The folder of the server's programs of the newest version, where Debian's package `postgresql` puts them."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(found, key=lambda folder: float(folder.parent.name), default=None)


def needed() -> None:
    """Skips the test where there is no PostgreSQL, and cannot be one; fails it where it was to be installed."""
    if binaries() is None:
        reason = "PostgreSQL is not installed: apt-get install postgresql, as .ci/run does"
        if shutil.which("apt-get") and os.geteuid() == 0 and os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class Postgres:
    """One cluster, within a `with`; its files lie in a temporary folder."""

    def __enter__(self) -> Self:
        found = binaries()
        assert found is not None
        self._bin, self.password, self.port = found, secrets.token_hex(16), free_port()
        # Not below pytest's folders, which are closed to the user that the server runs as.
        self._folder = Path(tempfile.mkdtemp(prefix="engram-postgres-"))
        self._data, self._log = self._folder / "data", self._folder / "log"
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        if hasattr(self, "_server"):
            self._server.terminate()
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def address(self, database: str = DATABASE) -> str:
        """The address of a database, with its password."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *arguments: str, given: bytes = b"") -> bytes:
        """What one of PostgreSQL's programs prints, as the cluster's user."""
        command = [
            str(self._bin / program),
            "--host=127.0.0.1",
            f"--port={self.port}",
            f"--username={USER}",
            *arguments,
        ]
        env = os.environ | {"PGPASSWORD": self.password}
        return subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True, env=env).stdout

    def _start(self) -> None:
        # The server refuses to run as root; setpriv drops that, and ends the server with this process.
        who = _other_user()
        lowered = [] if who is None else [f"--reuid={who}", f"--regid={pwd.getpwnam(who).pw_gid}", "--clear-groups"]
        password = self._folder / "password"
        password.write_text(self.password)
        if who is not None:
            for path in (self._folder, password):
                shutil.chown(path, who)
        setup = [str(self._bin / "initdb"), str(self._data), f"--username={USER}", f"--pwfile={password}"]
        setup += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(["setpriv", *lowered, *setup], check=True, capture_output=True, cwd="/")
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
        }
        command = [str(self._bin / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with open(self._log, "wb") as log:
            self._server = subprocess.Popen(
                ["setpriv", *lowered, "--pdeathsig=INT", *command], stdout=log, stderr=log, cwd="/"
            )
        there = [str(self._bin / "pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={self.port}"]
        deadline = time.monotonic() + STARTUP_S
        while subprocess.run(there, check=False).returncode != 0:
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not come up: {self._log.read_text()[-2000:]}")
            time.sleep(0.2)
        self.run("createdb", DATABASE)


def _other_user() -> str | None:
    """As whom the server runs where this process is root; None where it is not."""
    if os.geteuid() != 0:
        return None
    known = {each.pw_name for each in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"
