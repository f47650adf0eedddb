"""Kernels built from source, as far as nothing is touched: patches, edits, configurations, keys, and what make says."""
