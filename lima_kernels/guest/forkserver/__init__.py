"""The program that runs IN the guest: it has ipykernel imported and forks kernels.

Standard library and what ipykernel brings along; Python 3.10 and later, as guests have it. The host pushes the package
as it is; ``resumable`` runs on both sides.
"""
