"""Reads and writes files: atomic outputs, work in progress, caches, weights, and bounds on sizes of inputs."""
