"""The benchmark: the op's kernels beside what people use instead, and beside what the memory allows."""
