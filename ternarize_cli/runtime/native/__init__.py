"""The compiled library that runs packed models on CPUs, and its interface to Python, which needs NumPy alone.

src/             the C++; CMakeLists.txt builds it
interface.py     the C structures and functions, as ctypes declares them
library.py       calls these functions with arrays
weights.py       weights of a model in the layout that the library reads
arrays.py        arrays as the library takes them
threads.py       how many threads a call may have
processors.py    how many processors there are for this process
"""
