"""Jupyter kernels in Lima VMs."""

__version__ = "0.1.0"
