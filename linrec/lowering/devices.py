"""linrec's own implementations of its ops on GPUs: Triton kernels, and those of flash-linear-attention. Both are
optional, and what is not installed takes no call."""

from __future__ import annotations

from linrec.lowering.implementation import implementation
from linrec.ops import fla, triton_readout, triton_scan

implementation("linear_scan", "triton", requires=triton_scan.takes, complete=True)(triton_scan.linear_scan)
implementation("scan_readout", "triton", requires=triton_readout.takes, complete=True)(triton_readout.scan_readout)

for _op, _fits, _function in (
    ("linear_attention", fla.linear_attention_fits, fla.linear_attention),
    ("delta_rule", fla.delta_rule_fits, fla.delta_rule),
    ("dplr_attention", fla.dplr_attention_fits, fla.dplr_attention),
):
    implementation(_op, "flash-linear-attention", requires=_fits, reads_values=True)(_function)
