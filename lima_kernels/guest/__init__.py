"""One running VM, over SSH."""
