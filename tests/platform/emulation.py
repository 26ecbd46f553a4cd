"""Make sglang find an AMD GPU in this process.

On `rocm` nothing is replaced; calls are counted. On `cuda` an NVIDIA GPU reports itself as gfx950.
Triton and, if installed, TileLang run natively; references replace the compiled operators of aiter
and sgl_kernel. On `cpu` everything is replaced.
"""

import importlib.util
import os
import types

import torch

from . import imports, recorder
from .value import Platform, refuse_the_interpreter

# Packages that are served from the references, or that sglang imports and the tested paths do not
# need. Real ones of these names, where installed, are built for another platform.
STOOD_IN = ("aiter", "sgl_kernel", "fast_hadamard_transform")
TILELANG = ("tilelang", "tvm_ffi")
UNUSED = ("torchvision", "IPython", "anthropic", "sklearn", "xgrammar")


def environment(platform: Platform, tree, packages=None, **switches: str) -> dict[str, str]:
    """The environment of a process that runs the sglang of `tree` on `platform`.

    `packages`: a folder that goes before the environment's own packages.

    `site/` on PYTHONPATH installs the emulation before anything else runs, in the process and in
    each that it starts.
    """
    refuse_the_interpreter(platform.name)
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(here))
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("SGLANG_")
    }
    path = [os.path.join(here, "site"), str(tree), str(packages or ""), root]
    path.append(os.environ.get("PYTHONPATH", ""))
    result = {
        **inherited,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "SGLANG_USE_AITER": "1",
        "SGLANG_TEST_PLATFORM": platform.name,
        "SGLANG_TEST_ARCH": platform.arch,
        # Compiling sglang's sources is a third of an import of it.
        "PYTHONPYCACHEPREFIX": os.path.join(root, "build", "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "",
        **switches,
    }
    if platform.name != "rocm":
        result["PATH"] = os.pathsep.join([os.path.join(here, "bin"), os.environ["PATH"]])
    if platform.name == "cpu":
        result["TRITON_INTERPRET"] = "1"
        result.setdefault("OMP_NUM_THREADS", "1")
    return result


def install(platform: Platform, absent: tuple[str, ...] = ()) -> None:
    """`absent`: qualified names of operators that an older aiter would not have."""
    from . import operators, triton_driver

    provided = operators.install(platform)
    if platform.name == "rocm":
        recorder.watch(operators.counted)
        recorder.count_triton_launches()
        if _has_tilelang():
            operators.tilelang.count_native_launches()
        return
    triton_driver.install(platform)
    stood_in = STOOD_IN + UNUSED + TILELANG
    if platform.name == "cpu":
        from . import device, distributed, graph, triton_interpreter

        triton_interpreter.install()
        device.install(platform.arch)
        graph.install()
        distributed.use_gloo()
        distributed.fork_and_never_spawn()
    else:
        if _has_tilelang():
            # Imported and told its target now: later torch.version.hip hides NVIDIA's.
            os.environ.setdefault("TILELANG_DEFAULT_TARGET", "cuda")
            operators.tilelang.count_native_launches()
            operators.jit.load_references()
            stood_in = STOOD_IN + UNUSED
        _nvidia_says_it_is(platform.arch)
    recorder.count_triton_launches()
    torch.compile = _not_compiled
    torch.compiler.disable = _not_compiled
    # transformers compares it with what it needs, from 5.12 on.
    provided["torchvision.__version__"] = "0"
    imports.stand_in(stood_in, provided, absent)


def _has_tilelang() -> bool:
    return importlib.util.find_spec("tilelang") is not None


def _not_compiled(function=None, **options):
    return function if function is not None else (lambda decorated: decorated)


def _nvidia_says_it_is(arch: str) -> None:
    real = torch.cuda.get_device_properties(0)
    names = (name for name in dir(real) if not name.startswith("_"))
    answer = types.SimpleNamespace(**{name: getattr(real, name) for name in names})
    answer.gcnArchName = f"{arch}:sramecc+:xnack-"
    torch.cuda.get_device_properties = lambda device=None: answer
    torch.version.hip, torch.version.cuda = "7.0.51831", None
