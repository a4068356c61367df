"""A store with the part of Amazon's S3 interface that copying public objects needs, on loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Store:
    """Objects by "/bucket/key"; those in ``broken`` answer with an error, ``sent`` lists what was given."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects, self.broken, self.sent, self.url = dict(objects), set[str](), list[str](), ""

    def listing(self, bucket: str, prefix: str) -> bytes:
        """ListObjectsV2."""
        start = f"/{bucket}/"
        entries = "".join(
            f"<Contents><Key>{key.removeprefix(start)}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{len(value)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, value in sorted(self.objects.items())
            if key.startswith(start + prefix)
        )
        head = f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><IsTruncated>false</IsTruncated>"
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{head}{entries}</ListBucketResult>'.encode()


@contextlib.contextmanager
def serving(store: Store) -> Iterator[Store]:
    """The store on a free port; its address is `Store.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path, query = unquote(parts.path), parse_qs(parts.query)
            body, code, extra = b"", 200, {}
            if "list-type" in query:
                body = store.listing(path.strip("/"), query.get("prefix", [""])[0])
            elif path in store.broken:
                code = 403
            elif path in store.objects:
                body = store.objects[path]
                if asked := self.headers.get("Range"):
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    end = min(int(last or len(body)), len(body) - 1)
                    extra = {"Content-Range": f"bytes {first}-{end}/{len(body)}"}
                    body, code = body[int(first) : end + 1], 206
                if self.command == "GET":
                    store.sent.append(path)
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), "x-amz-bucket-region": "us-east-1", **extra}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
