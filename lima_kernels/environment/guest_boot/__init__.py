"""What our guest image has in place of cloud-init; it runs in the guest, with its standard library and PyYAML."""
