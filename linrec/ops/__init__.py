"""The parallel algorithms: functions of tensors, usable alone. Each has its plain loop in `linrec.ops.reference`."""

from .chunked import linear_attention
from .convolution import causal_convolution
from .delta import delta_rule, dplr_attention
from .lti import lti_fft, lti_last, lti_readout, lti_scan
from .powers import impulse_response, impulse_response_diagonal, matrix_powers
from .readout import scan_readout
from .scan import linear_scan, matrix_scan
from .semiring import logsumexp_scan, max_plus_scan, max_times_scan

__all__ = [
    "causal_convolution",
    "delta_rule",
    "dplr_attention",
    "impulse_response",
    "impulse_response_diagonal",
    "linear_attention",
    "linear_scan",
    "logsumexp_scan",
    "lti_fft",
    "lti_last",
    "lti_readout",
    "lti_scan",
    "matrix_powers",
    "matrix_scan",
    "max_plus_scan",
    "max_times_scan",
    "scan_readout",
]
