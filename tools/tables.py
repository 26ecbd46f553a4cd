"""Generated tables of the documents: what the patches say of themselves, and what evidence shows.

A number stands in them only while its evidence is fresh; where it is not, the cell says `stale`.
"""

import re
import statistics
from collections.abc import Iterable
from pathlib import Path

from patchset import series
from tools import evidence

STALE = "stale"
NONE = "–"


def all_of(house: Path, patches: series.PatchSet) -> dict[str, dict[str, str]]:
    """Of each document, each table by the name of its block."""
    return {
        "README.md": {"slugs": slugs(patches), "speed": speed(house, patches)},
        "docs/evidence.md": {
            "proof": proof(house, patches),
            "machine-code": machine_code(house, patches),
        },
        "bench/README.md": {"current": current(house, patches)},
    }


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


# What the patches say ---------------------------------------------------------------------------


def slugs(patches: series.PatchSet) -> str:
    releases = list(patches.releases.values())
    names = [" and ".join(sorted((r.name, *r.also))) for r in releases]
    rows = []
    for slug in patches.slugs:
        said = newest(patches, slug).trailers
        cells = [f"`{slug}`", links(said["Upstream-PR"]), said["Subject"]]
        rows.append([*cells, *(standing(release, slug) for release in releases)])
    return markdown(["slug", "upstream", "what it does", *names], rows)


def newest(patches: series.PatchSet, slug: str) -> series.Patch:
    """The slug's patch for the newest release that has one."""
    return next(r.patches[slug] for r in reversed(patches.releases.values()) if slug in r.patches)


def links(pull_requests: str) -> str:
    return re.sub(r"#(\d+)", r"[#\1](https://github.com/sgl-project/sglang/pull/\1)", pull_requests)


def standing(release: series.Release, slug: str) -> str:
    if slug in release.upstream:
        return "upstream"
    if slug not in release.patches:
        return NONE
    status = release.patches[slug].trailers["Upstream-Status"]
    return "completes" if status.startswith("upstream-incomplete") else "patch"


# What evidence shows ----------------------------------------------------------------------------


def proof(house: Path, patches: series.PatchSet) -> str:
    header = ["release", "slug", "numerics", "launches of a decode step", "proven on"]
    rows = []
    for release in reversed(patches.releases.values()):
        for slug, patch in release.patches.items():
            counted = [
                f"{row['case']}, {row['arch']}: "
                + (STALE if row["stale"] else f"{before(row)} → {row['patched']}")
                for row in launches(house, release, slug, patches)
            ]
            shown = [
                f"{device}: {', '.join(f'{layer} as {a}' for layer, a in layers.items()) or STALE}"
                for device, layers in platforms(house, release.name, slug).items()
            ]
            written, _, read = patch.trailers.get("Numerics", NONE).partition("; attention ")
            cells = ["<br>".join(counted) or NONE, "<br>".join(shown) or NONE]
            rows.append([release.name, f"`{slug}`", f"`{written}`", *cells])
            if read:
                about = f"`{slug}`: a token's attention in decode"
                rows.append([release.name, about, f"`{read}`", "as above", "as above"])
    return markdown(header, rows)


def launches(
    house: Path, release: series.Release, slug: str, patches: series.PatchSet
) -> list[dict]:
    """Counts of the cases in which a slug takes part; those that name no release: the newest's."""
    last = list(patches.releases)[-1]
    return [
        row | {"stale": bool(found.changed(slug, release.name))}
        for found in evidence.load(house, "launches.jsonl")
        for row in found.rows
        if slug in row["slugs"] and row.get("release", last) == release.name
    ]


def before(row: dict) -> str:
    """Upstream's launches, or that upstream refuses the case."""
    return "refused" if row["pristine"] is None else str(row["pristine"])


def platforms(house: Path, release: str, slug: str) -> dict[str, dict[str, str]]:
    """{device: {layer: architectures that the slug's own tests passed as}}, {} where stale."""
    found = {}
    for tests in evidence.load(house, "tests.*.jsonl"):
        passed: dict[str, set[str]] = {}
        for row in tests.rows:
            about = row["subject"] == slug.replace("-", "_") and row["arch"] != "any"
            if about and row["passed"] and row.get("release", "any") in ("any", release):
                passed.setdefault(row["layer"], set()).add(row["arch"])
        if passed and release in tests.key["digests"]:
            stale = tests.changed(slug, release)
            layers = {layer: " and ".join(sorted(archs)) for layer, archs in passed.items()}
            found[tests.device] = {} if stale else layers
    return found


