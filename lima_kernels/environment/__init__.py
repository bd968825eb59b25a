"""What a VM is."""
