"""An S3 server on this machine, speaking HTTP, that fails when a test asks for it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
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
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[str] = []
        self.released = threading.Event()
        self._uploaded: set[tuple[Path, str]] = set()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._http = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def upload(self, folder: Path, prefix: str) -> str:
        """Put a folder's files into the bucket, once; return their address."""
        address = f"s3://{BUCKET}/{prefix}"
        if (folder, prefix) in self._uploaded:
            return address
        self._uploaded.add((folder, prefix))
        client = boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id="key", aws_secret_access_key="secret"
        )
        client.create_bucket(Bucket=BUCKET)
        for file in folder.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder)}")
        return address

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, environ: dict, start_response: Callable) -> Iterator[bytes]:
        file = environ["PATH_INFO"].rpartition("/")[2]
        method = environ["REQUEST_METHOD"]
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
    monkeypatch.setenv("S3_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own, which pause for seconds
    server.faults.clear()
    server.requests.clear()
    yield server
    server.released.set()
    server.released.clear()
