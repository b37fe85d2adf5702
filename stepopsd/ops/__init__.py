"""Pure tensor functions: the fused op and its relatives. Imports nothing of ours outside this folder."""
