"""Files of ours and of others: whole outputs, work in progress, caches, and bounds on what is read."""
