"""The benchmark suite: what it measures and says, not how fast anything is."""
