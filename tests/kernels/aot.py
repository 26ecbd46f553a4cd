"""Compile machine code for an AMD GPU on a machine without one.

    code = aot.compile("sglang.srt.rocm_patches.layernorm_kernel", "_layernorm_kernel",
                       signature={"x": "*bf16", "out": "*fp8", "eps": "fp32", "rows": "i32"},
                       constexprs={"BLOCK": 128}, arch="gfx942", num_warps=1)
    aot.assert_resources(code)
    assert code.widths("store") == {16: 1}

A type is Triton's name of it; `fp8` is the architecture's own e4m3. Pointers are taken as aligned
to 16 bytes and below 2 GiB, as the launcher finds torch's tensors; `*bf16:2` says aligned to 2
bytes, `i32:16` says divisible by 16, `far=["out"]` that a tensor ends past 2 GiB. Every argument
that is not a constexpr has a type; of one that is left out it is None.
A constexpr "tl.float32" is that Triton type. Other keywords are options of Triton's AMD backend.

The process of the tests may run Triton's interpreter, which compiles nothing. So one worker process
compiles for the whole session, with its cache in build/. It uses the environment's Triton, or with
`--aot-triton FOLDER` the Triton in FOLDER (pip install --target FOLDER), because the ROCm images
carry older versions. Tests that compile here are marked `aot`.
"""

import collections
import functools
import importlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.platform.process import ROOT, Process, WorkerError, serve, stdout_for_answers
from tests.platform.value import Platform


class CompilationError(Exception):
    """Triton refused the kernel; the message is the worker's."""


@dataclass(frozen=True)
class MachineCode:
    arch: str
    vgpr_count: int  # AGPRs included
    agpr_count: int
    sgpr_count: int
    vgpr_spill_count: int
    sgpr_spill_count: int
    private_segment_fixed_size: int  # scratch memory, bytes a lane
    lds: int  # bytes a workgroup
    triton: str  # the version that compiled it
    warps: int
    assembly: str
    ttir: str  # what Triton made of the source, before it knows the chip
    ttgir: str  # the same once it knows which threads have what

    @functools.cached_property
    def instructions(self) -> collections.Counter:
        """How often each instruction stands in the text, by its name."""
        return collections.Counter(re.findall(r"^\t([a-z]+_[a-z0-9_]+)", self.assembly, re.M))

    def widths(self, access: str) -> dict[int, int]:
        """How many instructions "load" or "store" so many bytes a lane from or to memory."""
        found: collections.Counter = collections.Counter()
        pattern = re.compile(rf"(?:global|buffer|flat)_{access}_(.+)")
        for name, count in self.instructions.items():
            if match := pattern.fullmatch(name):
                found[_bytes(match[1])] += count
        return dict(found)

    @functools.cached_property
    def arithmetic(self) -> collections.Counter:
        """How many fp32 values each kind of instruction makes: fused or not, packed or not."""
        same = {"subrev": "add", "sub": "add", "fmac": "fma"}
        form = re.compile(r"v_(pk_)?([a-z]+?)(?:_legacy|_scale|_fmas|_fixup)?_f32(?:_.*)?")
        found: collections.Counter = collections.Counter()
        for name, count in self.instructions.items():
            if (match := form.fullmatch(name)) and not match[2].startswith(("cmp", "cvt")):
                found[same.get(match[2], match[2])] += count * (2 if match[1] else 1)
        return found

    @property
    def branches(self) -> int:
        return sum(n for name, n in self.instructions.items() if name.startswith("s_cbranch"))

    @property
    def branches_allowed(self) -> int:
        """Two for the program, each if, each loop and each memory instruction of 4 bytes or more.

        Of narrower ones, no more are counted than the source has accesses: not one for each
        element. Buffer instructions mask without a branch, but want a tensor below 2 GiB, and a
        Triton that sees it.
        """
        loads, stores = (collections.Counter(self.widths(a)) for a in ("load", "store"))
        counts = loads + stores
        narrow = sum(count for width, count in counts.items() if width < 4)
        accesses = len(re.findall(r"\btt\.(?:load|store)", self.ttir))
        regions = len(re.findall(r"\bscf\.(?:if|for|while)", self.ttir))
        return 2 * (1 + counts.total() - narrow + min(narrow, accesses) + regions)

    @property
    def converts_e4m3(self) -> bool:
        """Whether it converts to or from e4m3, as often as the source asks, in hardware alone."""
        asked = {
            "pk_fp8_f32": r"tt\.fp_to_fp.*-> \S*f8E4M3",
            "f32_fp8": r"tt\.fp_to_fp[^>]*f8E4M3",
        }
        return all(
            any(instruction in name for name in self.instructions)
            for instruction, form in asked.items()
            if re.search(form, self.ttir)
        )

    @property
    def waves(self) -> int:
        """How many waves fit a SIMD: 512 registers a lane in steps of 8, LDS shared by 4 SIMDs."""
        by_registers = 512 // (-(-max(self.vgpr_count, 1) // 8) * 8)
        limit = Platform("rocm", self.arch).lds_bytes
        by_lds = limit // self.lds * self.warps // 4 if self.lds else by_registers
        return min(8, by_registers, by_lds)

    @property
    def native_e4m3(self) -> bool:
        """Whether this Triton converts fp32 to the chip's own e4m3 in hardware.

        3.5 and 3.6 do it in software on gfx950, in some 20 instructions a value.
        """
        return self.arch == "gfx942" or not self.triton.startswith(("3.5.", "3.6."))


