"""A release's patches and overlay as one mail that `git apply` and `git am` both take."""

from collections.abc import Collection

from patchset.diff import ADDED, FileDiff, Hunk, blob_id, merged_hunks, render, split
from patchset.provenance import PROVENANCE, provenance
from patchset.series import PatchSet, Release

# git am needs a sender and a date; fixed ones make the same export the same bytes.
_SENDER = "rocm-patches <rocm-patches@localhost>"
_DATE = "Thu, 1 Jan 2026 00:00:00 +0000"
# The blob of several diffs together needs the pristine bytes, which an export does without.
_UNNAMED = "0" * 40


def export(patchset: PatchSet, release: Release, on: Collection[str]) -> bytes:
    names = [slug for slug in release.patches if slug in on]
    overlay = patchset.laid(on)
    # The kept originals stay out: git has them. The provenance is what the server reports.
    new = {**overlay, PROVENANCE: provenance(release, on, overlay)} if on else {}
    parts = [_mail(release, names)] if on else []
    for path in sorted({*release.pristine_ids(), *new}):
        if path in new:
            parts.append(_creation(path, new[path]))
        elif diffs := release.diffs(path, on):
            parts.append(_modification(path, diffs))
    return b"".join(parts)


def _mail(release: Release, names: list[str]) -> bytes:
    what = "".join(
        f"* {slug}: {release.patches[slug].trailers.get('Subject', '')}\n" for slug in names
    )
    return (
        f"From {release.digest[:40]} Mon Sep 17 00:00:00 2001\n"
        f"From: {_SENDER}\n"
        f"Date: {_DATE}\n"
        f"Subject: [PATCH] ROCm patches for sglang {release.name}\n"
        "MIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=UTF-8\n"
        "Content-Transfer-Encoding: 8bit\n"
        f"\n{what}\nPatch set {release.digest}\n---\n\n"
    ).encode()


def _modification(path: str, diffs: list[FileDiff]) -> bytes:
    made = diffs[0].new_id if len(diffs) == 1 else _UNNAMED
    head = f"diff --git a/{path} b/{path}\nindex {diffs[0].old_id}..{made} 100644\n"
    return f"{head}--- a/{path}\n+++ b/{path}\n".encode() + render(merged_hunks(diffs))


def _creation(path: str, data: bytes) -> bytes:
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n"
    head += f"index {'0' * 40}..{blob_id(data)}\n"
    if not data:
        return head.encode()
    hunk = Hunk(0, tuple((ADDED, line) for line in split(data)))
    return f"{head}--- /dev/null\n+++ b/{path}\n".encode() + render([hunk])
