"""The benchmarks: ``python -m tests.bench``. Each figure stands beside a counterpart that the same run measures."""
