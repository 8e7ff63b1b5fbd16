"""Triton kernels: parity in the interpreter, and machine code for the GPUs that we name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from restomod.kernels import cross_entropy, glu, norm, rope  # noqa: E402

HERE = Path(__file__).parent


def test_kernels_equal_their_references_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "parity.py"],
        cwd=HERE,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 80


BASE, LARGE, WIDE = (768, 12, 1152), (1024, 16, 2624), (1792, 28, 3840)
"""Hidden size, heads, intermediate size of ModernBERT-base and -large and of Ettin's 1 B."""
POINTER = {"bf16": "*bf16", "fp32": "*fp32"}


def kernels() -> list[Any]:
    """(kernel, types of its arguments, launch constants) of every kernel at real sizes."""
    cases = []
    for name, (hidden, heads, inner) in {"base": BASE, "large": LARGE, "1b": WIDE}.items():
        for kind, x in POINTER.items():

            def add(kernel: Any, types: str, launch: dict[str, Any], n=name, k=kind) -> None:
                cases.append(
                    pytest.param(kernel, types.split(), launch, id=f"{kernel.__name__}-{n}-{k}")
                )

            size, base = hidden // heads, name == "base"
            turned = [(size // 2, True), (size // 2, False), (size // 4, True), (size // 4, False)]
            for half, forward in turned if base else turned[:1]:
                launch = rope.rope_launch(heads, size, half, forward)
                add(rope.rope_kernel, f"{x} {x} *fp32 *fp32 i32 i32", launch)
            for activation in ("geglu", "swiglu") if base else ("geglu",):
                launch = glu.glu_launch(inner, activation)
                add(glu.glu_kernel, f"{x} {x}", launch)
                add(glu.glu_backward_kernel, f"{x} {x} {x}", launch)
            for has_bias, rms in ((False, False), (True, False), (False, True))[: 3 if base else 1]:
                add_norms(add, x, norm.norm_launch(hidden, has_bias, rms))
    for vocabulary in (50_368, 256_000):
        for kind, x in POINTER.items():
            cases.append(
                pytest.param(
                    cross_entropy.cross_entropy_kernel,
                    f"{x} *i64 *fp32 *fp32 *i1 fp32 i32 i32".split(),
                    cross_entropy.cross_entropy_launch(vocabulary),
                    id=f"cross_entropy_kernel-{vocabulary}-{kind}",
                )
            )
    return cases


def add_norms(add: Any, x: str, launch: dict[str, Any]) -> None:
    """Add both directions of the sum and norm, the branch being x."""
    types = f"*fp32 {x} *fp32 *fp32 *fp32 {x} *fp32 *fp32 fp32"
    add(norm.add_norm_kernel, types, launch)
    types = f"*fp32 *fp32 *fp32 *fp32 *fp32 {x} *fp32 {x} *fp32 i32 i32"
    add(norm.add_norm_backward_kernel, types, launch | {"COPY": x == "*bf16"})


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("kernel", "types", "launch"), kernels())
def test_kernels_compile_without_spills(
    kernel: Any, types: list[str], launch: dict[str, Any], capability: int
) -> None:
    figures = compiled(kernel, types, launch, capability)
    assert figures["spill"] == 0, figures
    # Two blocks at least find room in a multiprocessor's 65,536 registers and shared memory.
    assert figures["registers"] * 32 * launch["num_warps"] <= 32_768, figures
    assert figures["shared"] <= 48 * 1024, figures
    print(f"{kernel.__name__:<26} sm_{capability} {figures} {launch['num_warps']} warps")


def test_cross_entropy_reads_what_it_overwrites_before_all_warps_have_met_for_the_last_time():
    (case, *_) = (c for c in kernels() if c.values[0] is cross_entropy.cross_entropy_kernel)
    ptx = built(*case.values, capability=90).asm["ptx"]
    after = ptx.rpartition("bar.sync")[2]
    assert "ld.global" in after  # of each warp's own part
    assert "ld.global" not in after.partition("st.global")[0]


def built(kernel: Any, types: list[str], launch: dict[str, Any], capability: int) -> Any:
    """Compile a kernel as the launch would."""
    constants = {name: value for name, value in launch.items() if name != "num_warps"}
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    aligned = [["tt.divisibility", 16]]
    attributes = {
        (kernel.arg_names.index(name),): aligned
        for name, kind in signature.items()
        if kind.startswith("*")
    }
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch["num_warps"]},
    )


def compiled(
    kernel: Any, types: list[str], launch: dict[str, Any], capability: int
) -> dict[str, int]:
    """Compile a kernel as the launch would; return ptxas's registers, spills and shared memory."""
    made = built(kernel, types, launch, capability)
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(made.asm["ptx"])
        name = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
        words = [str(ptxas), "-v", f"--gpu-name={name}", str(source), "-o", f"{folder}/cubin"]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", text)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert registers, text
    assert spills, text
    return {
        "registers": int(registers[1]),
        "spill": int(spills[1]) + int(spills[2]),
        "shared": made.metadata.shared,
    }
