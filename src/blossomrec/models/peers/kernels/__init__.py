"""Kernels written in Triton; the modules beside this folder launch them."""
