"""Reproducible environments: a lock is made, a guest is made equal to it, and a notebook is run and proved there."""
