"""Benchmarks of fused_rnn against its peers: ``python -m benchmarks --help``."""
