"""sglang.bench_serving, as the launcher of the tests finds it beside launch_server.py."""

import runpy

if __name__ == "__main__":
    runpy.run_module("sglang.bench_serving", run_name="__main__")
