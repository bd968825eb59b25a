"""The command line: one module for each group of commands, each with ``add_commands(subparsers)``."""
