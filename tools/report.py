#!/usr/bin/env python3
"""Write one static page of what evidence/ holds, to read anywhere without a network.

    python3 tools/report.py [--output FOLDER]     FOLDER/index.html; default: build/report

Releases and slugs with what is proven of each, plots, every measured row with an estimate for AMD's
memory, the machine code of every kernel, accuracy and throughput where they were run, and which
evidence is stale. Needs what ci/requirements-tools.txt names.
Exit codes: 0 written, 2 wrong usage or something is missing.
"""

import argparse
import base64
import re
import sys
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))  # before this folder, whose evidence.py is not the package

from ci.entry import Stop, needs, run  # noqa: E402  # the folder above is put on the path first
from evidence import key as keys  # noqa: E402
from patchset import series  # noqa: E402
from tools import evidence, tables  # noqa: E402

PAGE = Path(__file__).resolve().parent / "page"
# Published peak bandwidths of the memory, bytes in a microsecond.
HBM = {"MI300X": 5.3e6, "MI355X": 8.0e6}
# How torch names one, "AMD Instinct MI300X"; code that was compiled for gfx942 ran nowhere.
AMD = re.compile(r"\bAMD\b|Instinct")


def page(house: Path) -> str:
    """The page as text, from the checkout at ``house``."""
    import jinja2

    patches = series.load(house)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    judged = list(evidence.judgements(house))
    return environment.get_template("index.html.jinja").render(
        releases=list(patches.releases.values()),
        slugs=patches.slugs,
        subjects={slug: tables.newest(patches, slug).trailers["Subject"] for slug in patches.slugs},
        matrix=matrix(house, patches),
        benches=[bench(found, patches) for found in evidence.benches(house, patches.slugs)],
        code=machine_code(house),
        tilelang=tilelang(house),
        runs=runs(house, patches),
        faults=faults(house, patches),
        served=served(house),
        long=long_tests(house),
        files=judged,
        stale=sum(not each["fresh"] for each in judged),
        amd=amd(house),
        hbm=HBM,
        style=(PAGE / "style.css").read_text(),
        script=(PAGE / "script.js").read_text(),
    )


def amd(house: Path) -> list[str]:
    """The AMD GPUs that some evidence is of."""
    return sorted(
        {e.device.replace("-", " ") for e in evidence.load(house) if AMD.search(e.device)}
    )


# What stands of each slug in each release -------------------------------------------------------


def matrix(house: Path, patches: series.PatchSet) -> list[dict]:
    rows = []
    for release in reversed(patches.releases.values()):
        for slug in patches.slugs:
            if slug not in release.patches:
                continue
            counted = tables.launches(house, release, slug, patches)
            comparable = [row for row in counted if row["pristine"] is not None]
            rows.append(
                {
                    "release": release.name,
                    "slug": slug,
                    "state": tables.standing(release, slug),
                    "numerics": release.patches[slug].trailers["Numerics"],
                    "proven": proven(house, release.name, slug),
                    "launches": [row | {"before": tables.before(row)} for row in counted],
                    "saved": max((r["pristine"] - r["patched"] for r in comparable), default=0),
                    "speed": speeds(house, slug, patches),
                    "code": fitness(house, slug),
                    "accuracy": verdicts(house, "gsm8k", release, slug),
                    "throughput": verdicts(house, "throughput", release, slug),
                }
            )
    return rows


def proven(house: Path, release: str, slug: str) -> list[dict]:
    """For each device the layers of tests that passed, by what they passed as; none if stale."""
    found = []
    for device, layers in tables.platforms(house, release, slug).items():
        by_archs: dict[str, list[str]] = {}
        for layer, archs in layers.items():
            by_archs.setdefault(archs, []).append(layer)
        found.append({"device": device.replace("-", " "), "layers": by_archs})
    return found


def speeds(house: Path, slug: str, patches: series.PatchSet) -> list[dict]:
    """One summary for each device and part of the slug that was measured."""
    found = []
    for measured in evidence.benches(house, patches.slugs):
        if measured.slugs(patches.slugs) != [slug]:
            continue
        long = tables.longest(measured.rows)
        short = [row for row in measured.rows if row["tokens"] <= 64]
        found.append(
            {
                "subject": measured.subject,
                "device": measured.device,
                "stale": bool(measured.changed(slug)),
                "floor": tables.median([row["ours_us"] / row["floor_us"] for row in long]),
                "products": tables.median(tables.over_products(long)),
                "short": tables.median([tables.ratio(row) for row in short]),
            }
        )
    return found


