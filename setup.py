"""Builds the native kernels where it can, and says what it decided and why.

The environment variable FUSED_CONTRASTIVE_BUILD chooses what to build:

- ``auto``, the default, builds the CPU kernels where torch and a C++ compiler are present.
- ``cpu`` means that the CPU kernels must build.
- ``cuda`` means that the CUDA kernels must build, too.
- ``none`` builds nothing.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("csrc/cpu")
CUDA = Path("csrc/cuda")
TORCH_SOURCES = ("library.cpp", "similarity_ops.cpp", "sigmoid_ops.cpp", "force_ops.cpp")
KERNELS = "isa_kernels.cpp"
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
ISAS = {
    "portable": ([], []),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["FUSED_AVX2"]),
    "avx512": (AVX512, ["FUSED_AVX512"]),
    "avx512_bf16": ([*AVX512, "-mavx512bf16"], ["FUSED_AVX512", "FUSED_BF16"]),
}


def say(message):
    print(f"fused_contrastive: {message}", file=sys.stderr, flush=True)


def compiler():
    """Returns the C++ compiler setuptools will call, or None."""
    if os.name == "nt":
        return "cl"
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return shutil.which(command.split()[0])


def decide():
    """Returns what to build, and whether a failure to build it is an error.

    What to build is "cuda" (which includes the CPU kernels), "cpu" or "none".
    """
    wanted = os.environ.get("FUSED_CONTRASTIVE_BUILD", "auto")
    if wanted not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"FUSED_CONTRASTIVE_BUILD must be auto, cpu, cuda or none, got {wanted!r}")
    if wanted == "none":
        say(
            "no native kernels, as FUSED_CONTRASTIVE_BUILD=none asks; "
            "the panels and Triton backends need none"
        )
        return "none", False
    missing = []
    try:
        import torch
    except ImportError:
        missing.append("torch in the build environment (pip install --no-build-isolation)")
    if compiler() is None:
        missing.append("a C++ compiler")
    if wanted == "cuda" and cuda_build().nvcc() is None:
        missing.append("nvcc (CUDA_HOME or the path)")
    if missing:
        reason = "native kernels need " + " and ".join(missing)
        if wanted != "auto":
            raise SystemExit(f"FUSED_CONTRASTIVE_BUILD={wanted}: {reason}")
        say(f"no native kernels: {reason}; the panels and Triton backends work without them")
        return "none", False
    say(
        f"CPU kernels for torch {torch.__version__}, {', '.join(isas())} "
        f"(FUSED_CONTRASTIVE_BUILD={wanted})"
    )
    if wanted == "cuda":
        architectures = ", sm_".join(cuda_build().ARCHITECTURES)
        say(f"CUDA kernels for sm_{architectures}, by {cuda_build().nvcc()}")
        return "cuda", True
    return "cpu", wanted != "auto"


def cuda_build():
    """Returns the module csrc/cuda/build.py, which the compile gate uses, too."""
    spec = importlib.util.spec_from_file_location("fused_contrastive_cuda_build", CUDA / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def supports(flags):
    """Says whether the compiler takes these flags."""
    command = [compiler(), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def isas():
    """Returns the instruction sets that this compiler can target here.

    The library chooses among them at run time.
    """
    x86 = X86 and os.name != "nt"
    return [
        "portable",
        *(name for name, (flags, _) in ISAS.items() if x86 and flags and supports(flags)),
    ]


class BuildKernels(build_ext):
    """This compiles the kernels.

    isa_kernels.cpp is compiled once for each instruction set, and the other files against torch.
    All compilations run at once. Then one library is linked.
    """

    def build_extension(self, extension):
        # An earlier editable install may have left a library here.
        Path(self.get_ext_filename(extension.name)).unlink(missing_ok=True)
        try:
            self.build_kernels(extension)
        except Exception:
            if extension.optional:
                say(
                    "the CPU kernels did not build (reason below); "
                    "the panels and Triton backends work without them"
                )
            raise

    def build_kernels(self, extension):
        if extension.name.endswith("_C_cuda"):
            library = Path(self.get_ext_fullpath(extension.name))
            # The objects are kept, for they take minutes to compile.
            cuda_build().build(library.absolute(), Path("build/cuda").absolute())
            return
        import torch

        root = Path(torch.__file__).parent
        include = [
            root / "include",
            root / "include/torch/csrc/api/include",
            sysconfig.get_paths()["include"],
        ]
        names = isas()
        version = torch.__version__.partition("+")[0]
        macros = [("FUSED_TORCH_VERSION", f'"{version}"')]
        macros += [("FUSED_" + name.upper() + "_KERNELS", None) for name in names]
        if os.name == "nt":
            common, openmp, link = ["/O2", "/std:c++20", "/EHsc", "/permissive-"], ["/openmp"], []
        else:
            abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
            common = [
                "-std=c++20",
                "-O3",
                "-g0",
                "-fvisibility=hidden",
                "-fno-math-errno",
                "-ffp-contract=fast",
            ]
            macros.append(("_GLIBCXX_USE_CXX11_ABI", str(abi)))
            openmp = ["-fopenmp"] if supports(["-fopenmp"]) else []
            link = ["-s", *openmp] if sys.platform == "linux" else openmp
        headers = [str(path) for path in CPU.glob("*.h")]
        jobs = [(Path(name).stem, CPU / name, [*common, *openmp], macros) for name in TORCH_SOURCES]
        for name in names:
            flags, defines = ISAS[name]
            isa = [("FUSED_ISA", name), *((define, None) for define in defines)]
            jobs.append((name, CPU / KERNELS, [*common, *flags], isa))

        def compile_one(job):
            name, source, flags, defines = job
            return self.compiler.compile(
                [str(source)],
                output_dir=str(Path(self.build_temp, name)),
                macros=defines,
                include_dirs=[] if source.name == KERNELS else [str(path) for path in include],
                extra_postargs=flags,
                depends=headers,
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [path for paths in pool.map(compile_one, jobs) for path in paths]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(extension.name),
            libraries=["c10", "torch_cpu", "torch"],
            library_dirs=[str(root / "lib")],
            extra_postargs=link,
            export_symbols=self.get_export_symbols(extension),
            target_lang="c++",
        )


what, required = decide()
extensions = []
if what in ("cpu", "cuda"):
    sources = [str(CPU / name) for name in (*TORCH_SOURCES, KERNELS)]
    extensions.append(
        Extension("fused_contrastive._C_cpu", sources, language="c++", optional=not required)
    )
if what == "cuda":
    # One binary serves every Python and every torch from 2.11 on.
    library = Extension(
        "fused_contrastive._C_cuda", [str(CUDA / "library.cpp")], py_limited_api=True
    )
    extensions.append(library)
setup(license="Apache-2.0", ext_modules=extensions, cmdclass={"build_ext": BuildKernels})
