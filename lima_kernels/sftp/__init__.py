"""The host's SFTP server for sshfs in a guest: one process, one directory, nothing outside of it.

It imports what the interpreter has at hand and no more: it starts in little more than the interpreter's own time.
"""
