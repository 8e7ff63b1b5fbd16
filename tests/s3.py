"""An S3 server on this machine, speaking HTTP, that fails when a test asks for it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server

BUCKET = "bucket"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Server:
    """Serves moto's S3; `faults[file]` lists what the next requests for a file get instead of it.

    500: an error; cut: half of the body; flip: a wrong byte; silent: nothing until `released`.
    `upload_faults[file]` lists what becomes of the next uploads. 500: an error; cut: half of it
    stays, and the client is told that all is well.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.upload_faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[str] = []
        self.released = threading.Event()
        self._uploaded: set[tuple[Path, str]] = set()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._http = make_server(host, 0, self._answer, threaded=True)
        self.url = f"http://{host}:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def upload(self, folder: Path, prefix: str) -> str:
        """Put a folder's files into the bucket, once; return their address."""
        address = f"s3://{BUCKET}/{prefix}"
        if (folder, prefix) in self._uploaded:
            return address
        self._uploaded.add((folder, prefix))
        client = self.client()
        client.create_bucket(Bucket=BUCKET)
        for file in folder.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder)}")
        return address

    def client(self) -> Any:
        """Return a client of boto3's, for a look from outside."""
        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id="key", aws_secret_access_key="secret"
        )

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, environ: dict, start_response: Callable) -> Iterator[bytes]:
        file = environ["PATH_INFO"].rpartition("/")[2]
        method = environ["REQUEST_METHOD"]
        if method == "PUT" and self.upload_faults[file]:
            yield from self._fail_upload(file, environ, start_response)
            return
        if method == "PUT" or not self.faults[file]:
            yield from self._moto(environ, start_response)
            return
        fault = self.faults[file][0]
        if method == "HEAD" and fault in ("cut", "flip"):
            yield from self._moto(environ, start_response)
            return
        self.faults[file].pop(0)
        self.requests.append(f"{fault} {file}")
        if fault == "silent":
            self.released.wait(60)
        if fault in ("silent", "500"):
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return
        body = b"".join(self._moto(environ, start_response))
        half = len(body) // 2
        yield body[:half]
        if fault == "flip":
            yield bytes([body[half] ^ 1]) + body[half + 1 :]

    def _fail_upload(self, file: str, environ: dict, start_response: Callable) -> Iterator[bytes]:
        fault = self.upload_faults[file].pop(0)
        self.requests.append(f"upload {fault} {file}")
        if fault == "500":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return
        answer = list(self._moto(environ, start_response))
        client, key = self.client(), environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        client.put_object(Bucket=BUCKET, Key=key, Body=body[: len(body) // 2])
        yield from answer


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, working, with what is needed to reach it in the environment."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("S3_ENDPOINT_URL", server.url)  # Streaming's name for it
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    S3FileSystem.clear_instance_cache()  # which keep an earlier server's address
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own, which pause for seconds
    server.faults.clear()
    server.upload_faults.clear()
    server.requests.clear()
    yield server
    S3FileSystem.clear_instance_cache()
    server.released.set()
    server.released.clear()
