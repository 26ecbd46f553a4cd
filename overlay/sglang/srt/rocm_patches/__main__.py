"""``python -m sglang.srt.rocm_patches``: which slugs this tree has, and which are active."""

import json

from sglang.srt.rocm_patches import report

print(json.dumps(report(), indent=2))
