"""Makes the guest what a lock says: its Debian packages, and a virtual environment; standard library, and uv."""
