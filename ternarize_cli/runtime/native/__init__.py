"""The compiled library that runs packed models on CPUs, and its interface to Python, which needs NumPy alone.

src/             the C++; CMakeLists.txt builds it
interface.py     the C structures and functions, as ctypes declares them
library.py       calls these functions with arrays
processors.py    how many threads a call may have
"""
