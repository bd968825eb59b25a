"""Lima as seen from the host; knows nothing of Jupyter."""
