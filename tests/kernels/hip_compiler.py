"""Compile a HIP source to machine code with the compiler of a ROCm installation; needs no GPU.

`hipcc`, or what $HIPCC says: any clang for AMD's GPUs that finds HIP's headers. TileLang's flags.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import tilelang

from tests.kernels.aot import CompilationError, MachineCode

TEMPLATES = Path(tilelang.__file__).parent / "src"
COUNTS = ("vgpr", "agpr", "sgpr", "vgpr_spill", "sgpr_spill")


def command() -> list[str]:
    """The compiler's own words; CompilationError if there is none."""
    words = shlex.split(os.environ.get("HIPCC", "hipcc"))
    if not words or shutil.which(words[0]) is None:
        raise CompilationError(
            f"no HIP compiler: {' '.join(words) or '$HIPCC is empty'} was not found; run this in a "
            f"ROCm image, or set HIPCC to a clang that compiles HIP"
        )
    return words


def version() -> str:
    said = subprocess.run([*command(), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"clang version (\S+)", said)
    return found[1] if found else "unknown"


def compile(source: str, arch: str, lds: int, threads: int) -> MachineCode:
    """Of a program with so many bytes of LDS and threads a workgroup."""
    with tempfile.TemporaryDirectory() as folder:
        written, assembly = Path(folder, "program.hip"), Path(folder, "program.s")
        written.write_text(source)
        flags = ["-x", "hip", f"--offload-arch={arch}", "--cuda-device-only", "-std=c++17", "-O3"]
        run = subprocess.run(
            [*command(), *flags, f"-I{TEMPLATES}", "-S", "-o", str(assembly), str(written)],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            raise CompilationError(f"{shlex.join(command())} on {arch}: {run.stderr[-2000:]}")
        text = assembly.read_text()

    def stated(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    return MachineCode(
        arch=arch,
        private_segment_fixed_size=stated("private_segment_fixed_size"),
        lds=lds,
        triton="none",
        warps=threads // 64,
        assembly=text,
        ttir="",
        ttgir="",
        **{f"{name}_count": stated(f"{name}_count") for name in COUNTS},
    )
