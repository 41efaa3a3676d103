"""What only a graphics card can show, in one command: ``python -m benchmarks.gpu``."""
