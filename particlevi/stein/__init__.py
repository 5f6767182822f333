"""Kernels, bandwidths and discrepancies."""
