"""Does a server run what its arm says? Read from the server itself, never from its command line."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import servers
from .errors import Refused, RunFailed
from .files import read_object, write_object

# What two servers of one setting may differ in: where they listen and write, what they follow from
# the memory that was free. Secrets among it, which no result may hold.
OWN = {
    *("host", "port", "random_seed", "dist_init_addr", "node_rank", "base_gpu_id", "numa_node"),
    *("download_dir", "file_storage_path", "crash_dump_folder", "export_metrics_to_file_dir"),
    *("max_total_num_tokens", "max_req_input_len", "api_key", "admin_api_key", "fastapi_root_path"),
}
OWN_BEGINNINGS, OWN_ENDS = ("log_", "ssl_"), ("_port",)


@dataclass(frozen=True)
class Server:
    """What a server says of itself."""

    patches: dict[str, Any] | None  # release, digest, slugs; None from a pristine tree
    sglang: str | None  # its version
    arguments: dict[str, Any]  # those that must be the same in both arms

    @property
    def digest(self) -> str | None:
        return self.patches["digest"] if self.patches else None

    def declined(self, slugs: Iterable[str]) -> list[str]:
        """Why calls of these slugs took the pristine path although the slug is active."""
        said = (self.patches or {}).get("slugs", {})
        return [
            f"{name}: {why}" for name in slugs for why in said.get(name, {}).get("declined", [])
        ]


def read(url: str) -> Server:
    """Raises RunFailed."""
    said = servers.get(url, "/server_info")
    if not isinstance(said, dict):
        raise RunFailed(f"{url}/server_info: a {type(said).__name__}, not an object as sglang's")
    try:
        patches = _patches(said.pop("internal_states", None) or [{}])
    except (LookupError, TypeError, AttributeError) as error:
        raise RunFailed(
            f"{url}/server_info: `internal_states` is not as the patches write it ({error!r}); is "
            "that an sglang server of these releases?"
        ) from None
    return Server(
        patches,
        said.pop("version", None),
        {name: _comparable(value) for name, value in said.items() if not _own(name)},
    )


def _patches(states: Any) -> dict[str, Any] | None:
    """The report of the first of the server's processes; raises for another shape."""
    report = states[0].get("rocm_patches")
    if report is None:
        return None
    found: dict[str, Any] = {"release": report["release"], "digest": report["digest"], "slugs": {}}
    for name, said in report["slugs"].items():
        state, declined = said["state"], list(said.get("declined", []))
        if not all(isinstance(text, str) for text in (state, *declined)):
            raise TypeError(f"{name}: {said!r}")
        found["slugs"][name] = {"state": state, "declined": declined}
    return found


def _own(name: str) -> bool:
    return name in OWN or name.startswith(OWN_BEGINNINGS) or name.endswith(OWN_ENDS)


def _comparable(value: Any) -> Any:
    """A path, or a model's name, counts by its last part: containers mount one model anywhere."""
    is_path = isinstance(value, str) and "/" in value and not value.lstrip().startswith(("{", "["))
    return Path(value).name if is_path else value


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


def check_patched(
    report: dict[str, Any] | None, digest: str, slugs: Iterable[str], on: Collection[str]
) -> None:
    """Raises Refused unless this patch set runs, with each of `slugs` active, and none but `on`."""
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
    beyond = [n for n, s in report["slugs"].items() if s["state"] == "active" and n not in on]
    if beyond:
        raise Refused(
            f"the patched server has {', '.join(beyond)} active beside {', '.join(on)}, so the "
            f"verdict would not be of --slugs alone; python3 apply.py revert {' '.join(beyond)} "
            "--tree TREE, or name them, too"
        )


def check_same(before: Server, after: Server, url: str) -> None:
    """Raises Refused where another server answered at the end of a run than at its beginning."""
    if (before.digest, before.sglang) != (after.digest, after.sglang):
        raise Refused(
            f"{url} was another server at the end of the run than at its beginning: sglang "
            f"{before.sglang} with patch set {before.digest}, then {after.sglang} with "
            f"{after.digest}; repeat the run, and leave the server alone meanwhile"
        )


def check_alike(server: Server, first: Path, pristine_flags: Iterable[str]) -> None:
    """Raises Refused where this server is set up otherwise than the one that `first` keeps.

    Keeps this one where there is none. `pristine_flags`, like --kv-cache-dtype: the pristine arm
    gets these as upstream needs them, so they may differ.
    """
    now = {"sglang": server.sglang, **server.arguments}
    if not first.exists():
        write_object(first, now)
        return
    then = read_object(first, "begin anew with another --output")
    now = json.loads(json.dumps(now))
    excused = {flag.lstrip("-").replace("-", "_") for flag in pristine_flags}
    differing = [
        f"{name}: {json.dumps(then.get(name))} and {json.dumps(now.get(name))}"
        for name in sorted(then.keys() | now.keys())
        if name not in excused and then.get(name) != now.get(name)
    ]
    if differing:
        raise Refused(
            f"this server is set up otherwise than the first one, kept in {first} "
            f"({'; '.join(differing)}): a difference could come of that; start both alike, or "
            "remove that folder if the first one was wrong"
        )


def _listed(states: dict[str, str]) -> str:
    return ", ".join(f"{name} {state}" for name, state in states.items())
