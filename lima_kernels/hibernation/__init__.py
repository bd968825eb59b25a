"""A VM that sleeps: its memory is in a file, and its kernels live on when it wakes."""
