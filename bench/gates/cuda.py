"""The compile gate of the CUDA kernels compiles csrc/cuda for GPUs that are not here.

``python -m bench.gates.cuda`` compiles every kernel and fails where one does not pass. A kernel
must not spill, and it must contain the matrix and copy instructions that it is built on. Its
warpgroup products must not be serialised, nor its exchange of registers ignored. It must not ask
for more shared memory than the part has.

Sources that have not changed are taken from ``bench/gates/records/cuda.json``, and ``--all``
compiles everything. The gate needs nvcc and cuobjdump (CUDA's or Triton's), but no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).parent / "records" / "cuda.json"
SHARED_KIB = {"80": 163, "86": 99, "90a": 227, "100": 227, "120": 99}
MULTIPLYING = ("pair_reduce", "pair_weight", "fused_rows", "sigmoid_reduce", "sigmoid_weight")
MATRIX = {"Half": "HMMA", "Tf32": "HMMA", "F64": "DMMA", "Warpgroup": "HGMMA", "Fma": None}
"""Each way of multiplying is meant to use this matrix instruction."""
COPIES = {"Warpgroup": "UTMALDG"}
"""Each of these ways of multiplying is fed by this copy instruction."""
COUNTED = ("HMMA", "HGMMA", "DMMA", "UTMALDG")
SERIALISED = re.compile(r"C75(?:10|12|14|15)")
IGNORED = re.compile(r"setmaxnreg.{0,40}ignored", re.IGNORECASE)


def load_build():
    spec = importlib.util.spec_from_file_location(
        "fused_contrastive_cuda_build", ROOT / "csrc/cuda/build.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


def cuobjdump() -> str | None:
    """Returns CUDA's disassembler, or the one that Triton's wheel carries."""
    beside = Path(build.nvcc()).resolve().parent / "cuobjdump"
    spec = importlib.util.find_spec("triton")
    bundled = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec else beside
    return next(
        (str(path) for path in (beside, bundled) if path.exists()), shutil.which("cuobjdump")
    )


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def readable(symbol: str) -> str:
    """Returns the readable form of a mangled kernel name, as ``pair_reduce Half bf16 128x128``."""
    name = re.search(
        r"\d+(prepare|terms|finish_\w+?|pair_reduce|pair_weight|fused_rows|"
        r"(?:force|sigmoid)_\w+?)I",
        symbol,
    )
    policy = re.search(
        r"\d(Half|Tf32|Fma|F64|Warpgroup)(?:I(?:NS_\d(bf16|3f16|f16)|Lb(\d))?)?", symbol
    )
    shape = re.search(r"5ShapeILi(\d+)ELi(\d+)E", symbol)
    element = re.search(r"NS_(?:4(bf16)|3(f16))E", symbol)
    parts = [name[1] if name else symbol]
    if policy:
        parts.append(policy[1] + ("x3" if policy[1] == "Tf32" and policy[3] == "1" else ""))
    if element:
        parts.append(element[1] or element[2])
    elif not policy:
        parts.append("f64" if re.search(r"Id[EL]", symbol) else "f32")
    if shape:
        parts.append(f"{shape[1]}x{shape[2]}")
    if parts[0] == "force_group":
        columns = int(re.search(r"Li(\d)E", symbol)[1])
        return " ".join([*parts, f"{32 * columns} points"])
    if parts[0] == "force_affinities":
        return " ".join([*parts, *(["rms"] if "Lb1E" in symbol else [])])
    variant = re.search(r"EL[bi](\d+)EEEv", symbol)
    if variant:
        parts.append(
            "keys" if parts[0] in MULTIPLYING[:2] + MULTIPLYING[3:] and variant[1] == "1" else ""
        )
        if parts[0] == "fused_rows":
            parts.append(f"{variant[1]} chunks")
    return " ".join(filter(None, parts))


def shared_bytes(folder: Path) -> dict[str, int]:
    """Returns bytes of shared memory by the beginning of a kernel's readable name.

    For kernels that compute pairs, the constants of the headers give the bytes. Kernels of whole
    groups are sized by the group: they are counted for 128 points (64 in float64).
    """
    probe = folder / "shared.cu"
    lines = [
        '#include "similarity_kernels.cuh"',
        '#include "products_sm90.cuh"',
        '#include "force_kernels.cuh"',
        '#include "sigmoid_kernels.cuh"',
        "#include <cstdio>",
        "using namespace fused_contrastive;",
    ]
    pairs = {
        "Half bf16": ("Half<bf16, Square>", "Half<bf16, Rows>", 2),
        "Half f16": ("Half<f16, Square>", "Half<f16, Rows>", 2),
        "Tf32": ("Tf32<false, Square>", "Tf32<false, SmallRows>", 4),
        "Tf32x3": ("Tf32<true, Square>", "Tf32<true, SmallRows>", 4),
        "Fma": ("Fma<Square>", "Fma<SmallRows>", 4),
        "F64": ("F64<SmallSquare>", "F64<SmallRows>", 8),
        "Warpgroup bf16": ("Warpgroup<bf16>", None, 2),
        "Warpgroup f16": ("Warpgroup<f16>", None, 2),
    }
    lines.append("int main() {")
    for label, (square, rows, size) in pairs.items():
        reduce = f"ReduceLoop<{square}>::SHARED + Reduce<{square}, false>::SHARED"
        weight = f"weight_shared<{square}, false>()"
        sigmoid = f"SigmoidLoop<{square}>::SHARED + SigmoidReduce<{square}, false>::SHARED"
        sizes = {
            "pair_reduce": reduce,
            "pair_weight": weight,
            "sigmoid_reduce": sigmoid,
            "sigmoid_weight": f"{weight} + RowParts<{square}>::SHARED",
        }
        if rows:
            chunks = (64 if size == 8 else 128) * size // 64
            sizes["fused_rows"] = f"RowsLoop<{rows}, {chunks}>::SHARED"
        lines += [f'  printf("{kernel} {label}=%d\\n", {of});' for kernel, of in sizes.items()]
    for label, element in (("bf16", "bf16"), ("f16", "f16"), ("f32", "float"), ("f64", "double")):
        for name in ("distances", "log_sums", "affinities", "weights", "inverses"):
            lines.append(f'  printf("force_{name} {label}=%d\\n", RowView<{element}>::SHARED);')
        most = 64 if label == "f64" else 128
        lines.append(f"  ForceParams {label}_group{{}};")
        lines.append(f"  {label}_group.P = {most};")
        for name in (f"force_group {label} 128 points", f"force_group_gradient {label}"):
            shared = f"int(Group<{element}, 4>::shared_bytes({label}_group))"
            lines.append(f'  printf("{name}=%d\\n", {shared});')
    lines.append("}")
    probe.write_text("\n".join(lines))
    run(
        build.nvcc(),
        "-std=c++17",
        f"-I{build.HERE}",
        "-arch=sm_90a",
        str(probe),
        "-o",
        str(folder / "shared"),
    )
    printed = run(str(folder / "shared")).strip().splitlines()
    return {label: int(value) for label, _, value in (line.partition("=") for line in printed)}


def inspect(source: Path, arch: str, folder: Path) -> list[dict]:
    """Returns one row per kernel of this source."""
    cubin = folder / f"{source.stem}.{arch}.cubin"
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    log = run(
        build.nvcc(),
        *build.NVCC_FLAGS[:2],
        "-Xptxas=-v",
        target,
        "-cubin",
        str(source),
        "-o",
        str(cubin),
    )
    code = {}
    for part in run(cuobjdump(), "-sass", str(cubin)).split("Function : ")[1:]:
        symbol, _, body = part.partition("\n")
        code[symbol.strip()] = {name: len(re.findall(rf"\b{name}\b", body)) for name in COUNTED}
    rows = []
    for part in log.split("Compiling entry function '")[1:]:
        symbol = part[: part.index("'")]
        matrix = code[symbol]
        rows.append(
            {
                "kernel": readable(symbol),
                "registers": int(re.search(r"Used (\d+) registers", part)[1]),
                "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", part))),
                "matrix": {name: count for name, count in matrix.items() if count},
                "serialised": bool(SERIALISED.search(log)),
                "registers_kept": bool(IGNORED.search(log)),
            }
        )
    return sorted(rows, key=lambda row: row["kernel"])


def objections(row: dict, arch: str) -> list[str]:
    """Returns the reasons why a kernel does not pass."""
    found = []
    if row["spilled_bytes"]:
        found.append(f"spills {row['spilled_bytes']} bytes")
    if row["serialised"]:
        found.append("warpgroup products serialised")
    if row.get("registers_kept"):
        found.append("warpgroups do not exchange registers")
    name, _, rest = row["kernel"].partition(" ")
    if name in MULTIPLYING:
        policy = rest.split()[0].replace("x3", "")
        wanted = filter(None, (MATRIX[policy], COPIES.get(policy)))
        found += [f"no {name}" for name in wanted if name not in row["matrix"]]
    if row["shared_bytes"] > SHARED_KIB[arch] * 1024:
        found.append(f"{row['shared_bytes']} bytes of shared memory, {SHARED_KIB[arch]} KiB there")
    return found


def write_record(result: dict[str, dict | None]) -> None:
    """Keeps what was compiled and has no objections."""
    passed = {
        place: entry
        for place, entry in sorted(result.items())
        if entry
        and not any(objections(row, place.rpartition("sm_")[2]) for row in entry["kernels"])
    }
    RECORD.write_text(json.dumps(passed, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gates.cuda", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--all", action="store_true", help="compile also what the record holds")
    parser.add_argument(
        "--jobs", type=int, default=2, help="compilations at a time (default %(default)s)"
    )
    options = parser.parse_args()
    if build.nvcc() is None or cuobjdump() is None:
        print("needs nvcc and cuobjdump (CUDA's or that of Triton's wheel)", file=sys.stderr)
        return 2
    release = re.search(r"V([\d.]+)", run(build.nvcc(), "--version"))[1]
    record = {} if options.all or not RECORD.exists() else json.loads(RECORD.read_text())
    todo, result = [], {}
    for source in build.sources():
        for arch in build.architectures(source):
            stamp = {"hash": build.source_hash(source), "nvcc": release}
            place = f"{source.stem} sm_{arch}"
            result[place] = record.get(place)
            if result[place] is None or not result[place].items() >= stamp.items():
                todo.append((place, source, arch, stamp))
    print(f"{len(result)} sources and targets, {len(todo)} to compile, nvcc {release}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = shared_bytes(folder) if todo else {}

        def work(item):
            place, source, arch, stamp = item
            rows = inspect(source, arch, folder)
            for row in rows:
                row["shared_bytes"] = next(
                    (v for k, v in shared.items() if row["kernel"].startswith(k + " ")), 0
                )
                row["shared_bytes"] = shared.get(row["kernel"], row["shared_bytes"])
            return place, stamp | {"kernels": rows}

        with ThreadPoolExecutor(options.jobs) as pool:
            for place, entry in pool.map(work, todo):
                result[place] = entry
                print(f"  {place}", flush=True)
                write_record(result)
    failed = 0
    print(f"{'target':7} {'kernel':38} {'regs':>4} {'KiB':>4} {'matrix':>10}  verdict")
    for place, entry in sorted(result.items()):
        arch = place.rpartition("sm_")[2]
        for row in entry["kernels"]:
            found = objections(row, arch)
            failed += bool(found)
            matrix = " ".join(f"{name} {count}" for name, count in row["matrix"].items())
            print(
                f"sm_{arch:4} {row['kernel']:38} {row['registers']:4} "
                f"{row['shared_bytes'] / 1024:4.0f} {matrix:>10}  {'; '.join(found) or 'ok'}"
            )
    write_record(result)
    print(f"{failed} failed" if failed else "all pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
