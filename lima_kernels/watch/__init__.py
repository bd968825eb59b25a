"""What all VMs of this user do, told to whoever watches; and verbs that go on while nobody waits for them."""
