"""Benchmarks: what mtlstunnel and its peers cost in server CPU time and memory, measured alike."""
