"""``python -m sglang.srt.rocm_patches``: what this tree carries and what is active here."""

import json

from sglang.srt.rocm_patches import report

print(json.dumps(report(), indent=2))
