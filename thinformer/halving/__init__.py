"""The algorithm as data and as scalar steps, which both bodies share; no loop over points is here.

- `schedule`: which buckets are halved in which round.
- `draws`: the random numbers of a schedule.
- `steps`: the scalar steps of kernel halving.
- `problem`: a batch of arrays as a list of independent problems.
- `plan`: the schedule of a compression, and the draws as one row a problem.
"""