def _bytes(suffix: str) -> int:
    if match := re.fullmatch(r"dword(?:x(\d))?", suffix):
        return 4 * int(match[1] or 1)
    if match := re.fullmatch(r"[us]?(short|byte)(_d16)?(_hi)?", suffix):
        return {"short": 2, "byte": 1}[match[1]]
    raise ValueError(f"memory access of unknown width: {suffix}")


def compile(module: str, kernel: str, *, signature, constexprs=None, arch: str, far=(), **options):
    """The machine code of `kernel` in `module` for gfx942 or gfx950."""
    absent = {name: None for name, kind in signature.items() if kind is None}
    return compile_request(
        {
            "module": module,
            "kernel": kernel,
            "signature": {name: kind for name, kind in signature.items() if name not in absent},
            "constexprs": absent | (constexprs or {}),
            "arch": arch,
            "far": list(far),
            "options": options,
        }
    )


def compile_request(request: dict) -> MachineCode:
    """The same for a request as tests.kernels.recorder makes it."""
    try:
        result = _worker().ask({"task": "compile"} | request)
    except WorkerError as error:
        raise CompilationError(str(error)) from None
    return MachineCode(arch=request["arch"], **result)


def recorded(table: str, slug: str, arch: str) -> list[dict]:
    """`distinct` or `past_31_bits` of tests.kernels.real_calls, which needs Triton's compiler."""
    return _worker().ask({"task": table, "slug": slug, "arch": arch})["found"]


def assert_resources(code: MachineCode, vgprs: int = 512) -> None:
    """No scratch, no spills, LDS inside the chip's limit, at most so many VGPRs."""
    limits = {
        "private_segment_fixed_size": 0,
        "vgpr_spill_count": 0,
        "sgpr_spill_count": 0,
        "lds": Platform("rocm", code.arch).lds_bytes,
        "vgpr_count": vgprs,
    }
    over = [
        f"{name} is {getattr(code, name)}, at most {limit} allowed"
        for name, limit in limits.items()
        if getattr(code, name) > limit
    ]
    assert not over, f"on {code.arch}: {'; '.join(over)}"


# Set by `--aot-triton`: the folder of another Triton.
triton_folder: Path | None = None


@functools.cache
def _worker() -> Process:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    path = [triton_folder, ROOT, ROOT / "overlay", os.environ.get("PYTHONPATH")]
    environment |= {
        "PYTHONPATH": os.pathsep.join(str(folder) for folder in path if folder),
        # 3.4 links with ROCm's linker, and only its assembly is looked at here.
        "TRITON_HIP_LLD_PATH": str(ROOT / "tests" / "platform" / "bin" / "ld.lld"),
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton-aot"),
        # Triton 3.10 changes the default; the images' Triton fuses.
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    return Process("tests.kernels.aot", environment)


def _answer(task, **request):
    if task == "compile":
        return _compile_here(**request)
    from tests.kernels import real_calls

    return {"found": getattr(real_calls, task)(**request)}


def _compile_here(module, kernel, signature, constexprs, arch, far, options):
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(module), kernel)
    while not isinstance(function, triton.JITFunction):  # autotune and heuristics wrap it
        function = function.fn
    unknown = (signature.keys() | constexprs.keys()) - set(function.arg_names)
    missing = set(function.arg_names) - signature.keys() - constexprs.keys()
    if unknown or missing:
        raise TypeError(f"{kernel}: unknown {sorted(unknown)}, without a type {sorted(missing)}")
    types, constants, attributes = {}, {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constexprs:
            value = constexprs[name]
            if isinstance(value, str) and value.startswith("tl."):
                value = getattr(tl, value[3:])
            types[name], constants[(index,)] = "constexpr", value
            continue
        kind, _, divisibility = signature[name].partition(":")
        own_fp8 = Platform("rocm", arch).triton_fp8
        types[name] = f"*{own_fp8}" if kind == "*fp8" else kind
        pointer = kind.startswith("*")
        divisor = int(divisibility or (16 if pointer else 1))
        attributes[(index,)] = [["tt.divisibility", divisor]] if divisor > 1 else []
        if pointer and name not in far:
            attributes[(index,)].append(["tt.pointer_range", 32])
    compiled = triton.compile(
        ASTSource(function, types, constants, attributes),
        target=GPUTarget("hip", arch, 64),
        options=options,
    )
    assembly, ttir = compiled.asm["amdgcn"], compiled.asm["ttir"]
    arguments = [name for name in function.arg_names if name not in constexprs]
    for index, name in enumerate(arguments):  # before 3.5 they have no names there
        ttir = re.sub(rf"%arg{index}\b", f"%{name}", ttir)
    counts = {
        name: int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])
        for name in (
            "vgpr_count",
            "agpr_count",
            "sgpr_count",
            "vgpr_spill_count",
            "sgpr_spill_count",
            "private_segment_fixed_size",
        )
    }
    return {
        **counts,
        "lds": compiled.metadata.shared,
        "triton": triton.__version__,
        "warps": compiled.metadata.num_warps,
        "assembly": assembly,
        "ttir": ttir,
        "ttgir": compiled.asm["ttgir"],
    }


if __name__ == "__main__":
    serve(_answer, sys.stdin, stdout_for_answers())
