"""The code generator of the CPU: a step graph becomes a compiled loop over time, forward and backward.

A step is translated into nodes of a small language (`translate`, with the rules of `pointwise`, `arrangement` and
`contraction`), while `axes` and `lanes` find out along which dimensions the steps are independent; `differentiate`
writes the vector-Jacobian product in the same language; `schedule` and `writer` turn one step of it into loops,
`forward` and `backward` put these into loops over time and lanes, and `toolchain` has LLVM compile them. For inputs of
given strides `strides` and `launch` prepare a `call`, which is then only filled with addresses.
"""

from __future__ import annotations

from linrec.codegen.scan import CompiledScan, supported, torch_forms

__all__ = ["CompiledScan", "supported", "torch_forms"]
