"""The commands: click in front, the control socket and p2pfl's public names behind."""
