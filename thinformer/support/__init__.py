"""What every layer uses; nothing here knows the algorithm.

- `checks`: errors about arguments: each names the argument, what it got and what it takes.
- `threads`: threads that kernels run on, made in each process.
- `progress`: stages and fractions, as a bar or as lines.
- `compiling`: word of kernels that are compiled.
- `machine`: the memory that a call takes, and the machine that figures belong to.
"""