def fitness(house: Path, slug: str) -> list[dict]:
    """For each chip, whether the slug's kernels were compiled for it and how they came out."""
    found = []
    for report in evidence.load(house, "aot.*.jsonl"):
        forms = [row for row in report.rows if row["slug"] == slug]
        if forms:
            found.append(
                {
                    "chip": report.device,
                    "stale": bool(report.changed(slug)),
                    "forms": len(forms),
                    "waves": min(row["waves"] for row in forms),
                    "scratch": max(row["scratch"] + row["spills"] for row in forms),
                }
            )
    return found


def verdicts(house: Path, kind: str, release: series.Release, slug: str) -> list[dict]:
    runs = runs_of(house, kind, {release.name: release})
    return [run for run in runs if slug in run["slugs"]]


# Measured rows, with an estimate for chips that nobody here has ---------------------------------

ARCHS = {"MI300X": "gfx942", "MI355X": "gfx950"}


def bench(measured: evidence.Evidence, patches: series.PatchSet) -> dict:
    (slug,) = measured.slugs(patches.slugs)
    bandwidth = (measured.key or {}).get("bandwidth_tb_s")
    compiled = {
        chip: evidence.load(measured.house, f"*.{arch}.jsonl") for chip, arch in ARCHS.items()
    }
    rows = [
        row
        | {
            "ratio": row["ours_us"] / row["floor_us"],
            "against": tables.ratio(row),
            "estimates": estimates(
                row,
                bandwidth and bandwidth * 1e6,
                {chip: amd_launches(files, slug, row) for chip, files in compiled.items()},
            ),
        }
        for row in measured.rows
    ]
    return {
        "subject": measured.subject,
        "slug": slug,
        "device": measured.device,
        "stale": measured.changed(slug),
        "key": measured.key or {},
        "rows": rows,
        "plots": [] if any("model" not in row for row in rows) else plots(rows),
    }


def estimates(
    row: dict, bandwidth: float | None, launches: dict[str, int]
) -> dict[str, float | None]:
    """Microseconds that a chip cannot go below: the row's bytes over the peak bandwidth of its HBM,
    or the chip's launches at what an empty one costs on the measured device, since none was timed
    on AMD."""
    if bandwidth is None:
        return dict.fromkeys(HBM)
    moved = row["floor_us"] * bandwidth
    return {chip: max(moved / peak, launches[chip] * row["empty_us"]) for chip, peak in HBM.items()}


def amd_launches(compiled: list[evidence.Evidence], slug: str, row: dict) -> int:
    """How many launches the row's call takes on the chip that the files are of, as its own launch
    parameters have it."""
    call = {name: row[name] for name in ("work", "model", "tp", "tokens")} | {"slug": slug}
    counted = [
        each["launches"]
        for file in compiled
        if file.subject == "aot"
        for each in file.content.get("launches", [])
        if call.items() <= each.items()
    ]
    combined = [
        each
        for file in compiled
        if file.subject == "tilelang"
        for each in file.rows
        if row["work"] == "sparse attention" and each["splits"] > 1
        if f"{row['model']} TP{row['tp']}" in each["models"] and row["tokens"] in each["tokens"]
    ]
    return max(counted, default=1) + bool(combined)


def plots(rows: list[dict]) -> list[dict]:
    """A picture for each kind of work, model and cache, at the most ranks that were measured."""
    from tools.plots import time_against_tokens

    lines: dict[tuple, list[dict]] = {}
    for row in rows:
        lines.setdefault((row.get("work", ""), row["model"], row["cache_dtype"]), []).append(row)
    drawn = []
    for (work, model, cache), line in lines.items():
        tp = max(row["tp"] for row in line)
        title = f"{work}: {model} TP{tp}, {cache}".removeprefix(": ")
        svg = time_against_tokens([row for row in line if row["tp"] == tp], title)
        data = base64.b64encode(svg.encode()).decode()
        drawn.append({"title": title, "source": f"data:image/svg+xml;base64,{data}"})
    return drawn


