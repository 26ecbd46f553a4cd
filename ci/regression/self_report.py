"""Does a server run what its arm says? Read from the server itself, never from its command line."""

from collections.abc import Iterable
from typing import Any

from . import servers
from .errors import Refused

OFF = "off: SGLANG_ROCM_PATCHES=0"


def read(url: str) -> dict[str, Any] | None:
    """What the patch set says of itself: release, digest, slugs; None from a pristine tree."""
    states = servers.get(url, "/server_info").get("internal_states") or [{}]
    found: dict[str, Any] | None = states[0].get("rocm_patches")
    return found


def check_pristine(report: dict[str, Any] | None) -> str:
    """How the arm is pristine, in words; raises Refused where it is not."""
    if report is None:
        return "pristine tree"
    on = {n: s["state"] for n, s in report["slugs"].items() if not s["state"].startswith("off: ")}
    on = {name: state for name, state in on.items() if state != "not applied"}
    if on:
        raise Refused(
            f"the pristine server reports {_listed(on)}; expected: a tree without patches, or the "
            "patched one under SGLANG_ROCM_PATCHES=0"
        )
    return "patched tree, switched off"


def check_patched(report: dict[str, Any] | None, digest: str, slugs: Iterable[str]) -> None:
    """Raises Refused unless this patch set runs, with each of `slugs` active."""
    if report is None:
        raise Refused(
            "the patched server reports no patches: it runs a pristine tree; "
            "python3 apply.py apply --tree TREE"
        )
    if report["digest"] != digest:
        raise Refused(
            f"the patched server runs patch set {str(report['digest'])[:12]}, this checkout is "
            f"{digest[:12]}; python3 apply.py apply --tree TREE, or --digest to judge that one"
        )
    wrong = {
        name: report["slugs"].get(name, {"state": "unknown"})["state"]
        for name in slugs
        if report["slugs"].get(name, {}).get("state") != "active"
    }
    if wrong:
        raise Refused(
            f"the patched server reports {_listed(wrong)}; expected: active, or the patches would "
            "not be on the path that is judged"
        )


def declined(report: dict[str, Any] | None, slugs: Iterable[str]) -> list[str]:
    """Why calls of these slugs took the pristine path although the slug is active."""
    if report is None:
        return []
    reasons = {name: report["slugs"].get(name, {}).get("declined", []) for name in slugs}
    return [f"{name}: {reason}" for name, said in reasons.items() for reason in said]


def _listed(states: dict[str, str]) -> str:
    return ", ".join(f"{name} {state}" for name, state in states.items())
