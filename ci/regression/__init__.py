"""Pristine against patched on real servers: accuracy (ci/gsm8k.py) and speed (ci/throughput.py)."""
