"""Timers, facts about the machine, processes for calls, and figures; benchmarks, indexes and evaluations share them."""
