"""What can be done with VMs, as `%lima` and a guest's kernel ask for it: each verb in the I/O thread."""
