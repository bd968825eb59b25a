"""The Jupyter Server extension: VMs over REST, and what changes over a WebSocket, for JupyterLab's sidebar."""
