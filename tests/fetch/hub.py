"""A small hub on loopback, with the parts of the Hub's HTTP interface that a download uses."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files of one repository, and the faults to make: a list of (path part, fault), used once."""

    def __init__(self, files):
        self.files = files
        self.faults = []
        self.requests = []  # (method, path, Range header, Authorization header)

    def fault_for(self, method, path):
        for fault in self.faults:
            part, kind = fault
            if part in path and (method == "GET" or not isinstance(kind, str)):
                self.faults.remove(fault)
                return kind
        return None

    def listing(self):
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith(".safetensors"):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": "owner/model",
            "modelId": "owner/model",
            "sha": COMMIT,
            "private": False,
            "siblings": siblings,
            "cardData": {"license": "apache-2.0"},
            "tags": [],
            "downloads": 0,
        }


@contextmanager
def running(hub):
    """The address of ``hub`` while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(with_body=True)

        def do_HEAD(self):
            self.answer(with_body=False)

        def answer(self, *, with_body):
            token = self.headers.get("Authorization")
            hub.requests.append((self.command, self.path, self.headers.get("Range"), token))
            fault = hub.fault_for(self.command, self.path)
            if isinstance(fault, int):
                return self.refuse(fault)
            if self.path.startswith("/api/models/owner/model"):
                if "nobranch" in self.path:
                    return self.refuse(404, "RevisionNotFound")
                return self.send(json.dumps(hub.listing()).encode(), {}, with_body)
            path = unquote(self.path.split("?")[0]).partition("/resolve/")[2]
            name = path.partition("/")[2]  # behind the revision
            if name not in hub.files:
                return self.refuse(404, "EntryNotFound")
            data = hub.files[name]
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(len(data)),
                "Accept-Ranges": "bytes",
            }
            if fault == "wrong byte":
                data = bytes([data[0] ^ 1]) + data[1:]
            if fault == "short":
                data = data[:-1]
            self.send(data, headers, with_body, breaks_off=fault == "breaks off")

        def send(self, data, headers, with_body, *, breaks_off=False):
            wanted = self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            self.send_response(206 if wanted else 200)
            if wanted:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            for name, value in {**headers, "Content-Length": str(len(data) - start)}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                body = data[start:]
                self.wfile.write(body[: len(body) // 2] if breaks_off else body)
                if breaks_off:
                    self.wfile.flush()
                    self.close_connection = True

        def refuse(self, status, code=""):
            self.send_response(status)
            if status == 401:
                code = "RepoNotFound"
            if status == 403:
                code = "GatedRepo"
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
