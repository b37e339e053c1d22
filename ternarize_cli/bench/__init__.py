"""`bench` and `doctor`: what a packed model costs on this machine, and what this machine can run."""