def speed(house: Path, patches: series.PatchSet) -> str:
    header = ["slug", "device", "8192 tokens", "of upstream", "up to 64 tokens, of upstream"]
    rows = []
    for bench in evidence.benches(house, patches.slugs):
        (slug,) = bench.slugs(patches.slugs)
        cells = [STALE] * 3
        if not bench.changed(slug):
            long = longest(bench.rows)
            short = [row for row in bench.rows if row["tokens"] <= 64]
            cells = [
                "<br>".join(limits(long)),
                spread([ratio(row) for row in long], ""),
                spread([ratio(row) for row in short], ""),
            ]
        rows.append([f"`{bench.subject}`", bench.device, *cells])
    return markdown(header, rows)


def limits(rows: list[dict]) -> list[str]:
    """Our times over that of the bytes, and over that of the products where they were counted."""
    over_bytes = spread([row["ours_us"] / row["floor_us"] for row in rows], "x the floor")
    products = over_products(rows)
    return [over_bytes, *[spread(products, "x the products")] * bool(products)]


def over_products(rows: list[dict]) -> list[float | None]:
    """Our times over that of the products, where they were counted."""
    return [row["ours_us"] / row["products_us"] for row in rows if row.get("products_us")]


def current(house: Path, patches: series.PatchSet) -> str:
    """Our times now: of each work one model, on the fewest and on the most ranks."""
    header = ["work", "rank", "cache", "device", "T=1", "T=64", "T=8192", "x floor", "x products"]
    rows = []
    for bench in evidence.benches(house, patches.slugs):
        (slug,) = bench.slugs(patches.slugs)
        stale = bench.changed(slug)
        for work, cache in dict.fromkeys((r["work"], r["cache_dtype"]) for r in bench.rows):
            same = [r for r in bench.rows if (r["work"], r["cache_dtype"]) == (work, cache)]
            model = same[0]["model"]
            degrees = sorted({r["tp"] for r in same if r["model"] == model})
            for tp in dict.fromkeys((degrees[0], degrees[-1])):
                line = {r["tokens"]: r for r in same if (r["model"], r["tp"]) == (model, tp)}
                cells = [f"{bench.subject}: {work}", f"{model} TP{tp}", cache, bench.device]
                rows.append([*cells, *([STALE] * 5 if stale else of_line(line))])
    return markdown(header, rows)


def of_line(line: dict[int, dict]) -> list[str]:
    """Ours at three sizes, the rival in brackets, and over both floors at the last."""
    cells = []
    for tokens in (1, 64, 8192):
        row = line.get(tokens)
        cells.append(NONE if row is None else f"{row['ours_us']:.2f} ({rival(row)})")
    last = line.get(8192, {})
    for floor in ("floor_us", "products_us"):
        cells.append(f"{last['ours_us'] / last[floor]:.2f}" if last.get(floor) else NONE)
    return cells


def rival(row: dict) -> str:
    theirs = row.get("upstream_us") or row.get("eager_us")
    return f"{theirs:.2f}" if theirs else NONE


def longest(rows: list[dict]) -> list[dict]:
    """Those of 8192 tokens, or of the most that were measured below."""
    most = max((row["tokens"] for row in rows if row["tokens"] <= 8192), default=0)
    return [row for row in rows if row["tokens"] == most]


def ratio(row: dict) -> float | None:
    """Our time over that of what the release runs: its own kernel, or its eager sequence."""
    theirs = row.get("upstream_us") or row.get("eager_us")
    return row["ours_us"] / theirs if theirs else None


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def spread(values: list[float | None], unit: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    return f"{median(known):.2f}{unit} ({min(known):.2f} to {max(known):.2f})"


def machine_code(house: Path, patches: series.PatchSet) -> str:
    header = ["kernel", "chip", "forms", "VGPRs", "waves", "LDS", "scratch", "widest load, store"]
    rows = []
    for found in evidence.load(house, "aot.*.jsonl"):
        for slug in patches.slugs:
            of_slug = [row for row in found.rows if row["slug"] == slug]
            for kernel in dict.fromkeys(row["kernel"] for row in of_slug):
                cells = [f"`{shown(kernel)}`", found.device]
                if found.changed(slug):
                    rows.append([*cells, *[STALE] * 6])
                    continue
                forms = [row for row in of_slug if row["kernel"] == kernel]
                rows.append([*cells, str(len(forms)), *(resources(forms))])
    return markdown(header, rows)


def shown(kernel: str) -> str:
    """A kernel's name as people say it."""
    return kernel.strip("_").removesuffix("_kernel")


def resources(forms: list[dict]) -> list[str]:
    most = {name: max(row[name] for row in forms) for name in ("vgprs", "lds", "scratch")}
    widest = ", ".join(str(max(widths(forms, access))) for access in ("loads", "stores"))
    waves = min(row["waves"] for row in forms)
    return [str(most["vgprs"]), str(waves), str(most["lds"]), str(most["scratch"]), widest]


def widths(forms: list[dict], access: str) -> set[int]:
    return {int(width) for row in forms for width in row[access]}
