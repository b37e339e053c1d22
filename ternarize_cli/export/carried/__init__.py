"""What a model's wheel carries beside the runtime: the model as a module, its command, and the check of its vectors.

These modules are copied into the wheel with the runtime (`vendoring`), so they import nothing beyond that.
"""
