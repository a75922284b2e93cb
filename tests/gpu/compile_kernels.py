"""Compile the Triton kernels for a GPU that need not be there: `python -m tests.gpu.compile_kernels 80 90`; `--quick` only
reads the programs.

Triton's interpreter takes programs that its compiler refuses. Prints each kernel, what it is compiled for and its
registers and spilled bytes, if the package brings the tool that tells them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from linrec.ops import triton_kernels, triton_launch, triton_readout, triton_readout_kernels, triton_scan

_TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Recorder:
    """In the place of a module of kernels: notes launches and runs nothing."""

    def __init__(self, module: Any, launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
        self.module, self.launches = module, launches

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.module, name)

        class Launcher:
            def __getitem__(inner, grid: Any) -> Any:
                return lambda *args, **options: self.launches.append((kernel, args, options))

        return Launcher()


def launches(dtype: torch.dtype, lengths: tuple[int, ...]) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """What a training step of both ops launches."""
    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    triton_launch.DEVICES = ("cpu",)
    triton_launch.kernels = lambda: Recorder(triton_kernels, found)  # type: ignore[assignment]
    triton_launch.readout_kernels = lambda: Recorder(triton_readout_kernels, found)
    triton_launch.programs_wanted = lambda device: 64  # type: ignore[assignment]
    for length in lengths:
        scanned = [torch.ones(s, dtype=dtype).requires_grad_() for s in ((2, length, 128), (2, length, 128), (2, 128))]
        triton_scan.linear_scan(*scanned).sum().abs().backward()
        shapes = (2, length, 128, 16), (2, length, 128, 16), (2, length, 1, 16), (2, 128, 16)
        y, last = triton_readout.scan_readout(*(torch.ones(s, dtype=dtype).requires_grad_() for s in shapes))
        (y.sum() + last.sum()).abs().backward()
    return found


def source(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A launch's kernel with the types of its arguments."""
    signature: dict[str, str] = {}
    options = {k: v for k, v in options.items() if k != "num_warps"}
    constants = {**options}
    for name, value in zip(kernel.arg_names, args, strict=False):
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
    signature |= dict.fromkeys(options, "constexpr")
    return ASTSource(kernel, signature, constants)


def checked(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: int) -> None:
    """Let the first stage of the compiler read a launch's kernel: it knows all there is to say about the program."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    chosen = backend.parse_options({})
    functions = backend.get_codegen_implementation(chosen)
    module = source(kernel, args, options).make_ir(target, chosen, functions, backend.get_module_map(), context)
    assert module.verify()


def compiled(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: int) -> Any:
    """A launch's kernel for a compute capability, as 80."""
    chosen = {"num_warps": options["num_warps"]}
    return triton.compile(source(kernel, args, options), target=GPUTarget("cuda", capability, 32), options=chosen)


def resources(code: bytes) -> str:
    """Registers and bytes of the stack, which is where registers are spilled to."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
    return " ".join(re.findall(r"(?:REG|STACK):\d+", text))


def main(capabilities: list[int], dtypes: list[torch.dtype], lengths: tuple[int, ...], quick: bool) -> None:
    """Compile everything; whatever the compiler says is raised."""
    for dtype in dtypes:
        seen = set()
        for kernel, args, options in launches(dtype, lengths):
            flags = {k: v for k, v in options.items() if isinstance(v, (bool, int))}
            kind = (kernel.__module__, kernel.__name__, tuple(sorted(flags.items())))
            if kind in seen:
                continue
            seen.add(kind)
            for capability in capabilities:
                place = f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"
                if quick:
                    checked(kernel, args, options, capability)
                    print(f"{place} {dtype} is a program")
                    continue
                found = compiled(kernel, args, options, capability)
                wide = "float64" if options["ACC"] == tl.float64 else "float32"
                print(f"{place} {dtype} in {wide} sm_{capability} {flags}: {resources(found.asm['cubin'])}")


if __name__ == "__main__":
    every = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128]
    quick = sys.argv[1:] == ["--quick"]
    capabilities = [80] if quick else [int(x) for x in sys.argv[1:]] or [80, 90]
    some = [torch.float32, torch.complex64]
    long = 2 * triton_launch.SHORTEST
    main(capabilities, some if quick else every, (long,) if quick else (long, 1), quick)
