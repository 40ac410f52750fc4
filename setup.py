"""Builds the native kernels, or fails with a sentence that says what to do.

The environment variable FUSED_CONTRASTIVE_BUILD chooses what to build:

- ``cpu``, the default, builds the CPU kernels. It needs a C++20 compiler, and no torch.
- ``cuda`` builds the CUDA kernels, too. It needs nvcc, and torch in the build environment.
- ``none`` builds nothing: the panels and Triton backends need no native kernels.
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
MODULE = ("module.cpp", "library.cpp")
KERNELS = "isa_kernels.cpp"
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
ISAS = {
    "portable": ([], []),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["FUSED_AVX2"]),
    "avx512": (AVX512, ["FUSED_AVX512"]),
    "avx512_bf16": ([*AVX512, "-mavx512bf16"], ["FUSED_AVX512", "FUSED_BF16"]),
}
WITHOUT = (
    "FUSED_CONTRASTIVE_BUILD=none installs the package without native kernels, "
    "whose panels and Triton backends need no compiler"
)
# One binary serves every Python from this one on. Python without its global lock has no such ABI.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
PYTHON = "0x030a0000"


def say(message):
    print(f"fused_contrastive: {message}", file=sys.stderr, flush=True)


def fail(message):
    raise SystemExit(f"fused_contrastive: {message}")


def wanted():
    """Returns what to build: "cpu", "cuda" (which includes the CPU kernels) or "none"."""
    choice = os.environ.get("FUSED_CONTRASTIVE_BUILD", "cpu")
    if choice not in ("cpu", "cuda", "none"):
        fail(f"FUSED_CONTRASTIVE_BUILD must be cpu, cuda or none, got {choice!r}")
    return choice


def compiler():
    """Returns the C++ compiler setuptools will call, or None."""
    if os.name == "nt":
        return "cl"
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return shutil.which(command.split()[0])


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

    isa_kernels.cpp is compiled once for each instruction set. All compilations run at once. Then
    one library is linked.
    """

    def copy_extensions_to_source(self):
        """Puts the libraries beside the sources, for an editable install."""
        for stale in Path("fused_contrastive").glob("_C_*.so"):
            # One of an earlier build, by another name, would be loaded in place of the new one.
            if any(stale.name.startswith(e.name.rpartition(".")[2]) for e in self.extensions):
                stale.unlink()
        super().copy_extensions_to_source()

    def build_extension(self, extension):
        build = self.build_cuda if extension.name.endswith("_C_cuda") else self.build_cpu
        library = Path(self.get_ext_fullpath(extension.name))
        for stale in library.parent.glob(f"{extension.name.rpartition('.')[2]}.*"):
            # The folder of an earlier build may hold one by another name.
            stale.unlink()
        build(library)

    def build_cuda(self, library):
        if cuda_build().nvcc() is None:
            fail("the CUDA kernels need nvcc: set CUDA_HOME, or put nvcc on the path")
        if importlib.util.find_spec("torch") is None:
            fail(
                "the CUDA kernels need torch's headers, and there is no torch in the build "
                "environment: install with --no-build-isolation where torch is installed"
            )
        architectures = ", sm_".join(cuda_build().ARCHITECTURES)
        say(f"CUDA kernels for sm_{architectures}, by {cuda_build().nvcc()}")
        # The objects are kept, for they take minutes to compile.
        cuda_build().build(library.absolute(), Path("build/cuda").absolute())

    def build_cpu(self, library):
        if compiler() is None:
            fail(
                "there is no C++ compiler here. Install one (g++ 10, clang 12 or later), or name "
                f"yours in the variable CXX, or install a wheel. {WITHOUT}"
            )
        say(f"CPU kernels for {', '.join(isas())}, by {compiler()}")
        try:
            self.compile_cpu(library)
        except Exception as error:
            fail(
                f"{compiler()} did not compile the CPU kernels, as it says above ({error}). "
                f"They need a C++20 compiler: g++ 10, clang 12 or later. {WITHOUT}"
            )

    def compile_cpu(self, library):
        names = isas()
        macros = [("FUSED_CONTRASTIVE_VERSION", f'"{self.distribution.get_version()}"')]
        macros += [("Py_LIMITED_API", PYTHON)] if STABLE_ABI else []
        macros += [("FUSED_" + name.upper() + "_KERNELS", None) for name in names]
        link = []
        if os.name == "nt":
            common = ["/O2", "/std:c++20", "/EHsc", "/permissive-"]
        else:
            common = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-pthread"]
            common += ["-fno-math-errno", "-ffp-contract=fast"]
            link = ["-s", "-pthread"] if sys.platform == "linux" else []
        jobs = [(Path(name).stem, CPU / name, common, macros) for name in MODULE]
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
                include_dirs=[sysconfig.get_paths()["include"]],
                extra_postargs=flags,
                depends=[str(path) for path in CPU.glob("*.h")],
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [path for paths in pool.map(compile_one, jobs) for path in paths]
        self.compiler.link_shared_object(
            objects,
            str(library),
            extra_postargs=link,
            export_symbols=["PyInit__C_cpu"],
            target_lang="c++",
        )


def extension(name, sources):
    return Extension(
        f"fused_contrastive.{name}", [str(path) for path in sources], py_limited_api=STABLE_ABI
    )


extensions = []
if wanted() == "none":
    say(WITHOUT)
else:
    extensions.append(extension("_C_cpu", [CPU / name for name in (*MODULE, KERNELS)]))
if wanted() == "cuda":
    extensions.append(extension("_C_cuda", [CUDA / "library.cpp"]))
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions and STABLE_ABI else {},
)
