"""The product and its baselines, as the questions start them. Every question opens one `Rig`."""

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.duration_pb2 import Duration

from authsvc.client.channel import TokenFile, authorization
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from benchmarks.rig.keys import store_keys
from benchmarks.rig.processes import SERVER_CORE, Server, start
from tests.postgres import PostgresServer

_BIN = Path(sys.executable).parent
_ROOT = Path(__file__).parent.parent.parent
_OURS = ("AUTHSVC_", "HTTPBRIDGE_")


class Rig:
    """A state directory and the servers that share it; all are stopped, and the directory deleted, at the end."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._started = 0
        self.stub: Any = None
        """The key service's, once it runs."""
        self.metadata: Any = None
        """What an admin sends with each call."""

    async def __aenter__(self) -> Self:
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.state = self.directory / "state"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self.environ = kept | {
            "PYTHONPATH": str(_ROOT),  # for workers, which are started by a file's name
            "AUTHSVC_STATE_DIR": str(self.state),
            "AUTHSVC_LISTEN": "127.0.0.1:0",
            "HTTPBRIDGE_LISTEN": "127.0.0.1:0",
            "HTTPBRIDGE_RATE_LIMIT_PER_MINUTE": "1000000000",
            "HTTPBRIDGE_BYTES_PER_MINUTE": str(2**50),
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def new_directory(self) -> Path:
        """Return a directory that nothing is in."""
        self._started += 1
        directory = self.directory / str(self._started)
        directory.mkdir()
        return directory

    async def key_service(self, keys: int = 0, core: int = SERVER_CORE, *, is_forgetful: bool = False) -> Server:
        """Start `authsvc`, or `rig.forgetful`, with so many keys in its database; bridges started later find it."""
        if keys:
            migrate = await asyncio.create_subprocess_exec(_BIN / "authsvc", "migrate", stderr=PIPE, env=self.environ)
            _, said = await migrate.communicate()
            assert migrate.returncode == 0, said.decode()
            store_keys(self.state / "authsvc.db", keys)
        program: list[str | Path] = [_BIN / "authsvc"]
        if is_forgetful:
            program = [sys.executable, "-m", "benchmarks.rig.forgetful"]
        server = await self._start([*program, "serve"], {}, (core,))
        token = TokenFile(self.state / "bridge-token").read().reveal()
        self.environ |= {"HTTPBRIDGE_KEY_SERVICE": server.address, "HTTPBRIDGE_KEY_SERVICE_TOKEN": token}
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        self.stub = pb_grpc.KeyServiceStub(channel)
        self.metadata = authorization(TokenFile(self.state / "admin-token").read())
        return server

    async def bridge(self, sink: str = "", cores: tuple[int, ...] = (SERVER_CORE,), **variables: str) -> Server:
        """Start a bridge with a log store of its own: SQLite, unless `HTTPBRIDGE_LOG_STORE_URL` says otherwise.

        `sink` is one of `rig.bridge`, instead of the product's.
        """
        command: list[str | Path] = [_BIN / "httpbridge", "serve"]
        if sink:
            command = [sys.executable, "-m", "benchmarks.rig.bridge", "serve"]
            variables["BENCH_SINK"] = sink
        return await self._start(command, {"HTTPBRIDGE_STATE_DIR": str(self.new_directory())} | variables, cores)

    async def bare(self, name: str, *arguments: str) -> Server:
        """Start a baseline of `rig.bare`."""
        return await self._start([sys.executable, "-m", "benchmarks.rig.bare", name, *arguments], {})

    async def _start(
        self, command: Sequence[str | Path], variables: dict[str, str], cores: tuple[int, ...] = (SERVER_CORE,)
    ) -> Server:
        self._started += 1
        server = await start(command, self.environ | variables, self.directory / f"{self._started}.stderr", cores)
        self._stack.push_async_callback(server.stop)
        return server

    def postgres(self) -> str:
        """Start PostgreSQL on the load's core, and return the URL of an empty database."""
        server = PostgresServer()
        self._stack.callback(server.close)
        server.start()
        return server.url("postgres")

    async def issue(self, project_id: str, *origins: str) -> str:
        """Issue a project's key and return it."""
        request = pb.IssueRequest(project_id=project_id, origins=origins)
        return str((await self.stub.Issue(request, metadata=self.metadata)).api_key)

    async def revoke(self, project_id: str, *, waits: bool = True) -> None:
        """Revoke a project's key; returns when no bridge accepts it any more, if it waits."""
        request = pb.RevokeRequest(project_id=project_id, wait=None if waits else Duration())
        await self.stub.Revoke(request, metadata=self.metadata)
