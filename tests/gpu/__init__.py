"""What runs on a GPU. Without one, Triton's kernels are interpreted, on tensors as small as that needs."""
