"""`bench` measures the cost of a packed model on this machine; `doctor` shows what the machine can run."""
