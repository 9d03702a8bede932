"""A loopback web server that misbehaves on order, and a tiny data set in the form of MNIST for it to serve."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from diabolo.data.catalogue import Collection, File, Package

#: What is done to a body: how it goes out for the n-th request of a path.
Fault = Callable[["Handler", bytes, int], None]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        world = self.server.world
        with world.lock:
            world.requests.append(self.path)
            number = world.requests.count(self.path)
        with contextlib.suppress(OSError):
            world.fault(self, world.files.get(self.path, b""), number)

    def head(self, length: int | None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass
class World:
    files: dict[str, bytes]
    fault: Fault
    url: str = ""
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serve(files: dict[str, bytes], fault: Fault) -> Iterator[World]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    world = server.world = World({f"/{name}.gz": body for name, body in files.items()}, fault)
    world.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield world
    finally:
        world.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def good(handler: Handler, body: bytes, number: int) -> None:
    handler.head(len(body))
    handler.wfile.write(body)


def slowly(handler: Handler, body: bytes, number: int) -> None:
    time.sleep(0.3)
    good(handler, body, number)


def truncated(at: float) -> Fault:
    def fault(handler: Handler, body: bytes, number: int) -> None:
        handler.head(len(body))
        handler.wfile.write(body[: int(len(body) * at)])

    return fault


def short_length(handler: Handler, body: bytes, number: int) -> None:
    good(handler, body[: len(body) // 2], number)


def broken_once(handler: Handler, body: bytes, number: int) -> None:
    (truncated(0.5) if number == 1 else good)(handler, body, number)


def html(handler: Handler, body: bytes, number: int) -> None:
    good(handler, b"<!doctype html><title>Sign in</title>", number)


def other_gz(handler: Handler, body: bytes, number: int) -> None:
    good(handler, gzip.compress(gzip.decompress(body)[:-1] + b"\xff", mtime=0), number)


def status(code: int) -> Fault:
    def fault(handler: Handler, body: bytes, number: int) -> None:
        handler.head(0, code)

    return fault


def redirected(handler: Handler, body: bytes, number: int) -> None:
    handler.head(0, 302, Location="file:///etc/hostname")


def endless(handler: Handler, body: bytes, number: int) -> None:
    handler.head(None)
    while not handler.server.world.ended.is_set():
        handler.wfile.write(bytes(1 << 16))


def stalled(handler: Handler, body: bytes, number: int) -> None:
    handler.head(len(body))
    handler.wfile.write(body[:10])
    handler.wfile.flush()
    handler.server.world.ended.wait(20)


def trickled(handler: Handler, body: bytes, number: int) -> None:
    handler.head(len(body))
    for byte in body:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        if handler.server.world.ended.wait(0.05):
            return


def tiny() -> tuple[Collection, dict[str, bytes]]:
    """A collection of four small IDX files, without mirrors or package, and their decoded content."""
    contents, files = {}, []
    for name, split, shape in (
        ("train-images-idx3-ubyte", "train", (40, 5, 5)),
        ("train-labels-idx1-ubyte", "train", (40,)),
        ("t10k-images-idx3-ubyte", "test", (10, 5, 5)),
        ("t10k-labels-idx1-ubyte", "test", (10,)),
    ):
        body = idx(shape, len(files))
        zipped = gzip.compress(body, mtime=0)
        contents[name] = body
        files.append(File(name, split, shape, digest(body), len(zipped), digest(zipped)))
    return Collection("tiny", "a test", tuple(files), (), None, (".", "MNIST/raw")), contents


def idx(shape: tuple[int, ...], seed: int) -> bytes:
    header = b"".join(n.to_bytes(4, "big") for n in (0x0800 + len(shape), *shape))
    count = 1
    for n in shape:
        count *= n
    values = b"".join(hashlib.sha256(f"{seed}.{i}".encode()).digest() for i in range(-(-count // 32)))
    return header + values[:count]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: gzip.compress(body, mtime=0) for name, body in contents.items()}


def tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member, body in members:
            archive.addfile(member, io.BytesIO(body))
    return stream.getvalue()


def member(name: str, body: bytes, **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, body


def with_package(collection: Collection, contents: dict[str, bytes]) -> tuple[Collection, bytes]:
    """The collection with a package, and the package's tarball."""
    plain = tar([member(f"package/data/{name}", body) for name, body in contents.items()])
    tarball = gzip.compress(plain, mtime=0)
    package = Package("tiny-data", "1.0.0", len(tarball), digest(tarball), "package/data/")
    return replace(collection, package=package), tarball
