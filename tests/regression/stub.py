"""A stand-in for an sglang server, for tests of what drives it: answers the toy's questions.

In this process, `with serving("wrong") as url`; as a server of its own it is told by STUB. What it
does wrong, comma-separated: `wrong` half of the answers; `fail` one request with 500; `die` on the
first request; `deaf` never healthy; `foreign` another digest; `inactive` a slug that is not active;
`slow` no answer for a minute; `cut` answers that end by length; `abort` one that is given up;
`uncounted` answers without usage; `declined` calls that take the pristine path; `older` another
sglang; `paged` another page size; `backend` another attention backend; `numeric` a text that is a
number; `misreported` a server_info of another shape; `another at the end` another digest once
it was asked; `thinks` of the Question: first; `mute` no number in any answer; `pristine` a tree
without patches; `off` all switched off.
"""

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ci.regression.comparison import HOUSE
from patchset import series

RELEASE = "0.5.10.post1"
DIGEST = series.load(HOUSE).releases[RELEASE].digest
SLUGS = ("layernorm", "indexer", "nsa-fp8-kv", "rope-kv-store", "fp8-kv-write")


def info(faults: set[str], port: int) -> dict:
    state = "off: SGLANG_ROCM_PATCHES=0" if "off" in faults else "active"
    if "inactive" in faults:
        state = "inactive: no HIP build"
    declined = ["the cache is torch.bfloat16"] if "declined" in faults else []
    slugs = {name: {"state": state, "declined": declined} for name in SLUGS}
    foreign = "foreign" in faults or {"another at the end", "asked"} <= faults
    digest = "another" if foreign else DIGEST
    report = {"release": RELEASE, "digest": digest, "slugs": slugs}
    if "misreported" in faults:
        report["slugs"] = list(slugs)
    return {
        "model_path": f"/models/{port}/toy",
        "port": port,
        "random_seed": port,
        "attention_backend": "triton" if "backend" in faults else "aiter",
        "page_size": 64 if "paged" in faults else 1,
        "version": "0.5.9" if "older" in faults else RELEASE,
        "internal_states": [{} if "pristine" in faults else {"rocm_patches": report}],
    }


def answer(prompt: str, faults: set[str]) -> str:
    asked = prompt.rpartition("Question:")[2]
    a, verb, b = re.search(r"has (\d+) \w+ and (gives|buys) (\d+)", asked).groups()
    right = int(a) + int(b) if verb == "buys" else int(a) - int(b)
    return f" #### {right + ('wrong' in faults and int(a) % 2)}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        faults = self.server.faults
        if self.path == "/health":
            self.say(503 if "deaf" in faults else 200, {})
        else:
            self.say(200, info(faults, self.server.server_port))

    def do_POST(self):
        faults = self.server.faults
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked.get("prompt") or "\n\n".join(m["content"] for m in asked["messages"])
        one = "Eve" in prompt.rpartition("Question:")[2]
        faults.add("asked")
        if "die" in faults:
            os._exit(3)
        if "slow" in faults:
            time.sleep(60)
        if "fail" in faults and one:
            self.say(500, {"error": "out of memory"})
            return
        text = 7 if "numeric" in faults else answer(prompt, faults)
        if "thinks" in faults:
            text = "First the Question: what is asked?" + text
        if "mute" in faults:
            text = " ... $$"
        for word in asked.get("stop") or [] if isinstance(text, str) else []:
            text = text.partition(word)[0]
        said = {"text": text} if "prompt" in asked else {"message": {"content": text}}
        choice = {"index": 0, **said, "finish_reason": "stop"}
        if "cut" in faults:
            choice["finish_reason"] = "length"
        if "abort" in faults and one:
            choice |= {"text": "", "finish_reason": "abort"}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 2}
        self.say(200, {"choices": [choice], "usage": None if "uncounted" in faults else usage})

    def say(self, status: int, what: dict) -> None:
        text = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Stub(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # all ask at once, and who finds it full asks again after a second

    def __init__(self, faults: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.faults = set(filter(None, faults.split(",")))

    def handle_error(self, *_):
        """Who asks no more has hung up."""


@contextlib.contextmanager
def serving(faults: str = "") -> Iterator[str]:
    """The URL of a stub in this process."""
    with Stub(faults) as server:
        # Looks so often whether it is to end.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


if __name__ == "__main__":
    switched = ",off" if os.environ.get("SGLANG_ROCM_PATCHES") == "0" else ""
    port = int(sys.argv[sys.argv.index("--port") + 1])
    Stub(os.environ.get("STUB", "") + switched, port).serve_forever()