# The rest ---------------------------------------------------------------------------------------


def machine_code(house: Path) -> list[dict]:
    return [
        with_widths(row)
        | {
            "chip": report.device,
            "name": tables.shown(row["kernel"]),
            "models": condensed(row["models"]),
            "upstream": row["upstream"] and with_widths(row["upstream"]),
            "stale": bool(report.changed(row["slug"])),
        }
        for report in evidence.load(house, "aot.*.jsonl")
        for row in report.rows
    ]


def tilelang(house: Path) -> list[dict]:
    return [
        row
        | {
            "chip": written.device,
            "models": condensed(row["models"]),
            "stale": bool(written.changed(row["slug"])),
        }
        for written in evidence.load(house, "tilelang.*.jsonl")
        for row in written.rows
    ]


def with_widths(row: dict) -> dict:
    """Loads and stores as the widths of their accesses, widest first."""
    return row | {
        access: ", ".join(map(str, sorted(map(int, row[access]), reverse=True)))
        for access in ("loads", "stores")
    }


def condensed(ranks: list[str]) -> str:
    """["GLM-5 TP1", "GLM-5 TP4"] as "GLM-5 TP1/4"."""
    models: dict[str, list[str]] = {}
    for rank in ranks:
        model, _, tp = rank.rpartition(" TP")
        models.setdefault(model, []).append(tp)
    return ", ".join(f"{model} TP{'/'.join(tps)}" for model, tps in models.items())


def runs(house: Path, patches: series.PatchSet) -> list[dict]:
    """Every accuracy and throughput comparison that was kept."""
    return [
        run for kind in ("gsm8k", "throughput") for run in runs_of(house, kind, patches.releases)
    ]


def runs_of(house: Path, kind: str, releases) -> list[dict]:
    found = []
    for kept in evidence.load(house, f"{kind}.*.json"):
        setting = kept.content.get("configuration", {})
        release = releases.get(setting.get("release"))
        if release is None:
            continue
        verdict = kept.content["verdict"]
        found.append(
            {
                "file": kept.path.name,
                "what": {"gsm8k": "GSM8K accuracy", "throughput": "throughput"}[kind],
                "release": release.name,
                "model": setting.get("model", "").rpartition("/")[2],
                "arch": setting.get("arch", ""),
                "device": kept.device,
                "slugs": setting.get("slugs", []),
                "verdict": verdict,
                "message": kept.content.get("message", ""),
                "kind": {"PASS": "good", "REGRESSION": "bad"}.get(verdict, "unsure"),
                "stale": any(kept.changed(slug) for slug in setting.get("slugs", [])),
            }
        )
    return found


def faults(house: Path, patches: series.PatchSet) -> list[dict]:
    """For each slug, how many of its faults a test caught when they were put in."""
    found = []
    for kept in evidence.load(house, "seeded-faults.jsonl"):
        for slug in patches.slugs:
            rows = [row for row in kept.rows if row["slug"] == slug]
            if rows:
                caught = sum(row["caught"] for row in rows)
                stale = bool(kept.changed(slug))
                found.append({"slug": slug, "caught": caught, "stale": stale, "rows": rows})
    return found


def served(house: Path) -> list[dict]:
    """What the comparison of real servers says of faults, and of patches that have none."""
    return [
        row | {"stale": any(kept.changed(slug) for slug in row["slugs"])}
        for kept in evidence.load(house, "regression-faults.jsonl")
        for row in kept.rows
    ]


def long_tests(house: Path) -> list[dict]:
    """What `ci/test --long` showed. A row is of no one slug: any change makes it stale."""
    return [
        row | {"device": kept.device, "stale": bool(keys.changed(kept.key, keys.of_tests(house)))}
        for kept in evidence.load(house, "tests.*.jsonl")
        for row in kept.rows
        if row.get("selection") == "long"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HOUSE / "build" / "report", metavar="FOLDER")
    args = parser.parse_args()
    needs("jinja2", "matplotlib")
    text = page(HOUSE)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "index.html").write_text(text, encoding="utf-8")
    except OSError as problem:
        where = f"--output {args.output}"
        said = f"{where}: {problem.strerror}; give a folder, there or not, that can be written to"
        raise Stop(said) from problem
    print(args.output / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(run("report", main))
