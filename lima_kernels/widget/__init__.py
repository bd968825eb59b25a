"""Panels of VMs in a notebook, on the host and in a guest: standard library, anywidget, IPython and magics only."""
