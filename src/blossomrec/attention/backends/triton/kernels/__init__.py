"""Kernels written in Triton; `operators` launches them."""
