"""What needs an NVIDIA GPU: `pytest tests/gpu`. Elsewhere each module is skipped and says so."""
