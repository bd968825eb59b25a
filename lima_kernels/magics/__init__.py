"""What a notebook's cell sees of VMs, alike on the host and in a guest: standard library and IPython only."""
