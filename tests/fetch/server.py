"""A file server on loopback, which misbehaves on request."""

import hashlib
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Files by path, and the faults to make: path -> list of faults, each used once.

    A fault is a status, or one of: breaks off, wrong byte, short, long, hangs, ignores ranges,
    wrong range, redirects.
    """

    def __init__(self, files):
        self.files = files
        self.faults = {}
        self.address = ""
        self.without_tags = False
        self.headers = {}  # more headers of a path's refusals
        self.requests = []  # (path, Range header)

    def next_fault(self, path):
        faults = self.faults.get(path) or [None]
        return faults.pop(0)


@contextmanager
def serving(server):
    """The address of ``server`` while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = self.path.split("?")[0]
            wanted = self.headers.get("Range")
            server.requests.append((path, wanted))
            fault = server.next_fault(path)
            if isinstance(fault, int):
                return self.reply(fault, b"", server.headers.get(path, {}))
            if fault == "redirects":
                return self.reply(302, b"", {"Location": path + "?elsewhere"})
            if path not in server.files:
                return self.reply(404, b"", {})
            data = server.files[path]
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            if wanted and start >= len(data):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            if fault == "ignores ranges":
                start, wanted = 0, None
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            if server.without_tags:
                headers = {}
            if wanted and self.headers.get("If-Range", headers.get("ETag")) != headers.get("ETag"):
                start, wanted = 0, None
            if wanted:
                told = start + 1 if fault == "wrong range" else start
                headers["Content-Range"] = f"bytes {told}-{len(data) - 1}/{len(data)}"
            body = data[start:]
            if fault == "wrong byte":
                body = bytes([body[0] ^ 1]) + body[1:]
            if fault == "short":
                body = body[:-1]
            if fault == "long":
                body += b"!"
            self.send_response(206 if wanted else 200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if fault in ("breaks off", "hangs"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                if fault == "hangs":
                    time.sleep(1.5)
                self.close_connection = True
                return None
            self.wfile.write(body)
            return None

        def reply(self, status, body, headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        running.server_close()
