"""A stand-in for an sglang server, for tests of what drives it: answers the toy's questions.

What it does wrong is said by STUB, comma-separated: `wrong` half of the answers; `fail` one request
with 500; `die` on the first request; `deaf` never healthy; `foreign` another digest; `inactive` a
slug that is not active; `slow` no answer for a minute; `cut` answers that end by length.
"""

import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = set(filter(None, os.environ.get("STUB", "").split(",")))
DIGEST = os.environ["STUB_DIGEST"]


def slugs() -> dict:
    off = os.environ.get("SGLANG_ROCM_PATCHES") == "0"
    state = "off: SGLANG_ROCM_PATCHES=0" if off else "active"
    if "inactive" in FAULTS:
        state = "inactive: no HIP build"
    names = ("layernorm", "indexer", "nsa-fp8-kv", "rope-kv-store", "fp8-kv-write")
    return {name: {"state": state, "declined": []} for name in names}


def answer(prompt: str) -> str:
    asked = prompt.rpartition("Question:")[2]
    a, verb, b = re.search(r"has (\d+) \w+ and (gives|buys) (\d+)", asked).groups()
    right = int(a) + int(b) if verb == "buys" else int(a) - int(b)
    return f" #### {right + ('wrong' in FAULTS and int(a) % 2)}"


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/health":
            self.say(503 if "deaf" in FAULTS else 200, {})
        else:
            digest = "another" if "foreign" in FAULTS else DIGEST
            report = {"release": "0.5.10.post1", "digest": digest, "slugs": slugs()}
            pristine = "--no-patches" in sys.argv
            self.say(200, {"internal_states": [{} if pristine else {"rocm_patches": report}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "die" in FAULTS:
            os._exit(3)
        if "slow" in FAULTS:
            time.sleep(60)
        if "fail" in FAULTS and "Eve" in asked["prompt"].rpartition("Question:")[2]:
            self.say(500, {"error": "out of memory"})
            return
        choice = {"index": 0, "text": answer(asked["prompt"]), "finish_reason": "stop"}
        if "cut" in FAULTS:
            choice["finish_reason"] = "length"
        usage = {"prompt_tokens": len(asked["prompt"].split()), "completion_tokens": 2}
        self.say(200, {"choices": [choice], "usage": usage})

    def say(self, status: int, what: dict) -> None:
        text = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Server).serve_forever()
