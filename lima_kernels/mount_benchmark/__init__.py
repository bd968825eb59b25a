"""What each mount costs, measured on the user's machine: the settings, the run, and what is shown of it."""
