"""The choice of a backend, and every backend against the reference."""
