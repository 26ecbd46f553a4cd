"""Print each row when it is measured, and write the rows as evidence."""

from pathlib import Path

import torch

from bench import upstream
from evidence import key as keys
from evidence import store

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("upstream", "eager", "floor", "products", "empty")
# What every row has, whatever it measures; a side that this device does not have is null.
COLUMNS = (
    "work",
    "model",
    "tp",
    "tokens",
    "cache_dtype",
    "launches",
    "ours_us",
    "upstream_us",
    "eager_us",
    "floor_us",
    "products_us",
    "empty_us",
)


def show(subject: str, rows: list[dict]) -> None:
    """Print the last row, and a heading where a new line of sizes begins."""
    row = rows[-1]
    group = {name: row[name] for name in ("work", "model", "tp", "cache_dtype")}
    if len(rows) == 1 or any(rows[-2][name] != value for name, value in group.items()):
        title = f"{subject}: {row['work']}, {row['model']} TP{row['tp']}, {row['cache_dtype']}"
        sides = "".join(f" {side:>8}" for side in ("ours", *OTHERS))
        over = "".join(f" {'/ ' + other:>10}" for other in OTHERS)
        print(f"\n{title}\ntokens launches{sides} | ours{over}")
    times = "".join(f" {_number(row[f'{side}_us'], 8)}" for side in ("ours", *OTHERS))
    ratios = "".join(f" {_number(ratio(row, other), 10)}" for other in OTHERS)
    print(f"{row['tokens']:6} {row['launches']:8g}{times} |     {ratios}", flush=True)


def ratio(row: dict, other: str) -> float | None:
    """Our time over another column's; below 1 is faster than it."""
    return None if row[f"{other}_us"] is None else row["ours_us"] / row[f"{other}_us"]


def _number(value: float | None, width: int) -> str:
    return " " * (width - 1) + "-" if value is None else f"{value:{width}.2f}"


def write(subject: str, rows: list[dict], ruler) -> Path:
    """`evidence/<subject>.<device>.jsonl`, underscores for hyphens: the key and the rows."""
    lacking = sorted({name for row in rows for name in COLUMNS if name not in row})
    if lacking or not rows:
        raise ValueError(f"{subject}: rows without {', '.join(lacking) or 'anything'}")
    device = torch.cuda.get_device_name(0)
    key = keys.key(device, keys.of_bench(subject)) | {
        "subject": subject,
        "release": upstream.RELEASE,
        "bandwidth_tb_s": round(ruler.bytes_per_us / 1e6, 3),
        "products_tflop_s": round(ruler.flops_per_us / 1e6, 1),
    }
    subject = subject.replace("-", "_")
    path = ROOT / "evidence" / store.file_name(subject, device)
    store.write(path, {"subject": subject, "key": key}, rows)
    return path
