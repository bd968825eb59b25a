"""`make bench`: kernels of ours beside all others, in one run. See docs/benchmarks.md."""
